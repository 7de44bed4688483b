#include "linear_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device/dropout.h"
#include "quant/matrix.h"

int linear_stride(const struct linear_case *k, int width)
{
    return (width + 7) / 8 * 8 + k->stride_extra;
}

static struct checkop_buffer *bytes_of(struct checkop *c, const char *name, const void *from, uint64_t bytes)
{
    struct checkop_buffer *buffer = checkop_input(c, name, NB_DTYPE_U8, bytes);
    memcpy(checkop_image(buffer), from, bytes);
    return buffer;
}

/* A matrix [rows, columns] in the case's format, bound into `weight`; what it stands for goes to `values`. */
static void make_weight(
    struct checkop *c, const struct linear_case *k, int rows, int columns, struct nb_weight *weight, double *values)
{
    uint64_t count = (uint64_t)rows * (uint64_t)columns;
    nb_bf16 *w = malloc(count * sizeof *w);
    for (uint64_t i = 0; i < count; i++)
        w[i] = nb_bf16_from_float((float)checkop_random_normal(c) / sqrtf((float)columns));
    *weight = (struct nb_weight){
        .format = k->format, .nested = k->nested && k->format != NB_WEIGHT_BF16, .rows = rows, .columns = columns};
    if (k->format == NB_WEIGHT_BF16) {
        checkop_bind(c, &weight->data, bytes_of(c, "weight", w, count * sizeof *w));
    } else {
        struct nb_quant_layout layout;
        enum nb_quant_type type = k->format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
        nb_status status = nb_quant_matrix_layout(type, k->nested, (uint64_t)rows, (uint64_t)columns, &layout);
        char *slab = calloc(1, layout.bytes);
        float *scales = malloc(nb_quant_blocks(count) * sizeof *scales);
        struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, slab, scales);
        if (status == NB_OK)
            status = nb_quantize(type, k->nested, w, (uint64_t)rows, (uint64_t)columns, &parts);
        checkop_true(c, status == NB_OK, "the weight could not be quantized");
        struct nb_quant_matrix matrix = nb_quant_matrix_view(&layout, slab, parts.nested_offset);
        nb_dequantize_bf16(&matrix, 0, count, w);
        checkop_bind(c, &weight->data, bytes_of(c, "packed", slab + layout.packed, layout.packed_bytes));
        checkop_bind(c, &weight->absmax, bytes_of(c, "absmax", slab + layout.absmax, layout.absmax_bytes));
        checkop_bind(c, &weight->codebook, bytes_of(c, "codebook", slab + layout.codebook, layout.codebook_bytes));
        if (k->nested) {
            checkop_bind(c, &weight->nested_absmax,
                bytes_of(c, "nested_absmax", slab + layout.nested_absmax, layout.nested_absmax_bytes));
            checkop_bind(
                c, &weight->nested_map, bytes_of(c, "nested_map", slab + layout.nested_map, layout.nested_map_bytes));
            checkop_bind(c, &weight->nested_offset, bytes_of(c, "nested_offset", &parts.nested_offset, sizeof(float)));
        }
        free(scales);
        free(slab);
    }
    for (uint64_t i = 0; i < count; i++)
        values[i] = (double)nb_bf16_to_float(w[i]);
    free(w);
}

/* A contiguous activation matrix of normal numbers, and its values. */
static struct checkop_buffer *make_matrix(
    struct checkop *c, const char *name, enum nb_dtype dtype, uint64_t count, double deviation, double **values)
{
    struct checkop_buffer *buffer = checkop_input(c, name, dtype, count);
    checkop_fill_normal(c, buffer, deviation);
    *values = checkop_scratch(c, count);
    for (uint64_t i = 0; i < count; i++)
        (*values)[i] = checkop_get(buffer, i);
    return buffer;
}

static void make_part(struct checkop *c, struct linear_setup *s, int p, struct nb_linear_part *part)
{
    const struct linear_case *k = &s->k;
    struct linear_part *own = &s->part[p];
    int out = k->out[p], rows = out + 2 * k->rows_around;
    double *whole = checkop_scratch(c, (uint64_t)rows * (uint64_t)k->in);
    make_weight(c, k, rows, k->in, &part->weight, whole);
    own->w = whole + (uint64_t)k->rows_around * (uint64_t)k->in;
    part->row_begin = k->rows_around;
    part->out = out;
    part->output_scale = k->output_scale == 0 ? 1.0f : k->output_scale;
    part->y_stride = linear_stride(k, out);
    own->bias = checkop_scratch(c, (uint64_t)out);
    if (k->bias) {
        own->bias_buffer = checkop_input(c, "bias", NB_DTYPE_BF16, (uint64_t)out);
        checkop_fill_normal(c, own->bias_buffer, 0.5);
        for (int i = 0; i < out; i++)
            own->bias[i] = checkop_get(own->bias_buffer, (uint64_t)i);
    }
    if (k->rank == 0)
        return;
    own->a_buffer = make_matrix(c, "a", s->dtype, (uint64_t)k->rank * (uint64_t)k->in, 1.0 / sqrt(k->in), &own->a);
    own->b_buffer = make_matrix(c, "b", s->dtype, (uint64_t)out * (uint64_t)k->rank, 1.0 / sqrt(k->rank), &own->b);
    checkop_bind(c, &part->lora.a, own->a_buffer);
    checkop_bind(c, &part->lora.b, own->b_buffer);
    own->module = 0x9e3779b97f4a7c15u * (uint64_t)(p + 1);
    part->lora.rank = k->rank;
    part->lora.scale = 1.7f;
    part->lora.dropout = k->dropout;
    part->lora.module = own->module;
}

