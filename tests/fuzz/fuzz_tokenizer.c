/* A tokenizer.json from anywhere, then, each behind a zero byte, a tokenizer_config.json and a text: opened, encoded,
 * decoded. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Tokens ascend and stay within the text; ids are in the vocabulary; what is decoded is text again. */
static void encode_and_decode(const struct nb_tokenizer *tokenizer, const char *text, size_t bytes)
{
    struct nb_token_list list = {0};
    if (nb_tokenizer_encode(tokenizer, text, bytes, &list) == NB_OK) {
        int32_t *ids = malloc((list.count + 1) * sizeof *ids);
        uint32_t at = 0;
        char *decoded;
        size_t decoded_bytes;
        if (!ids)
            abort();
        for (size_t i = 0; i < list.count; i++) {
            const struct nb_token *token = &list.tokens[i];
            if (token->id < 0 || token->id >= nb_tokenizer_vocabulary(tokenizer) || token->begin < at ||
                token->end < token->begin || token->end > bytes)
                abort();
            at = token->begin;
            ids[i] = token->id;
        }
        if (nb_tokenizer_decode(tokenizer, ids, list.count, false, &decoded, &decoded_bytes) != NB_OK)
            abort();
        struct nb_token_list again = {0};
        if (nb_tokenizer_encode(tokenizer, decoded, decoded_bytes, &again) == NB_FORMAT)
            abort(); /* decoded text is valid UTF-8 */
        nb_token_list_free(&again);
        free(decoded);
        free(ids);
    }
    nb_token_list_free(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char usual[] = "Hello, world! 12 <s>a\n\n  e\xcc\x81 \xf0\x9f\x91\xa9\xe2\x80\x8d "
                                "abcabcabcabcabcabcabcabcabcabcabcabc\xe1\x84\x80\xe1\x85\xa1";
    const char *json = (const char *)data, *end = json + bytes, *config = memchr(json, 0, bytes), *text = NULL;
    struct nb_tokenizer *tokenizer;
    size_t json_bytes = config ? (size_t)(config - json) : bytes;
    if (config) {
        config++;
        text = memchr(config, 0, (size_t)(end - config));
    }
    size_t config_bytes = !config ? 0 : text ? (size_t)(text - config) : (size_t)(end - config);
    if (nb_tokenizer_open_json(json, json_bytes, config_bytes ? config : NULL, config_bytes, "input", &tokenizer) !=
        NB_OK)
        return 0;
    encode_and_decode(tokenizer, usual, sizeof usual - 1);
    if (text)
        encode_and_decode(tokenizer, text + 1, (size_t)(end - text - 1));
    nb_tokenizer_destroy(&tokenizer);
    return 0;
}
