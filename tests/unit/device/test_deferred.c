/* The CPU device's deferred mode: a forgotten event shows, the host cannot touch device memory, and work that is joined rightly gives
 * the immediate mode's bytes under every seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device/device.h"

enum { TOKENS = 4, WIDTH = 64, COUNT = TOKENS * WIDTH, BYTES = COUNT * 4, SEEDS = 40 };

static struct nb_device *device_of(bool deferred, uint64_t seed)
{
    struct nb_device *device = NULL;
    struct nb_cpu_options options = {.threads = 2, .deferred = deferred, .deferred_seed = seed};
    assert_int_equal(nb_cpu_device_create(&options, &device), NB_OK);
    return device;
}

static nb_dptr take(struct nb_device *d, uint64_t bytes)
{
    nb_dptr memory = {0};
    assert_int_equal(d->memory_take(d, bytes, &memory), NB_OK);
    assert_int_equal(memory.address % 256, 0);
    return memory;
}

static struct nb_stream *stream_of(struct nb_device *d)
{
    struct nb_stream *stream = NULL;
    assert_int_equal(d->stream_create(d, &stream), NB_OK);
    return stream;
}

static struct nb_event *event_of(struct nb_device *d)
{
    struct nb_event *event = NULL;
    assert_int_equal(d->event_create(d, &event), NB_OK);
    return event;
}

/* y = x + x, three streams: upload, op, download. `joined`: with the events between them. Returns whether y came out right. */
static bool doubles(struct nb_device *d, bool joined)
{
    float from[COUNT], to[COUNT];
    for (int i = 0; i < COUNT; i++)
        from[i] = (float)(i + 1);
    memset(to, 0, sizeof to);
    nb_dptr x = take(d, BYTES), y = take(d, BYTES), slot = take(d, sizeof(struct nb_slot));
    struct nb_stream *up = stream_of(d), *work = stream_of(d), *down = stream_of(d);
    struct nb_event *uploaded = event_of(d), *worked = event_of(d);
    struct nb_slot values = {.tokens = TOKENS};
    assert_int_equal(d->upload(d, up, slot, &values, sizeof values), NB_OK);
    assert_int_equal(d->upload(d, up, x, from, BYTES), NB_OK);
    if (joined) {
        assert_int_equal(d->event_record(d, up, uploaded), NB_OK);
        assert_int_equal(d->stream_wait_event(d, work, uploaded), NB_OK);
    }
    struct nb_add args = {.a = x, .b = x, .y = y, .slot = slot, .tokens_max = TOKENS, .width = WIDTH, .activation = NB_DTYPE_F32};
    assert_int_equal(d->add(d, work, &args), NB_OK);
    memset(&args, 0xff, sizeof args); /* the args were copied */
    if (joined) {
        assert_int_equal(d->event_record(d, work, worked), NB_OK);
        assert_int_equal(d->stream_wait_event(d, down, worked), NB_OK);
    }
    assert_int_equal(d->download(d, down, to, y, BYTES), NB_OK);
    assert_int_equal(d->stream_wait(d, down), NB_OK);
    bool right = true;
    for (int i = 0; i < COUNT; i++)
        right = right && to[i] == 2 * from[i];
    d->event_destroy(d, &uploaded);
    d->event_destroy(d, &worked);
    d->stream_destroy(d, &up);
    d->stream_destroy(d, &work);
    d->stream_destroy(d, &down);
    d->memory_give_back(d, x);
    d->memory_give_back(d, y);
    d->memory_give_back(d, slot);
    return right;
}

static void joined_work_is_right_under_every_seed(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct nb_device *d = device_of(true, seed);
        assert_true(doubles(d, true));
        nb_device_destroy(&d);
        assert_null(d);
    }
    struct nb_device *d = device_of(false, 0);
    assert_true(doubles(d, true));
    nb_device_destroy(&d);
}

static void forgotten_events_show(void **state)
{
    (void)state;
    struct nb_device *d = device_of(false, 0);
    assert_true(doubles(d, false)); /* immediate mode hides the fault */
    nb_device_destroy(&d);
    int wrong = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        d = device_of(true, seed);
        wrong += !doubles(d, false);
        nb_device_destroy(&d);
    }
    assert_true(wrong >= SEEDS / 2); /* one order in six is right by chance */
}

/* Nothing has run before somebody waits. */
static void work_is_late(void **state)
{
    (void)state;
    struct nb_device *d = device_of(true, 1);
    struct nb_stream *stream = stream_of(d);
    nb_dptr x = take(d, 256);
    unsigned char from[256], to[256];
    memset(from, 1, sizeof from);
    memset(to, 7, sizeof to);
    assert_int_equal(d->upload(d, stream, x, from, sizeof from), NB_OK);
    assert_int_equal(d->download(d, stream, to, x, sizeof to), NB_OK);
    assert_int_equal(to[0], 7);
    memset(from, 2, sizeof from); /* a host that reuses its buffer too early sees its mistake */
    assert_int_equal(d->stream_wait(d, stream), NB_OK);
    assert_int_equal(to[0], 2);
    assert_int_equal(to[255], 2);
    d->stream_destroy(d, &stream);
    d->memory_give_back(d, x);
    nb_device_destroy(&d);
}

