/* UTF-8, as the Unicode standard 15.0, table 3-7, has it: no surrogates, no overlong forms, nothing above U+10FFFF. */
#ifndef NB_TEXT_UTF8_H
#define NB_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the sequence that `lead` begins: 1 to 4, or 0 if none does. */
static inline int nb_utf8_sequence_bytes(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
}

/* Whether `byte` may stand at place 1, 2 or 3 of the sequence that `lead` begins. */
static inline bool nb_utf8_continues(unsigned char lead, int place, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xbf;
    if (place == 1) {
        low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    }
    return byte >= low && byte <= high;
}

/* The code point of a valid sequence, and its length in bytes. */
static inline uint32_t nb_utf8_decode(const char *text, size_t *bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *bytes = 1;
        return s[0];
    }
    if (s[0] < 0xe0) {
        *bytes = 2;
        return (uint32_t)(s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
    }
    if (s[0] < 0xf0) {
        *bytes = 3;
        return (uint32_t)(s[0] & 0x0fu) << 12 | (uint32_t)(s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
    }
    *bytes = 4;
    return (uint32_t)(s[0] & 0x07u) << 18 | (uint32_t)(s[1] & 0x3fu) << 12 | (uint32_t)(s[2] & 0x3fu) << 6 |
           (s[3] & 0x3fu);
}

/* Unicode's White_Space property (PropList.txt). */
static inline bool nb_utf8_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Where the text stops being UTF-8: an offset, or `bytes` if all of it is. */
size_t nb_utf8_valid_prefix(const char *text, size_t bytes);

#endif
