/* Devices: running an op on each, looking after guards and inputs, and timing it. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device/cuda/cuda.h"
#include "harness.h"

/* Bytes of 0xff in front of and behind each buffer. As fp32 or bf16 they are NaN, as indices -1, so a read beyond shows too. Under the
 * address sanitizer, and on the emulated machine, nothing stands behind: the allocation's own end does. */
enum { GUARD_FRONT = 256 };
#ifdef __SANITIZE_ADDRESS__
enum { GUARD_BEHIND = 0 };
#else
enum { GUARD_BEHIND = 256 };
#endif

static bool is_emulated(const struct checkop_target *t)
{
    return checkop_machine_emulated && t->device->profile.kind == NB_DEVICE_CUDA;
}

static uint64_t guard_behind(const struct checkop_target *t)
{
    return is_emulated(t) ? 0 : GUARD_BEHIND;
}

/* ---- binding ---- */

void checkop_bind_at(struct checkop *c, nb_dptr *field, struct checkop_buffer *b, uint64_t at)
{
    if (c->bindings == CHECKOP_BINDINGS_MAX)
        checkop_abort(c, "more than %d bindings", CHECKOP_BINDINGS_MAX);
    c->binding[c->bindings++] = (struct checkop_binding){field, b, at};
    b->in_use = true;
}

void checkop_bind(struct checkop *c, nb_dptr *field, struct checkop_buffer *b)
{
    checkop_bind_at(c, field, b, 0);
}

void checkop_bind_scratch(struct checkop *c, struct nb_scratch *field)
{
    c->scratch_field = field;
}

/* ---- one run ---- */

/* A buffer on a device: guard, payload, guard; and the host memory it is filled from and read back into. */
struct placed {
    nb_dptr base;
    uint64_t total; /* bytes with guards */
    unsigned char *before, *after;
    bool fresh;     /* the device's memory is as it should be, nothing written: an op that reads it is caught */
};

static nb_dptr payload(const struct placed *p)
{
    return nb_dptr_at(p->base, GUARD_FRONT);
}

static bool is_guard(const unsigned char *bytes, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (bytes[i] != 0xff)
            return false;
    return true;
}

static void place(struct checkop *c, const struct checkop_target *t, uint64_t bytes, const void *image, struct placed *p)
{
    struct nb_device *d = t->device;
    p->total = GUARD_FRONT + bytes + guard_behind(t);
    void *before = NULL, *after = NULL;
    checkop_must(c, t, d->memory_take(d, p->total, &p->base), "memory_take");
    checkop_must(c, t, d->host_take(d, p->total, &before), "host_take");
    checkop_must(c, t, d->host_take(d, p->total, &after), "host_take");
    p->before = before;
    p->after = after;
    memset(p->before, 0xff, p->total);
    if (image)
        memcpy(p->before + GUARD_FRONT, image, bytes);
    p->fresh = is_emulated(t) && is_guard(p->before, p->total);
}

static void unplace(const struct checkop_target *t, struct placed *p)
{
    t->device->host_give_back(t->device, p->before);
    t->device->host_give_back(t->device, p->after);
    t->device->memory_give_back(t->device, p->base);
}

static void check_guards(struct checkop *c, const struct checkop_target *t, const char *name, const struct placed *p)
{
    if (!is_guard(p->after, GUARD_FRONT))
        checkop_fail(c, "%s: wrote in front of %s", t->name, name);
    if (!is_guard(p->after + p->total - guard_behind(t), guard_behind(t)))
        checkop_fail(c, "%s: wrote behind %s", t->name, name);
}

/* Where a target's bytes must be those of another: the first element that differs. */
static void expect_same(struct checkop *c, const struct checkop_target *t, const struct checkop_buffer *b, const unsigned char *after)
{
    const unsigned char *want = t->same_as == 0 ? b->result : b->tested[t->same_as];
    uint64_t size = nb_dtype_bytes(b->dtype), i = 0;
    if (!want || memcmp(after, want, b->bytes) == 0)
        return;
    while (memcmp(after + i * size, want + i * size, size) == 0)
        i++;
    checkop_fail(c, "%s: %s[%" PRIu64 "] is %.9g, on %s %.9g", t->name, b->name, i, checkop_element(after, b->dtype, i),
                 c->target[t->same_as].name, checkop_element(want, b->dtype, i));
}

