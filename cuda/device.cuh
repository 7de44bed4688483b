/* The CUDA device from the inside: what its ops share. Private to cuda/.
 *
 * An op is one file, named like it. Top to bottom: its plan in a few lines (what a block does, what is bound by what), the kernel, the
 * launcher, and two entries: nb_cuda_NAME checks the args (nb_check_NAME), refuses what this device lacks, and enqueues;
 * nb_cuda_prepare_NAME loads each of its kernels (nb_cuda_load), so that none is loaded behind the plan's back later.
 * Activations are bf16: fp32 ones are refused with nb_cuda_refuse_f32, the first thing after the check. */
#ifndef NB_CUDA_DEVICE_CUH
#define NB_CUDA_DEVICE_CUH

#include "base/bfloat.h"
#include "cuda/ptx.cuh"
#include "device/cuda/cuda.h"
#include "device/cuda/plan.h"
#include "device/device.h"

struct nb_blaslt; /* cublaslt.cuh */

/* What a kernel found wrong with data: in pinned host memory that the device writes; read after a wait. The first word is nonzero. */
struct nb_cuda_fault {
    uint32_t code;       /* enum nb_cuda_fault_code */
    uint32_t columns;    /* of the matrix, for the row and column that a message names */
    uint64_t index;      /* of the element, flat: the matrix's first bad one */
};
enum nb_cuda_fault_code { NB_CUDA_FAULT_NONE, NB_CUDA_FAULT_NOT_FINITE };

struct nb_cuda {
    struct nb_device base;       /* first: a struct nb_device * is cast to this */
    int index;                   /* of the GPU */
    int shared_bytes_max;        /* dynamic shared memory that a block may have */
    int driver_version, runtime_version;
    uint64_t l2_bytes;
    struct nb_cuda_fault *fault; /* host address; device address is fault_device */
    struct nb_cuda_fault *fault_device;
    struct nb_blaslt *blaslt;    /* NULL: not to be had */
    cudaStream_t side;           /* for overlapped dequantization: fork and join around it with the two events */
    cudaEvent_t fork, join[2];
    char description[160];
};

struct nb_stream {
    cudaStream_t stream;
    cudaEvent_t timer; /* nb_cuda_timer_begin's */
};

static inline struct nb_cuda *nb_cuda_of(struct nb_device *device)
{
    return (struct nb_cuda *)device;
}

extern "C" {
#define NB_CUDA_OP(name)                                                                                                    \
    nb_status nb_cuda_##name(struct nb_device *device, struct nb_stream *stream, const struct nb_##name *args);             \
    nb_status nb_cuda_prepare_##name(struct nb_cuda *cuda);
NB_OPS(NB_CUDA_OP)
#undef NB_CUDA_OP
}

/* NB_OK, or NB_UNSUPPORTED with a message that ends in "this device computes in bf16 alone". */
nb_status nb_cuda_refuse_f32(const char *op, enum nb_dtype activation);

/* NB_OK, or NB_UNSUPPORTED, in the CPU's words, where a caller gave less scratch than the op's plan lays out. */
nb_status nb_cuda_require_scratch(const char *op, const struct nb_scratch *given, uint64_t needed);

/* A runtime call's result as a status: what was being done, what the runtime says, and what to do. */
nb_status nb_cuda_status(cudaError_t error, const char *doing);

/* What a kernel found wrong with data, as a status in the CPU's words: NB_FORMAT. */
nb_status nb_cuda_fault_status(const struct nb_cuda_fault *fault);

/* ---- launching ---- */

struct nb_launch {
    dim3 grid;
    int threads;         /* a multiple of 32, at most 1,024 */
    int shared_bytes;    /* dynamic; above 48 KiB only after nb_cuda_load with as many */
};

nb_status nb_cuda_launch_erased(const char *name, const void *kernel, struct nb_launch launch, cudaStream_t stream, void **arguments);
nb_status nb_cuda_load_erased(const char *name, const void *kernel, int shared_bytes);

#ifndef NB_EMULATED
/* kernel<<<grid, threads, shared_bytes, stream>>>(arguments...), as a status. An empty grid is NB_OK and launches nothing. */
template <typename... P, typename... A>
static nb_status nb_cuda_launch(const char *name, void (*kernel)(P...), struct nb_launch launch, cudaStream_t stream, A... arguments)
{
    /* Converted to the kernel's own parameter types here, for the runtime takes their addresses. */
    struct caller {
        static nb_status call(const char *name, void (*kernel)(P...), struct nb_launch launch, cudaStream_t stream, P... values)
        {
            void *pointers[] = {(void *)&values..., NULL};
            return nb_cuda_launch_erased(name, (const void *)kernel, launch, stream, pointers);
        }
    };
    return caller::call(name, kernel, launch, stream, arguments...);
}

