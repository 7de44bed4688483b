/* Backward of attention, recomputing the probabilities from q, k and lse tile by tile (Dao et al. 2022, arXiv
 * 2205.14135, algorithm 4): p = exp(s - lse), dp = d_o v^T, ds = p * (dp - delta) with delta = sum(d_o * o) of the row,
 *   dv = p^T d_o, dk = scale * ds^T q, dq = scale * ds k.
 * Every sum has one owner and a fixed order: dk and dv of a tile of keys add over the query heads and their tiles, dq
 * of a tile of queries over the tiles of keys. A short sequence's kv head is one task, which computes p and ds once for
 * all three. Longer ones, and all where such tasks are too few for the threads, take two passes that compute them
 * twice: one for dk and dv, one for dq. Both ways do the same additions, so the choice changes no bit. p and ds are
 * rounded to the activation dtype where they multiply. */
#include <math.h>
#include <string.h>

#include "device/cpu/attention_tile.h"
#include "device/cpu/element.h"

/* Keys of a short sequence, at most: what a thread keeps dk and dv of. */
enum { SHORT_KEYS = 2 * NB_ATTENTION_KEYS };

struct work {
    const struct nb_attention_backward *a;
    struct nb_attention_shape shape;
    int short_keys; /* up to so many a sequence is done in one pass; 0: none */
    /* First tile of each sequence, [sequences + 1] each; one that is done in one pass has one tile of keys and none of
     * queries. */
    int32_t *query_tiles, *key_tiles;
    int query_tile_count, key_tile_count;
    char *locals;
    uint64_t local_bytes;
    bool bf16;
};

/* A thread's own scratch. */
struct local {
    float *scores;            /* [64, 128]: s, then p */
    float *d_weights;         /* [64, 128]: dp, then ds */
    void *weights, *d_scores; /* [64, 128] activation: p and ds as they multiply */
    float *delta;             /* [64] */
    float *dk, *dv;           /* [256, head_dim] */
    float *dq;                /* [64, head_dim] */
    void *q, *d_o, *k, *v;    /* padded copies */
    void *product;
};

static uint64_t locate(char *base, enum nb_dtype activation, int head_dim, bool bf16, struct local *local)
{
    struct nb_carver carver = {.base = base};
    uint64_t element = nb_dtype_bytes(activation), width = (uint64_t)head_dim,
             tile = NB_ATTENTION_QUERIES * NB_ATTENTION_KEYS;
    local->scores = nb_carve(&carver, tile * sizeof(float));
    local->d_weights = nb_carve(&carver, tile * sizeof(float));
    local->weights = nb_carve(&carver, tile * element);
    local->d_scores = nb_carve(&carver, tile * element);
    local->delta = nb_carve(&carver, NB_ATTENTION_QUERIES * sizeof(float));
    local->dk = nb_carve(&carver, SHORT_KEYS * width * sizeof(float));
    local->dv = nb_carve(&carver, SHORT_KEYS * width * sizeof(float));
    local->dq = nb_carve(&carver, NB_ATTENTION_QUERIES * width * sizeof(float));
    local->q = nb_carve(&carver, NB_ATTENTION_QUERIES * width * element);
    local->d_o = nb_carve(&carver, NB_ATTENTION_QUERIES * width * element);
    local->k = nb_carve(&carver, NB_ATTENTION_KEYS * width * element);
    local->v = nb_carve(&carver, NB_ATTENTION_KEYS * width * element);
    local->product = nb_carve(&carver, nb_attention_product_bytes(activation, head_dim, bf16));
    return carver.bytes;
}

/* ---- delta ---- */

