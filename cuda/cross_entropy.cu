/* A block of 1,024 threads takes a row. One read finds the maximum and the sum of exponentials together: a thread
 * keeps the maximum of what it saw and rescales its sum when that rises; the gradient takes one more read and a
 * write. 2 bytes a logit and pass, bound by bytes: a multiprocessor gets about 10 logits a clock of an H200's
 * memory, and its special function units make 16 exponentials. The gradient's pass goes from the row's end to its
 * beginning: what was read last still stands in the second-level cache, where all rows at work (250 KB each) may not
 * fit. What a thread adds depends on the vocabulary alone, so other rows change no bit. */
#include <float.h>
#include <math.h>

#include "cuda/device.cuh"

enum { THREADS = 1024, WARPS = THREADS / NB_WARP, FLIGHT = 4, SHARED_BYTES = 2 * WARPS * (int)sizeof(float) };

/* e^x, the product rounded once more than the exponent: relative error |x| * 2^-24 and 2 ulp. Results below 2^-126
 * are 0. */
NB_KERNEL_FUNCTION float exponential(float x)
{
    return nb_exp2_fast(x * 1.44269504f);
}

/* The largest of the logits so far, and the sum of their exponentials less it. */
struct running {
    float maximum, sum;
};

NB_KERNEL_FUNCTION void add_logits(struct running *r, const float *x, int count)
{
    float raised = r->maximum;
#pragma unroll
    for (int i = 0; i < count; i++)
        raised = fmaxf(raised, x[i]);
    if (raised > r->maximum) {
        r->sum *= exponential(r->maximum - raised);
        r->maximum = raised;
    }
#pragma unroll
    for (int i = 0; i < count; i++)
        r->sum += exponential(x[i] - raised);
}

NB_KERNEL_FUNCTION void add_eight(struct running *r, uint4 v)
{
    float x[8];
    nb_unpack8(v, x);
    add_logits(r, x, 8);
}

