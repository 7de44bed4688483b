/* Backward of attention, recomputing the probabilities from q, k and lse tile by tile (Dao et al. 2022, arXiv
 * 2205.14135, algorithm 4): p = exp(s - lse), dp = d_o v^T, ds = p * (dp - delta) with delta = sum(d_o * o) of the row,
 *   dv = p^T d_o, dk = scale * ds^T q, dq = scale * ds k.
 * In two passes, so that every sum has one owner and a fixed order: a task of the first owns a tile of keys of one kv
 * head and adds over its query heads and their tiles; one of the second owns a tile of queries of one head and adds
 * over the tiles of keys. p and ds are rounded to the activation dtype where they multiply. */
#include <math.h>
#include <string.h>

#include "device/cpu/attention_tile.h"
#include "device/cpu/element.h"

struct work {
    const struct nb_attention_backward *a;
    struct nb_attention_shape shape;
    int32_t *query_tiles, *key_tiles; /* [sequences + 1] each: first tile of each sequence */
    int query_tile_count, key_tile_count, tokens;
    float *delta; /* [heads, tokens_max] */
    char *locals;
    uint64_t local_bytes;
    bool bf16;
};

/* A thread's own scratch. */
struct local {
    float *scores;            /* [64, 128]: s, then p */
    float *d_weights;         /* [64, 128]: dp, then ds */
    void *weights, *d_scores; /* [64, 128] activation: p and ds as they multiply */
    float *sum, *sum_too;     /* [128, head_dim]: dk and dv, or dq */
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
    local->sum = nb_carve(&carver, NB_ATTENTION_KEYS * width * sizeof(float));
    local->sum_too = nb_carve(&carver, NB_ATTENTION_KEYS * width * sizeof(float));
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
    for (int c = 0; c < width; c += 8) /* head_dim is a multiple of 8 */
        for (int l = 0; l < 8; l++)
            lane[c % 16 + l] += nb_cpu_get(o, dtype, c + l) * nb_cpu_get(d_o, dtype, c + l);
    *delta = nb_sum16(lane);
}

NB_CLONES static void compute_delta(const struct work *w, int row)
{
    const struct nb_attention_backward *a = w->a;
    for (int head = 0; head < a->heads; head++) {
        int64_t column = (int64_t)head * a->head_dim;
        const void *o = nb_cpu_element(a->o, a->activation, (uint64_t)((int64_t)row * a->o_stride + column));
        const void *d_o = nb_cpu_element(a->d_o, a->activation, (uint64_t)((int64_t)row * a->d_o_stride + column));
        NB_CPU_SPECIALIZE(a->activation, delta_of, w->delta + (int64_t)head * a->tokens_max + row, o, d_o, a->head_dim);
    }
}

/* ---- p and ds of a tile ---- */

struct row {
    float *scores, *d_weights;
    void *weights, *d_scores;
    int64_t at;             /* of the row in weights and d_scores */
    int begin, end, padded; /* visible columns; columns to write */
    float lse, delta, inverse_cap;
};

NB_CPU_INLINE void differentiate_row_of(const struct row *r, enum nb_dtype dtype)
{
    float *restrict scores = r->scores, *restrict d_weights = r->d_weights;
    for (int j = 0; j < r->padded; j++) {
        bool seen = j >= r->begin && j < r->end;
        /* The derivative of cap * tanh(x / cap) is 1 - tanh^2. */
        float capped = scores[j] * r->inverse_cap, p = nb_expf(scores[j] - r->lse);
        float ds = p * (d_weights[j] - r->delta) * (1.0f - capped * capped);
        scores[j] = seen ? p : 0.0f;
        d_weights[j] = seen ? ds : 0.0f;
    }
    for (int j = 0; j < r->padded; j++)
        nb_cpu_put(r->weights, dtype, r->at + j, scores[j]);
    for (int j = 0; j < r->padded; j++)
        nb_cpu_put(r->d_scores, dtype, r->at + j, d_weights[j]);
}

