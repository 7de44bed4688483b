/* Bound by bytes. An element with fp32 moments and a bf16 copy: 16 read (master, gradient, m, v), 18 written (the
 * same and the copy); with 8-bit moments 10 and 12. Elements stand four to a thread, so that every access of fp32 is
 * 16 bytes and a warp's are neighbours.
 *
 * 8-bit: a warp takes a block of 256 elements, eight to a lane: decode by the maps in shared memory, update, find
 * both scales by butterflies, encode by arithmetic and one comparison (dynamic_code.cuh). Some 120 instructions an
 * element (quotient and root 36, two codes 55), where a multiprocessor of an H200 issues 130 while its memory brings
 * the 22 bytes: there both are about even; other cards wait for the bytes.
 *
 * Arithmetic, order and roundings are quant/adamw.c's. Thread 0 of a block computes the step's factors in double;
 * blocks are persistent, some to a multiprocessor, so that this is done rarely. Elementwise but for the blocks of
 * 256: the grid changes no bit. */
#include "cuda/dynamic_code.cuh"
#include "quant/adamw.h"

enum { THREADS = 256, WARPS = THREADS / NB_WARP, BLOCKS_EACH = 8 /* of a multiprocessor */, GROUP = 4 };

struct adamw_operands {
    float *master, *gradient;
    void *copy, *m, *v;
    float *m_absmax, *v_absmax;
    const float *m_map, *v_map;
    const struct nb_step *step;
    int64_t count;
    double beta1, beta2, epsilon, weight_decay;
};

/* Shared memory. */
struct adamw_tables {
    struct nb_adamw_factors factors;
    float m_map[NB_DYNAMIC_CODES], m_midpoints[NB_DYNAMIC_CODES];
    float v_map[NB_DYNAMIC_CODES], v_midpoints[NB_DYNAMIC_CODES];
};

/* base^exponent by squaring: at most 2 * 32 products, exact enough (some 1e-14 at exponents where the power still
 * matters), and far faster than pow on cards with few double units. */
NB_KERNEL_FUNCTION double power_of(double base, uint32_t exponent)
{
    double power = 1.0;
    for (; exponent != 0; exponent >>= 1) {
        if (exponent & 1)
            power *= base;
        base *= base;
    }
    return power;
}

/* nb_adamw_factors of the step in device memory. */
NB_KERNEL_FUNCTION void set_factors(const struct adamw_operands &o, struct nb_adamw_factors *f)
{
    double c1 = 1.0 - power_of(o.beta1, o.step->step), c2 = sqrt(1.0 - power_of(o.beta2, o.step->step));
    double rate = (double)o.step->learning_rate;
    f->beta1 = (float)o.beta1;
    f->one_minus_beta1 = (float)(1.0 - o.beta1);
    f->beta2 = (float)o.beta2;
    f->one_minus_beta2 = (float)(1.0 - o.beta2);
    f->decay = (float)(1.0 - rate * o.weight_decay);
    f->step_size = (float)(-rate * c2 / c1);
    f->epsilon = (float)(c2 * o.epsilon);
    f->gradient_scale = o.step->inverse_count * o.step->clip_scale;
}

NB_KERNEL_FUNCTION void update_element(const struct nb_adamw_factors &f, float gradient, float *p, float *m, float *v)
{
    float g = f.gradient_scale * gradient;
    *m = f.beta1 * *m + f.one_minus_beta1 * g;
    *v = f.beta2 * *v + f.one_minus_beta2 * (g * g);
    *p = *p * f.decay + f.step_size * (*m / (sqrtf(*v) + f.epsilon));
}

/* ---- groups of four, the tensor's last one shorter ---- */

NB_KERNEL_FUNCTION int group_length(int64_t count, int64_t begin)
{
    return count - begin >= GROUP ? GROUP : count > begin ? (int)(count - begin) : 0;
}

/* Elements beyond the group's length become 0. */
NB_KERNEL_FUNCTION void load_group(const float *from, int length, float x[GROUP])
{
    if (length == GROUP) {
        float4 four = *(const float4 *)from;
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++)
        x[i] = i < length ? from[i] : 0.0f;
}

NB_KERNEL_FUNCTION void store_group(float *to, int length, const float x[GROUP])
{
    if (length == GROUP) {
        float4 four = {x[0], x[1], x[2], x[3]};
        *(float4 *)to = four;
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++)
        if (i < length)
            to[i] = x[i];
}

template <bool NARROW> NB_KERNEL_FUNCTION void store_copy(void *copy, int64_t begin, int length, const float p[GROUP])
{
    if (!NARROW) {
        store_group((float *)copy + begin, length, p);
        return;
    }
    nb_bf16 *to = (nb_bf16 *)copy + begin;
    if (length == GROUP) {
        uint2 four = {nb_pack_bf16(p[0], p[1]), nb_pack_bf16(p[2], p[3])};
        *(uint2 *)to = four;
        return;
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++)
        if (i < length)
            to[i] = nb_bf16_round(p[i]);
}