/* After the run: keeps the reference's and the tested devices' bytes, compares those that must be equal. */
static void collect(struct checkop *c, int target, struct checkop_buffer *b, const struct placed *p)
{
    const struct checkop_target *t = &c->target[target];
    const unsigned char *after = p->after + GUARD_FRONT;
    check_guards(c, t, b->name, p);
    if (!b->written) {
        if (memcmp(after, b->image, b->bytes) != 0)
            checkop_fail(c, "%s: input %s was changed", t->name, b->name);
        return;
    }
    if (target == 0) {
        memcpy(b->result, after, b->bytes);
        return;
    }
    if (t->under_test) {
        b->tested[target] = checkop_allocate(b->bytes);
        memcpy(b->tested[target], after, b->bytes);
    }
    if (t->same_as >= 0)
        expect_same(c, t, b, after);
}

/* Exactly nb_cuda_refuse_f32's words, and for args that are in fp32: the one reason for which a device under test may decline a case. */
static bool is_refusal_of_f32(const struct checkop *c, const struct checkop_target *t, const void *args, nb_status status)
{
    char words[128];
    snprintf(words, sizeof words, "%s: activations in fp32; this device computes in bf16 alone", checkop_entry(c->op)->name);
    return t->under_test && status == NB_UNSUPPORTED && checkop_in_f32(c->op, args) && strcmp(nb_status_message(), words) == 0;
}

/* The streams' waits, the last one's first. What the op found wrong surfaces at one of them, at most once: on the stream that ran it, or,
 * where a device has one word for all streams, at the first. False: the emulated machine had stopped, and nothing came back. */
static bool wait_for_all(struct checkop *c, const struct checkop_target *t, nb_status want)
{
    nb_status got = NB_OK;
    char message[512] = "";
    for (int i = CHECKOP_STREAMS - 1; i >= 0; i--) {
        nb_status status = t->device->stream_wait(t->device, t->stream[i]);
        if (status == NB_OK)
            continue;
        if (checkop_machine_revive()) {
            checkop_fail(c, "%s: %s", t->name, nb_status_message());
            return false;
        }
        if (got != NB_OK)
            checkop_fail(c, "%s: the streams' waits gave two errors: %s; %s", t->name, message, nb_status_message());
        got = status;
        snprintf(message, sizeof message, "%s", nb_status_message());
    }
    if (got != want)
        checkop_fail(c, "%s: the streams' waits gave status %d, not %d: %s", t->name, (int)got, (int)want, message);
    return true;
}

enum outcome { RAN, DECLINED, LOST };

/* What is to be run: the op with its args, which the devices' addresses are bound into; in chunks of so many rows, or 0; and what its
 * streams' waits shall say. */
struct request {
    void *args;
    int chunk;
    nb_status want;
};

/* The op, or its rows chunk by chunk, up to the first that is refused. chunk 0: all at once. */
static nb_status enqueue_op(struct checkop *c, const struct checkop_target *t, const void *args, int chunk)
{
    const struct checkop_entry *entry = checkop_entry(c->op);
    int rows = checkop_rows_max(c->op, args);
    nb_status status = NB_OK;
    if (chunk == 0)
        return entry->call(t->device, t->stream[1], args);
    for (int begin = 0; begin < rows && status == NB_OK; begin += chunk) {
        union checkop_cut cut;
        checkop_cut(c->op, args, begin, chunk, &cut);
        status = entry->call(t->device, t->stream[1], &cut);
    }
    return status;
}

/* Uploads on one stream, the op on a second, downloads on a third, joined by events alone. */
static enum outcome enqueue_all(
    struct checkop *c, const struct checkop_target *t, struct placed *placed, const struct request *request)
{
    struct nb_device *d = t->device;
    for (int i = 0; i <= c->buffers; i++)
        if (placed[i].total && !placed[i].fresh)
            checkop_must(c, t, d->upload(d, t->stream[0], placed[i].base, placed[i].before, placed[i].total), "upload");
    checkop_must(c, t, d->event_record(d, t->stream[0], t->event[0]), "event_record");
    checkop_must(c, t, d->stream_wait_event(d, t->stream[1], t->event[0]), "stream_wait_event");
    nb_status status = enqueue_op(c, t, request->args, request->chunk);
    bool declined = is_refusal_of_f32(c, t, request->args, status);
    if (checkop_machine_revive()) { /* the op ran something itself */
        checkop_fail(c, "%s: the machine stopped within the call", t->name);
        return LOST;
    }
    if (status != NB_OK && !declined)
        checkop_fail(c, "%s: %s", t->name, nb_status_message());
    checkop_must(c, t, d->event_record(d, t->stream[1], t->event[1]), "event_record");
    checkop_must(c, t, d->stream_wait_event(d, t->stream[2], t->event[1]), "stream_wait_event");
    for (int i = 0; i <= c->buffers; i++)
        if (placed[i].total)
            checkop_must(c, t, d->download(d, t->stream[2], placed[i].after, placed[i].base, placed[i].total), "download");
    bool came_back = wait_for_all(c, t, declined ? NB_OK : request->want);
    return !came_back ? LOST : declined ? DECLINED : RAN;
}

