/* The dry device: it counts what a run would take and do, checks the args, and needs no memory for it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"

static struct nb_device *dry_of(int threads)
{
    struct nb_device_profile profile;
    struct nb_device *device = NULL;
    nb_cpu_profile(&(struct nb_cpu_options){.threads = threads}, &profile);
    assert_int_equal(nb_dry_device_create(&profile, &device), NB_OK);
    return device;
}

static void memory_is_counted_not_had(void **state)
{
    (void)state;
    struct nb_device *d = dry_of(2);
    const struct nb_dry_counts *counts = nb_dry_device_counts(d);
    const uint64_t petabyte = (uint64_t)1 << 50;
    nb_dptr a = {0}, b = {0};
    assert_int_equal(d->memory_take(d, petabyte, &a), NB_OK);
    assert_int_equal(d->memory_take(d, 100, &b), NB_OK);
    assert_false(nb_dptr_is_null(a));
    assert_int_equal(a.address % 256, 0);
    assert_int_equal(b.address % 256, 0);
    assert_true(b.address >= a.address + petabyte || b.address + 100 <= a.address);
    assert_int_equal(counts->memory_bytes, petabyte + 100);
    d->memory_give_back(d, a);
    assert_int_equal(counts->memory_bytes, 100);
    d->memory_give_back(d, b);
    assert_int_equal(counts->memory_bytes, 0);
    nb_device_destroy(&d);
}

static void host_memory_is_counted_and_usable(void **state)
{
    (void)state;
    struct nb_device *d = dry_of(2);
    const struct nb_dry_counts *counts = nb_dry_device_counts(d);
    void *memory = NULL;
    assert_int_equal(d->host_take(d, 12345, &memory), NB_OK);
    assert_int_equal(counts->host_bytes, 12345);
    memset(memory, 1, 12345);
    d->host_give_back(d, memory);
    assert_int_equal(counts->host_bytes, 0);
    assert_int_equal(counts->host_bytes_max, 12345);
    nb_device_destroy(&d);
}

/* An op with good args counts; one with bad args is refused as on the device itself. */
static void ops_are_checked_and_counted(void **state)
{
    (void)state;
    struct nb_device *d = dry_of(2);
    const struct nb_dry_counts *counts = nb_dry_device_counts(d);
    struct nb_stream *stream = NULL;
    nb_dptr x = {0}, slot = {0};
    assert_int_equal(d->stream_create(d, &stream), NB_OK);
    assert_int_equal(d->memory_take(d, 4096, &x), NB_OK);
    assert_int_equal(d->memory_take(d, sizeof(struct nb_slot), &slot), NB_OK);
    struct nb_add args = {.a = x, .b = x, .y = x, .slot = slot, .tokens_max = 16, .width = 64};
    assert_int_equal(d->add(d, stream, &args), NB_OK);
    assert_int_equal(d->add(d, stream, &args), NB_OK);
    assert_int_equal(counts->ops, 2);
    args.width = 63;
    assert_int_equal(d->add(d, stream, &args), NB_UNSUPPORTED);
    assert_non_null(strstr(nb_status_message(), "add: width 63"));
    assert_int_equal(d->stream_wait(d, stream), NB_OK);
    d->stream_destroy(d, &stream);
    nb_device_destroy(&d);
}

/* 2 for each multiplication and addition of x W^T, and of the adapter's two products. */
static void a_linear_op_counts_its_operations(void **state)
{
    (void)state;
    enum { TOKENS = 32, IN = 64, OUT = 128, RANK = 8 };
    struct nb_device *d = dry_of(2);
    const struct nb_dry_counts *counts = nb_dry_device_counts(d);
    struct nb_stream *stream = NULL;
    nb_dptr memory[8];
    assert_int_equal(d->stream_create(d, &stream), NB_OK);
    for (int i = 0; i < 8; i++)
        assert_int_equal(d->memory_take(d, (uint64_t)1 << 20, &memory[i]), NB_OK);
    struct nb_linear args = {.x = memory[0], .step = memory[1], .slot = memory[2], .tokens_max = TOKENS, .in = IN, .x_stride = IN,
                             .parts = 1};
    args.part[0] = (struct nb_linear_part){.weight = {.rows = OUT, .columns = IN, .data = memory[3]}, .out = OUT, .y = memory[4],
                                           .y_stride = OUT, .output_scale = 1};
    args.scratch = (struct nb_scratch){memory[7], d->linear_scratch_bytes(&d->profile, &args)};
    assert_int_equal(d->linear(d, stream, &args), NB_OK);
    assert_true(counts->flops == 2.0 * TOKENS * IN * OUT);
    args.part[0].lora = (struct nb_lora){.a = memory[5], .b = memory[6], .t = memory[1], .rank = RANK, .scale = 2};
    args.scratch.bytes = d->linear_scratch_bytes(&d->profile, &args);
    assert_int_equal(d->linear(d, stream, &args), NB_OK);
    assert_true(counts->flops == 2.0 * (2.0 * TOKENS * IN * OUT + TOKENS * RANK * (IN + OUT)));
    d->stream_destroy(d, &stream);
    nb_device_destroy(&d);
}