NB_KERNEL_FUNCTION void zero_group(float *gradient, int length)
{
    const float zero[GROUP] = {0.0f, 0.0f, 0.0f, 0.0f};
    store_group(gradient, length, zero);
}

/* Four codes, the first in the lowest byte; those beyond the length are `zero`, the code of 0. */
NB_KERNEL_FUNCTION uint32_t load_codes(const uint8_t *from, int length, uint32_t zero)
{
    if (length == GROUP)
        return *(const uint32_t *)from;
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < GROUP; i++)
        codes |= (i < length ? from[i] : zero) << 8 * i;
    return codes;
}

NB_KERNEL_FUNCTION void store_codes(uint8_t *to, int length, uint32_t codes)
{
    if (length == GROUP)
        *(uint32_t *)to = codes;
    else
        for (int i = 0; i < length; i++)
            to[i] = (uint8_t)(codes >> 8 * i);
}

/* A step that is not taken still empties the gradient. */
NB_KERNEL_FUNCTION void zero_gradient(const struct adamw_operands &o)
{
    int64_t stride = (int64_t)gridDim.x * THREADS * GROUP;
    for (int64_t begin = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP; begin < o.count; begin += stride)
        zero_group(o.gradient + begin, group_length(o.count, begin));
}

/* ---- fp32 moments ---- */

template <bool NARROW> __global__ void __launch_bounds__(THREADS) adamw_kernel(struct adamw_operands o)
{
    if (!o.step->finite) {
        zero_gradient(o);
        return;
    }
    struct nb_adamw_factors *shared = (struct nb_adamw_factors *)nb_shared_memory();
    if (threadIdx.x == 0)
        set_factors(o, shared);
    nb_block_barrier();
    const struct nb_adamw_factors f = *shared;
    int64_t stride = (int64_t)gridDim.x * THREADS * GROUP;
    for (int64_t begin = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP; begin < o.count; begin += stride) {
        float p[GROUP], g[GROUP], m[GROUP], v[GROUP], *o_m = (float *)o.m + begin, *o_v = (float *)o.v + begin;
        int length = group_length(o.count, begin);
        load_group(o.gradient + begin, length, g);
        load_group(o.master + begin, length, p);
        load_group(o_m, length, m);
        load_group(o_v, length, v);
#pragma unroll
        for (int i = 0; i < GROUP; i++)
            update_element(f, g[i], &p[i], &m[i], &v[i]);
        store_group(o.master + begin, length, p);
        store_group(o_m, length, m);
        store_group(o_v, length, v);
        store_copy<NARROW>(o.copy, begin, length, p);
        zero_group(o.gradient + begin, length);
    }
}

/* ---- 8-bit moments ---- */

enum { HALVES = NB_DYNAMIC_BLOCK / (NB_WARP * GROUP), EACH = HALVES * GROUP };

NB_KERNEL_FUNCTION float largest_of(const float x[EACH])
{
    float largest = fabsf(x[0]);
#pragma unroll
    for (int i = 1; i < EACH; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    return nb_warp_max(largest);
}

/* The lane's moments of its two groups, from codes; and to codes, which leaves them scaled. */
template <bool SIGNED>
NB_KERNEL_FUNCTION void decode(
    const float *map, const uint8_t *codes, const int length[HALVES], float absmax, float x[EACH])
{
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        uint32_t four = load_codes(codes + h * NB_WARP * GROUP, length[h], SIGNED ? NB_DYNAMIC_ZERO : 0);
#pragma unroll
        for (int i = 0; i < GROUP; i++)
            x[h * GROUP + i] = map[four >> 8 * i & 255] * absmax;
    }
}

template <bool SIGNED>
NB_KERNEL_FUNCTION void encode(
    const float *midpoints, float x[EACH], float absmax, const int length[HALVES], uint8_t *codes)
{
    nb_dynamic_scale<EACH>(x, absmax);
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        uint32_t four = 0;
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            float value = x[h * GROUP + i];
            int code = SIGNED ? nb_dynamic_code_signed(midpoints, value) : nb_dynamic_code_unsigned(midpoints, value);
            four |= (uint32_t)code << 8 * i;
        }
        store_codes(codes + h * NB_WARP * GROUP, length[h], four);
    }
}

