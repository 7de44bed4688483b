/* Where the time of training steps goes, op by op.
 *
 *   bench_step CONFIG STEPS [--set KEY=VALUE]...
 *
 * Opens a run as `nibble train` does, puts a clock around every op of the device's table, runs one step to warm up and
 * STEPS more, and prints a line for each op (and, for linears, each shape): calls and milliseconds a step, share,
 * GFLOP/s, and that as a percentage of the limit. The limit is a product of the model's largest linear with weights
 * that are bf16 already, at 1,024 tokens. Trains nothing that is kept. For devices whose ops are done when they return:
 * the CPU's are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/progress.h"
#include "base/threads.h"
#include "train/device.h"
#include "train/plan.h"
#include "train/schedule.h"
#include "train/step.h"

enum op {
#define OP_NAME(name) OP_##name,
    NB_OPS(OP_NAME)
#undef OP_NAME
    OP_COUNT
};

static const char *const op_names[OP_COUNT] = {
#define OP_TEXT(name) #name,
    NB_OPS(OP_TEXT)
#undef OP_TEXT
};

enum { ENTRIES_MAX = 128, STEPS_MAX = 1000, LIMIT_TOKENS = 1024, LIMIT_RUNS = 9 };

/* An op, or a linear of one shape. */
struct entry {
    enum op op;
    int in, out; /* of linears; 0 otherwise */
    long calls;
    double seconds, flops;
};

/* The wrapped functions have no argument of ours to carry these. */
static struct nb_device original;
static struct {
    struct entry entry[ENTRIES_MAX];
    int entries;
} timings;

static bool is_entry(const struct entry *entry, enum op op, int in, int out)
{
    return entry->op == op && entry->in == in && entry->out == out;
}

static void record(enum op op, int in, int out, double seconds, double flops)
{
    int i = 0;
    while (i < timings.entries && !is_entry(&timings.entry[i], op, in, out))
        i++;
    if (i == ENTRIES_MAX)
        return;
    if (i == timings.entries)
        timings.entry[timings.entries++] = (struct entry){.op = op, .in = in, .out = out};
    timings.entry[i].calls++;
    timings.entry[i].seconds += seconds;
    timings.entry[i].flops += flops;
}

/* ---- what a linear computes ---- */

struct size {
    int in, out;
    double flops;
};

static double rows_of(struct nb_device *device, struct nb_stream *stream, nb_dptr slot, enum nb_row_count from,
                      int begin, int rows_max)
{
    struct nb_slot counts;
    if (device->download(device, stream, &counts, slot, sizeof counts) != NB_OK ||
        device->stream_wait(device, stream) != NB_OK)
        exit(1);
    int rows = from == NB_ROWS_TOKENS ? (int)counts.tokens : (int)counts.trained_rows - begin;
    return rows < 0 ? 0 : rows < rows_max ? rows : rows_max;
}

/* Multiplications and additions of `products` products with each weight, and `adapter_products` with each adapter's
 * two. */
static struct size size_of_parts(const struct nb_linear_part *part, int parts, int in, double rows, int products,
                                 int adapter_products)
{
    struct size size = {.in = in};
    for (int p = 0; p < parts; p++) {
        size.out += part[p].out;
        size.flops += 2 * rows * in * part[p].out * products;
        size.flops += 2 * rows * part[p].lora.rank * (in + part[p].out) * adapter_products;
    }
    return size;
}

static struct size size_of_linear(struct nb_device *device, struct nb_stream *stream, const void *args)
{
    const struct nb_linear *a = args;
    double rows = rows_of(device, stream, a->slot, a->rows_from, a->row_begin_chunk, a->tokens_max);
    return size_of_parts(a->part, a->parts, a->in, rows, 1, 1);
}

static struct size size_of_linear_backward(struct nb_device *device, struct nb_stream *stream, const void *args)
{
    const struct nb_linear_backward *a = args;
    double rows = rows_of(device, stream, a->slot, a->rows_from, a->row_begin_chunk, a->tokens_max);
    return size_of_parts(a->part, a->parts, a->in, rows, nb_dptr_is_null(a->dx) ? 0 : 1, 2);
}

static struct size no_size(struct nb_device *device, struct nb_stream *stream, const void *args)
{
    (void)device;
    (void)stream;
    (void)args;
    return (struct size){0};
}

/* ---- clocks around the table ---- */

#define SIZE_OF(args)                                             \
    _Generic((args), const struct nb_linear *: size_of_linear,   \
             const struct nb_linear_backward *: size_of_linear_backward, default: no_size)

