/* y = x W^T + scale * (dropout(x) A^T) B^T + bias for up to three parts that share x:
 *   1. t = dropout(x) A^T of all parts (lora.cuh);
 *   2. a site of up to NB_CUDA_FEW_TOKENS tokens goes to the few-token kernel;
 *   3. else each part by its path (device/cuda/plan.h). The fused ones, and bf16 weights where there is no cuBLASLt, in one launch of
 *      the product kernel; on the scratch paths chunks of W's rows become bf16 first, which cuBLASLt or the product kernel multiplies.
 * cuBLASLt adds to what stands in y, so there the adapter, the bias and what is accumulated onto are written first, by the product kernel
 * without its long sum: rounded to bf16 once more than in the fused way. It multiplies all tokens_max rows: those beyond the valid ones
 * come out as anything. Bound by the tensor cores from a few hundred tokens on, below by reading W: linear_kernel.cuh. */
#include "cuda/cublaslt.cuh"
#include "cuda/linear_product.cuh"
#include "cuda/lora.cuh"

struct chunks {
    const struct nb_linear *args;
    int part, rows;    /* of W a chunk */
    bool library;
};

/* What all products of the call share. */
static struct nb_product product_of(const struct nb_linear *a)
{
    struct nb_product product = {};
    product.slot = nb_pointer<const struct nb_slot>(a->slot);
    product.rows_max = a->tokens_max;
    product.row_begin = a->row_begin_chunk;
    product.rows_from = a->rows_from;
    return product;
}

/* A sum with no segments yet, for outputs `begin` .. `begin` + width of a part. */
static struct nb_product_output *add_output(struct nb_product *product, const struct nb_linear_part *part, int begin, int width)
{
    struct nb_product_output *output = &product->output[product->outputs];
    int segment = product->outputs > 0 ? output[-1].segment_end : 0;
    product->outputs++;
    output->y = nb_pointer<nb_bf16>(part->y) + begin;
    output->bias = nb_dptr_is_null(part->bias) ? NULL : nb_pointer<const nb_bf16>(part->bias) + begin;
    output->stride = part->y_stride;
    output->width = width;
    output->segment_begin = output->segment_end = segment;
    output->accumulate = part->accumulate;
    output->scale = part->output_scale;
    return output;
}

/* t B^T, times the adapter's scale. */
static void add_adapter(struct nb_product *product, struct nb_product_output *output, const struct nb_linear_part *part, int begin)
{
    const struct nb_lora *lora = &part->lora;
    if (nb_dptr_is_null(lora->a))
        return;
    struct nb_product_segment *segment = &product->segment[output->segment_end++];
    segment->left = nb_pointer<const nb_bf16>(lora->t);
    segment->right = nb_pointer<const nb_bf16>(lora->b) + (int64_t)begin * lora->rank;
    segment->left_stride = segment->right_stride = segment->depth = lora->rank;
    segment->factor = lora->scale;
}

/* x W^T. `scratch`: the bf16 rows from `begin` on, or null: the weights as they are stored. */
static void add_weights(struct nb_product *product, struct nb_product_output *output, const struct nb_linear *a,
    const struct nb_linear_part *part, nb_dptr scratch)
{
    struct nb_product_segment *segment = &product->segment[output->segment_end++];
    segment->left = nb_pointer<const nb_bf16>(a->x);
    segment->left_stride = a->x_stride;
    segment->right_stride = segment->depth = a->in;
    segment->factor = 1;
    if (!nb_dptr_is_null(scratch)) {
        segment->right = nb_pointer<const nb_bf16>(scratch);
    } else if (part->weight.format == NB_WEIGHT_BF16) {
        segment->right = nb_pointer<const nb_bf16>(part->weight.data) + (int64_t)part->row_begin * a->in;
    } else {
        segment->packed = nb_packed_weight_of(&part->weight);
        segment->packed_begin = (int64_t)part->row_begin * a->in;
    }
}

/* ---- by cuBLASLt ---- */

/* The adapter's and the bias's share of y, added to what is accumulated onto. */
static nb_status write_before(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *a, int p)
{
    const struct nb_linear_part *part = &a->part[p];
    if (nb_dptr_is_null(part->lora.a) && nb_dptr_is_null(part->bias))
        return NB_OK;
    struct nb_product product = product_of(a);
    struct nb_product_output *output = add_output(&product, part, 0, part->out);
    add_adapter(&product, output, part, 0);
    return nb_product_launch(cuda, stream, product);
}

static nb_status multiply_by_library(
    struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *a, int p, int begin, int width, nb_dptr weights)
{
    const struct nb_linear_part *part = &a->part[p];
    struct nb_blaslt_product product = {};
    product.a = a->x;
    product.b = weights;
    product.c = nb_dptr_at(part->y, (uint64_t)begin * 2);
    product.m = a->tokens_max;
    product.n = width;
    product.k = a->in;
    product.a_stride = a->x_stride;
    product.b_stride = a->in;
    product.c_stride = part->y_stride;
    product.b_transposed = true;
    product.accumulate = part->accumulate || !nb_dptr_is_null(part->lora.a) || !nb_dptr_is_null(part->bias);
    product.scale = part->output_scale;
    return nb_blaslt_multiply(cuda, stream, &product);
}

/* ---- chunks of W's rows ---- */

