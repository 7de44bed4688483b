/* What each op's args must be on any device. linear and attention, whose args are larger, stand in check_products.c. */
#include <math.h>

#include "device/check.h"

static nb_status check_rows(const char *op, enum nb_row_count from, int row_begin)
{
    if (from != NB_ROWS_TOKENS && from != NB_ROWS_TRAINED_CHUNK)
        return nb_fail(NB_UNSUPPORTED, "%s: rows_from %d is neither tokens nor a chunk of trained rows", op, (int)from);
    return nb_check_range(op, "row_begin", row_begin, 0, INT32_MAX);
}

nb_status nb_check_embedding(const struct nb_embedding *a)
{
    const char *op = "embedding";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(nb_check_range(op, "vocabulary", a->vocabulary, 1, INT32_MAX));
    if (!isfinite(a->scale))
        return nb_fail(NB_UNSUPPORTED, "%s: scale %g is not finite", op, (double)a->scale);
    NB_TRY(nb_check_pointer(op, "table", a->table, 16));
    NB_TRY(nb_check_pointer(op, "ids", a->ids, 4));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    return nb_check_pointer(op, "slot", a->slot, 16);
}

/* gather_rows and scatter_rows have the same members. */
#define CHECK_CHUNK_OF_ROWS(name)                                            \
    nb_status nb_check_##name(const struct nb_##name *a)                     \
    {                                                                        \
        NB_TRY(nb_check_activation(#name, a->activation));                   \
        NB_TRY(nb_check_range(#name, "row_begin", a->row_begin, 0, INT32_MAX)); \
        NB_TRY(nb_check_range(#name, "rows_max", a->rows_max, 1, INT32_MAX)); \
        NB_TRY(nb_check_width(#name, "width", a->width));                    \
        NB_TRY(nb_check_pointer(#name, "x", a->x, 16));                      \
        NB_TRY(nb_check_pointer(#name, "rows", a->rows, 4));                 \
        NB_TRY(nb_check_pointer(#name, "y", a->y, 16));                      \
        NB_TRY(nb_check_pointer(#name, "slot", a->slot, 16));                \
        return nb_check_apart(#name, "x", a->x, "y", a->y);                  \
    }
CHECK_CHUNK_OF_ROWS(gather_rows)
CHECK_CHUNK_OF_ROWS(scatter_rows)

nb_status nb_check_rmsnorm(const struct nb_rmsnorm *a)
{
    const char *op = "rmsnorm";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(nb_check_epsilon(op, a->epsilon));
    NB_TRY(check_rows(op, a->rows_from, a->row_begin));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    NB_TRY(nb_check_pointer(op, "y", a->y, 16));
    NB_TRY(nb_check_pointer(op, "rms", a->rms, 4));
    return nb_check_pointer(op, "slot", a->slot, 16);
}

nb_status nb_check_rmsnorm_backward(const struct nb_rmsnorm_backward *a)
{
    const char *op = "rmsnorm_backward";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(check_rows(op, a->rows_from, a->row_begin));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    NB_TRY(nb_check_pointer(op, "rms", a->rms, 4));
    NB_TRY(nb_check_pointer(op, "dy", a->dy, 16));
    NB_TRY(nb_check_pointer(op, "dx", a->dx, 16));
    NB_TRY(nb_check_pointer(op, "slot", a->slot, 16));
    NB_TRY(nb_check_apart(op, "x", a->x, "dx", a->dx));
    return a->accumulate ? nb_check_apart(op, "dy", a->dy, "dx", a->dx) : NB_OK;
}

nb_status nb_check_layernorm(const struct nb_layernorm *a)
{
    const char *op = "layernorm";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(nb_check_epsilon(op, a->epsilon));
    NB_TRY(check_rows(op, a->rows_from, a->row_begin));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    NB_TRY(nb_check_pointer(op, "y", a->y, 16));
    NB_TRY(nb_check_pointer(op, "moments", a->moments, 8));
    NB_TRY(nb_check_pointer(op, "slot", a->slot, 16));
    return nb_dptr_is_null(a->b) ? NB_OK : nb_check_pointer(op, "b", a->b, 16);
}

nb_status nb_check_layernorm_backward(const struct nb_layernorm_backward *a)
{
    const char *op = "layernorm_backward";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(check_rows(op, a->rows_from, a->row_begin));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    NB_TRY(nb_check_pointer(op, "moments", a->moments, 8));
    NB_TRY(nb_check_pointer(op, "dy", a->dy, 16));
    NB_TRY(nb_check_pointer(op, "dx", a->dx, 16));
    NB_TRY(nb_check_pointer(op, "slot", a->slot, 16));
    NB_TRY(nb_check_apart(op, "x", a->x, "dx", a->dx));
    return a->accumulate ? nb_check_apart(op, "dy", a->dy, "dx", a->dx) : NB_OK;
}

nb_status nb_check_rope(const struct nb_rope *a)
{
    const char *op = "rope";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_heads(op, "heads", a->heads, a->head_dim));
    NB_TRY(nb_check_stride(op, "x_stride", a->x_stride, (int64_t)a->heads * a->head_dim));
    NB_TRY(nb_check_stride(op, "y_stride", a->y_stride, (int64_t)a->heads * a->head_dim));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    NB_TRY(nb_check_pointer(op, "y", a->y, 16));
    NB_TRY(nb_check_pointer(op, "positions", a->positions, 4));
    NB_TRY(nb_check_pointer(op, "cosine", a->cosine, 16));
    NB_TRY(nb_check_pointer(op, "sine", a->sine, 16));
    NB_TRY(nb_check_pointer(op, "slot", a->slot, 16));
    if (a->x.address == a->y.address && a->x_stride != a->y_stride)
        return nb_fail(NB_UNSUPPORTED, "%s: y is x, but y_stride %d is not x_stride %d", op, a->y_stride, a->x_stride);
    if (nb_dptr_is_null(a->w))
        return NB_OK;
    NB_TRY(nb_check_epsilon(op, a->epsilon));
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    NB_TRY(nb_check_pointer(op, "rms", a->rms, 4));
    return nb_check_apart(op, "x", a->x, "y", a->y);
}

nb_status nb_check_rope_backward(const struct nb_rope_backward *a)
{
    const char *op = "rope_backward";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_heads(op, "heads", a->heads, a->head_dim));
    NB_TRY(nb_check_stride(op, "dy_stride", a->dy_stride, (int64_t)a->heads * a->head_dim));
    NB_TRY(nb_check_stride(op, "dx_stride", a->dx_stride, (int64_t)a->heads * a->head_dim));
    NB_TRY(nb_check_pointer(op, "dy", a->dy, 16));
    NB_TRY(nb_check_pointer(op, "dx", a->dx, 16));
    NB_TRY(nb_check_pointer(op, "positions", a->positions, 4));
    NB_TRY(nb_check_pointer(op, "cosine", a->cosine, 16));
    NB_TRY(nb_check_pointer(op, "sine", a->sine, 16));
    NB_TRY(nb_check_pointer(op, "slot", a->slot, 16));
    if (a->dx.address == a->dy.address && a->dx_stride != a->dy_stride)
        return nb_fail(NB_UNSUPPORTED, "%s: dx is dy, but dx_stride %d is not dy_stride %d", op, a->dx_stride, a->dy_stride);
    if (nb_dptr_is_null(a->w))
        return NB_OK;
    NB_TRY(nb_check_stride(op, "x_stride", a->x_stride, (int64_t)a->heads * a->head_dim));
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    NB_TRY(nb_check_pointer(op, "rms", a->rms, 4));
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    return nb_check_apart(op, "x", a->x, "dx", a->dx);
}

nb_status nb_check_kv_append(const struct nb_kv_append *a)
{
    const char *op = "kv_append";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(nb_check_stride(op, "k_stride", a->k_stride, a->width));
    NB_TRY(nb_check_stride(op, "v_stride", a->v_stride, a->width));
    NB_TRY(nb_check_range(op, "capacity", a->capacity, 1, INT32_MAX));
    NB_TRY(nb_check_pointer(op, "k", a->k, 16));
    NB_TRY(nb_check_pointer(op, "v", a->v, 16));
    NB_TRY(nb_check_pointer(op, "k_cache", a->k_cache, 16));
    NB_TRY(nb_check_pointer(op, "v_cache", a->v_cache, 16));
    NB_TRY(nb_check_pointer(op, "slot", a->slot, 16));
    NB_TRY(nb_check_apart(op, "k", a->k, "k_cache", a->k_cache));
    NB_TRY(nb_check_apart(op, "v", a->v, "v_cache", a->v_cache));
    return nb_check_apart(op, "k_cache", a->k_cache, "v_cache", a->v_cache);
}

/* swiglu and geglu have the same members. */
#define CHECK_GATED(name)                                                          \
    nb_status nb_check_##name(const struct nb_##name *a)                           \
    {                                                                              \
        NB_TRY(nb_check_activation(#name, a->activation));                         \
        NB_TRY(nb_check_range(#name, "tokens_max", a->tokens_max, 1, INT32_MAX));  \
        NB_TRY(nb_check_width(#name, "width", a->width));                          \
        NB_TRY(nb_check_range(#name, "row_begin", a->row_begin, 0, INT32_MAX));    \
        NB_TRY(nb_check_pointer(#name, "gate", a->gate, 16));                      \
        NB_TRY(nb_check_pointer(#name, "up", a->up, 16));                          \
        NB_TRY(nb_check_pointer(#name, "y", a->y, 16));                            \
        return nb_check_pointer(#name, "slot", a->slot, 16);                       \
    }
CHECK_GATED(swiglu)
CHECK_GATED(geglu)

#define CHECK_GATED_BACKWARD(name)                                                 \
    nb_status nb_check_##name(const struct nb_##name *a)                           \
    {                                                                              \
        NB_TRY(nb_check_activation(#name, a->activation));                         \
        NB_TRY(nb_check_range(#name, "tokens_max", a->tokens_max, 1, INT32_MAX));  \
        NB_TRY(nb_check_width(#name, "width", a->width));                          \
        NB_TRY(nb_check_range(#name, "row_begin", a->row_begin, 0, INT32_MAX));    \
        NB_TRY(nb_check_pointer(#name, "gate", a->gate, 16));                      \
        NB_TRY(nb_check_pointer(#name, "up", a->up, 16));                          \
        NB_TRY(nb_check_pointer(#name, "dy", a->dy, 16));                          \
        NB_TRY(nb_check_pointer(#name, "d_gate", a->d_gate, 16));                  \
        NB_TRY(nb_check_pointer(#name, "d_up", a->d_up, 16));                      \
        NB_TRY(nb_check_pointer(#name, "slot", a->slot, 16));                      \
        NB_TRY(nb_check_apart(#name, "d_gate", a->d_gate, "d_up", a->d_up));       \
        NB_TRY(nb_check_apart(#name, "dy", a->dy, "d_gate", a->d_gate));           \
        NB_TRY(nb_check_apart(#name, "dy", a->dy, "d_up", a->d_up));               \
        NB_TRY(nb_check_apart(#name, "up", a->up, "d_gate", a->d_gate));           \
        return nb_check_apart(#name, "gate", a->gate, "d_up", a->d_up);            \
    }
CHECK_GATED_BACKWARD(swiglu_backward)
CHECK_GATED_BACKWARD(geglu_backward)

nb_status nb_check_add(const struct nb_add *a)
{
    const char *op = "add";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "tokens_max", a->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(op, "width", a->width));
    NB_TRY(nb_check_range(op, "row_begin", a->row_begin, 0, INT32_MAX));
    NB_TRY(nb_check_pointer(op, "a", a->a, 16));
    NB_TRY(nb_check_pointer(op, "b", a->b, 16));
    NB_TRY(nb_check_pointer(op, "y", a->y, 16));
    return nb_check_pointer(op, "slot", a->slot, 16);
}

nb_status nb_check_cross_entropy(const struct nb_cross_entropy *a)
{
    const char *op = "cross_entropy";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "row_begin", a->row_begin, 0, INT32_MAX));
    NB_TRY(nb_check_range(op, "rows_max", a->rows_max, 1, INT32_MAX));
    NB_TRY(nb_check_range(op, "vocabulary", a->vocabulary, 1, INT32_MAX));
    NB_TRY(nb_check_stride(op, "logits_stride", a->logits_stride, a->vocabulary));
    NB_TRY(nb_check_pointer(op, "logits", a->logits, 16));
    NB_TRY(nb_check_pointer(op, "labels", a->labels, 4));
    NB_TRY(nb_check_pointer(op, "loss", a->loss, 4));
    return nb_check_pointer(op, "slot", a->slot, 16);
}

nb_status nb_check_loss_sum(const struct nb_loss_sum *a)
{
    const char *op = "loss_sum";
    NB_TRY(nb_check_range(op, "rows_max", a->rows_max, 1, INT32_MAX));
    NB_TRY(nb_check_pointer(op, "loss", a->loss, 4));
    NB_TRY(nb_check_pointer(op, "step", a->step, 16));
    return nb_check_pointer(op, "slot", a->slot, 16);
}

nb_status nb_check_square_sum(const struct nb_square_sum *a)
{
    const char *op = "square_sum";
    NB_TRY(nb_check_count(op, a->count));
    if (a->count % NB_TILE_ELEMENTS != 0)
        return nb_fail(NB_UNSUPPORTED, "%s: count %llu is not a multiple of %d", op, (unsigned long long)a->count, NB_TILE_ELEMENTS);
    NB_TRY(nb_check_pointer(op, "gradient", a->gradient, 16));
    return nb_check_pointer(op, "partial", a->partial, 4);
}

nb_status nb_check_clip_scale(const struct nb_clip_scale *a)
{
    const char *op = "clip_scale";
    NB_TRY(nb_check_count(op, a->count));
    NB_TRY(nb_check_pointer(op, "partial", a->partial, 4));
    return nb_check_pointer(op, "step", a->step, 16);
}

static nb_status check_unit_interval(const char *op, const char *name, double value)
{
    if (value >= 0 && value < 1)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s %g is outside [0, 1)", op, name, value);
}

nb_status nb_check_adamw(const struct nb_adamw *a)
{
    const char *op = "adamw";
    NB_TRY(nb_check_count(op, a->count));
    NB_TRY(check_unit_interval(op, "beta1", a->beta1));
    NB_TRY(check_unit_interval(op, "beta2", a->beta2));
    if (!(a->epsilon >= 0) || !isfinite(a->epsilon))
        return nb_fail(NB_UNSUPPORTED, "%s: epsilon %g is negative or not finite", op, a->epsilon);
    if (!(a->weight_decay >= 0) || !isfinite(a->weight_decay))
        return nb_fail(NB_UNSUPPORTED, "%s: weight_decay %g is negative or not finite", op, a->weight_decay);
    NB_TRY(nb_check_activation(op, a->copy_dtype));
    NB_TRY(nb_check_pointer(op, "master", a->master, 16));
    NB_TRY(nb_check_pointer(op, "gradient", a->gradient, 16));
    NB_TRY(nb_check_pointer(op, "copy", a->copy, 16));
    NB_TRY(nb_check_pointer(op, "m", a->m, 16));
    NB_TRY(nb_check_pointer(op, "v", a->v, 16));
    NB_TRY(nb_check_pointer(op, "step", a->step, 16));
    NB_TRY(nb_check_apart(op, "master", a->master, "copy", a->copy));
    NB_TRY(nb_check_apart(op, "m", a->m, "v", a->v));
    if (!a->moments_8bit)
        return NB_OK;
    NB_TRY(nb_check_pointer(op, "m_absmax", a->m_absmax, 4));
    NB_TRY(nb_check_pointer(op, "v_absmax", a->v_absmax, 4));
    NB_TRY(nb_check_pointer(op, "m_map", a->m_map, 16));
    return nb_check_pointer(op, "v_map", a->v_map, 16);
}

nb_status nb_check_cast(const struct nb_cast *a)
{
    const char *op = "cast";
    NB_TRY(nb_check_count(op, a->count));
    NB_TRY(nb_check_activation(op, a->from));
    NB_TRY(nb_check_activation(op, a->to));
    if (a->from == NB_DTYPE_BF16 && a->to == NB_DTYPE_BF16)
        return nb_fail(NB_UNSUPPORTED, "%s: from BF16 to BF16 is a copy; use the device's copy", op);
    NB_TRY(nb_check_pointer(op, "x", a->x, 16));
    NB_TRY(nb_check_pointer(op, "y", a->y, 16));
    return nb_check_apart(op, "x", a->x, "y", a->y);
}

nb_status nb_check_quantize(const struct nb_quantize *a)
{
    const char *op = "quantize";
    NB_TRY(nb_check_weight(op, "to", &a->to));
    if (a->to.format == NB_WEIGHT_BF16)
        return nb_fail(NB_UNSUPPORTED, "%s: to.format is bf16, not a 4-bit format", op);
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    return nb_check_apart(op, "w", a->w, "to.data", a->to.data);
}

nb_status nb_check_dequantize(const struct nb_dequantize *a)
{
    const char *op = "dequantize";
    NB_TRY(nb_check_weight(op, "from", &a->from));
    if (a->from.format == NB_WEIGHT_BF16)
        return nb_fail(NB_UNSUPPORTED, "%s: from.format is bf16, not a 4-bit format", op);
    NB_TRY(nb_check_pointer(op, "w", a->w, 16));
    return nb_check_apart(op, "w", a->w, "from.data", a->from.data);
}

nb_status nb_check_sample(const struct nb_sample *a)
{
    const char *op = "sample";
    NB_TRY(nb_check_activation(op, a->activation));
    NB_TRY(nb_check_range(op, "vocabulary", a->vocabulary, 1, INT32_MAX));
    NB_TRY(nb_check_range(op, "top_k", a->top_k, 0, INT32_MAX));
    if (!(a->temperature >= 0) || !isfinite(a->temperature))
        return nb_fail(NB_UNSUPPORTED, "%s: temperature %g is negative or not finite", op, (double)a->temperature);
    if (!(a->top_p > 0 && a->top_p <= 1))
        return nb_fail(NB_UNSUPPORTED, "%s: top_p %g is outside (0, 1]", op, (double)a->top_p);
    NB_TRY(nb_check_pointer(op, "logits", a->logits, 16));
    NB_TRY(nb_check_pointer(op, "next", a->next, 4));
    return nb_check_pointer(op, "slot", a->slot, 16);
}
