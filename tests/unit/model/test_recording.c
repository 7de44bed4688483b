/* When a pass's work is recorded, when it is launched as one, and when it is enqueued piece by piece, by a device that counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "model/pass.h"

enum { TOKENS = 256 };

struct counting {
    struct nb_device base; /* first: a struct nb_device * is cast to this */
    int begun, ended, launched, destroyed;
    nb_status of_end;
};

struct nb_graph {
    char unused;
};

static nb_status graph_begin(struct nb_device *device, struct nb_stream *stream)
{
    (void)stream;
    ((struct counting *)device)->begun++;
    return NB_OK;
}

static nb_status graph_end(struct nb_device *device, struct nb_stream *stream, struct nb_graph **graph)
{
    static struct nb_graph recorded;
    struct counting *c = (struct counting *)device;
    (void)stream;
    c->ended++;
    *graph = c->of_end == NB_OK ? &recorded : NULL;
    return c->of_end == NB_OK ? NB_OK : nb_fail(c->of_end, "recording did not end well");
}

static nb_status graph_launch(struct nb_device *device, struct nb_stream *stream, struct nb_graph *graph)
{
    (void)stream;
    assert_non_null(graph);
    ((struct counting *)device)->launched++;
    return NB_OK;
}

static void graph_destroy(struct nb_device *device, struct nb_graph **graph)
{
    ((struct counting *)device)->destroyed++;
    *graph = NULL;
}

/* A pass of one slot, of which nb_pass_repeat reads no more than this. */
struct fixture {
    struct nb_device *dry;
    struct nb_checkpoint *checkpoint;
    struct nb_model model;
    struct nb_pass_slot slot;
    struct nb_pass pass;
    struct counting device;
    int enqueued;
    nb_status of_enqueue;
};

static void begin(struct fixture *f)
{
    struct nb_cpu_options cpu = {.threads = 1};
    struct nb_device_profile profile;
    struct nb_model_options options = {.linear_format = NB_WEIGHT_BF16, .activation = NB_DTYPE_F32};
    *f = (struct fixture){.slot.tokens_max = TOKENS, .of_enqueue = NB_OK, .device.of_end = NB_OK};
    nb_cpu_profile(&cpu, &profile);
    assert_int_equal(nb_dry_device_create(&profile, &f->dry), NB_OK);
    assert_int_equal(nb_checkpoint_open("tests/golden/models/llama", &f->checkpoint), NB_OK);
    assert_int_equal(
        nb_weight_store_create(f->dry, nb_checkpoint_config(f->checkpoint), &options, &f->model.store), NB_OK);
    nb_weight_store_settle(f->model.store);
    f->device.base = (struct nb_device){
        .graph_begin = graph_begin, .graph_end = graph_end, .graph_launch = graph_launch, .graph_destroy = graph_destroy};
    f->pass = (struct nb_pass){.model = &f->model, .work.device = &f->device.base, .slot = &f->slot};
}

static void end(struct fixture *f)
{
    nb_weight_store_destroy(&f->model.store);
    nb_checkpoint_close(&f->checkpoint);
    nb_device_destroy(&f->dry);
}

static nb_status enqueue(void *context)
{
    struct fixture *f = context;
    f->enqueued++;
    return f->of_enqueue == NB_OK ? NB_OK : nb_fail(f->of_enqueue, "the work itself failed");
}

static nb_status repeat(struct fixture *f)
{
    return nb_pass_repeat(&f->pass, 0, enqueue, f);
}

static void test_second_time_records(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f);
    assert_int_equal(repeat(&f), NB_OK);
    assert_true(f.enqueued == 1 && f.device.begun == 0 && f.device.launched == 0);
    assert_int_equal(repeat(&f), NB_OK);
    assert_true(f.enqueued == 2 && f.device.begun == 1 && f.device.ended == 1 && f.device.launched == 1);
    assert_int_equal(repeat(&f), NB_OK);
    assert_true(f.enqueued == 2 && f.device.begun == 1 && f.device.launched == 2);
    end(&f);
}

/* The driver may lack memory for a graph, which is no reason to end a run. */
static void test_without_memory_goes_on(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f);
    f.device.of_end = NB_MEMORY;
    for (int i = 1; i <= 4; i++)
        assert_int_equal(repeat(&f), NB_OK);
    /* Once before the recording, once for it, and then each time. */
    assert_int_equal(f.enqueued, 5);
    assert_true(f.device.begun == 1 && f.device.ended == 1 && f.device.launched == 0);
    end(&f);
}

static void test_tells_the_first_error(void **state)
{
    struct fixture f;
    (void)state;
    begin(&f);
    assert_int_equal(repeat(&f), NB_OK);
    f.of_enqueue = NB_UNSUPPORTED;
    f.device.of_end = NB_IO;
    assert_int_equal(repeat(&f), NB_UNSUPPORTED);
    assert_string_equal(nb_status_message(), "the work itself failed");
    assert_int_equal(f.device.ended, 1); /* recording does not go on */
    f.of_enqueue = NB_OK;
    assert_int_equal(repeat(&f), NB_IO);
    assert_string_equal(nb_status_message(), "recording did not end well");
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_second_time_records),
        cmocka_unit_test(test_without_memory_goes_on),
        cmocka_unit_test(test_tells_the_first_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