NB_CPU_INLINE void delta_of(float *delta, const void *o, const void *d_o, int width, enum nb_dtype dtype)
{
    float lane[16] = {0};
    int c = 0;
    for (; c + 16 <= width; c += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += nb_cpu_get(o, dtype, c + l) * nb_cpu_get(d_o, dtype, c + l);
    for (int l = 0; c + l < width; l++)
        lane[l] += nb_cpu_get(o, dtype, c + l) * nb_cpu_get(d_o, dtype, c + l);
    *delta = nb_sum16(lane);
}

/* Of one head of the `queries` rows from `begin` on. */
NB_CLONES static void compute_delta(const struct work *w, const struct local *local, int head, int begin, int queries)
{
    const struct nb_attention_backward *a = w->a;
    int64_t column = (int64_t)head * a->head_dim;
    for (int i = 0; i < queries; i++) {
        int64_t row = begin + i;
        const void *o = nb_cpu_element(a->o, a->activation, (uint64_t)(row * a->o_stride + column));
        const void *d_o = nb_cpu_element(a->d_o, a->activation, (uint64_t)(row * a->d_o_stride + column));
        NB_CPU_SPECIALIZE(a->activation, delta_of, local->delta + i, o, d_o, a->head_dim);
    }
}

/* ---- p and ds of a tile ---- */

struct row {
    float *scores, *d_weights;
    void *weights, *d_scores;
    int64_t at;             /* of the row in weights and d_scores */
    int begin, end, padded; /* visible columns; columns to write, a multiple of 16 */
    float lse, delta, inverse_cap;
};

NB_CPU_INLINE void differentiate_row_of(const struct row *r, enum nb_dtype dtype)
{
    float *restrict scores = r->scores, *restrict d_weights = r->d_weights;
    int reach = r->end <= 0 ? 0 : nb_round_up(r->end, 16); /* behind it a diagonal tile is all zeros */
    for (int j = 0; j < reach; j++) {
        bool seen = j >= r->begin && j < r->end;
        /* The derivative of cap * tanh(x / cap) is 1 - tanh^2. */
        float capped = scores[j] * r->inverse_cap, p = nb_expf(scores[j] - r->lse);
        float ds = p * (d_weights[j] - r->delta) * (1.0f - capped * capped);
        scores[j] = seen ? p : 0.0f;
        d_weights[j] = seen ? ds : 0.0f;
    }
    for (int j = 0; j < reach; j++)
        nb_cpu_put(r->weights, dtype, r->at + j, scores[j]);
    for (int j = 0; j < reach; j++)
        nb_cpu_put(r->d_scores, dtype, r->at + j, d_weights[j]);
    uint64_t bytes = nb_dtype_bytes(dtype), at = (uint64_t)(r->at + reach) * bytes;
    uint64_t behind = (uint64_t)(r->padded - reach) * bytes;
    memset((char *)r->weights + at, 0, behind);
    memset((char *)r->d_scores + at, 0, behind);
}

/* From scores and d_weights to p and ds, zero where nothing is seen and in the padding. */
NB_CLONES static void differentiate(const struct work *w, const struct local *local,
    const struct nb_attention_sequence *s, const struct nb_attention_tile *tile, int head, int padded)
{
    const struct nb_attention_backward *a = w->a;
    const float *lse =
        (const float *)nb_cpu_pointer(a->lse) + (int64_t)head * a->tokens_max + s->query_begin + tile->query;
    for (int i = 0; i < tile->queries; i++) {
        struct nb_attention_keys visible = nb_attention_visible(&w->shape, s, tile->query + i);
        struct row row = {.scores = local->scores + i * NB_ATTENTION_KEYS,
            .d_weights = local->d_weights + i * NB_ATTENTION_KEYS,
            .weights = local->weights,
            .d_scores = local->d_scores,
            .at = (int64_t)i * NB_ATTENTION_KEYS,
            .begin = visible.begin - tile->key,
            .end = visible.end - tile->key,
            .padded = padded,
            .lse = lse[i],
            .delta = local->delta[i],
            .inverse_cap = a->soft_cap > 0 ? 1.0f / a->soft_cap : 0.0f};
        row.end = row.end > tile->keys ? tile->keys : row.end;
        NB_CPU_SPECIALIZE(a->activation, differentiate_row_of, &row);
    }
    uint64_t row_bytes = NB_ATTENTION_KEYS * nb_dtype_bytes(a->activation), rows = (uint64_t)tile->queries;
    uint64_t behind = ((uint64_t)nb_round_up(tile->queries, NB_TILE_ROW_STEP) - rows) * row_bytes;
    memset((char *)local->weights + rows * row_bytes, 0, behind);
    memset((char *)local->d_scores + rows * row_bytes, 0, behind);
}

/* The four operands of a tile. */
struct operands {
    struct nb_attention_operand q, d_o, k, v;
};

/* Sets how many queries the tile that begins at tile->query has, and makes them and their deltas ready. */

static void load_queries(const struct work *w, const struct local *local, const struct nb_attention_sequence *s,
    int head, struct nb_attention_tile *tile, struct operands *o)
{
    const struct nb_attention_backward *a = w->a;
    int begin = s->query_begin + tile->query, left = s->queries - tile->query;
    tile->queries = left < NB_ATTENTION_QUERIES ? left : NB_ATTENTION_QUERIES;
    compute_delta(w, local, head, begin, tile->queries);
    o->q = nb_attention_operand(
        nb_attention_rows(a->q, a->q_stride, head, &w->shape, begin, tile->queries), local->q);
    o->d_o = nb_attention_operand(
        nb_attention_rows(a->d_o, a->d_o_stride, head, &w->shape, begin, tile->queries), local->d_o);
}

/* The same for the keys of the tile that begins at tile->key. */
static void load_keys(const struct work *w, const struct local *local, const struct nb_attention_sequence *s,
    int kv_head, struct nb_attention_tile *tile, struct operands *o)
{
    const struct nb_attention_backward *a = w->a;
    int begin = s->key_begin + tile->key, left = s->keys - tile->key;
    tile->keys = left < NB_ATTENTION_KEYS ? left : NB_ATTENTION_KEYS;
    o->k = nb_attention_operand(nb_attention_rows(a->k, a->k_stride, kv_head, &w->shape, begin, tile->keys), local->k);
    o->v = nb_attention_operand(nb_attention_rows(a->v, a->v_stride, kv_head, &w->shape, begin, tile->keys), local->v);
}

/* Leaves out the keys behind those that the tile's queries see. */
static void trim_keys(const struct work *w, const struct nb_attention_sequence *s, struct nb_attention_tile *tile,
    struct operands *o)
{
    int end = nb_attention_visible(&w->shape, s, tile->query + tile->queries - 1).end;
    if (tile->keys > end - tile->key)
        tile->keys = end - tile->key;
    o->k.padded = o->v.padded = nb_round_up(tile->keys, NB_TILE_ROW_STEP);
}

/* Leaves p and ds of the tile in local->weights and d_scores. */
static void compute_tile(const struct work *w, const struct local *local, const struct nb_attention_sequence *s,
    int head, const struct nb_attention_tile *tile, const struct operands *o)
{
    nb_attention_scores(&w->shape, tile, &o->q, &o->k, local->scores, local->product);
    struct nb_product product = {.a_dtype = w->shape.activation,
        .b_dtype = w->shape.activation,
        .m = o->d_o.padded,
        .n = o->v.padded,
        .k = w->shape.head_dim,
        .a_stride = o->d_o.stride,
        .b_stride = o->v.stride,
        .c_stride = NB_ATTENTION_KEYS,
        .b_transposed = true,
        .scale = 1.0f};
    nb_product_multiply(w->shape.products, &product, o->d_o.rows, o->v.rows, local->d_weights, local->product);
    differentiate(w, local, s, tile, head, o->k.padded);
}

/* A tile's share of a gradient: scale * op(left) right, left a [64, 128] tile of p or ds. */
struct term {
    const void *left;
    bool transposed;
    const struct nb_attention_operand *right;
    float scale;
};

/* sum = (first ? 0 : sum) + the term. */
static void add_term(const struct work *w, const struct local *local, const struct operands *o, const struct term *term,
    bool first, float *sum)
{
    int queries = o->q.padded, keys = o->k.padded, width = w->shape.head_dim;
    struct nb_product product = {.a_dtype = w->shape.activation,
        .b_dtype = w->shape.activation,
        .m = term->transposed ? keys : queries,
        .n = width,
        .k = term->transposed ? queries : keys,
        .a_stride = NB_ATTENTION_KEYS,
        .b_stride = term->right->stride,
        .c_stride = width,
        .a_transposed = term->transposed,
        .accumulate = !first,
        .scale = term->scale};
    nb_product_multiply(w->shape.products, &product, term->left, term->right->rows, sum, local->product);
}

/* The valid rows of `to` = sum [rows, head_dim]. */
static void store_rows(struct nb_tile_rows to, const float *sum)
{
    for (int i = 0; i < to.valid; i++)
        nb_cpu_store(to.from, to.dtype, (uint64_t)(to.index + (int64_t)i * to.stride), sum + (int64_t)i * to.columns, to.columns);
}

/* ---- dk and dv ---- */

static void add_dk_dv(
    const struct work *w, const struct local *local, const struct nb_attention_tile *tile, const struct operands *o)
{
    const struct term dk = {local->d_scores, true, &o->q, w->a->scale}, dv = {local->weights, true, &o->d_o, 1.0f};
    int64_t at = tile->key % SHORT_KEYS * (int64_t)w->a->head_dim;
    add_term(w, local, o, &dk, false, local->dk + at);
    add_term(w, local, o, &dv, false, local->dv + at);
}

/* Beforehand, and afterwards: for `keys` keys from `key` on. */
static void clear_dk_dv(const struct work *w, const struct local *local, int key, int keys)
{
    size_t at = (size_t)(key % SHORT_KEYS) * (size_t)w->a->head_dim;
    size_t bytes = (size_t)nb_round_up(keys, NB_TILE_ROW_STEP) * (size_t)w->a->head_dim * sizeof(float);
    memset(local->dk + at, 0, bytes);
    memset(local->dv + at, 0, bytes);
}

static void store_dk_dv(const struct work *w, const struct local *local, const struct nb_attention_sequence *s,
    int kv_head, int key, int keys)
{
    const struct nb_attention_backward *a = w->a;
    int64_t at = key % SHORT_KEYS * (int64_t)a->head_dim;
    int row = s->key_begin + key;
    store_rows(nb_attention_rows(a->dk, a->dk_stride, kv_head, &w->shape, row, keys), local->dk + at);
    store_rows(nb_attention_rows(a->dv, a->dv_stride, kv_head, &w->shape, row, keys), local->dv + at);
}

/* ---- the tasks ---- */

/* The first query that sees key `key` or a later one, and the end of those that see key `last` or an earlier one. */
static void seeing_queries(
    const struct work *w, const struct nb_attention_sequence *s, int key, int last, int *begin, int *end)
{
    int offset = s->keys - s->queries; /* query i stands at offset + i */
    *begin = key - offset > 0 ? key - offset : 0;
    *end = s->queries;
    if (w->shape.window > 0 && last < s->keys - w->shape.window)
        *end = last + w->shape.window - offset;
}

/* A tile of keys of one kv head, in the first of two passes. */
static void compute_dk_dv(
    const struct work *w, const struct local *local, const struct nb_attention_sequence *s, int kv_head, int key)
{
    int group = w->a->heads / w->a->kv_heads, begin, end;
    struct nb_attention_tile tile = {.key = key};
    struct operands o;
    load_keys(w, local, s, kv_head, &tile, &o);
    int keys = tile.keys;
    clear_dk_dv(w, local, key, keys);
    seeing_queries(w, s, key, key + keys - 1, &begin, &end);
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (tile.query = begin / NB_ATTENTION_QUERIES * NB_ATTENTION_QUERIES; tile.query < end;
             tile.query += NB_ATTENTION_QUERIES) {
            load_queries(w, local, s, head, &tile, &o);
            tile.keys = keys;
            trim_keys(w, s, &tile, &o);
            compute_tile(w, local, s, head, &tile, &o);
            add_dk_dv(w, local, &tile, &o);
        }
    }
    store_dk_dv(w, local, s, kv_head, key, keys);
}

