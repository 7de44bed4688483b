#include "device/cpu/attention_tile.h"

#include "device/check.h"
#include "device/cpu/element.h"

int nb_attention_count_tiles(const int32_t *rows_starts, int sequences, int width, int32_t *starts)
{
    starts[0] = 0;
    for (int s = 0; s < sequences; s++)
        starts[s + 1] = starts[s] + (rows_starts[s + 1] - rows_starts[s] + width - 1) / width;
    return starts[sequences];
}

int nb_attention_sequence_of(const int32_t *starts, int sequences, int tile)
{
    int low = 0, high = sequences; /* starts[low] <= tile < starts[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (starts[middle] <= tile)
            low = middle;
        else
            high = middle;
    }
    return low;
}

struct nb_tile_rows nb_attention_rows(
    nb_dptr from, int stride, int head, const struct nb_attention_shape *shape, int begin, int valid)
{
    struct nb_tile_span span = {begin, valid, NB_TILE_ROW_STEP, head * shape->head_dim, shape->head_dim};
    return nb_tile_rows((struct nb_tile_source){from, shape->activation, stride}, span);
}

struct nb_attention_operand nb_attention_operand(struct nb_tile_rows rows, void *copy)
{
    struct nb_attention_operand operand = {.padded = rows.padded};
    operand.rows = nb_tile_rows_padded(&rows, copy, &operand.stride);
    return operand;
}

NB_CPU_INLINE void few_scores_of(float *scores, const struct nb_attention_shape *shape,
    const struct nb_attention_tile *tile, const struct nb_attention_operand *q, const struct nb_attention_operand *k,
    enum nb_dtype dtype)
{
    int width = shape->head_dim;
    for (int i = 0; i < tile->queries; i++) {
        float query[NB_HEAD_DIM_MAX];
        for (int c = 0; c < width; c++)
            query[c] = nb_cpu_get(q->rows, dtype, (int64_t)i * q->stride + c);
        for (int j = 0; j < tile->keys; j++) {
            float lane[16] = {0};
            for (int c = 0; c < width; c += 8) /* head_dim is a multiple of 8 */
                for (int l = 0; l < 8; l++)
                    lane[c % 16 + l] += query[c + l] * nb_cpu_get(k->rows, dtype, (int64_t)j * k->stride + c + l);
            scores[i * NB_ATTENTION_KEYS + j] = shape->scale * nb_sum16(lane);
        }
    }
}

NB_CLONES static void few_scores(float *scores, const struct nb_attention_shape *shape,
    const struct nb_attention_tile *tile, const struct nb_attention_operand *q, const struct nb_attention_operand *k)
{
    NB_CPU_SPECIALIZE(shape->activation, few_scores_of, scores, shape, tile, q, k);
}

NB_CLONES static void cap_scores(float *scores, int queries, int keys, float cap)
{
    float inverse = 1.0f / cap;
    for (int i = 0; i < queries; i++)
        for (int j = 0; j < keys; j++)
            scores[i * NB_ATTENTION_KEYS + j] = cap * nb_tanhf(scores[i * NB_ATTENTION_KEYS + j] * inverse);
}

void nb_attention_scores(const struct nb_attention_shape *shape, const struct nb_attention_tile *tile,
    const struct nb_attention_operand *q, const struct nb_attention_operand *k, float *scores, void *scratch)
{
    if (tile->queries <= NB_ATTENTION_FEW_QUERIES) {
        few_scores(scores, shape, tile, q, k);
    } else {
        struct nb_product product = {.a_dtype = shape->activation,
            .b_dtype = shape->activation,
            .m = q->padded,
            .n = k->padded,
            .k = shape->head_dim,
            .a_stride = q->stride,
            .b_stride = k->stride,
            .c_stride = NB_ATTENTION_KEYS,
            .b_transposed = true,
            .scale = shape->scale};
        nb_product_multiply(shape->products, &product, q->rows, k->rows, scores, scratch);
    }
    if (shape->soft_cap > 0)
        cap_scores(scores, tile->queries, tile->keys, shape->soft_cap);
}

uint64_t nb_attention_product_bytes(enum nb_dtype activation, int head_dim, bool bf16)
{
    int deepest = head_dim > NB_ATTENTION_KEYS ? head_dim : NB_ATTENTION_KEYS;
    struct nb_product largest = {
        .a_dtype = activation, .b_dtype = activation, .m = NB_ATTENTION_KEYS, .n = deepest, .k = deepest};
    return nb_product_scratch_bytes(&largest, bf16);
}
