/* Byte-level BPE: text to token ids with their places in the text, and ids back to bytes.
 *
 * Read from a Hugging Face folder (tokenizer.json, with what tokenizer_config.json, special_tokens_map.json and
 * generation_config.json add) or from a GGUF's metadata. Pre-tokenizers: ByteLevel (GPT-2's expression), Digits, Split
 * with any expression that PCRE2 compiles (Llama 3, Qwen 2). Normalizer: NFC or none. SentencePiece and Unigram models
 * are refused by name.
 *
 * A tokenizer does not change once it is open: any number of threads may encode with it, each with its own
 * nb_token_list. */
#ifndef NB_TEXT_TOKENIZER_H
#define NB_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nb_gguf;
struct nb_tokenizer;
struct nb_encode_work;

/* One token and the bytes [begin, end) of the text it came from, which may begin or end inside a character. Where
 * normalizing changed the text, all bytes of the changed stretch. */
struct nb_token {
    int32_t id;
    uint32_t begin, end;
};

/* Tokens, and the work memory (with a cache of words) of the encoder that fills it. Start with {0}; use with one
 * tokenizer, and free with nb_token_list_free before a tokenizer is destroyed whose memory another might take. */
struct nb_token_list {
    struct nb_token *tokens;
    size_t count, capacity;
    struct nb_encode_work *work;
};

/* Opens the tokenizer of a model: a Hugging Face folder, a tokenizer.json, or a .gguf file.
 * Errors: NB_IO (nothing there: the message says what a model needs), NB_FORMAT (damaged), NB_UNSUPPORTED (another
 * kind of tokenizer, pre-tokenizer or normalizer, by name), NB_MEMORY. On an error *tokenizer is NULL. */
nb_status nb_tokenizer_open(const char *model_path, struct nb_tokenizer **tokenizer);

/* The same from an open GGUF, whose strings are copied. `path` names it in messages. */
nb_status nb_tokenizer_open_gguf(const struct nb_gguf *gguf, const char *path, struct nb_tokenizer **tokenizer);

/* The same from tokenizer.json's bytes alone; tokenizer_config.json's too unless `config` is NULL. `path` names them
 * in messages. */
nb_status nb_tokenizer_open_json(const char *json, size_t bytes, const char *config, size_t config_bytes,
    const char *path, struct nb_tokenizer **tokenizer);

/* Takes NULL; nulls the handle. */
void nb_tokenizer_destroy(struct nb_tokenizer **tokenizer);

/* Tokens of a text, replacing what `list` held. Added tokens (special ones among them) written out in the text are
 * recognized; none is added. `text` need not end in a zero and may hold zeros.
 * Errors: NB_FORMAT (not UTF-8: the message gives the byte offset), NB_USAGE (4 GiB or more), NB_UNSUPPORTED (the
 * expression hits PCRE2's limits on this text), NB_MEMORY. */
nb_status nb_tokenizer_encode(
    const struct nb_tokenizer *tokenizer, const char *text, size_t bytes, struct nb_token_list *list);

/* Pair merges and queue operations done by all encodes into `list` so far: what bounds the work on one long word. */
uint64_t nb_token_list_operations(const struct nb_token_list *list);

/* Frees the list's memory and clears it. */
void nb_token_list_free(struct nb_token_list *list);

/* The raw bytes a token stands for, not always whole characters; *bytes is their number. The tokenizer's own memory.
 * NULL and 0 bytes for an id outside the vocabulary or one that no token has. */
const char *nb_tokenizer_decode_token(const struct nb_tokenizer *tokenizer, int32_t id, size_t *bytes);

/* The id whose raw bytes (an added token's text) these are, or -1. */
int32_t nb_tokenizer_find(const struct nb_tokenizer *tokenizer, const char *text, size_t bytes);

/* Largest id plus one. A model's embedding may have more rows. */
int32_t nb_tokenizer_vocabulary(const struct nb_tokenizer *tokenizer);

/* Special ids; -1 where the files name none. */
int32_t nb_tokenizer_bos(const struct nb_tokenizer *tokenizer);
int32_t nb_tokenizer_eos(const struct nb_tokenizer *tokenizer);
int32_t nb_tokenizer_pad(const struct nb_tokenizer *tokenizer);
int32_t nb_tokenizer_unk(const struct nb_tokenizer *tokenizer);

/* Whether a plain text begins with bos (a chat template writes its own). */
bool nb_tokenizer_adds_bos(const struct nb_tokenizer *tokenizer);

/* Whether the token is marked special: not shown in a decoded answer. */
bool nb_tokenizer_is_special(const struct nb_tokenizer *tokenizer, int32_t id);

/* Whether generation ends at this id: eos, the ids in generation_config.json, a GGUF's end of turn or of message. */
bool nb_tokenizer_is_stop(const struct nb_tokenizer *tokenizer, int32_t id);

/* The checkpoint's chat template (Jinja text), or NULL. The tokenizer's own memory. */
const char *nb_tokenizer_chat_template(const struct nb_tokenizer *tokenizer);

/* Turns tokens into text as they come. Output is always whole, valid UTF-8: an unfinished character waits for the next
 * token, and bytes that no character can have become U+FFFD (the longest-valid-prefix rule of the Unicode standard,
 * chapter 3.9, as in decoders elsewhere). The concatenated output does not depend on how the tokens were divided.
 * Start with {0}. */
struct nb_stream_decoder {
    unsigned char pending[4];
    int pending_bytes;
};

/* The most output bytes for `bytes` input bytes. */
#define NB_STREAM_DECODER_BYTES(bytes) (3 * ((size_t)(bytes) + 4))

/* Decodes the bytes of one token (or any bytes) into out, which holds NB_STREAM_DECODER_BYTES(bytes); returns the
 * number written. */
size_t nb_stream_decoder_put(struct nb_stream_decoder *decoder, const char *data, size_t bytes, char *out);

/* What is left over, as U+FFFD, at the end: at most NB_STREAM_DECODER_BYTES(0). Clears the decoder. */
size_t nb_stream_decoder_finish(struct nb_stream_decoder *decoder, char *out);

/* The text of ids, zero-terminated; the caller frees *text. Ids outside the vocabulary are an error (NB_USAGE). */
nb_status nb_tokenizer_decode(const struct nb_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                              char **text, size_t *bytes);

#endif
