#include "bench/rig.h"

#include <stdlib.h>
#include <string.h>

#include "base/bfloat.h"
#include "base/file.h"
#include "base/progress.h"
#include "base/random.h"
#include "base/threads.h"
#include "device/cuda/cuda.h"
#include "quant/matrix.h"

enum { SAMPLES = 7, SAMPLES_QUICK = 3 };

static const uint64_t copy_bytes = 1u << 28, random_bytes_max = 1u << 26;
static const double sample_seconds = 0.01, sample_seconds_quick = 0.002;

/* ---- memory ---- */

nb_status nb_bench_take(struct nb_bench *bench, uint64_t bytes, bool random, nb_dptr *address)
{
    struct nb_device *device = bench->device;
    if (bench->buffers == NB_BENCH_BUFFERS_MAX)
        return nb_fail(NB_MEMORY, "a benchmark takes more than %d buffers", NB_BENCH_BUFFERS_MAX);
    NB_TRY(device->memory_take(device, bytes, address));
    bench->buffer[bench->buffers++] = *address;
    if (!random)
        return device->fill_zero(device, bench->stream, *address, bytes);
    for (uint64_t at = 0; at < bytes; at += bench->random_bytes) {
        uint64_t piece = bytes - at < bench->random_bytes ? bytes - at : bench->random_bytes;
        NB_TRY(device->upload(device, bench->stream, nb_dptr_at(*address, at), bench->random, piece));
    }
    return NB_OK;
}

void nb_bench_release_to(struct nb_bench *bench, int mark)
{
    if (bench->buffers > mark)
        bench->device->stream_wait(bench->device, bench->stream);
    while (bench->buffers > mark)
        bench->device->memory_give_back(bench->device, bench->buffer[--bench->buffers]);
}

static nb_status make_random(struct nb_bench *bench)
{
    bench->random_bytes = bench->options->quick ? 1u << 20 : random_bytes_max;
    NB_TRY(bench->device->host_take(bench->device, bench->random_bytes, &bench->random));
    nb_bf16 *values = bench->random;
    for (uint64_t i = 0; i < bench->random_bytes / 2; i += 8) {
        const uint32_t counter[4] = {(uint32_t)i, (uint32_t)(i >> 32), 0, 0}, key[2] = {1, 2};
        struct nb_philox number = nb_philox(counter, key);
        for (int k = 0; k < 8; k++) {
            /* the sum of four bytes is nearly normal, of deviation 148 */
            uint32_t word = number.word[k / 2] ^ (k % 2 ? number.word[(k / 2 + 1) % 4] >> 7 : 0);
            int sum = (int)(word & 255) + (int)(word >> 8 & 255) + (int)(word >> 16 & 255) + (int)(word >> 24);
            values[i + (uint64_t)k] = nb_bf16_from_float((float)(sum - 510) * (0.02f / 148));
        }
    }
    return NB_OK;
}

nb_status nb_bench_weight(
    struct nb_bench *bench, enum nb_weight_format format, int rows, int columns, struct nb_weight *weight)
{
    struct nb_device *device = bench->device;
    uint64_t count = (uint64_t)rows * (uint64_t)columns, blocks = nb_quant_blocks(count);
    *weight = (struct nb_weight){.format = format, .rows = rows, .columns = columns};
    if (format == NB_WEIGHT_BF16)
        return nb_bench_take(bench, count * 2, true, &weight->data);
    weight->nested = true;
    NB_TRY(nb_bench_take(bench, nb_quant_packed_bytes(count), false, &weight->data));
    NB_TRY(nb_bench_take(bench, blocks, false, &weight->absmax));
    NB_TRY(nb_bench_take(bench, nb_quant_superblocks(blocks) * 4, false, &weight->nested_absmax));
    NB_TRY(nb_bench_take(bench, 256 * 4, false, &weight->nested_map));
    NB_TRY(nb_bench_take(bench, 4, false, &weight->nested_offset));
    NB_TRY(nb_bench_take(bench, NB_QUANT_CODES * 4, false, &weight->codebook));
    int mark = nb_bench_mark(bench);
    struct nb_quantize args = {.to = *weight};
    NB_TRY(nb_bench_take(bench, count * 2, true, &args.w));
    args.scratch.bytes = device->quantize_scratch_bytes(&device->profile, &args);
    NB_TRY(nb_bench_take(bench, args.scratch.bytes, false, &args.scratch.base));
    NB_TRY(device->quantize(device, bench->stream, &args));
    NB_TRY(device->stream_wait(device, bench->stream));
    nb_bench_release_to(bench, mark);
    return NB_OK;
}

