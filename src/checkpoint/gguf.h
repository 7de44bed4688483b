/* GGUF files, versions 2 and 3, little endian: metadata, and tensors in blocks of 1, 32 or 256 weights.
 * Source: ggml-org/ggml docs/gguf.md; block layouts: ggml's ggml-common.h and its gguf-py reference (quants.py). */
#ifndef NB_CHECKPOINT_GGUF_H
#define NB_CHECKPOINT_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { NB_GGUF_RANK_MAX = 4 };

/* The numbers stand in the files. */
enum nb_gguf_type {
    NB_GGUF_F32 = 0,
    NB_GGUF_F16 = 1,
    NB_GGUF_Q4_0 = 2,
    NB_GGUF_Q4_1 = 3,
    NB_GGUF_Q5_0 = 6,
    NB_GGUF_Q5_1 = 7,
    NB_GGUF_Q8_0 = 8,
    NB_GGUF_Q2_K = 10,
    NB_GGUF_Q3_K = 11,
    NB_GGUF_Q4_K = 12,
    NB_GGUF_Q5_K = 13,
    NB_GGUF_Q6_K = 14,
    NB_GGUF_IQ4_NL = 20,
    NB_GGUF_IQ4_XS = 23,
    NB_GGUF_BF16 = 30,
};

/* "Q4_K"; NULL for a type that is not above. */
const char *nb_gguf_type_name(uint32_t type);

/* Weights and bytes of one block. 0 for a type that is not above. */
uint32_t nb_gguf_block_weights(uint32_t type);
uint32_t nb_gguf_block_bytes(uint32_t type);

/* `count` weights, a multiple of the block's, from consecutive blocks (any alignment) into out. One product where the format is one
 * (rounded once); where it is scale * code + minimum, product and sum are rounded separately. out must not overlap blocks. */
void nb_gguf_dequantize(enum nb_gguf_type type, const void *blocks, uint64_t count, float *out);

struct nb_gguf_tensor {
    const char *name; /* owned by the reader */
    enum nb_gguf_type type;
    int rank;
    uint64_t shape[NB_GGUF_RANK_MAX]; /* outermost first (the file's order reversed); row-major; unused ones are 1 */
    uint64_t count;                   /* of weights */
    uint64_t bytes;
    uint64_t offset; /* of data from the start of the file */
    const unsigned char *data;
};

/* Text inside the mapping; not terminated. */
struct nb_gguf_text {
    const char *text;
    size_t bytes;
};

struct nb_gguf;
struct nb_mapped_file;

/* Errors: NB_IO; NB_FORMAT for another magic, a length, count or offset that reaches past the end, overlapping or misaligned
 * tensors, duplicate names or keys; NB_UNSUPPORTED for another version, big-endian files and tensor types. The message names file,
 * key or tensor, and byte offset. Destroy with nb_gguf_close. */
nb_status nb_gguf_open(const char *path, struct nb_gguf **gguf);

/* The same from memory, which must outlive the reader; `path` is for messages. */
nb_status nb_gguf_parse(const void *data, uint64_t bytes, const char *path, struct nb_gguf **gguf);

/* Takes NULL; nulls the handle. Tensors and texts got from it are gone. */
void nb_gguf_close(struct nb_gguf **gguf);

const char *nb_gguf_path(const struct nb_gguf *gguf);
const struct nb_mapped_file *nb_gguf_file(const struct nb_gguf *gguf); /* NULL where the bytes are the caller's */

size_t nb_gguf_tensor_count(const struct nb_gguf *gguf);
const struct nb_gguf_tensor *nb_gguf_tensor_at(const struct nb_gguf *gguf, size_t i); /* in the file's order */
const struct nb_gguf_tensor *nb_gguf_tensor_find(const struct nb_gguf *gguf, const char *name); /* or NULL */
nb_status nb_gguf_fetch(const struct nb_gguf *gguf, const struct nb_gguf_tensor *tensor); /* as nb_safetensors_fetch */
void nb_gguf_forget(const struct nb_gguf *gguf, const struct nb_gguf_tensor *tensor);           /* its pages may go */

/* Metadata. Each of these returns false, and leaves *value alone, when the key is absent or of another kind: integers of any width
 * serve as int64 where they fit, any number as double. */
bool nb_gguf_has(const struct nb_gguf *gguf, const char *key);
bool nb_gguf_integer(const struct nb_gguf *gguf, const char *key, int64_t *value);
bool nb_gguf_number(const struct nb_gguf *gguf, const char *key, double *value);
bool nb_gguf_boolean(const struct nb_gguf *gguf, const char *key, bool *value);
bool nb_gguf_string(const struct nb_gguf *gguf, const char *key, struct nb_gguf_text *value);
bool nb_gguf_string_is(const struct nb_gguf *gguf, const char *key, const char *text);

/* An array of strings (tokens, merges): *texts, owned by the reader, *count of them. */
bool nb_gguf_strings(const struct nb_gguf *gguf, const char *key, const struct nb_gguf_text **texts, size_t *count);

/* An array's length, and element i of one of integers (token types); false beyond its end. */
bool nb_gguf_array_length(const struct nb_gguf *gguf, const char *key, size_t *count);
bool nb_gguf_array_integer(const struct nb_gguf *gguf, const char *key, size_t i, int64_t *value);

#endif
