#include "device/dry/work.h"

#include "device/cuda/plan.h"

/* A rows x columns activation. */
static double activation_bytes(double rows, double columns, enum nb_dtype dtype)
{
    return rows * columns * (double)nb_dtype_bytes(dtype);
}

/* So often read or written, and nothing multiplied. */
static struct nb_dry_work moves(double times, double rows, double columns, enum nb_dtype dtype)
{
    return (struct nb_dry_work){.bytes = times * activation_bytes(rows, columns, dtype)};
}

/* ---- products ---- */

/* 4 bits, and a scale for 64 of them; double quantization saves little of that. */
static const double four_bit_bytes = 0.5 + 1.0 / 64, bf16_bytes = 2;

/* A part's matrix, as the way that the site takes reads it. One that was dequantized before
 * goes by the site of its codes, but is read as it is. */
static void add_weights(const struct nb_device_profile *profile, const struct nb_product_site *site,
    const struct nb_linear_part *part, int columns, struct nb_dry_work *work)
{
    double count = (double)part->out * columns;
    if (part->weight.format == NB_WEIGHT_BF16) {
        work->bytes += count * bf16_bytes;
        return;
    }
    switch (nb_product_path_of(profile, site)) {
    case NB_PRODUCT_FUSED:
        work->bytes += count * four_bit_bytes;
        break;
    case NB_PRODUCT_SCRATCH:
        work->prepared_bytes += count * (four_bit_bytes + bf16_bytes);
        work->bytes += count * bf16_bytes;
        break;
    case NB_PRODUCT_OVERLAPPED:
        work->bytes += count * (four_bit_bytes + 2 * bf16_bytes);
        break;
    }
}

/* A part's product, and its adapter's where there is one; the sums over `out` (dx) cost what those over `in` do. */
static double part_flops(const struct nb_linear_part *part, int rows, int in)
{
    double adapter = nb_dptr_is_null(part->lora.a) ? 0 : (double)part->lora.rank * ((double)in + part->out);
    return 2.0 * rows * ((double)in * part->out + adapter);
}

/* An adapter's kernels read x again. */
struct nb_dry_work nb_dry_work_of_linear(const struct nb_device_profile *profile, const struct nb_linear *a)
{
    double x = activation_bytes(a->tokens_max, a->in, a->activation);
    struct nb_dry_work work = {.bytes = x};
    for (int p = 0; p < a->parts; p++) {
        const struct nb_linear_part *part = &a->part[p];
        struct nb_product_site site = nb_linear_site(a, p);
        work.flops += part_flops(part, a->tokens_max, a->in);
        work.bytes += (part->accumulate ? 2 : 1) * activation_bytes(a->tokens_max, part->out, a->activation);
        work.prepared_bytes += nb_dptr_is_null(part->lora.a) ? 0 : x;
        add_weights(profile, &site, part, a->in, &work);
    }
    return work;
}

/* And the gradients' kernels x and dy, twice. */
struct nb_dry_work nb_dry_work_of_linear_backward(
    const struct nb_device_profile *profile, const struct nb_linear_backward *a)
{
    double x = activation_bytes(a->tokens_max, a->in, a->activation);
    bool wants_dx = !nb_dptr_is_null(a->dx);
    struct nb_dry_work work = {.bytes = wants_dx ? x : 0};
    for (int p = 0; p < a->parts; p++) {
        const struct nb_linear_part *part = &a->part[p];
        double whole = part_flops(part, a->tokens_max, a->in), weights = (double)a->in * part->out;
        double product = 2.0 * a->tokens_max * weights, dy = activation_bytes(a->tokens_max, part->out, a->activation);
        double adapter = whole - product; /* u and dx's share; as much again for da and db */
        work.flops += wants_dx ? product + 2 * adapter : 1.5 * adapter;
        work.bytes += wants_dx ? dy : 0;
        work.prepared_bytes += nb_dptr_is_null(part->lora.a) ? 0 : x + 2 * dy;
    }
    struct nb_product_site site = nb_linear_backward_site(a);
    for (int p = 0; wants_dx && p < a->parts; p++)
        add_weights(profile, &site, &a->part[p], a->in, &work);
    return work;
}

/* ---- attention ---- */

/* Pairs of a query and a key it sees, if the tokens are sequences of longest_max. */
static double attention_pairs(int tokens, int longest, int window)
{
    double seen = window > 0 && window < longest ? window - (double)window * window / (2.0 * longest) : longest / 2.0;
    return (double)tokens * seen;
}

