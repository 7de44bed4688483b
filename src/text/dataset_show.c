/* Rows as a person reads them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/dataset.h"
#include "text/tokenizer.h"

#define TRAINED_BEGIN "\xe3\x80\x90" /* U+3010 */
#define TRAINED_END "\xe3\x80\x91"   /* U+3011 */

struct shown {
    char *text;
    size_t bytes, capacity;
};

static nb_status append(struct shown *shown, const char *text, size_t bytes)
{
    if (shown->bytes + bytes + 1 > shown->capacity) {
        size_t capacity = (shown->bytes + bytes + 1) * 2;
        char *larger = realloc(shown->text, capacity);
        if (!larger)
            return nb_fail(NB_MEMORY, "no memory to show a row");
        shown->text = larger;
        shown->capacity = capacity;
    }
    memcpy(shown->text + shown->bytes, text, bytes);
    shown->bytes += bytes;
    shown->text[shown->bytes] = 0;
    return NB_OK;
}

static nb_status append_token(struct shown *shown, const struct nb_tokenizer *tokenizer, int32_t id,
                              struct nb_stream_decoder *decoder)
{
    char buffer[NB_STREAM_DECODER_BYTES(256)];
    if (!tokenizer) {
        int written = snprintf(buffer, sizeof buffer, " %d", id);
        return append(shown, buffer, (size_t)written);
    }
    size_t bytes;
    const char *data = nb_tokenizer_decode_token(tokenizer, id, &bytes);
    for (size_t at = 0; at < bytes; at += 256) {
        size_t part = bytes - at < 256 ? bytes - at : 256;
        NB_TRY(append(shown, buffer, nb_stream_decoder_put(decoder, data + at, part, buffer)));
    }
    return NB_OK;
}

/* Ends a stretch: what is left of a character, and the closing mark. */
static nb_status end_stretch(struct shown *shown, struct nb_stream_decoder *decoder, bool trained)
{
    char buffer[NB_STREAM_DECODER_BYTES(0)];
    NB_TRY(append(shown, buffer, nb_stream_decoder_finish(decoder, buffer)));
    return trained ? append(shown, TRAINED_END, strlen(TRAINED_END)) : NB_OK;
}

nb_status nb_dataset_show_row(
    const struct nb_dataset *dataset, const struct nb_tokenizer *tokenizer, uint32_t row, size_t limit, char **text)
{
    struct shown shown = {0};
    struct nb_stream_decoder decoder = {0};
    uint32_t i = 0, count = dataset->rows[row].count;
    const nb_row_token *tokens = count > 0 ? dataset->tokens + dataset->rows[row].first : NULL;
    bool trained = false;
    nb_status status = append(&shown, "", 0);
    for (; status == NB_OK && i < count && shown.bytes <= limit; i++) {
        if (nb_row_token_trained(tokens[i]) != trained) {
            status = end_stretch(&shown, &decoder, trained);
            trained = !trained;
            if (status == NB_OK && trained)
                status = append(&shown, TRAINED_BEGIN, strlen(TRAINED_BEGIN));
        }
        if (status == NB_OK)
            status = append_token(&shown, tokenizer, nb_row_token_id(tokens[i]), &decoder);
    }
    if (status == NB_OK)
        status = end_stretch(&shown, &decoder, trained);
    if (status == NB_OK && (i < count || shown.bytes > limit)) {
        size_t cut = shown.bytes < limit ? shown.bytes : limit;
        while (cut > 0 && ((unsigned char)shown.text[cut] & 0xc0) == 0x80)
            cut--;
        shown.bytes = cut;
        status = append(&shown, "...", 3);
    }
    if (status != NB_OK) {
        free(shown.text);
        shown.text = NULL;
    }
    *text = shown.text;
    return status;
}