static void bind_to(struct checkop *c, const struct checkop_target *t, struct placed *placed, void *args)
{
    for (int i = 0; i < c->bindings; i++) {
        const struct checkop_binding *binding = &c->binding[i];
        const struct placed *p = &placed[binding->buffer - c->buffer];
        *binding->field = nb_dptr_at(payload(p), binding->at * nb_dtype_bytes(binding->buffer->dtype));
    }
    if (!c->scratch_field)
        return;
    struct placed *p = &placed[c->buffers];
    uint64_t bytes = checkop_entry(c->op)->scratch_bytes(t->device, args);
    place(c, t, bytes, NULL, p);
    *c->scratch_field = (struct nb_scratch){payload(p), bytes};
}

/* Less scratch than asked for must be refused, not overrun. Attention on a GPU makes do without: a cache may have been out of sight when
 * its scratch was planned. */
static void expect_scratch_is_checked(struct checkop *c, const struct checkop_target *t, const void *args)
{
    struct nb_scratch *scratch = c->scratch_field;
    bool optional = c->op == CHECKOP_attention && t->device->profile.kind == NB_DEVICE_CUDA;
    if (!scratch || scratch->bytes == 0 || optional)
        return;
    scratch->bytes--;
    nb_status status = checkop_entry(c->op)->call(t->device, t->stream[1], args);
    scratch->bytes++;
    if (status != NB_UNSUPPORTED)
        checkop_fail(c, "%s: a byte of scratch too little is not refused", t->name);
}

/* In chunks a target must give the bytes that it gave for all rows at once, if it gave any. */
static void compare_chunks(struct checkop *c, int target, const struct checkop_buffer *b, const struct placed *p, int chunk)
{
    const struct checkop_target *t = &c->target[target];
    const unsigned char *after = p->after + GUARD_FRONT;
    const unsigned char *want = !b->written ? b->image : target == 0 ? b->result : b->tested[target];
    uint64_t size = nb_dtype_bytes(b->dtype), i = 0;
    check_guards(c, t, b->name, p);
    if (!want || memcmp(after, want, b->bytes) == 0)
        return;
    while (memcmp(after + i * size, want + i * size, size) == 0)
        i++;
    checkop_fail(c, "%s: in chunks of %d rows %s[%" PRIu64 "] is %.9g, at once %.9g", t->name, chunk, b->name, i,
                 checkop_element(after, b->dtype, i), checkop_element(want, b->dtype, i));
}

static void run_on(struct checkop *c, int target, const struct request *request)
{
    struct checkop_target *t = &c->target[target];
    struct placed placed[CHECKOP_BUFFERS_MAX + 1] = {{{0}, 0, NULL, NULL, false}}; /* the last one used: scratch */
    if (t->machine_seed)
        checkop_machine_seed(t->machine_seed);
    for (int i = 0; i < c->buffers; i++)
        if (c->buffer[i].in_use)
            place(c, t, c->buffer[i].bytes, c->buffer[i].image, &placed[i]);
    bind_to(c, t, placed, request->args);
    expect_scratch_is_checked(c, t, request->args);
    enum outcome outcome = enqueue_all(c, t, placed, request);
    t->ran += outcome == RAN && request->chunk == 0;
    t->in_f32 += outcome == DECLINED && request->chunk == 0;
    for (int i = 0; i <= c->buffers; i++) {
        if (!placed[i].total)
            continue;
        if (i == c->buffers && outcome != LOST)
            check_guards(c, t, "scratch", &placed[i]);
        else if (request->chunk && outcome == RAN)
            compare_chunks(c, target, &c->buffer[i], &placed[i], request->chunk);
        else if (request->want == NB_OK && outcome == RAN)
            collect(c, target, &c->buffer[i], &placed[i]);
        unplace(t, &placed[i]);
    }
}

