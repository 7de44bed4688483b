/* Attention, flash-style: a task is 64 queries of one head of one sequence; it walks over the visible keys in tiles of
 * 128, keeping a running maximum, sum and output of each query (Dao et al. 2022, arXiv 2205.14135, algorithm 1). Scores
 * and probabilities exist for one tile at a time; probabilities are rounded to the activation dtype where they multiply
 * v. */
#include <math.h>
#include <string.h>

#include "device/cpu/attention_tile.h"
#include "device/cpu/element.h"

struct work {
    const struct nb_attention *a;
    struct nb_attention_shape shape;
    const int32_t *tile_starts; /* [sequences + 1] */
    int tiles;
    char *locals;
    uint64_t local_bytes;
};

/* A thread's own scratch, and the state of the queries of its task. */
struct local {
    float *scores;   /* [64, 128] */
    float *output;   /* [64, head_dim]: not yet divided by sum */
    float *maximum;  /* [64] */
    float *sum;      /* [64] */
    float *scale;    /* [64]: what the output so far is multiplied by */
    void *weights;   /* [64, 128] activation: probabilities, not yet divided */
    void *q, *k, *v; /* padded copies */
    void *product;
};

/* Points `local` into `base` and returns its size; with `base` NULL only the size means something. */
static uint64_t locate(char *base, enum nb_dtype activation, int head_dim, bool bf16, struct local *local)
{
    struct nb_carver carver = {.base = base};
    uint64_t element = nb_dtype_bytes(activation), width = (uint64_t)head_dim;
    local->scores = nb_carve(&carver, NB_ATTENTION_QUERIES * NB_ATTENTION_KEYS * sizeof(float));
    local->output = nb_carve(&carver, NB_ATTENTION_QUERIES * width * sizeof(float));
    local->maximum = nb_carve(&carver, NB_ATTENTION_QUERIES * sizeof(float));
    local->sum = nb_carve(&carver, NB_ATTENTION_QUERIES * sizeof(float));
    local->scale = nb_carve(&carver, NB_ATTENTION_QUERIES * sizeof(float));
    local->weights = nb_carve(&carver, NB_ATTENTION_QUERIES * NB_ATTENTION_KEYS * element);
    local->q = nb_carve(&carver, NB_ATTENTION_QUERIES * width * element);
    local->k = nb_carve(&carver, NB_ATTENTION_KEYS * width * element);
    local->v = nb_carve(&carver, NB_ATTENTION_KEYS * width * element);
    local->product = nb_carve(&carver, nb_attention_product_bytes(activation, head_dim, bf16));
    return carver.bytes;
}

/* A query's row of a tile. */
struct row {
    float *scores;
    int begin, end, padded; /* visible columns; columns to write, a multiple of 16 */
    float maximum;
};