static void copies_are_counted_and_touch_nothing(void **state)
{
    (void)state;
    struct nb_device *d = dry_of(2);
    const struct nb_dry_counts *counts = nb_dry_device_counts(d);
    struct nb_stream *stream = NULL;
    nb_dptr x = {0};
    unsigned char host[64];
    memset(host, 5, sizeof host);
    assert_int_equal(d->stream_create(d, &stream), NB_OK);
    assert_int_equal(d->memory_take(d, 64, &x), NB_OK);
    assert_int_equal(d->upload(d, stream, x, host, 64), NB_OK);
    assert_int_equal(d->download(d, stream, host, x, 40), NB_OK);
    assert_int_equal(d->fill_zero(d, stream, x, 64), NB_OK);
    assert_int_equal(d->stream_wait(d, stream), NB_OK);
    assert_true(counts->uploaded_bytes == 64 && counts->downloaded_bytes == 40);
    assert_int_equal(host[0], 5);
    d->stream_destroy(d, &stream);
    nb_device_destroy(&d);
}

/* ---- time: a target of 1 TFLOP/s, 1 GB/s of memory and 0.5 GB/s each way over the link ---- */

static struct nb_device *timed(struct nb_stream *stream[2])
{
    struct nb_device_profile profile = {.name = "card", .kind = NB_DEVICE_CUDA, .memory_bytes = 1 << 30, .compute_capability = 90,
        .multiprocessors = 1, .bf16 = true, .bf16_tflops = 1, .memory_gb_per_s = 1, .link_gb_per_s = 0.5f};
    struct nb_device *d = NULL;
    assert_int_equal(nb_dry_device_create(&profile, &d), NB_OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(d->stream_create(d, &stream[i]), NB_OK);
    return d;
}

static void end_timed(struct nb_device *d, struct nb_stream *stream[2])
{
    for (int i = 0; i < 2; i++)
        d->stream_destroy(d, &stream[i]);
    nb_device_destroy(&d);
}

static void assert_seconds(const struct nb_device *d, double wanted)
{
    double seconds = nb_dry_device_counts(d)->seconds;
    if (fabs(seconds - wanted) > 1e-9 * wanted)
        fail_msg("%.12g seconds, not %.12g", seconds, wanted);
}

/* Each 10^9 bytes: a second of the device's memory, two of the link. */
static const uint64_t gigabyte = 1000000000;

static void streams_and_engines_overlap(void **state)
{
    (void)state;
    struct nb_stream *stream[2];
    struct nb_device *d = timed(stream);
    const struct nb_dry_counts *counts = nb_dry_device_counts(d);
    nb_dptr at = {1 << 20};
    char host = 0;
    /* Both directions of the link and the memory at once: the longest is what is waited for. */
    assert_int_equal(d->fill_zero(d, stream[0], at, gigabyte), NB_OK);
    assert_int_equal(d->upload(d, stream[1], at, &host, gigabyte), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[0]), NB_OK);
    assert_seconds(d, 1);
    assert_int_equal(d->stream_wait(d, stream[1]), NB_OK);
    assert_seconds(d, 2);
    assert_int_equal(d->download(d, stream[0], &host, at, gigabyte), NB_OK);
    assert_int_equal(d->upload(d, stream[1], at, &host, gigabyte), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[0]), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[1]), NB_OK);
    assert_seconds(d, 4);
    /* One direction does one thing at a time, whatever the streams. */
    assert_int_equal(d->upload(d, stream[0], at, &host, gigabyte), NB_OK);
    assert_int_equal(d->upload(d, stream[1], at, &host, gigabyte), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[1]), NB_OK);
    assert_seconds(d, 8);
    assert_true(counts->busy[NB_DRY_COMPUTE] == 1 && counts->busy[NB_DRY_UPLOAD] == 8 && counts->busy[NB_DRY_DOWNLOAD] == 2);
    assert_true(counts->uploaded_bytes == 4 * gigabyte && counts->downloaded_bytes == gigabyte);
    end_timed(d, stream);
}

static void events_are_waited_for(void **state)
{
    (void)state;
    struct nb_stream *stream[2];
    struct nb_device *d = timed(stream);
    struct nb_event *arrived = NULL;
    nb_dptr at = {1 << 20};
    char host = 0;
    assert_int_equal(d->event_create(d, &arrived), NB_OK);
    assert_int_equal(d->stream_wait_event(d, stream[0], arrived), NB_UNSUPPORTED);
    assert_int_equal(d->upload(d, stream[1], at, &host, gigabyte), NB_OK);
    assert_int_equal(d->event_record(d, stream[1], arrived), NB_OK);
    assert_int_equal(d->upload(d, stream[1], at, &host, gigabyte), NB_OK); /* after the event: not waited for */
    assert_int_equal(d->fill_zero(d, stream[0], at, gigabyte / 2), NB_OK);
    assert_int_equal(d->stream_wait_event(d, stream[0], arrived), NB_OK);
    d->repeat(d, 3);
    assert_int_equal(d->fill_zero(d, stream[0], at, gigabyte), NB_OK);
    d->repeat(d, 1);
    assert_int_equal(d->stream_wait(d, stream[0]), NB_OK);
    assert_seconds(d, 5);
    /* What is enqueued after a wait of the host begins after it. */
    assert_int_equal(d->stream_wait(d, stream[1]), NB_OK);
    assert_seconds(d, 5);
    assert_int_equal(d->upload(d, stream[1], at, &host, gigabyte), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[1]), NB_OK);
    assert_seconds(d, 7);
    d->event_destroy(d, &arrived);
    end_timed(d, stream);
}

