#include "text/utf8.h"

#include <string.h>

#include "text/tokenizer.h"

size_t nb_utf8_valid_prefix(const char *text, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < bytes) {
        uint64_t eight;
        if (bytes - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if (!(eight & 0x8080808080808080u)) {
                i += sizeof eight;
                continue;
            }
        }
        int length = nb_utf8_sequence_bytes(s[i]);
        if (length == 0 || (size_t)length > bytes - i)
            return i;
        for (int place = 1; place < length; place++)
            if (!nb_utf8_continues(s[i], place, s[i + (size_t)place]))
                return i;
        i += (size_t)length;
    }
    return i;
}

static size_t put_replacement(char *out)
{
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}

size_t nb_stream_decoder_put(struct nb_stream_decoder *decoder, const char *data, size_t bytes, char *out)
{
    size_t written = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)data[i];
        unsigned char *pending = decoder->pending;
        if (decoder->pending_bytes > 0 && !nb_utf8_continues(pending[0], decoder->pending_bytes, byte)) {
            written += put_replacement(out + written);
            decoder->pending_bytes = 0;
        }
        if (decoder->pending_bytes == 0 && nb_utf8_sequence_bytes(byte) == 0) {
            written += put_replacement(out + written);
            continue;
        }
        pending[decoder->pending_bytes++] = byte;
        if (decoder->pending_bytes == nb_utf8_sequence_bytes(pending[0])) {
            memcpy(out + written, pending, (size_t)decoder->pending_bytes);
            written += (size_t)decoder->pending_bytes;
            decoder->pending_bytes = 0;
        }
    }
    return written;
}

size_t nb_stream_decoder_finish(struct nb_stream_decoder *decoder, char *out)
{
    size_t written = decoder->pending_bytes > 0 ? put_replacement(out) : 0;
    decoder->pending_bytes = 0;
    return written;
}