/* Groups of eight logits thread, thread + THREADS, ...; of the rest, shorter than eight, one each. */
NB_KERNEL_FUNCTION struct running read_row(const nb_bf16 *row, int vocabulary)
{
    struct running r = {-FLT_MAX, 0.0f};
    const uint4 *eights = (const uint4 *)row;
    int whole = vocabulary / 8, i = (int)threadIdx.x;
    for (; i + (FLIGHT - 1) * THREADS < whole; i += FLIGHT * THREADS) {
        uint4 v[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            v[k] = eights[i + k * THREADS];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            add_eight(&r, v[k]);
    }
    for (; i < whole; i += THREADS)
        add_eight(&r, eights[i]);
    if ((int)threadIdx.x < vocabulary % 8) {
        float x = nb_bf16_value(row[whole * 8 + (int)threadIdx.x]);
        add_logits(&r, &x, 1);
    }
    return r;
}

/* The maximum and sum of the warp's lanes, the same in each. */
NB_KERNEL_FUNCTION struct running join_warp(struct running r)
{
    struct running joined;
    joined.maximum = nb_warp_max(r.maximum);
    joined.sum = nb_warp_sum(r.sum * exponential(r.maximum - joined.maximum));
    return joined;
}

/* Of the block's threads, the same in each: every warp joins the warps' pairs for itself. */
NB_KERNEL_FUNCTION struct running join_block(struct running r)
{
    float *maximum = (float *)nb_shared_memory(), *sum = maximum + WARPS;
    int lane = (int)threadIdx.x % NB_WARP, warp = (int)threadIdx.x / NB_WARP;
    r = join_warp(r);
    if (lane == 0) {
        maximum[warp] = r.maximum;
        sum[warp] = r.sum;
    }
    nb_block_barrier();
    struct running of_lane = {maximum[lane], sum[lane]};
    return join_warp(of_lane);
}

/* softmax(x), less 1 at place `label` of the eight, if it stands among them. */
NB_KERNEL_FUNCTION uint4 gradient_of_eight(uint4 v, float maximum, float inverse, int label)
{
    float x[8];
    nb_unpack8(v, x);
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = exponential(x[i] - maximum) * inverse - (i == label ? 1.0f : 0.0f);
    return nb_pack8(x);
}

/* The same shares as in read_row, last to first. */
NB_KERNEL_FUNCTION void write_gradient(nb_bf16 *row, int vocabulary, float maximum, float inverse, int label)
{
    uint4 *eights = (uint4 *)row;
    int thread = (int)threadIdx.x, whole = vocabulary / 8;
    if (thread < vocabulary % 8) {
        int last = whole * 8 + thread;
        float p = exponential(nb_bf16_value(row[last]) - maximum) * inverse;
        row[last] = nb_bf16_round(p - (last == label ? 1.0f : 0.0f));
    }
    int left = (whole - thread + THREADS - 1) / THREADS;
    for (; left % FLIGHT != 0; left--) {
        int i = thread + (left - 1) * THREADS;
        eights[i] = gradient_of_eight(eights[i], maximum, inverse, label - i * 8);
    }
    for (; left > 0; left -= FLIGHT) {
        int first = thread + (left - FLIGHT) * THREADS;
        uint4 v[FLIGHT];
#pragma unroll
        for (int k = FLIGHT - 1; k >= 0; k--)
            v[k] = eights[first + k * THREADS];
#pragma unroll
        for (int k = FLIGHT - 1; k >= 0; k--) {
            int i = first + k * THREADS;
            eights[i] = gradient_of_eight(v[k], maximum, inverse, label - i * 8);
        }
    }
}

struct cross_entropy_operands {
    nb_bf16 *logits;
    const int32_t *labels;
    float *loss;
    const struct nb_slot *slot;
    int row_begin, rows_max, vocabulary;
    int64_t stride;
};

template <bool GRADIENT>
__global__ void __launch_bounds__(THREADS) cross_entropy_kernel(struct cross_entropy_operands o)
{
    int i = (int)blockIdx.x;
    if (i >= nb_valid_trained_rows(o.slot, o.row_begin, o.rows_max))
        return;
    nb_bf16 *row = o.logits + i * o.stride;
    int64_t trained = (int64_t)o.row_begin + i;
    int label = o.labels[trained];
    float at_label = nb_bf16_value(row[label]);
    struct running all = join_block(read_row(row, o.vocabulary));
    if (threadIdx.x == 0)
        o.loss[trained] = (float)((double)all.maximum - (double)at_label + log((double)all.sum));
    if (GRADIENT)
        write_gradient(row, o.vocabulary, all.maximum, 1.0f / all.sum, label);
}

nb_status nb_cuda_cross_entropy(struct nb_device *device, struct nb_stream *stream, const struct nb_cross_entropy *args)
{
    (void)device;
    NB_TRY(nb_check_cross_entropy(args));
    NB_TRY(nb_cuda_refuse_f32("cross_entropy", args->activation));
    struct cross_entropy_operands o = {nb_pointer<nb_bf16>(args->logits), nb_pointer<const int32_t>(args->labels),
        nb_pointer<float>(args->loss), nb_pointer<const struct nb_slot>(args->slot), args->row_begin, args->rows_max,
        args->vocabulary, args->logits_stride};
    struct nb_launch launch = {dim3((unsigned)args->rows_max), THREADS, SHARED_BYTES};
    return nb_cuda_launch("cross_entropy", args->gradient ? cross_entropy_kernel<true> : cross_entropy_kernel<false>,
        launch, stream->stream, o);
}

nb_status nb_cuda_prepare_cross_entropy(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("cross_entropy", cross_entropy_kernel<true>, SHARED_BYTES));
    return nb_cuda_load("cross_entropy without gradient", cross_entropy_kernel<false>, SHARED_BYTES);
}
