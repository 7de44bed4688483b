#include "text/normalize.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

/* Ordering a run of combining marks takes quadratic time in utf8proc. No real text has 30 in a row (UAX 15, section
 * 12.1). */
enum { MARKS_MAX = 1024 };

void nb_normalized_free(struct nb_normalized *normalized)
{
    free(normalized->buffer);
    free(normalized->begin);
    free(normalized->end);
    *normalized = (struct nb_normalized){0};
}

/* Everything below U+0300 is in form C whatever stands beside it; 0xcc is the first lead byte from there on. */
static bool needs_a_look(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] >= 0xcc)
            return true;
    return false;
}

/* Whether nothing before this character can combine or change places with it or with what it decomposes to. Says no to
 * some characters where yes were right, which only makes a stretch longer. */
static bool starts_stretch(uint32_t c)
{
    if (c < 0x300)
        return true;
    utf8proc_int32_t parts[8];
    int boundary_class = 0;
    utf8proc_ssize_t count =
        utf8proc_decompose_char((utf8proc_int32_t)c, parts, 8, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary_class);
    if (count < 1 || count > 8)
        return false;
    utf8proc_int32_t first = parts[0];
    /* These combine though they are letters. */
    if ((first >= 0x1160 && first <= 0x11ff) || (first >= 0x16d63 && first <= 0x16d6a))
        return false;
    utf8proc_category_t category = utf8proc_category(first);
    return utf8proc_get_property(first)->combining_class == 0 && category != UTF8PROC_CATEGORY_MN &&
           category != UTF8PROC_CATEGORY_MC && category != UTF8PROC_CATEGORY_ME;
}

/* utf8proc's NFC of a stretch; the caller frees *out. */
static nb_status compose(const char *text, size_t bytes, char **out, size_t *out_bytes)
{
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t length = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &composed,
                                           UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0)
        return nb_fail(length == UTF8PROC_ERROR_NOMEM ? NB_MEMORY : NB_FORMAT, "normalizing a text: %s",
                       utf8proc_errmsg(length));
    *out = (char *)composed;
    *out_bytes = (size_t)length;
    return NB_OK;
}

static nb_status put(
    struct nb_normalized *normalized, const char *text, size_t bytes, bool same, size_t begin, size_t end)
{
    if (normalized->bytes + bytes > normalized->capacity) {
        size_t capacity = (normalized->bytes + bytes) * 2;
        char *buffer = realloc(normalized->buffer, capacity);
        if (buffer)
            normalized->buffer = buffer;
        uint32_t *begins = realloc(normalized->begin, capacity * sizeof *begins);
        if (begins)
            normalized->begin = begins;
        uint32_t *ends = realloc(normalized->end, capacity * sizeof *ends);
        if (ends)
            normalized->end = ends;
        if (!buffer || !begins || !ends)
            return nb_fail(NB_MEMORY, "no memory to normalize a text of %zu bytes", end);
        normalized->capacity = capacity;
    }
    for (size_t i = 0; i < bytes; i++) {
        normalized->buffer[normalized->bytes] = text[i];
        normalized->begin[normalized->bytes] = (uint32_t)(same ? begin + i : begin);
        normalized->end[normalized->bytes++] = (uint32_t)(same ? begin + i + 1 : end);
    }
    return NB_OK;
}

static nb_status put_stretch(struct nb_normalized *normalized, const char *text, size_t begin, size_t end)
{
    char *composed = NULL;
    size_t bytes = 0;
    NB_TRY(compose(text + begin, end - begin, &composed, &bytes));
    bool same = bytes == end - begin && memcmp(composed, text + begin, bytes) == 0;
    nb_status status = put(normalized, composed, bytes, same, begin, end);
    free(composed);
    return status;
}

/* Errors if combining marks follow each other without end. */
static nb_status check_marks(const char *text, size_t bytes)
{
    size_t marks = 0, length;
    for (size_t i = 0; i < bytes; i += length) {
        uint32_t c = nb_utf8_decode(text + i, &length);
        marks = starts_stretch(c) ? 0 : marks + 1;
        /* Conjoining letters count too: a sequence of thousands of them alone has no meaning either. */
        if (marks > MARKS_MAX)
            return nb_fail(
                NB_UNSUPPORTED, "more than %d combining marks in a row at byte %zu of the text", MARKS_MAX, i);
    }
    return NB_OK;
}

nb_status nb_normalize_nfc(const char *text, size_t bytes, struct nb_normalized *normalized)
{
    normalized->text = text;
    normalized->bytes = bytes;
    normalized->changed = false;
    if (!needs_a_look(text, bytes))
        return NB_OK;
    NB_TRY(check_marks(text, bytes));
    char *whole = NULL;
    size_t whole_bytes = 0;
    NB_TRY(compose(text, bytes, &whole, &whole_bytes));
    bool same = whole_bytes == bytes && memcmp(whole, text, bytes) == 0;
    free(whole);
    if (same)
        return NB_OK;
    normalized->changed = true;
    normalized->bytes = 0;
    for (size_t begin = 0; begin < bytes;) {
        size_t length, end;
        (void)nb_utf8_decode(text + begin, &length);
        for (end = begin + length; end < bytes && !starts_stretch(nb_utf8_decode(text + end, &length)); end += length)
            ;
        NB_TRY(put_stretch(normalized, text, begin, end));
        begin = end;
    }
    normalized->text = normalized->buffer;
    return NB_OK;
}