/* weights[at ...] = exp(scores - maximum), zero where nothing is seen; adds them to *sum. */
NB_CPU_INLINE void exponentials_of(const struct row *row, void *weights, int64_t at, float *sum, enum nb_dtype dtype)
{
    const struct row r = *row;
    float *restrict scores = r.scores, lane[16] = {0};
    int reach = r.end <= 0 ? 0 : nb_round_up(r.end, 16); /* behind it a diagonal tile is all zeros */
    for (int j = 0; j < reach; j++)
        scores[j] = j >= r.begin && j < r.end ? nb_expf(scores[j] - r.maximum) : 0.0f;
    for (int j = 0; j < reach; j += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += scores[j + l];
    for (int j = 0; j < reach; j++)
        nb_cpu_put(weights, dtype, at + j, scores[j]);
    uint64_t bytes = nb_dtype_bytes(dtype);
    memset((char *)weights + (uint64_t)(at + reach) * bytes, 0, (uint64_t)(r.padded - reach) * bytes);
    *sum += nb_sum16(lane);
}

/* The largest of start and scores[begin .. end), in 16 lanes; reads up to `padded`, a multiple of 16. */
static inline float maximum_of(const float *restrict scores, int begin, int end, int padded, float start)
{
    float lane[16];
    for (int l = 0; l < 16; l++)
        lane[l] = start;
    for (int j = 0; j < padded; j += 16)
        for (int l = 0; l < 16; l++) {
            float score = j + l >= begin && j + l < end ? scores[j + l] : -INFINITY;
            lane[l] = score > lane[l] ? score : lane[l];
        }
    float maximum = start;
    for (int l = 0; l < 16; l++)
        maximum = lane[l] > maximum ? lane[l] : maximum;
    return maximum;
}

/* Takes a tile's scores into the running maximum and sum; leaves the weights, zero where nothing is seen. */
NB_CLONES static void take_scores(const struct work *w, const struct local *local,
    const struct nb_attention_sequence *s, const struct nb_attention_tile *tile, int padded)
{
    for (int i = 0; i < tile->queries; i++) {
        struct nb_attention_keys visible = nb_attention_visible(&w->shape, s, tile->query + i);
        int begin = visible.begin - tile->key, end = visible.end - tile->key;
        struct row row = {
            .scores = local->scores + i * NB_ATTENTION_KEYS,
            .begin = begin < 0 ? 0 : begin,
            .end = end > tile->keys ? tile->keys : end,
            .padded = padded,
        };
        float before = local->maximum[i], maximum = maximum_of(row.scores, row.begin, row.end, padded, before);
        local->maximum[i] = maximum;
        /* Nothing seen so far: all weights zero, and no infinity minus infinity. */
        row.maximum = maximum == -INFINITY ? 0.0f : maximum;
        local->scale[i] = nb_expf(before - row.maximum);
        local->sum[i] *= local->scale[i];
        NB_CPU_SPECIALIZE(w->shape.activation, exponentials_of, &row, local->weights, (int64_t)i * NB_ATTENTION_KEYS,
            &local->sum[i]);
    }
    uint64_t bytes = nb_dtype_bytes(w->shape.activation);
    for (int i = tile->queries; i < nb_round_up(tile->queries, NB_TILE_ROW_STEP); i++)
        memset((char *)local->weights + (uint64_t)i * NB_ATTENTION_KEYS * bytes, 0, (uint64_t)padded * bytes);
}

NB_CPU_INLINE void few_outputs_of(const struct local *local, const struct nb_attention_tile *tile,
    const struct nb_attention_operand *v, int width, enum nb_dtype dtype)
{
    for (int i = 0; i < tile->queries; i++) {
        float *restrict output = local->output + (int64_t)i * width;
        for (int j = 0; j < tile->keys; j++) {
            float weight = nb_cpu_get(local->weights, dtype, (int64_t)i * NB_ATTENTION_KEYS + j);
            for (int c = 0; c < width; c++)
                output[c] += weight * nb_cpu_get(v->rows, dtype, (int64_t)j * v->stride + c);
        }
    }
}

/* output = output * scale + weights v. */
NB_CLONES static void add_outputs(const struct work *w, const struct local *local, const struct nb_attention_tile *tile,
    const struct nb_attention_operand *v)
{
    int width = w->shape.head_dim;
    for (int i = 0; i < tile->queries; i++) {
        float scale = local->scale[i];
        for (int c = 0; c < width; c++)
            local->output[(int64_t)i * width + c] *= scale;
    }
    if (tile->queries <= NB_ATTENTION_FEW_QUERIES) {
        NB_CPU_SPECIALIZE(w->shape.activation, few_outputs_of, local, tile, v, width);
        return;
    }
    struct nb_product product = {.a_dtype = w->shape.activation,
        .b_dtype = w->shape.activation,
        .m = nb_round_up(tile->queries, NB_TILE_ROW_STEP),
        .n = width,
        .k = v->padded,
        .a_stride = NB_ATTENTION_KEYS,
        .b_stride = v->stride,
        .c_stride = width,
        .accumulate = true,
        .scale = 1.0f};
    nb_product_multiply(w->shape.products, &product, local->weights, v->rows, local->output, local->product);
}

/* o = output / sum, lse = maximum + log(sum). A query that sees nothing gets zeros and -infinity. */
static void store(const struct work *w, const struct local *local, const struct nb_attention_sequence *s, int head,
    int query, int queries)
{
    const struct nb_attention *a = w->a;
    int width = a->head_dim;
    for (int i = 0; i < queries; i++) {
        float *output = local->output + (int64_t)i * width, sum = local->sum[i];
        int64_t row = s->query_begin + query + i;
        float inverse = sum > 0 ? 1.0f / sum : sum == 0 ? 0.0f : sum; /* a NaN goes on */
        for (int c = 0; c < width; c++)
            output[c] *= inverse;
        nb_cpu_store(a->o, a->activation, (uint64_t)(row * a->o_stride + (int64_t)head * width), output, width);
        if (!nb_dptr_is_null(a->lse))
            ((float *)nb_cpu_pointer(a->lse))[(int64_t)head * a->tokens_max + row] = local->maximum[i] + logf(sum);
    }
}

static void run_task(const struct work *w, const struct local *local, int task)
{
    const struct nb_attention *a = w->a;
    int head = task % a->heads, tile_number = task / a->heads;
    int sequence = nb_attention_sequence_of(w->tile_starts, w->shape.sequences, tile_number);
    struct nb_attention_sequence s = nb_attention_sequence(&w->shape, sequence);
    struct nb_attention_tile tile = {.query = (tile_number - w->tile_starts[sequence]) * NB_ATTENTION_QUERIES};
    int kv_head = head / (a->heads / a->kv_heads);
    tile.queries = s.queries - tile.query < NB_ATTENTION_QUERIES ? s.queries - tile.query : NB_ATTENTION_QUERIES;

    struct nb_attention_operand q = nb_attention_operand(
        nb_attention_rows(a->q, a->q_stride, head, &w->shape, s.query_begin + tile.query, tile.queries), local->q);
    for (int i = 0; i < tile.queries; i++) {
        local->maximum[i] = -INFINITY;
        local->sum[i] = 0;
    }
    memset(local->output, 0, (size_t)q.padded * (size_t)a->head_dim * sizeof(float));

    int first = nb_attention_visible(&w->shape, &s, tile.query).begin / NB_ATTENTION_KEYS * NB_ATTENTION_KEYS;
    int end = nb_attention_visible(&w->shape, &s, tile.query + tile.queries - 1).end;
    for (tile.key = first; tile.key < end; tile.key += NB_ATTENTION_KEYS) {
        tile.keys = end - tile.key < NB_ATTENTION_KEYS ? end - tile.key : NB_ATTENTION_KEYS;
        int key = s.key_begin + tile.key;
        struct nb_attention_operand k = nb_attention_operand(
            nb_attention_rows(a->k, a->k_stride, kv_head, &w->shape, key, tile.keys), local->k);
        struct nb_attention_operand v = nb_attention_operand(
            nb_attention_rows(a->v, a->v_stride, kv_head, &w->shape, key, tile.keys), local->v);
        nb_attention_scores(&w->shape, &tile, &q, &k, local->scores, local->product);
        take_scores(w, local, &s, &tile, k.padded);
        add_outputs(w, local, &tile, &v);
    }
    store(w, local, &s, head, tile.query, tile.queries);
}

static void run_thread(const struct work *w, bool bf16)
{
    struct local local;
    locate(
        w->locals + (uint64_t)nb_cpu_thread() * w->local_bytes, w->shape.activation, w->shape.head_dim, bf16, &local);
    int tasks = w->tiles * w->a->heads;
    /* From the end: the later tiles of a sequence see more keys and take longer. */
#pragma omp for schedule(dynamic)
    for (int task = tasks - 1; task >= 0; task--)
        run_task(w, &local, task);
}

static uint64_t local_bytes(const struct nb_device_profile *profile, const struct nb_attention *a)
{
    struct local local;
    return locate(NULL, a->activation, a->head_dim, profile->bf16, &local);
}

/* The list of tiles stands in front of the threads' scratch. */
static uint64_t list_bytes(const struct nb_attention *a)
{
    return nb_aligned(((uint64_t)a->sequences_max + 1) * sizeof(int32_t));
}

void nb_cpu_run_attention(struct nb_cpu *cpu, const struct nb_attention *a)
{
    int32_t *tile_starts = nb_cpu_pointer(a->scratch.base);
    struct work w = {
        .a = a,
        .shape = NB_ATTENTION_SHAPE(cpu, a),
        .tile_starts = tile_starts,
        .locals = (char *)tile_starts + list_bytes(a),
        .local_bytes = local_bytes(&cpu->base.profile, a),
    };
    w.tiles = nb_attention_count_tiles(w.shape.query_starts, w.shape.sequences, NB_ATTENTION_QUERIES, tile_starts);
    int entered = nb_products_enter();
#pragma omp parallel num_threads(cpu->threads)
    run_thread(&w, cpu->base.profile.bf16);
    nb_cpu_leave_products(cpu, entered);
}

uint64_t nb_cpu_attention_scratch_bytes(const struct nb_device_profile *profile, const struct nb_attention *a)
{
    return list_bytes(a) + (uint64_t)profile->multiprocessors * local_bytes(profile, a);
}
