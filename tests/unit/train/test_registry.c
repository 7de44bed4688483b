/* The registry: which linears are adapted, in which order and where the tensors lie, and what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/random.h"
#include "bench.h"

static struct nb_adapter *make(
    const char *model, const struct nb_adapter_options *options, nb_status want, const char *words)
{
    struct nb_checkpoint *checkpoint = NULL;
    struct nb_adapter *adapter = NULL;
    bench_ok(nb_checkpoint_open(model, &checkpoint));
    nb_status status = nb_adapter_create(nb_checkpoint_config(checkpoint), options, &adapter);
    if (want == NB_OK)
        bench_ok(status);
    else
        bench_fails(status, want, words);
    nb_checkpoint_close(&checkpoint);
    return adapter;
}

static void tensors_lie_in_order_without_overlap(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    options.rank = 3; /* counts that are no multiples of the tile */
    struct nb_adapter *adapter = make("tests/golden/models/llama", &options, NB_OK, NULL);
    uint64_t end = 0, parameters = 0;
    int layer = 0;
    assert_int_equal(nb_adapter_trainable_count(adapter), 2 * 7 * 2);
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(adapter, i);
        assert_int_equal(t->offset % NB_TILE_ELEMENTS, 0);
        assert_true(t->offset >= end && t->offset - end < NB_TILE_ELEMENTS);
        assert_true(t->layer >= layer);
        assert_int_equal(t->is_b, i % 2);
        assert_int_equal(t->count, (uint64_t)t->rows * (uint64_t)t->columns);
        assert_int_equal(t->is_b ? t->columns : t->rows, 3);
        layer = t->layer;
        end = t->offset + t->count;
        parameters += t->count;
    }
    assert_int_equal(parameters, nb_adapter_parameters(adapter));
    assert_true(nb_adapter_elements(adapter) >= end && nb_adapter_elements(adapter) % NB_TILE_ELEMENTS == 0);
    assert_string_equal(
        nb_adapter_trainable(adapter, 0)->name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_string_equal(
        nb_adapter_trainable(adapter, 27)->name, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    nb_adapter_destroy(&adapter);
}

static void targets_match_whole_parts_of_a_path(void **state)
{
    (void)state;
    const char *const paths[] = {"model.layers.1.self_attn.v_proj", "mlp.up_proj"};
    struct nb_adapter_options options = bench_options();
    options.target_linear = false;
    options.target_modules = paths;
    options.target_module_count = 2;
    struct nb_adapter *adapter = make("tests/golden/models/llama", &options, NB_OK, NULL);
    assert_int_equal(nb_adapter_trainable_count(adapter), 2 + 2 * 2);
    assert_int_equal(nb_adapter_rank(adapter, 0, NB_TENSOR_V), 0);
    assert_int_equal(nb_adapter_rank(adapter, 1, NB_TENSOR_V), 4);
    assert_int_equal(nb_adapter_rank(adapter, 0, NB_TENSOR_UP), 4);
    assert_int_equal(nb_adapter_rank(NULL, 0, NB_TENSOR_UP), 0);
    struct nb_lora lora = {.rank = 99};
    nb_adapter_bind_lora(adapter, 0, NB_TENSOR_V, &lora);
    assert_true(nb_dptr_is_null(lora.a) && lora.rank == 0);
    nb_adapter_destroy(&adapter);
    const char *const half[] = {"proj"};
    options.target_modules = half;
    options.target_module_count = 1;
    make("tests/golden/models/llama", &options, NB_USAGE,
        "proj: this llama model has no such linear; it has q_proj, k_proj");
}

static void the_head_is_a_target_where_it_is_a_matrix_of_its_own(void **state)
{
    (void)state;
    const char *const head[] = {"lm_head"};
    struct nb_adapter_options options = bench_options();
    options.target_linear = false;
    options.target_modules = head;
    options.target_module_count = 1;
    struct nb_adapter *adapter = make("tests/golden/models/llama", &options, NB_OK, NULL);
    assert_int_equal(nb_adapter_rank(adapter, 2, NB_TENSOR_HEAD), 4);
    assert_string_equal(nb_adapter_trainable(adapter, 0)->name, "base_model.model.lm_head.lora_A.weight");
    nb_adapter_destroy(&adapter);
    make("tests/golden/models/llama_tied", &options, NB_USAGE, "its head is the embedding");
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    options.rank = 0;
    make("tests/golden/models/llama", &options, NB_USAGE, "lora_r: 0");
    options = bench_options();
    options.dropout = 1;
    make("tests/golden/models/llama", &options, NB_USAGE, "lora_dropout");
    options = bench_options();
    options.target_linear = false;
    make("tests/golden/models/llama", &options, NB_USAGE, "no module is named");
}

/* 8-bit moments from 4,096 elements up, as bitsandbytes; offsets of codes and scales do not overlap. */
static void moments_have_a_place_each(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    options.rank = 64; /* q A is 64 x 64 = 4096; v B is 32 x 64 */
    options.moments_8bit = true;
    struct bench bench;
    bench_open(&bench, &options);
    int eight = 0;
    uint64_t end = nb_adapter_memory_of(bench.session.adapter)->m.address, scales_end = 0;
    for (int i = 0; i < nb_adapter_trainable_count(bench.session.adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(bench.session.adapter, i);
        struct nb_adamw args = {0};
        nb_adapter_bind_adamw(bench.session.adapter, i, &args);
        assert_int_equal(t->moments_8bit, t->count >= 4096);
        assert_int_equal(args.moments_8bit, t->moments_8bit);
        assert_true(args.m.address >= end && args.m.address % 16 == 0);
        end = args.m.address + t->count * (t->moments_8bit ? 1 : 4);
        assert_int_equal(nb_dptr_is_null(args.m_absmax), !t->moments_8bit);
        if (t->moments_8bit) {
            eight++;
            assert_true(args.m_absmax.address >= scales_end && args.m_absmax.address % 16 == 0);
            scales_end = args.m_absmax.address + (t->count + 255) / 256 * 4;
        }
    }
    assert_true(eight > 0 && eight < nb_adapter_trainable_count(bench.session.adapter));
    float *map = bench_download(&bench, nb_adapter_memory_of(bench.session.adapter)->m_map, 1024);
    assert_true(map[127] == 0 && map[255] == 1);
    free(map);
    bench_close(&bench);
}

static void a_is_uniform_and_b_is_zero(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    options.rank = 32;
    struct bench bench;
    bench_open(&bench, &options);
    struct nb_adapter *adapter = bench.session.adapter;
    float *master = bench_download(&bench, nb_adapter_memory_of(adapter)->master, nb_adapter_elements(adapter) * 4);
    float *copy = bench_download(&bench, nb_adapter_memory_of(adapter)->copy, nb_adapter_elements(adapter) * 4);
    assert_memory_equal(master, copy, nb_adapter_elements(adapter) * 4);
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(adapter, i);
        double bound = 1 / sqrt(t->columns), mean = 0, square = 0;
        for (uint64_t k = t->offset; k < t->offset + t->count; k++) {
            if (t->is_b)
                assert_true(master[k] == 0);
            assert_true(fabs((double)master[k]) <= bound * (1 + 1e-6));
            mean += (double)master[k] / (double)t->count;
            square += (double)master[k] * (double)master[k] / (double)t->count;
        }
        if (!t->is_b) { /* variance of a uniform: bound^2 / 3; 2,048 and more draws, 6 standard deviations */
            assert_true(fabs(mean) < 6 * bound / sqrt(3.0 * (double)t->count));
            assert_true(fabs(square / (bound * bound / 3) - 1) < 6 * sqrt(0.8 / (double)t->count));
        }
    }
    /* A function of (seed, tensor's name, element) alone. */
    const struct nb_trainable *t = nb_adapter_trainable(adapter, 2);
    float want = (2 * nb_random_uniform(7, NB_RANDOM_ADAPTER_INIT, nb_name_hash(t->name), 5) - 1) *
                 (1 / sqrtf((float)t->columns));
    assert_true(master[t->offset + 5] == want);
    free(master);
    free(copy);
    bench_close(&bench);
}

static void the_scale_is_alpha_over_rank_or_its_root(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    struct nb_lora lora = {0};
    struct nb_adapter *adapter = make("tests/golden/models/llama", &options, NB_OK, NULL);
    nb_adapter_bind_lora(adapter, 0, NB_TENSOR_Q, &lora);
    assert_true(lora.scale == 2.0f);
    nb_adapter_destroy(&adapter);
    options.rank_stabilized = true;
    adapter = make("tests/golden/models/llama", &options, NB_OK, NULL);
    nb_adapter_bind_lora(adapter, 0, NB_TENSOR_Q, &lora);
    assert_true(lora.scale == 4.0f);
    assert_int_equal(lora.module, nb_name_hash("model.layers.0.self_attn.q_proj"));
    nb_adapter_destroy(&adapter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_lie_in_order_without_overlap),
        cmocka_unit_test(targets_match_whole_parts_of_a_path),
        cmocka_unit_test(the_head_is_a_target_where_it_is_a_matrix_of_its_own),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(moments_have_a_place_each),
        cmocka_unit_test(a_is_uniform_and_b_is_zero),
        cmocka_unit_test(the_scale_is_alpha_over_rank_or_its_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