/* Loads a kernel into the context and allows it so much dynamic shared memory. */
template <typename... P> static nb_status nb_cuda_load(const char *name, void (*kernel)(P...), int shared_bytes)
{
    return nb_cuda_load_erased(name, (const void *)kernel, shared_bytes);
}
#else
template <typename... P, typename... A>
static nb_status nb_cuda_launch(const char *name, void (*kernel)(P...), struct nb_launch launch, cudaStream_t stream, A... arguments)
{
    return nb_emulator_launch<P...>(name, kernel, launch.grid, launch.threads, launch.shared_bytes, stream, arguments...);
}

template <typename... P> static nb_status nb_cuda_load(const char *name, void (*kernel)(P...), int shared_bytes)
{
    return nb_emulator_load(name, (const void *)kernel, shared_bytes);
}
#endif

static inline unsigned nb_blocks_of(int64_t count, int each)
{
    return (unsigned)((count + each - 1) / each);
}

/* ---- in kernels ---- */

#ifdef NB_EMULATED
#define NB_KERNEL_FUNCTION static inline
#else
#define NB_KERNEL_FUNCTION static __device__ __forceinline__
#endif

template <typename T> static inline T *nb_pointer(nb_dptr pointer)
{
    return (T *)(uintptr_t)pointer.address;
}

/* Rows from row_begin on among `count`, at most rows_max. */
NB_KERNEL_FUNCTION int nb_rows_from(uint32_t count, int row_begin, int rows_max)
{
    int64_t rows = (int64_t)count - row_begin;
    return rows < 0 ? 0 : rows < rows_max ? (int)rows : rows_max;
}

/* Valid rows of a [tokens, ...] buffer; of a chunk of the tokens; of the trained rows; of either. slot is device memory. */
NB_KERNEL_FUNCTION int nb_valid_tokens(const struct nb_slot *slot, int tokens_max)
{
    return nb_rows_from(slot->tokens, 0, tokens_max);
}

NB_KERNEL_FUNCTION int nb_valid_token_rows(const struct nb_slot *slot, int row_begin, int rows_max)
{
    return nb_rows_from(slot->tokens, row_begin, rows_max);
}

NB_KERNEL_FUNCTION int nb_valid_trained_rows(const struct nb_slot *slot, int row_begin, int rows_max)
{
    return nb_rows_from(slot->trained_rows, row_begin, rows_max);
}

NB_KERNEL_FUNCTION int nb_valid_rows(const struct nb_slot *slot, enum nb_row_count from, int row_begin, int rows_max)
{
    return from == NB_ROWS_TOKENS ? nb_valid_token_rows(slot, row_begin, rows_max)
                                  : nb_valid_trained_rows(slot, row_begin, rows_max);
}

NB_KERNEL_FUNCTION float nb_bf16_low(uint32_t pair)
{
#ifdef NB_EMULATED
    return nb_float_from_bits(pair << 16);
#else
    return __uint_as_float(pair << 16);
#endif
}

NB_KERNEL_FUNCTION float nb_bf16_high(uint32_t pair)
{
#ifdef NB_EMULATED
    return nb_float_from_bits(pair & 0xffff0000u);
#else
    return __uint_as_float(pair & 0xffff0000u);
#endif
}

NB_KERNEL_FUNCTION float nb_bf16_value(nb_bf16 x)
{
    return nb_bf16_low(x);
}

NB_KERNEL_FUNCTION nb_bf16 nb_bf16_round(float x)
{
    return (nb_bf16)nb_pack_bf16(x, 0.0f);
}

/* x rounded to bf16, kept as fp32. */
NB_KERNEL_FUNCTION float nb_bf16_rounded(float x)
{
    return nb_bf16_low(nb_pack_bf16(x, 0.0f));
}

/* Eight bf16 at 16 bytes, to and from fp32. */
NB_KERNEL_FUNCTION void nb_unpack8(uint4 v, float x[8])
{
    x[0] = nb_bf16_low(v.x), x[1] = nb_bf16_high(v.x), x[2] = nb_bf16_low(v.y), x[3] = nb_bf16_high(v.y);
    x[4] = nb_bf16_low(v.z), x[5] = nb_bf16_high(v.z), x[6] = nb_bf16_low(v.w), x[7] = nb_bf16_high(v.w);
}

NB_KERNEL_FUNCTION uint4 nb_pack8(const float x[8])
{
    uint4 v;
    v.x = nb_pack_bf16(x[0], x[1]), v.y = nb_pack_bf16(x[2], x[3]), v.z = nb_pack_bf16(x[4], x[5]), v.w = nb_pack_bf16(x[6], x[7]);
    return v;
}

/* The sum over the warp, the same in every lane: a butterfly, so the order is fixed and the same for all lanes. */
NB_KERNEL_FUNCTION float nb_warp_sum(float x)
{
    for (int mask = 16; mask > 0; mask /= 2)
        x += nb_shuffle_xor(x, mask);
    return x;
}

NB_KERNEL_FUNCTION float nb_warp_max(float x)
{
    for (int mask = 16; mask > 0; mask /= 2)
        x = fmaxf(x, nb_shuffle_xor(x, mask));
    return x;
}

#endif