bool checkop_takes_part(const struct checkop_target *t, enum checkop_op op)
{
    if (t->attention_alone)
        return op == CHECKOP_attention || op == CHECKOP_attention_backward;
    return !t->products_alone || op == CHECKOP_linear || op == CHECKOP_linear_backward;
}

/* All rows at once; and, where they are several tiles and a run succeeds, in chunks of one and of two, on the reference and what is under
 * test: the other devices' threads and seeds have no more to say to a chunk. */
static void run_whole_and_in_chunks(struct checkop *c, int target, void *args, nb_status want)
{
    struct request request = {args, 0, want};
    bool cuts = want == NB_OK && (target == 0 || c->target[target].under_test);
    run_on(c, target, &request);
    for (int tiles = 1; tiles <= 2 && cuts; tiles++) {
        request.chunk = tiles * NB_TILE_TOKENS;
        if (checkop_rows_max(c->op, args) > request.chunk)
            run_on(c, target, &request);
    }
}

static void run_everywhere(struct checkop *c, enum checkop_op op, void *args, nb_status want)
{
    if (op != c->op)
        checkop_abort(c, "the check of %s runs %s", checkop_entry(c->op)->name, checkop_entry(op)->name);
    if (c->has_run)
        checkop_abort(c, "a case runs once");
    if (!c->in_case)
        checkop_abort(c, "a run outside a case");
    c->has_run = true;
    c->runs[op]++;
    checkop_choose_paths(c, op, args);
    bool too_large = c->work_max > 0 && checkop_work(op, args) > c->work_max;
    for (int target = 0; target < c->targets; target++) {
        struct checkop_target *t = &c->target[target];
        if (!checkop_takes_part(t, op))
            continue;
        if (!checkop_entry(op)->has(t->device))
            checkop_fail(c, "%s lacks the op", t->name);
        else if (too_large && t->under_test)
            t->too_large++;
        else
            run_whole_and_in_chunks(c, target, args, want);
    }
}

void checkop_run(struct checkop *c, enum checkop_op op, void *args)
{
    run_everywhere(c, op, args, NB_OK);
}

void checkop_run_fails(struct checkop *c, enum checkop_op op, void *args, nb_status status)
{
    run_everywhere(c, op, args, status);
    for (int i = 0; i < c->buffers; i++) { /* what it wrote is undefined */
        memcpy(c->buffer[i].result, c->buffer[i].image, c->buffer[i].bytes);
        memset(c->buffer[i].claimed, 1, c->buffer[i].count);
    }
}

/* ---- timing ---- */

enum { TIMINGS_MAX = 512 };

double checkop_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* A memcpy between two buffers that no cache holds, by as many threads: bytes a second, read and written counted. */
static double host_copy_rate(int threads, uint64_t bytes)
{
    enum { PIECES = 256 };
    uint64_t piece = bytes / PIECES;
    char *from = checkop_allocate(bytes), *to = checkop_allocate(bytes);
    double best = 0;
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    for (int repeat = 0; repeat < 6; repeat++) {
        double begin = checkop_seconds();
#pragma omp parallel for num_threads(threads)
        for (int i = 0; i < PIECES; i++)
            memcpy(to + (uint64_t)i * piece, from + (uint64_t)i * piece, piece);
        double rate = 2.0 * (double)bytes / (checkop_seconds() - begin);
        best = rate > best ? rate : best;
    }
    free(from);
    free(to);
    return best;
}

/* The same by the GPU's own copies. */
static double gpu_copy_rate(struct checkop *c, const struct checkop_target *t, uint64_t bytes)
{
    struct nb_device *d = t->device;
    nb_dptr from, to;
    double best = 0;
    checkop_must(c, t, d->memory_take(d, bytes, &from), "memory_take");
    checkop_must(c, t, d->memory_take(d, bytes, &to), "memory_take");
    checkop_must(c, t, d->fill_zero(d, t->stream[0], from, bytes), "fill_zero");
    for (int repeat = 0; repeat < 20; repeat++) {
        double seconds = 0;
        checkop_must(c, t, nb_cuda_timer_begin(d, t->stream[0]), "timer_begin");
        checkop_must(c, t, d->copy(d, t->stream[0], to, from, bytes), "copy");
        checkop_must(c, t, nb_cuda_timer_end(d, t->stream[0], &seconds), "timer_end");
        best = 2.0 * (double)bytes / seconds > best ? 2.0 * (double)bytes / seconds : best;
    }
    d->memory_give_back(d, from);
    d->memory_give_back(d, to);
    return best;
}