/* Of a matrix that is bf16 already, rows from `begin` of the part's on. */
static nb_dptr bf16_rows(const struct nb_linear *a, int p, int begin)
{
    const struct nb_linear_part *part = &a->part[p];
    return nb_dptr_at(part->weight.data, ((uint64_t)part->row_begin + (uint64_t)begin) * (uint64_t)a->in * 2);
}

static int chunk_width(const struct chunks *c, int chunk)
{
    int left = c->args->part[c->part].out - chunk * c->rows;
    return left < c->rows ? left : c->rows;
}

static nb_status dequantize_chunk(struct nb_cuda *cuda, cudaStream_t stream, const void *context, int chunk, nb_dptr scratch)
{
    const struct chunks *c = (const struct chunks *)context;
    const struct nb_linear_part *part = &c->args->part[c->part];
    struct nb_weight_region region = {part->row_begin + chunk * c->rows, chunk_width(c, chunk), 0, c->args->in};
    (void)cuda;
    if (part->weight.format == NB_WEIGHT_BF16)
        return NB_OK;
    return nb_weight_chunk(stream, &part->weight, region, scratch);
}

static nb_status multiply_chunk(struct nb_cuda *cuda, cudaStream_t stream, const void *context, int chunk, nb_dptr scratch)
{
    const struct chunks *c = (const struct chunks *)context;
    const struct nb_linear_part *part = &c->args->part[c->part];
    int begin = chunk * c->rows, width = chunk_width(c, chunk);
    if (part->weight.format == NB_WEIGHT_BF16)
        scratch = bf16_rows(c->args, c->part, begin);
    if (c->library)
        return multiply_by_library(cuda, stream, c->args, c->part, begin, width, scratch);
    struct nb_product product = product_of(c->args);
    struct nb_product_output *output = add_output(&product, part, begin, width);
    add_adapter(&product, output, part, begin);
    add_weights(&product, output, c->args, part, scratch);
    return nb_product_launch(cuda, stream, product);
}

static nb_status run_chunks(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *a, int p, nb_dptr scratch)
{
    const struct nb_device_profile *profile = &cuda->base.profile;
    struct nb_product_site site = nb_linear_site(a, p);
    struct chunks chunks = {a, p, nb_product_chunk(profile, &site), profile->cublaslt_version != 0};
    struct nb_chunk_loop loop = {};
    loop.context = &chunks;
    loop.chunks = (int)nb_blocks_of(a->part[p].out, chunks.rows);
    loop.overlapped = nb_product_path_of(profile, &site) == NB_PRODUCT_OVERLAPPED && a->part[p].weight.format != NB_WEIGHT_BF16;
    loop.scratch = scratch;
    loop.scratch_bytes = nb_aligned((uint64_t)chunks.rows * (uint64_t)a->in * 2);
    loop.dequantize = dequantize_chunk;
    loop.multiply = multiply_chunk;
    if (chunks.library)
        NB_TRY(write_before(cuda, stream, a, p));
    return nb_chunk_loop_run(cuda, stream, &loop);
}

/* ---- the op ---- */

static bool has_adapter(const struct nb_linear *a)
{
    for (int p = 0; p < a->parts; p++)
        if (!nb_dptr_is_null(a->part[p].lora.a))
            return true;
    return false;
}

/* Every part by its path; those of the product kernel's own in one launch at the end. */
static nb_status run_parts(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *a, nb_dptr scratch)
{
    const struct nb_device_profile *profile = &cuda->base.profile;
    struct nb_product fused = product_of(a);
    for (int p = 0; p < a->parts; p++) {
        const struct nb_linear_part *part = &a->part[p];
        struct nb_product_site site = nb_linear_site(a, p);
        if (nb_product_path_of(profile, &site) != NB_PRODUCT_FUSED) {
            NB_TRY(run_chunks(cuda, stream, a, p, scratch));
        } else if (site.format == NB_WEIGHT_BF16 && profile->cublaslt_version != 0) {
            NB_TRY(write_before(cuda, stream, a, p));
            NB_TRY(multiply_by_library(cuda, stream, a, p, 0, part->out, bf16_rows(a, p, 0)));
        } else {
            struct nb_product_output *output = add_output(&fused, part, 0, part->out);
            add_adapter(&fused, output, part, 0);
            add_weights(&fused, output, a, part, nb_dptr{0});
        }
    }
    return nb_product_launch(cuda, stream, fused);
}

nb_status nb_cuda_linear(struct nb_device *device, struct nb_stream *stream, const struct nb_linear *args)
{
    struct nb_cuda *cuda = nb_cuda_of(device);
    NB_TRY(nb_check_linear(args));
    NB_TRY(nb_cuda_refuse_f32("linear", args->activation));
    struct nb_linear_scratch scratch;
    nb_linear_scratch_of(&cuda->base.profile, args, &scratch);
    NB_TRY(nb_cuda_require_scratch("linear", &args->scratch, scratch.bytes));
    nb_dptr partials = nb_dptr_at(args->scratch.base, scratch.partials);
    if (has_adapter(args))
        NB_TRY(nb_lora_down(cuda, stream->stream, args, partials));
    if (nb_linear_is_few(args))
        return nb_linear_few(cuda, stream->stream, args, partials);
    return run_parts(cuda, stream->stream, args, nb_dptr_at(args->scratch.base, scratch.weights));
}

nb_status nb_cuda_prepare_linear(struct nb_cuda *cuda)
{
    NB_TRY(nb_lora_prepare(cuda));
    NB_TRY(nb_linear_few_prepare(cuda));
    return nb_product_prepare(cuda);
}