/* The longer of arithmetic and traffic. */
static void ops_take_what_their_roofline_says(void **state)
{
    (void)state;
    enum { TOKENS = 1024, IN = 4096, OUT = 8192 };
    struct nb_stream *stream[2];
    struct nb_device *d = timed(stream);
    nb_dptr at = {1 << 20}, other = {1 << 21};
    struct nb_add add = {.a = at, .b = at, .y = at, .slot = at, .tokens_max = TOKENS, .width = IN, .activation = NB_DTYPE_BF16};
    assert_int_equal(d->add(d, stream[0], &add), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[0]), NB_OK);
    double seconds = 3.0 * TOKENS * IN * 2 / 1e9;
    assert_seconds(d, seconds);
    struct nb_linear args = {.x = at, .step = at, .slot = at, .tokens_max = TOKENS, .in = IN, .x_stride = IN, .parts = 1,
        .activation = NB_DTYPE_BF16};
    args.part[0] = (struct nb_linear_part){.weight = {.rows = OUT, .columns = IN, .data = at}, .out = OUT, .y = other,
                                           .y_stride = OUT, .output_scale = 1};
    double bytes = 2.0 * (TOKENS * IN + TOKENS * OUT + (double)IN * OUT), flops = 2.0 * TOKENS * IN * OUT;
    assert_int_equal(d->linear(d, stream[0], &args), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[0]), NB_OK);
    assert_true(bytes / 1e9 > flops / 1e12);
    seconds += bytes / 1e9;
    assert_seconds(d, seconds);
    d->profile.memory_gb_per_s = 1000;
    assert_int_equal(d->linear(d, stream[0], &args), NB_OK);
    assert_int_equal(d->stream_wait(d, stream[0]), NB_OK);
    assert_seconds(d, seconds + flops / 1e12);
    end_timed(d, stream);
}

/* Planning for a machine asks for what the machine itself would. */
static void scratch_is_the_target_s(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads += 4) {
        struct nb_device *dry = dry_of(threads), *cpu = NULL;
        assert_int_equal(nb_cpu_device_create(&(struct nb_cpu_options){.threads = threads}, &cpu), NB_OK);
        struct nb_sample sample = {.vocabulary = 1000, .top_p = 0.5f, .temperature = 1};
        struct nb_attention attention = {.tokens_max = 300, .key_tokens_max = 300, .sequences_max = 3, .longest_max = 200, .heads = 6,
                                         .kv_heads = 2, .head_dim = 64};
        struct nb_quantize quantize = {.to = {.format = NB_WEIGHT_FP4, .nested = true, .rows = 100, .columns = 100}};
        assert_int_equal(dry->sample_scratch_bytes(&dry->profile, &sample), cpu->sample_scratch_bytes(&cpu->profile, &sample));
        assert_int_equal(dry->attention_scratch_bytes(&dry->profile, &attention),
                         cpu->attention_scratch_bytes(&cpu->profile, &attention));
        assert_int_equal(dry->quantize_scratch_bytes(&dry->profile, &quantize), cpu->quantize_scratch_bytes(&cpu->profile, &quantize));
        assert_true(dry->quantize_scratch_bytes(&dry->profile, &quantize) >= 157 * sizeof(float)); /* ceil(10000 / 64) scales */
        nb_device_destroy(&dry);
        nb_device_destroy(&cpu);
    }
}

static void a_device_without_an_op_is_named(void **state)
{
    (void)state;
    struct nb_device *d = dry_of(1);
    assert_int_equal(nb_device_require_all(d), NB_OK);
    d->rope_backward = NULL;
    assert_int_equal(nb_device_require_all(d), NB_UNSUPPORTED);
    assert_non_null(strstr(nb_status_message(), "rope_backward"));
    nb_device_destroy(&d);
    nb_device_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_counted_not_had),
        cmocka_unit_test(host_memory_is_counted_and_usable),
        cmocka_unit_test(ops_are_checked_and_counted),
        cmocka_unit_test(a_linear_op_counts_its_operations),
        cmocka_unit_test(copies_are_counted_and_touch_nothing),
        cmocka_unit_test(streams_and_engines_overlap),
        cmocka_unit_test(events_are_waited_for),
        cmocka_unit_test(ops_take_what_their_roofline_says),
        cmocka_unit_test(scratch_is_the_target_s),
        cmocka_unit_test(a_device_without_an_op_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
