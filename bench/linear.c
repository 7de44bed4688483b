/* The linear ops on SmolLM2-135M's matrices in NF4 with rank-16 adapters, beside oneDNN's plain product of the same
 * sizes (a bf16 or fp32 matrix ready in memory, no adapter, the library's own threads). Forward is one product with the
 * weights, backward (dx, dA, dB) one with them transposed: "of plain" is the plain product's time over the op's. usage:
 * bench_linear [TOKENS [THREADS [DROPOUT]]]   default 1024, all, 0 */
#ifdef NB_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "device/device.h"
#include "quant/matrix.h"

enum { RUNS = 11, RANK = 16 };

static const struct shape {
    const char *name;
    int in, parts, out[NB_LINEAR_PARTS];
} shapes[] = {
    {"q, k, v", 576, 3, {576, 192, 192}},
    {"attention output", 576, 1, {576}},
    {"gate, up", 576, 2, {1536, 1536}},
    {"down", 1536, 1, {576}},
};

struct bench {
    struct nb_device *device;
    struct nb_stream *stream;
    int tokens;
    float dropout;
};

struct times {
    double minimum, median;
};

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct times summarize(double run[RUNS])
{
    qsort(run, RUNS, sizeof *run, ascending);
    return (struct times){run[0], run[RUNS / 2]};
}

static void must(nb_status status)
{
    if (status == NB_OK)
        return;
    fprintf(stderr, "error: %s\n", nb_status_message());
    exit(1);
}

/* Device memory of fp32 or bf16 numbers in [-1, 1); the CPU device's addresses are the host's. */
static nb_dptr take(const struct bench *b, enum nb_dtype dtype, uint64_t count)
{
    nb_dptr memory;
    must(b->device->memory_take(b->device, count * nb_dtype_bytes(dtype), &memory));
    float *wide = (float *)(uintptr_t)memory.address;
    nb_bf16 *narrow = (nb_bf16 *)(uintptr_t)memory.address;
    for (uint64_t i = 0; i < count; i++) {
        float value = 2 * nb_random_uniform(1, NB_RANDOM_SPLIT, 0, i) - 1;
        if (dtype == NB_DTYPE_F32)
            wide[i] = value;
        else
            narrow[i] = nb_bf16_from_float(value);
    }
    return memory;
}

static struct nb_weight take_weight(const struct bench *b, int rows, int columns)
{
    struct nb_quant_layout layout;
    must(nb_quant_matrix_layout(NB_QUANT_NF4, true, (uint64_t)rows, (uint64_t)columns, &layout));
    nb_dptr slab, offset = take(b, NB_DTYPE_F32, 1), w = take(b, NB_DTYPE_BF16, (uint64_t)rows * (uint64_t)columns);
    must(b->device->memory_take(b->device, layout.bytes, &slab));
    struct nb_weight weight = {.format = NB_WEIGHT_NF4,
        .nested = true,
        .rows = rows,
        .columns = columns,
        .data = nb_dptr_at(slab, layout.packed),
        .absmax = nb_dptr_at(slab, layout.absmax),
        .nested_absmax = nb_dptr_at(slab, layout.nested_absmax),
        .nested_map = nb_dptr_at(slab, layout.nested_map),
        .nested_offset = offset,
        .codebook = nb_dptr_at(slab, layout.codebook)};
    struct nb_quantize quantize = {.w = w, .to = weight};
    quantize.scratch.bytes = b->device->quantize_scratch_bytes(&b->device->profile, &quantize);
    must(b->device->memory_take(b->device, quantize.scratch.bytes, &quantize.scratch.base));
    must(b->device->quantize(b->device, b->stream, &quantize));
    must(b->device->stream_wait(b->device, b->stream));
    b->device->memory_give_back(b->device, quantize.scratch.base);
    b->device->memory_give_back(b->device, w);
    return weight;
}