nb_status nb_bench_set_tokens(struct nb_bench *bench, int tokens)
{
    struct nb_device *device = bench->device;
    const struct nb_slot slot = {.tokens = (uint32_t)tokens, .sequences = 1, .key_tokens = (uint32_t)tokens};
    NB_TRY(device->upload(device, bench->stream, bench->slot, &slot, sizeof slot));
    return device->stream_wait(device, bench->stream);
}

/* ---- time ---- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static nb_status time_calls(
    struct nb_bench *bench, nb_bench_call *call, void *context, int *i, int calls, double *seconds)
{
    struct nb_device *device = bench->device;
    double from = nb_clock_seconds();
    if (bench->cuda)
        NB_TRY(nb_cuda_timer_begin(device, bench->stream));
    for (int k = 0; k < calls; k++)
        NB_TRY(call(bench, context, (*i)++));
    if (bench->cuda)
        return nb_cuda_timer_end(device, bench->stream, seconds);
    NB_TRY(device->stream_wait(device, bench->stream));
    *seconds = nb_clock_seconds() - from;
    return NB_OK;
}

nb_status nb_bench_time(struct nb_bench *bench, nb_bench_call *call, void *context, struct nb_bench_time *time)
{
    double sample[SAMPLES], once, enough = bench->options->quick ? sample_seconds_quick : sample_seconds;
    int i = 0, samples = bench->options->quick ? SAMPLES_QUICK : SAMPLES;
    NB_TRY(time_calls(bench, call, context, &i, bench->options->quick ? 1 : 3, &once));
    NB_TRY(time_calls(bench, call, context, &i, 1, &once));
    int calls = once > 0 && once < enough ? (int)(enough / once) + 1 : 1;
    for (int s = 0; s < samples; s++) {
        NB_TRY(time_calls(bench, call, context, &i, calls, &sample[s]));
        sample[s] /= calls;
    }
    qsort(sample, (size_t)samples, sizeof *sample, by_size);
    *time = (struct nb_bench_time){sample[0], sample[samples / 2], sample[samples - 1]};
    return NB_OK;
}

/* ---- the two rates ---- */

struct copy {
    nb_dptr from, to;
    uint64_t bytes;
};

static nb_status call_copy(struct nb_bench *bench, void *context, int i)
{
    const struct copy *copy = context;
    (void)i;
    return bench->device->copy(bench->device, bench->stream, copy->to, copy->from, copy->bytes);
}

static nb_status call_product(struct nb_bench *bench, void *context, int i)
{
    (void)i;
    return bench->device->linear(bench->device, bench->stream, context);
}

static nb_status measure_copy(struct nb_bench *bench)
{
    struct copy copy = {.bytes = bench->options->quick ? 1u << 22 : copy_bytes};
    struct nb_bench_time time;
    int mark = nb_bench_mark(bench);
    NB_TRY(nb_bench_take(bench, copy.bytes, true, &copy.from));
    NB_TRY(nb_bench_take(bench, copy.bytes, true, &copy.to));
    NB_TRY(nb_bench_time(bench, call_copy, &copy, &time));
    nb_bench_release_to(bench, mark);
    bench->copy_bytes_per_second = 2.0 * (double)copy.bytes / time.median;
    return NB_OK;
}

