/* dx, da and db of nb_linear, the weights frozen: u, db and da first (lora.cuh), then dx, the sum over parts of output_scale * dy W +
 * mask(u A), by the call's one path (device/cuda/plan.h): 4-bit weights decoded in the product kernel, or a chunk of W's columns, the
 * parts' rows stacked, in bf16 scratch. The product kernel sums all parts and adapters in the same accumulators and rounds once.
 *
 * cuBLASLt adds to what stands in dx: adapters are written first, by the product kernel without its long sums, and rounded to bf16 there.
 * Parts whose dy are neighbouring columns of one buffer are one product over the stacked weights; others follow one another, each rounding
 * the sum so far to bf16. Rows of dx beyond the valid ones come out as anything then. Bound as linear.cu is. */
#include "cuda/cublaslt.cuh"
#include "cuda/linear_product.cuh"
#include "cuda/lora.cuh"

struct chunks {
    const struct nb_linear_backward *args;
    const nb_dptr *u;
    int columns; /* of W a chunk */
    bool library;
};

static bool has_adapter(const struct nb_linear_part *part)
{
    return !nb_dptr_is_null(part->lora.a);
}

/* A sum for columns `begin` .. `begin` + width of dx, without its segments. */
static struct nb_product product_of(const struct nb_linear_backward *a, int begin, int width)
{
    struct nb_product product = {};
    product.slot = nb_pointer<const struct nb_slot>(a->slot);
    product.step = nb_pointer<const struct nb_step>(a->step);
    product.tokens = nb_pointer<const int32_t>(a->rows);
    product.rows_max = a->tokens_max;
    product.row_begin = a->row_begin_chunk;
    product.rows_from = a->rows_from;
    product.backward = true;
    product.outputs = 1;
    product.output[0].y = nb_pointer<nb_bf16>(a->dx) + begin;
    product.output[0].stride = a->dx_stride;
    product.output[0].width = width;
    product.output[0].accumulate = a->accumulate_dx;
    product.output[0].scale = 1;
    return product;
}

/* u A of every part: among the segments, or with dropout among the masked sums. */
static void add_adapters(struct nb_product *product, const struct nb_linear_backward *a, const nb_dptr u[NB_LINEAR_PARTS], int begin)
{
    for (int p = 0; p < a->parts; p++) {
        const struct nb_lora *lora = &a->part[p].lora;
        if (!has_adapter(&a->part[p]))
            continue;
        struct nb_product_segment segment = {};
        segment.left = nb_pointer<const nb_bf16>(u[p]);
        segment.right = nb_pointer<const nb_bf16>(lora->a) + begin;
        segment.left_stride = segment.depth = lora->rank;
        segment.right_stride = a->in;
        segment.factor = 1;
        if (lora->dropout > 0) {
            struct nb_product_masked masked = {segment, begin, lora->dropout, lora->module};
            product->masked[product->masked_count++] = masked;
        } else {
            product->segment[product->output[0].segment_end++] = segment;
        }
    }
}

/* output_scale * dy W of every part. The sum so far is kept divided by the output scale of the part at work, and comes out multiplied by
 * the last one's; a part that is scaled by zero adds nothing. `scratch`: columns of the 4-bit weights in bf16, `width` apart, the parts'
 * rows one behind the other; or null. */
static void add_weights(struct nb_product *product, const struct nb_linear_backward *a, nb_dptr scratch, int begin, int width)
{
    struct nb_product_segment *last = NULL;
    float scale = 1;
    int64_t row = 0;
    for (int p = 0; p < a->parts; p++) {
        const struct nb_linear_part *part = &a->part[p];
        int64_t first = (int64_t)part->row_begin * a->in + begin, scratch_row = row;
        row += part->weight.format == NB_WEIGHT_BF16 ? 0 : part->out;
        if (part->output_scale == 0)
            continue;
        if (last)
            last->factor = scale / part->output_scale;
        scale = part->output_scale;
        last = &product->segment[product->output[0].segment_end++];
        last->left = nb_pointer<const nb_bf16>(part->y);
        last->left_stride = part->y_stride;
        last->right_stride = a->in;
        last->depth = part->out;
        last->factor = scale;
        if (part->weight.format == NB_WEIGHT_BF16) {
            last->right = nb_pointer<const nb_bf16>(part->weight.data) + first;
        } else if (!nb_dptr_is_null(scratch)) {
            last->right = nb_pointer<const nb_bf16>(scratch) + scratch_row * width;
            last->right_stride = width;
        } else {
            last->packed = nb_packed_weight_of(&part->weight);
            last->packed_begin = first;
        }
    }
}