/* Block `block` of 256 elements, WHOLE: none beyond the tensor's end; lane l has elements 4l to 4l + 3 of each half. */
template <bool NARROW, bool WHOLE>
NB_KERNEL_FUNCTION void update_block(
    const struct adamw_operands &o, const struct adamw_tables *t, const struct nb_adamw_factors &f, int64_t block)
{
    int lane = (int)threadIdx.x % NB_WARP, length[HALVES];
    int64_t begin = block * NB_DYNAMIC_BLOCK + lane * GROUP;
    float p[EACH], g[EACH], m[EACH], v[EACH];
    uint8_t *m_codes = (uint8_t *)o.m + begin, *v_codes = (uint8_t *)o.v + begin;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        int64_t at = begin + h * NB_WARP * GROUP;
        length[h] = WHOLE ? GROUP : group_length(o.count, at);
        load_group(o.gradient + at, length[h], g + h * GROUP);
        load_group(o.master + at, length[h], p + h * GROUP);
    }
    decode<true>(t->m_map, m_codes, length, o.m_absmax[block], m);
    decode<false>(t->v_map, v_codes, length, o.v_absmax[block], v);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        update_element(f, g[i], &p[i], &m[i], &v[i]);
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        int64_t at = begin + h * NB_WARP * GROUP;
        store_group(o.master + at, length[h], p + h * GROUP);
        store_copy<NARROW>(o.copy, at, length[h], p + h * GROUP);
        zero_group(o.gradient + at, length[h]);
    }
    float m_largest = largest_of(m), v_largest = largest_of(v);
    encode<true>(t->m_midpoints, m, m_largest, length, m_codes);
    encode<false>(t->v_midpoints, v, v_largest, length, v_codes);
    nb_warp_barrier(); /* all lanes have read the scales that lane 0 now replaces */
    if (lane == 0) {
        o.m_absmax[block] = m_largest;
        o.v_absmax[block] = v_largest;
    }
}

template <bool NARROW> __global__ void __launch_bounds__(THREADS, 3) adamw_8bit_kernel(struct adamw_operands o)
{
    if (!o.step->finite) {
        zero_gradient(o);
        return;
    }
    struct adamw_tables *t = (struct adamw_tables *)nb_shared_memory();
    nb_dynamic_stage(o.m_map, t->m_map, t->m_midpoints);
    nb_dynamic_stage(o.v_map, t->v_map, t->v_midpoints);
    if (threadIdx.x == 0)
        set_factors(o, &t->factors);
    nb_block_barrier();
    const struct nb_adamw_factors f = t->factors;
    int64_t stride = (int64_t)gridDim.x * WARPS, whole = o.count / NB_DYNAMIC_BLOCK;
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / NB_WARP;
    for (; block < whole; block += stride)
        update_block<NARROW, true>(o, t, f, block);
    if (block == whole && o.count % NB_DYNAMIC_BLOCK != 0)
        update_block<NARROW, false>(o, t, f, block);
}

static int shared_bytes_of(bool moments_8bit)
{
    return moments_8bit ? (int)sizeof(struct adamw_tables) : (int)sizeof(struct nb_adamw_factors);
}

typedef void adamw_function(struct adamw_operands);

static adamw_function *kernel_of(bool moments_8bit, enum nb_dtype copy)
{
    if (moments_8bit)
        return copy == NB_DTYPE_BF16 ? adamw_8bit_kernel<true> : adamw_8bit_kernel<false>;
    return copy == NB_DTYPE_BF16 ? adamw_kernel<true> : adamw_kernel<false>;
}

nb_status nb_cuda_adamw(struct nb_device *device, struct nb_stream *stream, const struct nb_adamw *args)
{
    NB_TRY(nb_check_adamw(args));
    struct adamw_operands o = {nb_pointer<float>(args->master), nb_pointer<float>(args->gradient),
        nb_pointer<void>(args->copy), nb_pointer<void>(args->m), nb_pointer<void>(args->v),
        nb_pointer<float>(args->m_absmax), nb_pointer<float>(args->v_absmax), nb_pointer<const float>(args->m_map),
        nb_pointer<const float>(args->v_map), nb_pointer<const struct nb_step>(args->step), (int64_t)args->count,
        args->beta1, args->beta2, args->epsilon, args->weight_decay};
    int each = args->moments_8bit ? WARPS * NB_DYNAMIC_BLOCK : THREADS * GROUP;
    unsigned needed = nb_blocks_of(o.count, each), most = (unsigned)device->profile.multiprocessors * BLOCKS_EACH;
    struct nb_launch launch = {dim3(needed < most ? needed : most), THREADS, shared_bytes_of(args->moments_8bit)};
    return nb_cuda_launch("adamw", kernel_of(args->moments_8bit, args->copy_dtype), launch, stream->stream, o);
}

nb_status nb_cuda_prepare_adamw(struct nb_cuda *cuda)
{
    (void)cuda;
    for (int k = 0; k < 4; k++)
        NB_TRY(nb_cuda_load("adamw", kernel_of(k & 1, k & 2 ? NB_DTYPE_BF16 : NB_DTYPE_F32), shared_bytes_of(k & 1)));
    return NB_OK;
}