static struct nb_linear_part take_part(const struct bench *b, const struct shape *s, int p, enum nb_dtype dtype)
{
    uint64_t tokens = (uint64_t)b->tokens, in = (uint64_t)s->in, out = (uint64_t)s->out[p];
    return (struct nb_linear_part){.weight = take_weight(b, s->out[p], s->in),
        .out = s->out[p],
        .y = take(b, dtype, tokens * out),
        .y_stride = s->out[p],
        .output_scale = 1,
        .lora = {.a = take(b, dtype, RANK * in),
            .b = take(b, dtype, out * RANK),
            .t = take(b, dtype, tokens * RANK),
            .da = take(b, NB_DTYPE_F32, RANK * in),
            .db = take(b, NB_DTYPE_F32, out * RANK),
            .rank = RANK,
            .scale = 2,
            .dropout = b->dropout,
            .module = nb_name_hash(s->name) + (uint64_t)p}};
}

/* Runs the ops in turn, so that neither finds its own data in cache. */
static void time_ops(
    const struct bench *b, struct nb_linear *forward, struct nb_linear_backward *backward, struct times result[2])
{
    struct nb_device *d = b->device;
    double run[2][RUNS];
    forward->scratch.bytes = d->linear_scratch_bytes(&d->profile, forward);
    backward->scratch.bytes = d->linear_backward_scratch_bytes(&d->profile, backward);
    must(d->memory_take(d, forward->scratch.bytes, &forward->scratch.base));
    must(d->memory_take(d, backward->scratch.bytes, &backward->scratch.base));
    for (int i = -1; i < RUNS; i++) { /* the first makes the kernels */
        double start = seconds();
        must(d->linear(d, b->stream, forward));
        must(d->stream_wait(d, b->stream));
        double middle = seconds();
        must(d->linear_backward(d, b->stream, backward));
        must(d->stream_wait(d, b->stream));
        if (i >= 0) {
            run[0][i] = middle - start;
            run[1][i] = seconds() - middle;
        }
    }
    result[0] = summarize(run[0]);
    result[1] = summarize(run[1]);
}

#ifdef NB_HAVE_ONEDNN
static void library(dnnl_status_t status)
{
    if (status == dnnl_success)
        return;
    fprintf(stderr, "error: oneDNN's status %d\n", (int)status);
    exit(1);
}

/* One product [tokens, k] by a matrix stored [rows, columns], turned over if k is its columns. */
static struct times time_plain(const struct bench *b, enum nb_dtype dtype, int rows, int columns, bool turned)
{
    dnnl_data_type_t type = dtype == NB_DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dim_t m = b->tokens, k = turned ? columns : rows, n = turned ? rows : columns;
    dnnl_dims_t a_dims = {m, k}, b_dims = {k, n}, c_dims = {m, n};
    dnnl_dims_t a_strides = {k, 1}, b_strides = {turned ? 1 : n, turned ? k : 1}, c_strides = {n, 1};
    dnnl_memory_desc_t desc[3];
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_t memory[3];
    nb_dptr data[3] = {
        take(b, dtype, (uint64_t)(m * k)), take(b, dtype, (uint64_t)(k * n)), take(b, NB_DTYPE_F32, (uint64_t)(m * n))};
    library(dnnl_engine_create(&engine, dnnl_cpu, 0));
    library(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    library(dnnl_memory_desc_init_by_strides(&desc[0], 2, a_dims, type, a_strides));
    library(dnnl_memory_desc_init_by_strides(&desc[1], 2, b_dims, type, b_strides));
    library(dnnl_memory_desc_init_by_strides(&desc[2], 2, c_dims, dnnl_f32, c_strides));
    library(dnnl_matmul_desc_init(&matmul, &desc[0], &desc[1], NULL, &desc[2]));
    library(dnnl_primitive_desc_create(&description, &matmul, NULL, engine, NULL));
    library(dnnl_primitive_create(&primitive, description));
    for (int i = 0; i < 3; i++)
        library(dnnl_memory_create(&memory[i], &desc[i], engine, (void *)(uintptr_t)data[i].address));
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, memory[0]}, {DNNL_ARG_WEIGHTS, memory[1]}, {DNNL_ARG_DST, memory[2]}};
    double run[RUNS];
    for (int i = -1; i < RUNS; i++) {
        double start = seconds();
        library(dnnl_primitive_execute(primitive, stream, 3, arguments));
        library(dnnl_stream_wait(stream));
        if (i >= 0)
            run[i] = seconds() - start;
    }
    for (int i = 0; i < 3; i++) {
        dnnl_memory_destroy(memory[i]);
        b->device->memory_give_back(b->device, data[i]);
    }
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(description);
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    return summarize(run);
}
#endif