void linear_begin(struct checkop *c, const struct linear_case *k, enum nb_dtype dtype, struct linear_setup *s,
    struct nb_linear_part *part)
{
    static const char *const formats[] = {"bf16", "nf4", "fp4"};
    checkop_case(c, "%s, %d of %d tokens, %d -> %d %d %d, rank %d, %s%s%s%s, dropout %g, scale %g, rows +%d, chunk %d%s",
        checkop_dtype_name(dtype), k->tokens, k->tokens_max, k->in, k->out[0], k->out[1], k->out[2], k->rank,
        formats[k->format], k->nested ? " nested" : "", k->bias ? " bias" : "", k->accumulate ? " accumulate" : "",
        (double)k->dropout, (double)k->output_scale, k->rows_around, k->chunk_begin,
        k->chunk_of_tokens ? " of tokens" : "");
    *s = (struct linear_setup){.k = *k, .dtype = dtype};
    s->step = (struct nb_step){.step = 3, .random_step = 7, .seed = {12345, 678}};
    s->slot = (struct nb_slot){.tokens = (uint32_t)k->tokens, .sequences = 1, .trained_rows = 1, .token_offset = 1000};
    if (k->chunk_of_tokens)
        s->slot.tokens = (uint32_t)(k->tokens ? k->chunk_begin + k->tokens : k->chunk_begin / 2);
    else if (k->chunk_begin > 0)
        s->slot = (struct nb_slot){.tokens = 1, .trained_rows = (uint32_t)(k->chunk_begin + k->tokens)};
    s->step_buffer = checkop_step(c, &s->step, false);
    s->slot_buffer = checkop_slot(c, &s->slot);
    int stride = linear_stride(k, k->in);
    s->x_buffer = checkop_input(c, "x", dtype, (uint64_t)k->tokens_max * (uint64_t)stride);
    checkop_fill_value(s->x_buffer, 0, checkop_count(s->x_buffer), NAN);
    s->x = checkop_scratch(c, (uint64_t)k->tokens * (uint64_t)k->in);
    for (int t = 0; t < k->tokens; t++) {
        for (int i = 0; i < k->in; i++) {
            uint64_t at = (uint64_t)t * (uint64_t)stride + (uint64_t)i;
            checkop_set(s->x_buffer, at, checkop_random_normal(c));
            s->x[t * k->in + i] = checkop_get(s->x_buffer, at);
        }
    }
    for (int p = 0; p < k->parts; p++)
        make_part(c, s, p, &part[p]);
}

enum nb_row_count linear_rows_from(const struct linear_case *k)
{
    return k->chunk_begin > 0 && !k->chunk_of_tokens ? NB_ROWS_TRAINED_CHUNK : NB_ROWS_TOKENS;
}

double *linear_dropped(struct checkop *c, const struct linear_setup *s, int part)
{
    const struct linear_case *k = &s->k;
    double *kept = checkop_scratch(c, (uint64_t)k->tokens * (uint64_t)k->in);
    for (int t = 0; t < k->tokens; t++) {
        struct nb_dropout d = nb_dropout(
            k->dropout, s->part[part].module, s->step.random_step, s->step.seed, s->slot.token_offset + (uint32_t)(k->chunk_begin + t));
        for (int i = 0; i < k->in; i++)
            kept[t * k->in + i] =
                nb_dropout_keep(&d, (uint32_t)i) ? s->x[t * k->in + i] / (1.0 - (double)k->dropout) : 0;
    }
    return kept;
}

void linear_multiply(
    const double *left, const double *right, int rows, int columns, int depth, double *out, double *sizes)
{
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) {
            const double *l = left + (int64_t)i * depth, *r = right + (int64_t)j * depth;
            double sum = 0, size = 0;
            for (int d = 0; d < depth; d++) {
                sum += l[d] * r[d];
                size += fabs(l[d] * r[d]);
            }
            out[(int64_t)i * columns + j] = sum;
            if (sizes)
                sizes[(int64_t)i * columns + j] = size;
        }
    }
}

double linear_largest(const double *values, uint64_t count)
{
    double largest = 0;
    for (uint64_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(values[i]));
    return largest;
}

double linear_sum_error(int depth, double largest_size)
{
    return (depth / 16.0 + 20) * 0x1p-24 * largest_size;
}