/* ---- by cuBLASLt ---- */

/* Of a bf16 matrix, the part's first row. */
static uint64_t stored_rows(const struct nb_linear_backward *a, const struct nb_linear_part *part)
{
    return part->weight.data.address + (uint64_t)part->row_begin * (uint64_t)a->in * 2;
}

/* Whether part p's weights will stand behind part p - 1's: both decoded into scratch, or bf16 rows that lie so. */
static bool weights_follow(const struct nb_linear_backward *a, int p)
{
    const struct nb_linear_part *part = &a->part[p], *before = part - 1;
    bool stored = part->weight.format == NB_WEIGHT_BF16;
    if (stored != (before->weight.format == NB_WEIGHT_BF16))
        return false;
    return !stored || stored_rows(a, part) == stored_rows(a, before) + (uint64_t)before->out * (uint64_t)a->in * 2;
}

/* Whether part p's dy lies just behind part p - 1's in the same rows, with their weights alike and scaled alike, so that one product takes
 * both. */
static bool follows(const struct nb_linear_backward *a, int p)
{
    const struct nb_linear_part *part = &a->part[p], *before = part - 1;
    return part->y.address == before->y.address + (uint64_t)before->out * 2 && part->y_stride == before->y_stride &&
           part->output_scale == before->output_scale && weights_follow(a, p);
}

static bool has_adapters(const struct nb_linear_backward *a)
{
    for (int p = 0; p < a->parts; p++)
        if (has_adapter(&a->part[p]))
            return true;
    return false;
}

static bool decodes(const struct nb_linear_backward *a)
{
    for (int p = 0; p < a->parts; p++)
        if (a->part[p].weight.format != NB_WEIGHT_BF16)
            return true;
    return false;
}

static nb_status multiply_by_library(
    struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *a, nb_dptr scratch, int begin, int width)
{
    bool accumulate = a->accumulate_dx || has_adapters(a);
    int64_t row = 0;
    for (int p = 0; p < a->parts;) {
        const struct nb_linear_part *part = &a->part[p];
        bool stored = part->weight.format == NB_WEIGHT_BF16;
        struct nb_blaslt_product product = {};
        product.a = part->y;
        product.b = stored ? nb_dptr{stored_rows(a, part) + (uint64_t)begin * 2} : nb_dptr_at(scratch, (uint64_t)(row * width) * 2);
        product.c = nb_dptr_at(a->dx, (uint64_t)begin * 2);
        product.m = a->tokens_max;
        product.n = width;
        product.a_stride = part->y_stride;
        product.b_stride = stored ? a->in : width;
        product.c_stride = a->dx_stride;
        product.accumulate = accumulate;
        product.scale = part->output_scale;
        do
            product.k += a->part[p++].out;
        while (p < a->parts && follows(a, p));
        row += stored ? 0 : product.k;
        NB_TRY(nb_blaslt_multiply(cuda, stream, &product));
        accumulate = true;
    }
    return NB_OK;
}

/* The adapters' share of dx, added to what is accumulated onto. */
static nb_status write_before(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *a, const nb_dptr *u)
{
    if (!has_adapters(a))
        return NB_OK;
    struct nb_product product = product_of(a, 0, a->in);
    add_adapters(&product, a, u, 0);
    return nb_product_launch(cuda, stream, product);
}

/* ---- chunks of W's columns ---- */

static int chunk_width(const struct chunks *c, int chunk)
{
    int left = c->args->in - chunk * c->columns;
    return left < c->columns ? left : c->columns;
}