/* dq of a tile of queries of one head; in one pass its shares of dk and dv too. */
static void compute_dq(const struct work *w, const struct local *local, const struct nb_attention_sequence *s, int head,
    int query, bool one_pass)
{
    const struct nb_attention_backward *a = w->a;
    int kv_head = head / (a->heads / a->kv_heads);
    struct nb_attention_tile tile = {.query = query};
    struct operands o;
    load_queries(w, local, s, head, &tile, &o);
    const struct term dq = {local->d_scores, false, &o.k, a->scale};
    int key = nb_attention_visible(&w->shape, s, query).begin / NB_ATTENTION_KEYS * NB_ATTENTION_KEYS;
    int end = nb_attention_visible(&w->shape, s, query + tile.queries - 1).end;
    if (end <= key)
        memset(local->dq, 0, (size_t)tile.queries * (size_t)a->head_dim * sizeof(float));
    for (tile.key = key; tile.key < end; tile.key += NB_ATTENTION_KEYS) {
        load_keys(w, local, s, kv_head, &tile, &o);
        trim_keys(w, s, &tile, &o);
        compute_tile(w, local, s, head, &tile, &o);
        add_term(w, local, &o, &dq, tile.key == key, local->dq);
        if (one_pass)
            add_dk_dv(w, local, &tile, &o);
    }
    int row = s->query_begin + query;
    store_rows(nb_attention_rows(a->dq, a->dq_stride, head, &w->shape, row, tile.queries), local->dq);
}