/* A square product, large enough to fill any GPU; a CPU's limit shows on a smaller one. */
static nb_status measure_product(struct nb_bench *bench)
{
    int size = bench->options->quick ? 256 : bench->cuda ? 8192 : 1024, mark = nb_bench_mark(bench);
    struct nb_linear args = {
        .slot = bench->slot,
        .step = bench->step,
        .tokens_max = size,
        .in = size,
        .x_stride = size,
        .parts = 1,
        .activation = NB_DTYPE_BF16,
        .part = {{.out = size, .y_stride = size, .output_scale = 1}},
    };
    uint64_t bytes = 2 * (uint64_t)size * (uint64_t)size;
    struct nb_bench_time time;
    NB_TRY(nb_bench_weight(bench, NB_WEIGHT_BF16, size, size, &args.part[0].weight));
    NB_TRY(nb_bench_take(bench, bytes, true, &args.x));
    NB_TRY(nb_bench_take(bench, bytes, false, &args.part[0].y));
    args.scratch.bytes = bench->device->linear_scratch_bytes(&bench->device->profile, &args);
    NB_TRY(nb_bench_take(bench, args.scratch.bytes, false, &args.scratch.base));
    NB_TRY(nb_bench_set_tokens(bench, size));
    NB_TRY(nb_bench_time(bench, call_product, &args, &time));
    nb_bench_release_to(bench, mark);
    bench->product_flops_per_second = 2.0 * size * size * (double)size / time.median;
    return NB_OK;
}

/* ---- life ---- */

static nb_status open_device(struct nb_bench *bench)
{
    const struct nb_cuda_options cuda = {0};
    const struct nb_cpu_options cpu = {0};
    enum nb_config_device wanted = bench->options->device;
    if (wanted != NB_CONFIG_DEVICE_CPU && (wanted == NB_CONFIG_DEVICE_CUDA || nb_cuda_built())) {
        nb_status status = nb_cuda_device_create(&cuda, &bench->device);
        bench->cuda = status == NB_OK;
        if (status == NB_OK)
            return bench->device->prepare(bench->device, NULL, 0);
        if (wanted == NB_CONFIG_DEVICE_CUDA || status != NB_UNSUPPORTED)
            return status;
    }
    nb_threads_set_default(0);
    return nb_cpu_device_create(&cpu, &bench->device);
}

nb_status nb_bench_open(const struct nb_bench_options *options, struct nb_bench *bench)
{
    *bench = (struct nb_bench){.options = options};
    NB_TRY(open_device(bench));
    NB_TRY(bench->device->stream_create(bench->device, &bench->stream));
    NB_TRY(make_random(bench));
    NB_TRY(nb_bench_take(bench, sizeof(struct nb_slot), false, &bench->slot));
    NB_TRY(nb_bench_take(bench, sizeof(struct nb_step), false, &bench->step));
    NB_TRY(measure_copy(bench));
    return measure_product(bench);
}

void nb_bench_close(struct nb_bench *bench)
{
    struct nb_device *device = bench->device;
    if (!device)
        return;
    nb_bench_release_to(bench, 0);
    if (bench->random)
        device->host_give_back(device, bench->random);
    if (bench->stream)
        device->stream_destroy(device, &bench->stream);
    nb_device_destroy(&bench->device);
}

/* ---- printing ---- */

static const char *backend_of(const struct nb_bench *bench)
{
    return bench->cuda ? nb_cuda_backend_description(bench->device) : nb_cpu_backend_description();
}

nb_status nb_bench_report(const struct nb_bench *bench, const char *benchmark, json_t *results)
{
    json_t *root = json_pack("{s:s, s:s, s:s, s:f, s:f, s:o}", "benchmark", benchmark, "device", bench->device->profile.name,
        "backend", backend_of(bench), "copy_gb_per_second", bench->copy_bytes_per_second / 1e9, "product_tflops",
        bench->product_flops_per_second / 1e12, "results", results);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) : NULL;
    json_decref(root);
    if (!text)
        return nb_fail(NB_MEMORY, "no memory to print the benchmark");
    nb_status status = NB_OK;
    if (bench->options->save)
        status = nb_file_write(bench->options->save, text, strlen(text));
    if (status == NB_OK && bench->options->json &&
        (fprintf(bench->options->out, "%s\n", text) < 0 || fflush(bench->options->out) != 0))
        status = nb_fail_errno("cannot print the benchmark");
    free(text);
    return status;
}

void nb_bench_print_head(const struct nb_bench *bench, const char *benchmark)
{
    fprintf(bench->options->out, "%s on %s, %s\n", benchmark, bench->device->profile.name, backend_of(bench));
    fprintf(bench->options->out, "limits measured here: copy %.0f GB/s (read and written), bf16 product %.4g TFLOP/s\n\n",
        bench->copy_bytes_per_second / 1e9, bench->product_flops_per_second / 1e12);
}
