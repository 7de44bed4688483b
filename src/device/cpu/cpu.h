/* The CPU device from the inside: what its ops share. Private to src/device/.
 *
 * An op is one file, named like it, with two functions: nb_cpu_run_NAME does the work, when it is due, with the args
 * already checked by nb_check_NAME, on cpu->threads threads (`#pragma omp parallel for num_threads(cpu->threads)` in
 * its own loops); nb_cpu_NAME_scratch_bytes says what scratch it needs. A result is the same at any number of threads:
 * a thread computes whole rows or whole fixed tiles, and partial sums over tiles are added in order. */
#ifndef NB_DEVICE_CPU_CPU_H
#define NB_DEVICE_CPU_CPU_H

#include "base/bfloat.h"
#include "base/simd.h"
#include "device/cpu/math.h"
#include "device/device.h"
#include "quant/adamw.h"

struct nb_cpu_queue;
struct nb_products;

struct nb_cpu {
    struct nb_device base;          /* first: a struct nb_device * is cast to this */
    int threads;                    /* >= 1 */
    struct nb_cpu_queue *queue;     /* deferred mode's; NULL in immediate mode */
    struct nb_products *products;   /* the matrix products' kernels (product.h), made at first use */
    struct nb_adamw8_coders adamw8; /* made once: half a millisecond */
    struct nb_stream *running;      /* whose work is being done; takes its errors */
};

#define NB_CPU_OP(name)                                                    \
    void nb_cpu_run_##name(struct nb_cpu *cpu, const struct nb_##name *a); \
    uint64_t nb_cpu_##name##_scratch_bytes(const struct nb_device_profile *profile, const struct nb_##name *a);
NB_OPS(NB_CPU_OP)
#undef NB_CPU_OP

/* For the file of an op that needs no scratch. */
#define NB_CPU_NO_SCRATCH(name)                                                                                \
    uint64_t nb_cpu_##name##_scratch_bytes(const struct nb_device_profile *profile, const struct nb_##name *a) \
    {                                                                                                          \
        (void)profile;                                                                                         \
        (void)a;                                                                                               \
        return 0;                                                                                              \
    }

/* For an op that fails at work (a weight that is not finite): keeps `status` and the thread's message for the next
 * stream_wait of the stream at work. The first failure counts. Not from inside a parallel region. */
void nb_cpu_work_failed(struct nb_cpu *cpu, nb_status status);

/* ---- memory ---- */

static inline void *nb_cpu_pointer(nb_dptr pointer)
{
    return (void *)(uintptr_t)pointer.address;
}

/* Address of element `index` of an activation buffer. */
static inline void *nb_cpu_element(nb_dptr pointer, enum nb_dtype dtype, uint64_t index)
{
    return (char *)nb_cpu_pointer(pointer) + index * nb_dtype_bytes(dtype);
}

/* to[0 .. count) = elements [index, index + count) of an activation buffer (F32 or BF16), as fp32. */
static inline void nb_cpu_load(float *restrict to, nb_dptr from, enum nb_dtype dtype, uint64_t index, int count)
{
    if (dtype == NB_DTYPE_F32) {
        const float *restrict x = (const float *)nb_cpu_pointer(from) + index;
        for (int i = 0; i < count; i++)
            to[i] = x[i];
    } else {
        const nb_bf16 *restrict x = (const nb_bf16 *)nb_cpu_pointer(from) + index;
        for (int i = 0; i < count; i++)
            to[i] = nb_bf16_to_float(x[i]);
    }
}

/* The reverse, rounding once to the activation dtype. */
static inline void nb_cpu_store(nb_dptr to, enum nb_dtype dtype, uint64_t index, const float *restrict from, int count)
{
    if (dtype == NB_DTYPE_F32) {
        float *restrict y = (float *)nb_cpu_pointer(to) + index;
        for (int i = 0; i < count; i++)
            y[i] = from[i];
    } else {
        nb_bf16 *restrict y = (nb_bf16 *)nb_cpu_pointer(to) + index;
        for (int i = 0; i < count; i++)
            y[i] = nb_bf16_from_float(from[i]);
    }
}

/* x rounded to the activation dtype, kept as fp32. */
static inline float nb_cpu_round(enum nb_dtype dtype, float x)
{
    return dtype == NB_DTYPE_F32 ? x : nb_bf16_to_float(nb_bf16_from_float(x));
}

static inline const struct nb_slot *nb_cpu_slot(nb_dptr slot)
{
    return nb_cpu_pointer(slot);
}

static inline struct nb_step *nb_cpu_step(nb_dptr step)
{
    return nb_cpu_pointer(step);
}

/* Rows from row_begin on among `count`, at most rows_max. */
static inline int nb_cpu_rows_from(uint32_t count, int row_begin, int rows_max)
{
    int64_t rows = (int64_t)count - row_begin;
    return rows < 0 ? 0 : rows < rows_max ? (int)rows : rows_max;
}

/* Valid rows of a [tokens, ...] buffer. */
static inline int nb_cpu_tokens(nb_dptr slot, int tokens_max)
{
    return nb_cpu_rows_from(nb_cpu_slot(slot)->tokens, 0, tokens_max);
}

/* Valid rows of a chunk of the tokens that begins at row_begin and holds at most rows_max; of the trained rows. */
static inline int nb_cpu_token_rows(nb_dptr slot, int row_begin, int rows_max)
{
    return nb_cpu_rows_from(nb_cpu_slot(slot)->tokens, row_begin, rows_max);
}

static inline int nb_cpu_trained_rows(nb_dptr slot, int row_begin, int rows_max)
{
    return nb_cpu_rows_from(nb_cpu_slot(slot)->trained_rows, row_begin, rows_max);
}

/* Either, as an op's rows_from says. */
static inline int nb_cpu_rows(nb_dptr slot, enum nb_row_count from, int row_begin, int rows_max)
{
    return from == NB_ROWS_TOKENS ? nb_cpu_token_rows(slot, row_begin, rows_max)
                                  : nb_cpu_trained_rows(slot, row_begin, rows_max);
}

/* Valid sequences of the micro-batch. */
static inline int nb_cpu_sequences(nb_dptr slot, int sequences_max)
{
    uint32_t sequences = nb_cpu_slot(slot)->sequences;
    return sequences < (uint32_t)sequences_max ? (int)sequences : sequences_max;
}

/* ---- sums ---- */

/* The sum of 16 lanes, always in this order. Lane l of a long sum holds the elements i with i % 16 == l. */
static inline float nb_sum16(const float lane[16])
{
    float eight[8], four[4];
    for (int i = 0; i < 8; i++)
        eight[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; i++)
        four[i] = eight[i] + eight[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* ---- queue.c ---- */

/* Immediate or deferred streams, events and copies into cpu->base. Errors: NB_MEMORY. */
nb_status nb_cpu_queue_install(struct nb_cpu *cpu, const struct nb_cpu_options *options);
void nb_cpu_queue_destroy(struct nb_cpu *cpu);

/* Does `run(cpu, args)` at once, or keeps a copy of the args [bytes] and does it late. Errors: NB_MEMORY (deferred mode
 * alone). */
typedef void nb_cpu_run(struct nb_cpu *cpu, const void *args);
nb_status nb_cpu_enqueue(
    struct nb_cpu *cpu, struct nb_stream *stream, nb_cpu_run *run, const void *args, uint64_t bytes);

#endif