struct nb_dry_work nb_dry_work_of_attention(const struct nb_device_profile *profile, const struct nb_attention *a)
{
    (void)profile;
    double queries = activation_bytes(a->tokens_max, (double)a->heads * a->head_dim, a->activation);
    double keys = activation_bytes(a->key_tokens_max, (double)a->kv_heads * a->head_dim, a->activation);
    return (struct nb_dry_work){
        .flops = 4.0 * attention_pairs(a->tokens_max, a->longest_max, a->window) * a->heads * a->head_dim,
        .bytes = 2 * queries + 2 * keys,
    };
}

struct nb_dry_work nb_dry_work_of_attention_backward(
    const struct nb_device_profile *profile, const struct nb_attention_backward *a)
{
    (void)profile;
    double queries = activation_bytes(a->tokens_max, (double)a->heads * a->head_dim, a->activation);
    double keys = activation_bytes(a->key_tokens_max, (double)a->kv_heads * a->head_dim, a->activation);
    return (struct nb_dry_work){
        .flops = 10.0 * attention_pairs(a->tokens_max, a->longest_max, a->window) * a->heads * a->head_dim,
        .bytes = 4 * queries + 4 * keys,
    };
}

/* ---- what only moves ---- */

#define MOVES(name, times, rows, columns)                                                                             \
    struct nb_dry_work nb_dry_work_of_##name(const struct nb_device_profile *profile, const struct nb_##name *a)      \
    {                                                                                                                 \
        (void)profile;                                                                                                \
        return moves(times, rows, columns, a->activation);                                                            \
    }

MOVES(embedding, 2, a->tokens_max, a->width)
MOVES(gather_rows, 2, a->rows_max, a->width)
MOVES(scatter_rows, 2, a->rows_max, a->width)
MOVES(rmsnorm, 2, a->tokens_max, a->width)
MOVES(rmsnorm_backward, a->accumulate ? 4 : 3, a->tokens_max, a->width)
MOVES(layernorm, 2, a->tokens_max, a->width)
MOVES(layernorm_backward, a->accumulate ? 4 : 3, a->tokens_max, a->width)
MOVES(rope, 2, a->tokens_max, (double)a->heads * a->head_dim)
MOVES(rope_backward, nb_dptr_is_null(a->w) ? 2 : 3, a->tokens_max, (double)a->heads * a->head_dim)
MOVES(kv_append, 4, a->tokens_max, a->width)
MOVES(swiglu, 3, a->tokens_max, a->width)
MOVES(swiglu_backward, 5, a->tokens_max, a->width)
MOVES(geglu, 3, a->tokens_max, a->width)
MOVES(geglu_backward, 5, a->tokens_max, a->width)
MOVES(add, 3, a->tokens_max, a->width)
MOVES(cross_entropy, a->gradient ? 3 : 1, a->rows_max, a->vocabulary)
MOVES(sample, 1, 1, a->vocabulary)

struct nb_dry_work nb_dry_work_of_loss_sum(const struct nb_device_profile *profile, const struct nb_loss_sum *a)
{
    (void)profile;
    return moves(1, a->rows_max, 1, NB_DTYPE_F32);
}

struct nb_dry_work nb_dry_work_of_square_sum(const struct nb_device_profile *profile, const struct nb_square_sum *a)
{
    (void)profile;
    return moves(1, (double)a->count, 1, NB_DTYPE_F32);
}

struct nb_dry_work nb_dry_work_of_clip_scale(const struct nb_device_profile *profile, const struct nb_clip_scale *a)
{
    (void)profile;
    return moves(1, (double)a->count, 1, NB_DTYPE_F32);
}

/* Master, gradient and moments are read and written, the copy is written. */
struct nb_dry_work nb_dry_work_of_adamw(const struct nb_device_profile *profile, const struct nb_adamw *a)
{
    (void)profile;
    double moment = a->moments_8bit ? 1 : sizeof(float), element = 2 * (2 * sizeof(float) + 2 * moment);
    return (struct nb_dry_work){.bytes = (double)a->count * (element + (double)nb_dtype_bytes(a->copy_dtype))};
}

struct nb_dry_work nb_dry_work_of_cast(const struct nb_device_profile *profile, const struct nb_cast *a)
{
    (void)profile;
    return (struct nb_dry_work){.bytes = (double)a->count * (double)(nb_dtype_bytes(a->from) + nb_dtype_bytes(a->to))};
}

static struct nb_dry_work codes(const struct nb_weight *weight)
{
    return (struct nb_dry_work){.bytes = (double)weight->rows * weight->columns * (four_bit_bytes + bf16_bytes)};
}

struct nb_dry_work nb_dry_work_of_quantize(const struct nb_device_profile *profile, const struct nb_quantize *a)
{
    (void)profile;
    return codes(&a->to);
}

struct nb_dry_work nb_dry_work_of_dequantize(const struct nb_device_profile *profile, const struct nb_dequantize *a)
{
    (void)profile;
    return codes(&a->from);
}
