/* What nb_attention and its backward share: which keys a query sees, the list of tiles, scores of one tile.
 *
 * A tile is NB_ATTENTION_QUERIES queries of one head of one sequence by NB_ATTENTION_KEYS keys, both counted from the
 * sequence's beginning, so that packing moves no tile. Partial tiles are multiplied as copies padded with zero rows to
 * a multiple of 16. */
#ifndef NB_DEVICE_CPU_ATTENTION_TILE_H
#define NB_DEVICE_CPU_ATTENTION_TILE_H

#include "device/cpu/tile.h"

enum {
    NB_ATTENTION_QUERIES = 64,
    NB_ATTENTION_KEYS = 128,
    NB_ATTENTION_FEW_QUERIES = 4, /* up to so many are bound by the reading of the keys */
};

/* What both ops are given, as their tiles use it. */
struct nb_attention_shape {
    struct nb_products *products;
    const int32_t *query_starts, *key_starts; /* [sequences + 1] */
    int sequences, heads, kv_heads, head_dim, window;
    float scale, soft_cap;
    enum nb_dtype activation;
};

/* That of a struct nb_attention or nb_attention_backward, whose members have the same names. */
#define NB_ATTENTION_SHAPE(cpu, a)                                    \
    {                                                                 \
        .products = (cpu)->products,                                  \
        .query_starts = nb_cpu_pointer((a)->query_starts),            \
        .key_starts = nb_cpu_pointer((a)->key_starts),                \
        .sequences = nb_cpu_sequences((a)->slot, (a)->sequences_max), \
        .heads = (a)->heads,                                          \
        .kv_heads = (a)->kv_heads,                                    \
        .head_dim = (a)->head_dim,                                    \
        .window = (a)->window,                                        \
        .scale = (a)->scale,                                          \
        .soft_cap = (a)->soft_cap,                                    \
        .activation = (a)->activation,                                \
    }

struct nb_attention_sequence {
    int query_begin, queries, key_begin, keys; /* rows of the buffers */
};

static inline struct nb_attention_sequence nb_attention_sequence(const struct nb_attention_shape *shape, int sequence)
{
    const int32_t *q = shape->query_starts + sequence, *k = shape->key_starts + sequence;
    return (struct nb_attention_sequence){q[0], q[1] - q[0], k[0], k[1] - k[0]};
}

/* Keys [begin, end) of the sequence; none where begin >= end. */
struct nb_attention_keys {
    int begin, end;
};

/* What the sequence's query `query` sees. */
static inline struct nb_attention_keys nb_attention_visible(
    const struct nb_attention_shape *shape, const struct nb_attention_sequence *s, int query)
{
    int position = s->keys - s->queries + query;
    int begin = shape->window > 0 && position >= shape->window ? position - shape->window + 1 : 0;
    return (struct nb_attention_keys){begin, position + 1};
}

/* Tiles of all sequences, numbered through: starts[s] is the first of sequence s; [sequences + 1] ints. `width` queries
 * or keys each. */
int nb_attention_count_tiles(const int32_t *rows_starts, int sequences, int width, int32_t *starts);

/* The sequence that tile number `tile` belongs to. */
int nb_attention_sequence_of(const int32_t *starts, int sequences, int tile);

/* Rows [begin, begin + valid) of one head of a [rows, heads, head_dim] buffer, padded to a multiple of 16. */
struct nb_tile_rows nb_attention_rows(
    nb_dptr from, int stride, int head, const struct nb_attention_shape *shape, int begin, int valid);

/* A tile within its sequence. */
struct nb_attention_tile {
    int query, queries; /* first query, how many */
    int key, keys;      /* first key, how many */
};

/* A tile's rows ready to be multiplied: those of the buffer, or a padded copy. */
struct nb_attention_operand {
    const void *rows;
    int stride, padded;
};

/* `copy` has room for the padded rows. */
struct nb_attention_operand nb_attention_operand(struct nb_tile_rows rows, void *copy);

/* scores [64, 128] = scale * q k^T, then the soft cap; `queries` rows by the padded keys, row stride 128. Up to
 * NB_ATTENTION_FEW_QUERIES are multiplied by plain loops (generation), more by the product layer. */
void nb_attention_scores(const struct nb_attention_shape *shape, const struct nb_attention_tile *tile,
    const struct nb_attention_operand *q, const struct nb_attention_operand *k, float *scores, void *scratch);

/* Bytes for nb_product_multiply, enough for every product of a tile. */
uint64_t nb_attention_product_bytes(enum nb_dtype activation, int head_dim, bool bf16);

#endif