#define TIMED(name)                                                                                                  \
    static nb_status timed_##name(struct nb_device *device, struct nb_stream *stream, const struct nb_##name *args)  \
    {                                                                                                                \
        struct size size = SIZE_OF(args)(device, stream, args);                                                      \
        double start = nb_clock_seconds();                                                                           \
        nb_status status = original.name(device, stream, args);                                                      \
        record(OP_##name, size.in, size.out, nb_clock_seconds() - start, size.flops);                                \
        return status;                                                                                               \
    }
NB_OPS(TIMED)
#undef TIMED

static void put_clocks(struct nb_device *device)
{
    original = *device;
#define WRAP(name) device->name = timed_##name;
    NB_OPS(WRAP)
#undef WRAP
}

/* ---- the limit ---- */

/* GFLOP/s of the largest linear with bf16 weights, the best of LIMIT_RUNS. */
static nb_status measure_limit(struct nb_session *session, double *gflops)
{
    struct nb_device *device = session->device;
    const struct nb_model_config *model = nb_model_config_of(session->model);
    enum nb_dtype activation = session->run->model.activation;
    uint64_t element = nb_dtype_bytes(activation);
    struct nb_slot counts = {.tokens = LIMIT_TOKENS, .sequences = 1, .key_tokens = LIMIT_TOKENS};
    struct nb_linear linear = {
        .tokens_max = LIMIT_TOKENS,
        .in = model->hidden,
        .x_stride = model->hidden,
        .parts = 1,
        .activation = activation,
        .step = session->step,
        .part[0] = {.out = model->intermediate, .y_stride = model->intermediate, .output_scale = 1,
                    .weight = {.format = NB_WEIGHT_BF16, .rows = model->intermediate, .columns = model->hidden}},
    };
    nb_dptr *const place[] = {&linear.x, &linear.part[0].weight.data, &linear.part[0].y, &linear.slot,
                              &linear.scratch.base};
    linear.scratch.bytes = device->linear_scratch_bytes(&device->profile, &linear);
    uint64_t in = (uint64_t)model->hidden, out = (uint64_t)model->intermediate;
    const uint64_t bytes[] = {LIMIT_TOKENS * in * element, in * out * 2, LIMIT_TOKENS * out * element, sizeof counts,
                              linear.scratch.bytes + 256};
    for (int i = 0; i < 5; i++) {
        NB_TRY(device->memory_take(device, bytes[i], place[i]));
        NB_TRY(device->fill_zero(device, session->stream, *place[i], bytes[i]));
    }
    NB_TRY(device->upload(device, session->stream, linear.slot, &counts, sizeof counts));
    NB_TRY(device->stream_wait(device, session->stream));
    double best = 0;
    for (int run = 0; run < LIMIT_RUNS; run++) {
        double start = nb_clock_seconds();
        NB_TRY(original.linear(device, session->stream, &linear));
        NB_TRY(device->stream_wait(device, session->stream));
        double rate = 2e-9 * LIMIT_TOKENS * (double)(in * out) / (nb_clock_seconds() - start);
        best = rate > best ? rate : best;
    }
    for (int i = 0; i < 5; i++)
        device->memory_give_back(device, *place[i]);
    *gflops = best;
    return NB_OK;
}

/* ---- steps ---- */

struct steps {
    int count;
    double seconds[STEPS_MAX], total;
    uint64_t tokens;
};

static nb_status run_step(struct nb_session *session, struct nb_stepper *stepper, int64_t step, uint64_t *tokens)
{
    const struct nb_run *run = session->run;
    int64_t per_epoch = run->length.steps_per_epoch, epoch = (step - 1) / per_epoch;
    struct nb_step_rows rows;
    struct nb_step_result result;
    NB_TRY(nb_batch_plan_step(run->batches, (uint64_t)epoch, (uint32_t)((step - 1) % per_epoch), &rows));
    NB_TRY(nb_stepper_run(stepper, run->data, &rows, step, run->config->learning_rate, &result));
    *tokens = result.tokens;
    return NB_OK;
}

static nb_status run_steps(struct nb_session *session, struct steps *steps)
{
    struct nb_stepper_options options = nb_stepper_options_of(session->run);
    struct nb_stepper *stepper = NULL;
    uint64_t tokens;
    NB_TRY(nb_stepper_create(session, &options, &stepper));
    nb_status status = run_step(session, stepper, 1, &tokens);
    timings.entries = 0;
    for (int i = 0; status == NB_OK && i < steps->count; i++) {
        double start = nb_clock_seconds();
        status = run_step(session, stepper, i + 2, &tokens);
        steps->seconds[i] = nb_clock_seconds() - start;
        steps->total += steps->seconds[i];
        steps->tokens += tokens;
    }
    nb_stepper_destroy(&stepper);
    return status;
}

/* ---- the table ---- */

static int slower_first(const void *a, const void *b)
{
    double x = ((const struct entry *)a)->seconds, y = ((const struct entry *)b)->seconds;
    return (x < y) - (x > y);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_entry(const struct entry *entry, const struct steps *steps, double limit)
{
    char shape[48] = "";
    if (entry->in)
        snprintf(shape, sizeof shape, "%d -> %d", entry->in, entry->out);
    printf("%-20s %-14s %8.1f %9.2f %6.1f%%", op_names[entry->op], shape, (double)entry->calls / steps->count,
           1e3 * entry->seconds / steps->count, 100 * entry->seconds / steps->total);
    if (entry->flops > 0)
        printf(" %9.0f %6.0f%%", 1e-9 * entry->flops / entry->seconds, 1e-7 * entry->flops / entry->seconds / limit);
    putchar('\n');
}

static void print_table(struct steps *steps, double limit)
{
    double inside = 0, flops = 0;
    qsort(timings.entry, (size_t)timings.entries, sizeof *timings.entry, slower_first);
    printf("%-20s %-14s %8s %9s %7s %9s %7s\n", "op", "shape", "calls", "ms", "share", "GFLOP/s", "limit");
    for (int i = 0; i < timings.entries; i++) {
        print_entry(&timings.entry[i], steps, limit);
        inside += timings.entry[i].seconds;
        flops += timings.entry[i].flops;
    }
    double outside = steps->total - inside, tokens = (double)steps->tokens;
    printf("%-20s %-14s %8s %9.2f %6.1f%%\n", "outside of ops", "", "", 1e3 * outside / steps->count,
           100 * outside / steps->total);
    qsort(steps->seconds, (size_t)steps->count, sizeof *steps->seconds, ascending);
    printf("\nstep: minimum %.1f ms, median %.1f ms, maximum %.1f ms, of %d steps\n", 1e3 * steps->seconds[0],
           1e3 * steps->seconds[steps->count / 2], 1e3 * steps->seconds[steps->count - 1], steps->count);
    printf("tokens/s: %.1f over %.0f real tokens\n", tokens / steps->total, tokens);
    printf("linears: %.3f GFLOP a token\n", 1e-9 * flops / tokens);
    printf("limit: %.0f GFLOP/s for one product of bf16 weights, so %.0f tokens/s; reached %.0f %%\n", limit,
           1e9 * limit * tokens / flops, 100 * flops / steps->total / (1e9 * limit));
}

static nb_status bench(const struct nb_config *config, struct steps *steps)
{
    struct nb_run *run = NULL;
    struct nb_plan plan = {0};
    struct nb_session *session = NULL;
    double limit = 0;
    nb_status status = nb_run_open(&(struct nb_run_args){.config = config, .purpose = NB_PURPOSE_TRAIN}, &run);
    if (status == NB_OK)
        status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        status = nb_run_open_device(run, plan.site, plan.sites);
    struct nb_session_args args = {
        .capacity = plan.peak_bytes, .pinned_capacity = plan.pinned_bytes,
        .pageable_capacity = plan.pageable_bytes, .positions_max = run ? run->sequence_len : 0};
    if (status == NB_OK)
        status = nb_session_open(run, &args, &session);
    if (status == NB_OK) {
        put_clocks(session->device);
        status = measure_limit(session, &limit);
    }
    if (status == NB_OK)
        status = run_steps(session, steps);
    if (status == NB_OK) {
        const struct nb_device_profile *profile = &session->device->profile;
        printf("%s, %d threads, %s, products by %s\n", profile->name, profile->multiprocessors,
               run->model.activation == NB_DTYPE_BF16 ? "bf16" : "fp32", nb_cpu_backend_description());
        print_table(steps, limit);
    }
    nb_session_close(&session);
    nb_plan_destroy(&plan);
    nb_run_destroy(&run);
    return status;
}

int main(int argc, char **argv)
{
    static struct steps steps;
    const char *settings[64];
    size_t setting_count = 0;
    struct nb_config config;
    nb_threads_let_waits_sleep(argv);
    steps.count = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0;
    if (steps.count < 1 || steps.count > STEPS_MAX) {
        fprintf(stderr, "usage: bench_step CONFIG STEPS [--set KEY=VALUE]...   (1 to %d steps)\n", STEPS_MAX);
        return 2;
    }
    for (int i = 3; i + 1 < argc && setting_count < 64; i += 2)
        settings[setting_count++] = argv[i + 1];
    nb_status status = nb_config_read(argv[1], settings, setting_count, &config);
    if (status == NB_OK)
        status = nb_config_validate_train(&config);
    if (status == NB_OK)
        status = bench(&config, &steps);
    if (status != NB_OK)
        fprintf(stderr, "error: %s\n", nb_status_message());
    nb_config_destroy(&config);
    return status != NB_OK;
}
