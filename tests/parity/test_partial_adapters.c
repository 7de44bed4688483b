/* Adapters on some of the linears: the backward pass stops where the lowest one is, and leaves no gradient out. An adapter with B = 0
 * adds nothing, so each module's dB must be the same whichever other modules have adapters. And dropout: the same masks however
 * the step is cut. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "rig.h"

enum { LENGTH = 24, ROWS = 2, RANK = 4 };

static const struct nb_batch_limits both_rows = {
    .tokens = ROWS * LENGTH, .sequences = ROWS, .longest = LENGTH, .trained_rows = ROWS * LENGTH, .loss_rows = NB_TILE_TOKENS};

/* Tokens that are nobody's: any will do. */
static struct rig_rows make_rows(void)
{
    static int32_t ids[ROWS * LENGTH], labels[ROWS * LENGTH];
    for (int i = 0; i < ROWS * LENGTH; i++) {
        ids[i] = 3 + i * 37 % 250;
        labels[i] = i % LENGTH < 5 || i % 11 == 0 ? -100 : ids[i];
    }
    return (struct rig_rows){ids, labels, ROWS, LENGTH};
}

static struct nb_adapter_options adapter_on(const char *const *targets, int count)
{
    return (struct nb_adapter_options){.target_modules = targets, .target_module_count = count, .rank = RANK, .alpha = 8};
}

static struct rig_options options_with(const struct nb_adapter_options *adapter)
{
    return (struct rig_options){.model = "tests/golden/models/qwen2", .fresh_adapter = adapter, .format = NB_WEIGHT_NF4, .nested = true,
                                .activation = NB_DTYPE_F32, .keep = NB_KEEP_INPUT, .limits = both_rows, .threads = 2};
}

static float *step_gradients(struct rig *rig, const struct rig_rows *rows)
{
    rig_begin_step(rig);
    rig_clear_gradients(rig);
    rig_set_rows(rig, 0, rows, 0, ROWS);
    rig_forward_backward(rig, 0);
    return rig_gradients(rig);
}

static const struct nb_trainable *find(const struct nb_adapter *adapter, const char *name)
{
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++)
        if (strcmp(nb_adapter_trainable(adapter, i)->name, name) == 0)
            return nb_adapter_trainable(adapter, i);
    fail_msg("no trainable %s", name);
    return NULL;
}