static nb_status dequantize_chunk(struct nb_cuda *cuda, cudaStream_t stream, const void *context, int chunk, nb_dptr scratch)
{
    const struct chunks *c = (const struct chunks *)context;
    int width = chunk_width(c, chunk);
    int64_t row = 0;
    (void)cuda;
    for (int p = 0; p < c->args->parts; p++) {
        const struct nb_linear_part *part = &c->args->part[p];
        if (part->weight.format == NB_WEIGHT_BF16)
            continue;
        struct nb_weight_region region = {part->row_begin, part->out, chunk * c->columns, width};
        NB_TRY(nb_weight_chunk(stream, &part->weight, region, nb_dptr_at(scratch, (uint64_t)(row * width) * 2)));
        row += part->out;
    }
    return NB_OK;
}

static nb_status multiply_chunk(struct nb_cuda *cuda, cudaStream_t stream, const void *context, int chunk, nb_dptr scratch)
{
    const struct chunks *c = (const struct chunks *)context;
    int begin = chunk * c->columns, width = chunk_width(c, chunk);
    if (c->library)
        return multiply_by_library(cuda, stream, c->args, scratch, begin, width);
    struct nb_product product = product_of(c->args, begin, width);
    add_weights(&product, c->args, scratch, begin, width);
    add_adapters(&product, c->args, c->u, begin);
    return nb_product_launch(cuda, stream, product);
}

/* ---- the op ---- */

static nb_status run_dx(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *a, const nb_dptr *u, nb_dptr scratch)
{
    const struct nb_device_profile *profile = &cuda->base.profile;
    struct nb_product_site site = nb_linear_backward_site(a);
    enum nb_product_path path = nb_product_path_of(profile, &site);
    bool library = profile->cublaslt_version != 0;
    if (path == NB_PRODUCT_FUSED && !(library && site.format == NB_WEIGHT_BF16)) {
        struct nb_product product = product_of(a, 0, a->in);
        add_weights(&product, a, nb_dptr{0}, 0, a->in);
        add_adapters(&product, a, u, 0);
        return nb_product_launch(cuda, stream, product);
    }
    if (library)
        NB_TRY(write_before(cuda, stream, a, u));
    if (site.format == NB_WEIGHT_BF16)
        return multiply_by_library(cuda, stream, a, scratch, 0, a->in);
    struct chunks chunks = {a, u, nb_product_chunk(profile, &site), library};
    struct nb_chunk_loop loop = {};
    loop.context = &chunks;
    loop.chunks = (int)nb_blocks_of(a->in, chunks.columns);
    loop.overlapped = path == NB_PRODUCT_OVERLAPPED && decodes(a);
    loop.scratch = scratch;
    loop.scratch_bytes = nb_aligned((uint64_t)chunks.columns * (uint64_t)site.out * 2);
    loop.dequantize = dequantize_chunk;
    loop.multiply = multiply_chunk;
    return nb_chunk_loop_run(cuda, stream, &loop);
}

nb_status nb_cuda_linear_backward(struct nb_device *device, struct nb_stream *stream, const struct nb_linear_backward *args)
{
    struct nb_cuda *cuda = nb_cuda_of(device);
    NB_TRY(nb_check_linear_backward(args));
    NB_TRY(nb_cuda_refuse_f32("linear_backward", args->activation));
    struct nb_linear_scratch scratch;
    nb_linear_backward_scratch_of(&cuda->base.profile, args, &scratch);
    NB_TRY(nb_cuda_require_scratch("linear_backward", &args->scratch, scratch.bytes));
    nb_dptr u[NB_LINEAR_PARTS];
    for (int p = 0; p < NB_LINEAR_PARTS; p++)
        u[p] = nb_dptr_at(args->scratch.base, scratch.u[p]);
    if (has_adapters(args))
        NB_TRY(nb_lora_backward(cuda, stream->stream, args, u, nb_dptr_at(args->scratch.base, scratch.partials)));
    if (nb_dptr_is_null(args->dx))
        return NB_OK;
    return run_dx(cuda, stream->stream, args, u, nb_dptr_at(args->scratch.base, scratch.weights));
}

nb_status nb_cuda_prepare_linear_backward(struct nb_cuda *cuda)
{
    NB_TRY(nb_lora_prepare(cuda));
    return nb_product_prepare(cuda);
}
