/* The tables of a byte-level BPE: tokens by id, ids by bytes, merges by pair. */
#ifndef NB_TEXT_VOCABULARY_H
#define NB_TEXT_VOCABULARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum nb_token_flag {
    NB_TOKEN_PRESENT = 1,
    NB_TOKEN_ADDED = 2,   /* matched as a whole in the text */
    NB_TOKEN_SPECIAL = 4, /* not shown when an answer is decoded */
    NB_TOKEN_STOP = 8,    /* generation ends here */
    NB_TOKEN_LITERAL = 16, /* its text is not in the byte alphabet and stands for itself */
};

struct nb_vocabulary_token {
    uint32_t offset, bytes; /* in the pool: raw bytes */
    uint32_t flags;
};

struct nb_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* 0 merges first */
    int32_t id;    /* of the merged token; -1 marks a free slot */
};

#define NB_NO_RANK UINT32_MAX

struct nb_vocabulary {
    char *pool;
    size_t pool_bytes, pool_capacity;
    struct nb_vocabulary_token *tokens;
    int32_t count, capacity;
    int32_t *slots; /* open addressing over the tokens' raw bytes; -1 is free */
    uint32_t slot_count, slots_used;
    struct nb_merge *merges;
    uint32_t merge_slots, merge_count;
    int32_t byte_id[256]; /* the token of one byte, or -1 */
};

/* Ids may run this far past the number of tokens: room for the gaps that some files have, none for an id that eats the
 * memory. */
enum { NB_VOCABULARY_GAP_MAX = 1 << 16, NB_VOCABULARY_MAX = 1 << 24 };

/* Room for `tokens` tokens and `merges` merges; every id must lie below tokens + NB_VOCABULARY_GAP_MAX. Free with
 * nb_vocabulary_free, also after an error. */
nb_status nb_vocabulary_start(struct nb_vocabulary *vocabulary, size_t tokens, size_t merges);
void nb_vocabulary_free(struct nb_vocabulary *vocabulary);

/* Sets token `id`. Its text is in GPT-2's byte alphabet unless `raw`; a text with other characters stands for itself.
 * `flags` are added to NB_TOKEN_PRESENT. An id that is there already may be set again to the same text, to add flags;
 * a raw text, an added token's, is UTF-8 and replaces another.
 * Errors: NB_FORMAT (id out of range, id with two texts, two ids with one text, empty, raw and not UTF-8), NB_MEMORY. */
nb_status nb_vocabulary_set(struct nb_vocabulary *vocabulary, int64_t id, const char *text, size_t bytes, bool raw,
                            uint32_t flags);

/* Adds the next merge, of rank merge_count. Texts in the byte alphabet. Call after all tokens of the base vocabulary
 * are set.
 * Errors: NB_FORMAT (a half or the whole that is not a token). */
nb_status nb_vocabulary_merge(struct nb_vocabulary *vocabulary, const char *left, size_t left_bytes, const char *right,
                              size_t right_bytes);

/* Fills byte_id. Call once, after the tokens are set. */
void nb_vocabulary_finish(struct nb_vocabulary *vocabulary);

/* The id with these raw bytes, or -1. */
int32_t nb_vocabulary_find(const struct nb_vocabulary *vocabulary, const char *text, size_t bytes);

/* The merge of two adjacent tokens, or NULL. */
static inline const struct nb_merge *nb_vocabulary_pair(
    const struct nb_vocabulary *vocabulary, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t mask = vocabulary->merge_slots - 1, slot = (uint32_t)((pair * 0x9e3779b97f4a7c15u) >> 32) & mask;
    for (;; slot = (slot + 1) & mask) {
        const struct nb_merge *merge = &vocabulary->merges[slot];
        if (merge->id < 0)
            return NULL;
        if (merge->pair == pair)
            return merge;
    }
}

/* A 64-bit hash of bytes, for tables that live in memory only. */
static inline uint64_t nb_bytes_hash(const char *text, size_t bytes)
{
    uint64_t hash = 0xcbf29ce484222325u ^ bytes;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

#endif