/* From scores and d_weights to p and ds, zero where nothing is seen and in the padding. */
NB_CLONES static void differentiate(const struct work *w, const struct local *local,
    const struct nb_attention_sequence *s, const struct nb_attention_tile *tile, int head, int padded)
{
    const struct nb_attention_backward *a = w->a;
    const float *lse =
        (const float *)nb_cpu_pointer(a->lse) + (int64_t)head * a->tokens_max + s->query_begin + tile->query;
    const float *delta = w->delta + (int64_t)head * a->tokens_max + s->query_begin + tile->query;
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
            .delta = delta[i],
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

static void load_queries(const struct work *w, const struct local *local, const struct nb_attention_sequence *s,
    int head, const struct nb_attention_tile *tile, struct operands *o)
{
    const struct nb_attention_backward *a = w->a;
    int begin = s->query_begin + tile->query;
    o->q = nb_attention_operand(
        nb_attention_rows(a->q, a->q_stride, head, &w->shape, begin, tile->queries), local->q);
    o->d_o = nb_attention_operand(
        nb_attention_rows(a->d_o, a->d_o_stride, head, &w->shape, begin, tile->queries), local->d_o);
}

static void load_keys(const struct work *w, const struct local *local, const struct nb_attention_sequence *s,
    int kv_head, const struct nb_attention_tile *tile, struct operands *o)
{
    const struct nb_attention_backward *a = w->a;
    int begin = s->key_begin + tile->key;
    o->k = nb_attention_operand(nb_attention_rows(a->k, a->k_stride, kv_head, &w->shape, begin, tile->keys), local->k);
    o->v = nb_attention_operand(nb_attention_rows(a->v, a->v_stride, kv_head, &w->shape, begin, tile->keys), local->v);
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

/* ---- the two passes ---- */

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

static void compute_dk_dv(const struct work *w, const struct local *local, int task)
{
    const struct nb_attention_backward *a = w->a;
    int kv_head = task % a->kv_heads, number = task / a->kv_heads, group = a->heads / a->kv_heads;
    int sequence = nb_attention_sequence_of(w->key_tiles, w->shape.sequences, number);
    struct nb_attention_sequence s = nb_attention_sequence(&w->shape, sequence);
    struct nb_attention_tile tile = {.key = (number - w->key_tiles[sequence]) * NB_ATTENTION_KEYS};
    tile.keys = s.keys - tile.key < NB_ATTENTION_KEYS ? s.keys - tile.key : NB_ATTENTION_KEYS;
    struct operands o;
    load_keys(w, local, &s, kv_head, &tile, &o);
    int begin, end;
    seeing_queries(w, &s, tile.key, tile.key + tile.keys - 1, &begin, &end);
    const struct term dk = {local->d_scores, true, &o.q, a->scale}, dv = {local->weights, true, &o.d_o, 1.0f};
    bool first = true;
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (tile.query = begin / NB_ATTENTION_QUERIES * NB_ATTENTION_QUERIES; tile.query < end;
             tile.query += NB_ATTENTION_QUERIES) {
            tile.queries =
                s.queries - tile.query < NB_ATTENTION_QUERIES ? s.queries - tile.query : NB_ATTENTION_QUERIES;
            load_queries(w, local, &s, head, &tile, &o);
            compute_tile(w, local, &s, head, &tile, &o);
            add_term(w, local, &o, &dk, first, local->sum);
            add_term(w, local, &o, &dv, first, local->sum_too);
            first = false;
        }
    }
    if (first) {
        memset(local->sum, 0, (size_t)tile.keys * (size_t)a->head_dim * sizeof(float));
        memset(local->sum_too, 0, (size_t)tile.keys * (size_t)a->head_dim * sizeof(float));
    }
    int row = s.key_begin + tile.key;
    store_rows(nb_attention_rows(a->dk, a->dk_stride, kv_head, &w->shape, row, tile.keys), local->sum);
    store_rows(nb_attention_rows(a->dv, a->dv_stride, kv_head, &w->shape, row, tile.keys), local->sum_too);
}

static void compute_dq(const struct work *w, const struct local *local, int task)
{
    const struct nb_attention_backward *a = w->a;
    int head = task % a->heads, number = task / a->heads, kv_head = head / (a->heads / a->kv_heads);
    int sequence = nb_attention_sequence_of(w->query_tiles, w->shape.sequences, number);
    struct nb_attention_sequence s = nb_attention_sequence(&w->shape, sequence);
    struct nb_attention_tile tile = {.query = (number - w->query_tiles[sequence]) * NB_ATTENTION_QUERIES};
    tile.queries = s.queries - tile.query < NB_ATTENTION_QUERIES ? s.queries - tile.query : NB_ATTENTION_QUERIES;
    struct operands o;
    load_queries(w, local, &s, head, &tile, &o);
    const struct term dq = {local->d_scores, false, &o.k, a->scale};
    int key = nb_attention_visible(&w->shape, &s, tile.query).begin / NB_ATTENTION_KEYS * NB_ATTENTION_KEYS;
    int end = nb_attention_visible(&w->shape, &s, tile.query + tile.queries - 1).end;
    if (end <= key)
        memset(local->sum, 0, (size_t)tile.queries * (size_t)a->head_dim * sizeof(float));
    for (tile.key = key; tile.key < end; tile.key += NB_ATTENTION_KEYS) {
        tile.keys = end - tile.key < NB_ATTENTION_KEYS ? end - tile.key : NB_ATTENTION_KEYS;
        load_keys(w, local, &s, kv_head, &tile, &o);
        compute_tile(w, local, &s, head, &tile, &o);
        add_term(w, local, &o, &dq, tile.key == key, local->sum);
    }
    int row = s.query_begin + tile.query;
    store_rows(nb_attention_rows(a->dq, a->dq_stride, head, &w->shape, row, tile.queries), local->sum);
}

static void run_thread(const struct work *w)
{
    const struct nb_attention_backward *a = w->a;
    struct local local;
    locate(w->locals + (uint64_t)nb_cpu_thread() * w->local_bytes, a->activation, a->head_dim, w->bf16, &local);
#pragma omp for
    for (int row = 0; row < w->tokens; row++)
        compute_delta(w, row);
    /* The first keys and the last queries take longest. */
#pragma omp for schedule(dynamic) nowait
    for (int task = 0; task < w->key_tile_count * a->kv_heads; task++)
        compute_dk_dv(w, &local, task);
#pragma omp for schedule(dynamic)
    for (int task = w->query_tile_count * a->heads - 1; task >= 0; task--)
        compute_dq(w, &local, task);
}

static uint64_t list_bytes(const struct nb_attention_backward *a)
{
    return nb_aligned(((uint64_t)a->sequences_max + 1) * sizeof(int32_t));
}

static uint64_t delta_bytes(const struct nb_attention_backward *a)
{
    return nb_aligned((uint64_t)a->heads * (uint64_t)a->tokens_max * sizeof(float));
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
        .tokens = nb_cpu_tokens(a->slot, a->tokens_max),
        .delta = (float *)(void *)(scratch + 2 * list_bytes(a)),
        .locals = scratch + 2 * list_bytes(a) + delta_bytes(a),
        .local_bytes = local_bytes(&cpu->base.profile, a),
        .bf16 = cpu->base.profile.bf16,
    };
    w.query_tile_count = nb_attention_count_tiles(w.shape.query_starts, w.shape.sequences, NB_ATTENTION_QUERIES, w.query_tiles);
    w.key_tile_count = nb_attention_count_tiles(w.shape.key_starts, w.shape.sequences, NB_ATTENTION_KEYS, w.key_tiles);
    int entered = nb_products_enter();
#pragma omp parallel num_threads(cpu->threads)
    run_thread(&w);
    nb_cpu_leave_products(cpu, entered);
}

uint64_t nb_cpu_attention_backward_scratch_bytes(
    const struct nb_device_profile *profile, const struct nb_attention_backward *a)
{
    return 2 * list_bytes(a) + delta_bytes(a) + (uint64_t)profile->multiprocessors * local_bytes(profile, a);
}