/* A stream runs in order, and a later record of an event does not let an earlier waiter pass too soon. */
static void a_stream_keeps_its_order(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct nb_device *d = device_of(true, seed);
        struct nb_stream *one = stream_of(d), *two = stream_of(d);
        struct nb_event *event = event_of(d);
        nb_dptr x = take(d, 4), y = take(d, 4);
        uint32_t first = 1, second = 2, after = 0;
        assert_int_equal(d->upload(d, one, x, &first, 4), NB_OK);
        assert_int_equal(d->event_record(d, one, event), NB_OK);
        assert_int_equal(d->upload(d, one, x, &second, 4), NB_OK);
        assert_int_equal(d->event_record(d, one, event), NB_OK);
        assert_int_equal(d->stream_wait_event(d, two, event), NB_OK);
        assert_int_equal(d->copy(d, two, y, x, 4), NB_OK);
        d->event_destroy(d, &event); /* what is queued keeps it */
        assert_int_equal(d->download(d, two, &after, y, 4), NB_OK);
        assert_int_equal(d->stream_wait(d, two), NB_OK);
        assert_int_equal(after, 2);
        d->stream_destroy(d, &one);
        d->stream_destroy(d, &two);
        d->memory_give_back(d, x);
        d->memory_give_back(d, y);
        nb_device_destroy(&d);
    }
}

/* The signal that ended a child which did `touch` to device memory; 0 if it survived. */
static int signal_of(void (*touch)(volatile unsigned char *memory))
{
    struct nb_device *d = device_of(true, 3);
    nb_dptr x = take(d, 1000);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGSEGV, SIG_DFL); /* cmocka and sanitizers have their own */
        signal(SIGBUS, SIG_DFL);
        touch((volatile unsigned char *)(uintptr_t)x.address);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    d->memory_give_back(d, x);
    nb_device_destroy(&d);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void read_first(volatile unsigned char *memory)
{
    (void)*memory;
}

static void write_last(volatile unsigned char *memory)
{
    memory[999] = 1;
}

static void write_to_nothing_of_ours(volatile unsigned char *memory)
{
    unsigned char mine = 0;
    (void)memory;
    *(volatile unsigned char *)&mine = 1;
}

static void the_host_cannot_touch_device_memory(void **state)
{
    (void)state;
    assert_int_equal(signal_of(read_first), SIGSEGV);
    assert_int_equal(signal_of(write_last), SIGSEGV);
    assert_int_equal(signal_of(write_to_nothing_of_ours), 0);
}

/* What an op finds wrong at work comes out at its own stream's wait, once, with its message. */
static void errors_surface_at_the_wait(void **state)
{
    (void)state;
    for (int deferred = 0; deferred < 2; deferred++) {
        struct nb_device *d = device_of(deferred, 5);
        struct nb_stream *stream = stream_of(d), *other = stream_of(d);
        nb_dptr w = take(d, 128), data = take(d, 32), absmax = take(d, 4), codebook = take(d, 64);
        uint16_t weights[64] = {0};
        weights[17] = 0x7fc0; /* NaN */
        struct nb_quantize args = {.w = w, .to = {.format = NB_WEIGHT_NF4, .rows = 8, .columns = 8, .data = data, .absmax = absmax,
                                                  .codebook = codebook}};
        assert_int_equal(d->upload(d, stream, w, weights, sizeof weights), NB_OK);
        assert_int_equal(d->quantize(d, stream, &args), NB_OK);
        assert_int_equal(d->stream_wait(d, other), NB_OK);
        assert_int_equal(d->stream_wait(d, stream), NB_FORMAT);
        assert_true(strlen(nb_status_message()) > 0);
        assert_int_equal(d->stream_wait(d, stream), NB_OK);
        d->stream_destroy(d, &stream);
        d->stream_destroy(d, &other);
        nb_dptr all[] = {w, data, absmax, codebook};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            d->memory_give_back(d, all[i]);
        nb_device_destroy(&d);
    }
}

static void waiting_for_nothing_is_refused(void **state)
{
    (void)state;
    struct nb_device *d = device_of(true, 5);
    struct nb_stream *stream = stream_of(d);
    struct nb_event *event = event_of(d);
    assert_int_equal(d->stream_wait_event(d, stream, event), NB_UNSUPPORTED);
    d->event_destroy(d, &event);
    d->stream_destroy(d, &stream);
    nb_device_destroy(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(joined_work_is_right_under_every_seed),
        cmocka_unit_test(forgotten_events_show),
        cmocka_unit_test(work_is_late),
        cmocka_unit_test(a_stream_keeps_its_order),
        cmocka_unit_test(the_host_cannot_touch_device_memory),
        cmocka_unit_test(errors_surface_at_the_wait),
        cmocka_unit_test(waiting_for_nothing_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