/* Once for each device. */
static void measure_copy_rate(struct checkop *c, struct checkop_target *t)
{
    const uint64_t bytes = (uint64_t)256 << 20;
    const struct nb_device_profile *profile = &t->device->profile;
    bool gpu = profile->kind == NB_DEVICE_CUDA;
    if (t->copy_bytes_per_second > 0)
        return;
    t->copy_bytes_per_second = gpu ? gpu_copy_rate(c, t, bytes) : host_copy_rate(profile->multiprocessors, bytes);
    printf("%s: %s, %d %s; copying 256 MiB: %.2f GB/s read and written\n", t->name, profile->name, profile->multiprocessors,
           gpu ? "multiprocessors" : "threads", 1e-9 * t->copy_bytes_per_second);
}

bool checkop_wants_bench(const struct checkop *c)
{
    return c->bench;
}

/* One run's seconds: on a GPU between two points of its stream, else on the host's clock. */
static double time_once(struct checkop *c, const struct checkop_target *t, void *args)
{
    struct nb_device *d = t->device;
    bool gpu = d->profile.kind == NB_DEVICE_CUDA;
    double start = checkop_seconds(), seconds = 0;
    if (gpu)
        checkop_must(c, t, nb_cuda_timer_begin(d, t->stream[0]), "timer_begin");
    checkop_must(c, t, checkop_entry(c->op)->call(d, t->stream[0], args), "call");
    if (gpu)
        checkop_must(c, t, nb_cuda_timer_end(d, t->stream[0], &seconds), "timer_end");
    else
        checkop_must(c, t, d->stream_wait(d, t->stream[0]), "stream_wait");
    return gpu ? seconds : checkop_seconds() - start;
}

static void time_on(struct checkop *c, const struct checkop_target *t, void *args, double bytes, double flops)
{
    double timing[TIMINGS_MAX], begin = checkop_seconds();
    int count = 0;
    if (is_refusal_of_f32(c, t, args, checkop_entry(c->op)->call(t->device, t->stream[0], args)))
        return;
    while (count < TIMINGS_MAX && (count < 5 || checkop_seconds() - begin < 0.4))
        timing[count++] = time_once(c, t, args);
    qsort(timing, (size_t)count, sizeof *timing, by_value);
    double least = timing[0], median = timing[count / 2], high = timing[count * 9 / 10];
    printf("%-18s %-34s %-14s %9.1f us, median %9.1f, 90%% %9.1f; %6.2f GB/s, %4.0f%% of memcpy", checkop_entry(c->op)->name,
           c->case_name, t->name, 1e6 * least, 1e6 * median, 1e6 * high, 1e-9 * bytes / least,
           100.0 * bytes / least / t->copy_bytes_per_second);
    if (flops > 0)
        printf("; %7.1f GFLOP/s", 1e-9 * flops / least);
    printf("\n");
}

void checkop_bench(struct checkop *c, enum checkop_op op, void *args, double bytes, double flops)
{
    if (op != c->op || !c->bench)
        checkop_abort(c, "a benchmark of %s out of place", checkop_entry(op)->name);
    c->runs[op]++;
    for (int k = 0; k < c->targets; k++) {
        struct checkop_target *t = &c->target[k];
        struct placed placed[CHECKOP_BUFFERS_MAX + 1] = {{{0}, 0, NULL, NULL, false}};
        if (!checkop_takes_part(t, op))
            continue;
        measure_copy_rate(c, t);
        for (int i = 0; i < c->buffers; i++)
            if (c->buffer[i].in_use)
                place(c, t, c->buffer[i].bytes, c->buffer[i].image, &placed[i]);
        bind_to(c, t, placed, args);
        for (int i = 0; i <= c->buffers; i++)
            if (placed[i].total)
                checkop_must(c, t, t->device->upload(t->device, t->stream[0], placed[i].base, placed[i].before, placed[i].total), "upload");
        time_on(c, t, args, bytes, flops);
        for (int i = 0; i <= c->buffers; i++)
            if (placed[i].total)
                unplace(t, &placed[i]);
    }
    c->has_run = true;
    for (int i = 0; i < c->buffers; i++)
        memcpy(c->buffer[i].result, c->buffer[i].image, c->buffer[i].bytes);
    checkop_end(c);
}