/* All of one kv head of a short sequence. */
static void compute_short(
    const struct work *w, const struct local *local, const struct nb_attention_sequence *s, int kv_head)
{
    int group = w->a->heads / w->a->kv_heads;
    clear_dk_dv(w, local, 0, s->keys);
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int query = 0; query < s->queries; query += NB_ATTENTION_QUERIES)
            compute_dq(w, local, s, head, query, true);
    store_dk_dv(w, local, s, kv_head, 0, s->keys);
}

static void run_key_task(const struct work *w, const struct local *local, int task)
{
    int kv_head = task % w->a->kv_heads, number = task / w->a->kv_heads;
    int sequence = nb_attention_sequence_of(w->key_tiles, w->shape.sequences, number);
    struct nb_attention_sequence s = nb_attention_sequence(&w->shape, sequence);
    if (s.keys <= w->short_keys)
        compute_short(w, local, &s, kv_head);
    else
        compute_dk_dv(w, local, &s, kv_head, (number - w->key_tiles[sequence]) * NB_ATTENTION_KEYS);
}

static void run_query_task(const struct work *w, const struct local *local, int task)
{
    int head = task % w->a->heads, number = task / w->a->heads;
    int sequence = nb_attention_sequence_of(w->query_tiles, w->shape.sequences, number);
    struct nb_attention_sequence s = nb_attention_sequence(&w->shape, sequence);
    compute_dq(w, local, &s, head, (number - w->query_tiles[sequence]) * NB_ATTENTION_QUERIES, false);
}