static void assert_same_gradients(const struct rig *all, const float *of_all, const struct rig *some, const float *of_some)
{
    for (int i = 0; i < nb_adapter_trainable_count(some->adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(some->adapter, i), *u = find(all->adapter, t->name);
        double difference = 0, norm = 0;
        for (uint64_t k = 0; k < t->count; k++) {
            double got = (double)of_some[t->offset + k], want = (double)of_all[u->offset + k];
            difference += (got - want) * (got - want);
            norm += want * want;
        }
        assert_true(t->is_b ? norm > 0 : norm == 0); /* dA is a multiple of B */
        if (!(sqrt(difference) <= 1e-6 * sqrt(norm)))
            fail_msg("%s: off by %g of its norm", t->name, sqrt(difference / norm));
    }
}

static void test_some_targets(void **state)
{
    static const char *const every[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"};
    static const char *const sets[][2] = {
        {"q_proj", "v_proj"},
        {"o_proj", "o_proj"},
        {"gate_proj", "down_proj"},
        {"down_proj", "down_proj"},
        {"lm_head", "lm_head"},
        {"model.layers.1.self_attn.k_proj", "model.layers.1.mlp.up_proj"}, /* nothing below the second block */
        {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"},
    };
    (void)state;
    struct rig_rows rows = make_rows();
    struct nb_adapter_options adapter = adapter_on(every, 8);
    struct rig_options o = options_with(&adapter);
    struct rig all, some;
    rig_open(&all, &o);
    float *of_all = step_gradients(&all, &rows);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        for (int keep = NB_KEEP_INPUT; keep <= NB_KEEP_EVERYTHING; keep++) {
            adapter = adapter_on(sets[i], 1 + (strcmp(sets[i][0], sets[i][1]) != 0));
            o.keep = (enum nb_keep)keep;
            rig_open(&some, &o);
            float *of_some = step_gradients(&some, &rows);
            assert_same_gradients(&all, of_all, &some, of_some);
            free(of_some);
            rig_close(&some);
        }
    free(of_all);
    rig_close(&all);
}

/* The loss's slope along the gradient, by central differences: with a step of 1e-2 of B's direction the error of the loss, 1e-6, shows
 * as about 1e-4 of the slope, and the third derivative as as much. */
static void test_head_adapter_slope(void **state)
{
    static const char *const target[] = {"lm_head"};
    (void)state;
    struct rig_rows rows = make_rows();
    struct nb_adapter_options adapter = adapter_on(target, 1);
    struct rig_options o = options_with(&adapter);
    struct rig rig;
    rig_open(&rig, &o);
    float *gradient = step_gradients(&rig, &rows);
    uint64_t count = nb_adapter_elements(rig.adapter);
    float *copy = malloc(count * sizeof *copy), *moved = malloc(count * sizeof *moved);
    nb_dptr address = nb_adapter_memory_of(rig.adapter)->copy;
    rig_check(rig.device->download(rig.device, rig.stream, copy, address, count * sizeof *copy));
    rig_check(rig.device->stream_wait(rig.device, rig.stream));
    double norm = 0, loss[2];
    for (uint64_t i = 0; i < count; i++)
        norm += (double)gradient[i] * (double)gradient[i];
    norm = sqrt(norm);
    const double step = 1e-2;
    for (int side = 0; side < 2; side++) {
        for (uint64_t i = 0; i < count; i++)
            moved[i] = (float)((double)copy[i] + (side ? step : -step) * (double)gradient[i] / norm);
        rig_check(rig.device->upload(rig.device, rig.stream, address, moved, count * sizeof *moved));
        rig_begin_step(&rig);
        rig_set_rows(&rig, 0, &rows, 0, ROWS);
        rig_check(nb_pass_forward(rig.pass, 0, 0, nb_model_config_of(rig.model)->layers + 1));
        loss[side] = rig_loss(&rig, 1);
    }
    double slope = (loss[1] - loss[0]) / (2 * step);
    if (!(fabs(slope - norm) <= 1e-3 * norm))
        fail_msg("the loss rises by %g along a gradient of norm %g", slope, norm);
    free(gradient);
    free(copy);
    free(moved);
    rig_close(&rig);
}

static float *cut_gradients(const struct rig_options *options, const struct rig_rows *rows, int rows_a_batch, uint64_t *elements)
{
    struct rig rig;
    rig_open(&rig, options);
    rig_begin_step(&rig);
    for (int first = 0; first < ROWS; first += rows_a_batch) {
        rig_set_rows(&rig, 0, rows, first, rows_a_batch);
        rig_forward_backward(&rig, 0);
    }
    float *gradients = rig_gradients(&rig);
    *elements = nb_adapter_elements(rig.adapter);
    rig_close(&rig);
    return gradients;
}

static double distance(const float *a, const float *b, uint64_t count)
{
    double difference = 0, norm = 0;
    for (uint64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)a[i] * (double)a[i];
    }
    return sqrt(difference / norm);
}

static void test_dropout(void **state)
{
    static const char *const every[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"};
    (void)state;
    struct rig_rows rows = make_rows();
    struct nb_adapter_options adapter = adapter_on(every, 8);
    struct rig_options o = options_with(&adapter);
    uint64_t elements;
    o.batches = ROWS;
    float *without = cut_gradients(&o, &rows, ROWS, &elements);
    adapter.dropout = 0.3f;
    float *whole = cut_gradients(&o, &rows, ROWS, &elements), *cut = cut_gradients(&o, &rows, 1, &elements);
    o.keep = NB_KEEP_EVERYTHING;
    float *kept = cut_gradients(&o, &rows, ROWS, &elements);
    assert_true(distance(whole, without, elements) > 0.1);
    assert_memory_equal(whole, kept, elements * sizeof *kept);
    assert_true(distance(whole, cut, elements) <= 1e-5);
    free(without);
    free(whole);
    free(cut);
    free(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_some_targets),
        cmocka_unit_test(test_head_adapter_slope),
        cmocka_unit_test(test_dropout),
    };
    return cmocka_run_group_tests_name("partial adapters", tests, NULL, NULL);
}
