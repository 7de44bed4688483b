/* The layout of weight units, and the order in which they may be acquired. On the dry device: nothing here has contents. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "model/weight_store.h"

struct fixture {
    struct nb_device *device;
    struct nb_stream *stream;
    struct nb_checkpoint *checkpoint;
    struct nb_arena *arena;
    struct nb_weight_store *store;
};

static struct fixture open_store(const char *model, enum nb_weight_format format, bool nested)
{
    struct fixture f;
    struct nb_cpu_options cpu = {.threads = 1};
    struct nb_device_profile profile;
    struct nb_model_options options = {.linear_format = format, .nested = nested, .activation = NB_DTYPE_F32};
    nb_cpu_profile(&cpu, &profile);
    assert_int_equal(nb_dry_device_create(&profile, &f.device), NB_OK);
    assert_int_equal(f.device->stream_create(f.device, &f.stream), NB_OK);
    assert_int_equal(nb_checkpoint_open(model, &f.checkpoint), NB_OK);
    assert_int_equal(nb_arena_create("device", 1 << 20, UINT64_MAX, &f.arena), NB_OK);
    assert_int_equal(nb_weight_store_create(f.device, nb_checkpoint_config(f.checkpoint), &options, &f.store), NB_OK);
    assert_int_equal(nb_weight_store_allocate(f.store, f.arena), NB_OK);
    return f;
}

static void close_store(struct fixture *f)
{
    nb_weight_store_destroy(&f->store);
    nb_arena_destroy(&f->arena);
    nb_checkpoint_close(&f->checkpoint);
    f->device->stream_destroy(f->device, &f->stream);
    nb_device_destroy(&f->device);
}

static struct nb_unit_view acquire(struct fixture *f, int unit)
{
    struct nb_weight_access access = {unit, NB_WEIGHT_FORWARD};
    struct nb_unit_view view;
    nb_weight_store_schedule(f->store, &access, 1);
    assert_int_equal(nb_weight_store_acquire(f->store, unit, NB_WEIGHT_FORWARD, f->stream, &view), NB_OK);
    assert_int_equal(nb_weight_store_release(f->store, unit, f->stream), NB_OK);
    return view;
}

static void test_layout(void **state)
{
    (void)state;
    struct fixture f = open_store("tests/golden/models/qwen3", NB_WEIGHT_NF4, true);
    struct nb_unit_view first = acquire(&f, 1), second = acquire(&f, 2);
    const struct nb_tensor_spec *spec;
    int tensors = nb_weight_store_tensors(f.store, 1, &spec);
    uint64_t base = first.vector[NB_TENSOR_INPUT_NORM].address, apart = second.vector[NB_TENSOR_INPUT_NORM].address - base;
    assert_int_equal(nb_weight_store_units(f.store), 4);
    assert_int_equal(tensors, 11); /* seven linears, two norms, two head norms */
    for (int i = 0; i < tensors; i++) {
        const struct nb_weight *a = &first.matrix[spec[i].role], *b = &second.matrix[spec[i].role];
        if (spec[i].rows == 1) {
            assert_int_equal(first.vector[spec[i].role].address % 256, 0);
            assert_int_equal(second.vector[spec[i].role].address - first.vector[spec[i].role].address, apart);
            continue;
        }
        const uint64_t parts[][2] = {
            {a->data.address, b->data.address},
            {a->absmax.address, b->absmax.address},
            {a->nested_absmax.address, b->nested_absmax.address},
            {a->nested_map.address, b->nested_map.address},
            {a->nested_offset.address, b->nested_offset.address},
            {a->codebook.address, b->codebook.address},
        };
        assert_int_equal(a->format, NB_WEIGHT_NF4);
        assert_true(a->nested && a->rows == spec[i].rows && a->columns == spec[i].columns);
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            assert_true(parts[p][0] >= base && parts[p][0] < base + apart);
            assert_int_equal(parts[p][0] % 256, 0);
            assert_int_equal(parts[p][1] - parts[p][0], apart);
        }
    }
    close_store(&f);
}

static void test_heads(void **state)
{
    (void)state;
    struct fixture tied = open_store("tests/golden/models/llama_tied", NB_WEIGHT_BF16, false);
    struct nb_unit_view last = acquire(&tied, 3);
    assert_int_equal(nb_weight_store_head_unit(tied.store), 0);
    assert_int_equal(last.matrix[NB_TENSOR_HEAD].rows, 0);
    assert_false(nb_dptr_is_null(last.vector[NB_TENSOR_FINAL_NORM]));
    close_store(&tied);

    struct fixture own = open_store("tests/golden/models/llama", NB_WEIGHT_NF4, false);
    last = acquire(&own, 3);
    assert_int_equal(nb_weight_store_head_unit(own.store), 3);
    assert_int_equal(last.matrix[NB_TENSOR_HEAD].format, NB_WEIGHT_BF16); /* heads are never quantized */
    assert_int_equal(last.matrix[NB_TENSOR_HEAD].rows, 259);
    struct nb_unit_view block = acquire(&own, 1);
    assert_false(block.matrix[NB_TENSOR_Q].nested);
    assert_true(nb_dptr_is_null(block.matrix[NB_TENSOR_Q].nested_map));
    close_store(&own);
}

static void test_schedule(void **state)
{
    (void)state;
    const struct nb_weight_access schedule[] = {{1, NB_WEIGHT_FORWARD}, {2, NB_WEIGHT_FORWARD}, {2, NB_WEIGHT_BACKWARD}};
    struct fixture f = open_store("tests/golden/models/llama", NB_WEIGHT_NF4, true);
    struct nb_unit_view view;
    assert_int_equal(nb_weight_store_acquire(f.store, 1, NB_WEIGHT_FORWARD, f.stream, &view), NB_UNSUPPORTED); /* none announced */
    nb_weight_store_schedule(f.store, schedule, 3);
    assert_int_equal(nb_weight_store_acquire(f.store, 2, NB_WEIGHT_FORWARD, f.stream, &view), NB_UNSUPPORTED);
    assert_int_equal(nb_weight_store_acquire(f.store, 1, NB_WEIGHT_BACKWARD, f.stream, &view), NB_UNSUPPORTED);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nb_weight_store_acquire(f.store, schedule[i].unit, schedule[i].direction, f.stream, &view), NB_OK);
        assert_int_equal(nb_weight_store_release(f.store, schedule[i].unit, f.stream), NB_OK);
    }
    assert_int_equal(nb_weight_store_acquire(f.store, 1, NB_WEIGHT_FORWARD, f.stream, &view), NB_UNSUPPORTED);
    close_store(&f);
}

static void test_sizes(void **state)
{
    (void)state;
    struct fixture f = open_store("tests/golden/models/llama", NB_WEIGHT_NF4, true);
    struct nb_model_config config = *nb_checkpoint_config(f.checkpoint);
    struct nb_model_options options = {.linear_format = NB_WEIGHT_NF4};
    struct nb_weight_store *store = NULL;
    config.hidden = 60; /* rows of activations would not start at multiples of 16 bytes */
    assert_int_equal(nb_weight_store_create(f.device, &config, &options, &store), NB_UNSUPPORTED);
    config = *nb_checkpoint_config(f.checkpoint);
    config.head_dim = 264;
    assert_int_equal(nb_weight_store_create(f.device, &config, &options, &store), NB_UNSUPPORTED);
    assert_null(store);
    close_store(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests_name("weight store", tests, NULL, NULL);
}