static void print(const char *name, const char *pass, enum nb_dtype dtype, double flops, struct times op, double plain)
{
    printf("%-17s %-8s %s  %8.2f ms, median %8.2f ms  %7.1f GFLOP/s", name, pass,
        dtype == NB_DTYPE_BF16 ? "bf16" : "f32 ", 1e3 * op.minimum, 1e3 * op.median, 1e-9 * flops / op.minimum);
    if (plain > 0)
        printf("   %3.0f%% of plain (%.2f ms)", 100 * plain / op.minimum, 1e3 * plain);
    printf("\n");
}

static void measure(const struct bench *b, const struct shape *s, enum nb_dtype dtype)
{
    nb_dptr x = take(b, dtype, (uint64_t)b->tokens * (uint64_t)s->in),
            dx = take(b, dtype, (uint64_t)b->tokens * (uint64_t)s->in);
    struct nb_step step = {.seed = {1, 2}};
    struct nb_slot slot = {.tokens = (uint32_t)b->tokens};
    nb_dptr step_memory = {(uintptr_t)&step},
            slot_memory = {(uintptr_t)&slot}; /* on a CPU all memory is the device's */
    struct nb_linear forward = {.x = x,
        .step = step_memory,
        .slot = slot_memory,
        .tokens_max = b->tokens,
        .in = s->in,
        .x_stride = s->in,
        .parts = s->parts,
        .activation = dtype};
    struct nb_linear_backward backward = {.x = x,
        .dx = dx,
        .step = step_memory,
        .slot = slot_memory,
        .tokens_max = b->tokens,
        .in = s->in,
        .x_stride = s->in,
        .dx_stride = s->in,
        .parts = s->parts,
        .activation = dtype};
    double flops[2] = {0}, plain[2] = {0};
    for (int p = 0; p < s->parts; p++) {
        forward.part[p] = take_part(b, s, p, dtype);
        backward.part[p] = forward.part[p];
        double weights = 2.0 * b->tokens * s->in * s->out[p], adapter = 2.0 * b->tokens * RANK * (s->in + s->out[p]);
        flops[0] += weights + adapter;
        flops[1] += weights + 2 * adapter;
#ifdef NB_HAVE_ONEDNN
        plain[0] += time_plain(b, dtype, s->out[p], s->in, true).minimum;
        plain[1] += time_plain(b, dtype, s->out[p], s->in, false).minimum;
#endif
    }
    struct times result[2];
    time_ops(b, &forward, &backward, result);
    print(s->name, "forward", dtype, flops[0], result[0], plain[0]);
    print(s->name, "backward", dtype, flops[1], result[1], plain[1]);
}

int main(int argc, char **argv)
{
    struct bench b = {
        .tokens = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1024, .dropout = argc > 3 ? strtof(argv[3], NULL) : 0};
    struct nb_cpu_options options = {.threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0};
    if (b.tokens < 1 || options.threads < 0 || !(b.dropout >= 0 && b.dropout < 1)) {
        fprintf(stderr, "usage: bench_linear [TOKENS [THREADS [DROPOUT]]]\n");
        return 2;
    }
    must(nb_cpu_device_create(&options, &b.device));
    must(b.device->stream_create(b.device, &b.stream));
#ifdef _OPENMP
    omp_set_num_threads(b.device->profile.multiprocessors);
#endif
    printf("%s, %d threads, %d tokens, rank %d, dropout %g; minimum and median of %d\n", b.device->profile.name,
        b.device->profile.multiprocessors, b.tokens, RANK, (double)b.dropout, RUNS);
    for (int dtype = NB_DTYPE_BF16; dtype >= NB_DTYPE_F32; dtype--)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            measure(&b, &shapes[s], (enum nb_dtype)dtype);
    b.device->stream_destroy(b.device, &b.stream);
    nb_device_destroy(&b.device);
    return 0;
}