static void run_thread(const struct work *w)
{
    const struct nb_attention_backward *a = w->a;
    struct local local;
    locate(w->locals + (uint64_t)nb_cpu_thread() * w->local_bytes, a->activation, a->head_dim, w->bf16, &local);
    /* The first keys and the last queries take longest. */
#pragma omp for schedule(dynamic) nowait
    for (int task = 0; task < w->key_tile_count * a->kv_heads; task++)
        run_key_task(w, &local, task);
#pragma omp for schedule(dynamic) nowait
    for (int task = w->query_tile_count * a->heads - 1; task >= 0; task--)
        run_query_task(w, &local, task);
}

static void count_tiles(struct work *w)
{
    const struct nb_attention_shape *shape = &w->shape;
    w->query_tiles[0] = w->key_tiles[0] = 0;
    for (int i = 0; i < shape->sequences; i++) {
        struct nb_attention_sequence s = nb_attention_sequence(shape, i);
        bool one_pass = s.keys <= w->short_keys;
        w->key_tiles[i + 1] = w->key_tiles[i] + (one_pass ? 1 : (s.keys + NB_ATTENTION_KEYS - 1) / NB_ATTENTION_KEYS);
        w->query_tiles[i + 1] =
            w->query_tiles[i] + (one_pass ? 0 : (s.queries + NB_ATTENTION_QUERIES - 1) / NB_ATTENTION_QUERIES);
    }
    w->query_tile_count = w->query_tiles[shape->sequences];
    w->key_tile_count = w->key_tiles[shape->sequences];
}

static uint64_t list_bytes(const struct nb_attention_backward *a)
{
    return nb_aligned(((uint64_t)a->sequences_max + 1) * sizeof(int32_t));
}

static uint64_t local_bytes(const struct nb_device_profile *profile, const struct nb_attention_backward *a)
{
    struct local local;
    return locate(NULL, a->activation, a->head_dim, profile->bf16, &local);
}

void nb_cpu_run_attention_backward(struct nb_cpu *cpu, const struct nb_attention_backward *a)
{
    char *scratch = nb_cpu_pointer(a->scratch.base);
    struct work w = {
        .a = a,
        .shape = NB_ATTENTION_SHAPE(cpu, a),
        .query_tiles = (int32_t *)(void *)scratch,
        .key_tiles = (int32_t *)(void *)(scratch + list_bytes(a)),
        .locals = scratch + 2 * list_bytes(a),
        .local_bytes = local_bytes(&cpu->base.profile, a),
        .bf16 = cpu->base.profile.bf16,
    };
    /* Two tasks a thread are the fewest that share out evenly. */
    if (w.shape.sequences * a->kv_heads >= 2 * cpu->threads)
        w.short_keys = SHORT_KEYS;
    count_tiles(&w);
    int entered = nb_products_enter();
#pragma omp parallel num_threads(cpu->threads)
    run_thread(&w);
    nb_cpu_leave_products(cpu, entered);
}

uint64_t nb_cpu_attention_backward_scratch_bytes(
    const struct nb_device_profile *profile, const struct nb_attention_backward *a)
{
    return 2 * list_bytes(a) + (uint64_t)profile->multiprocessors * local_bytes(profile, a);
}
