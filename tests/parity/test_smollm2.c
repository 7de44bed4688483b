/* The real SmolLM2-135M-Instruct, from its GGUF, in fp32 arithmetic: the loss of each conversation and greedy answers, with bf16 and
 * with NF4 weights, against transformers. The file is not part of the project: the test is skipped without it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "rig.h"

enum { NEW_TOKENS = 24, PROMPTS = 2, END_OF_TURN = 2, ROW_TOKENS_MAX = 512 };

/* The checkpoint's template around "What is the capital of France?" and "List three fruits.", in the tokenizer's ids. */
static const int32_t prompt[PROMPTS][37] = {
    {1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
     2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198},
    {1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
     2, 198, 1, 4093, 198, 6106, 1296, 5574, 30, 2, 198, 1, 520, 9531, 198},
};
static const int prompt_tokens[PROMPTS] = {37, 34};

struct reference {
    const char *path; /* of the GGUF */
    json_t *json;
};

static int open_reference(void **state)
{
    struct reference *r = *state;
    json_error_t error;
    r->json = json_load_file("tests/golden/smollm2/reference.json", 0, &error);
    if (!r->json)
        fail_msg("tests/golden/smollm2/reference.json: %s", error.text);
    return 0;
}

static int close_reference(void **state)
{
    struct reference *r = *state;
    json_decref(r->json);
    return 0;
}

static struct rig_options options_of(const struct reference *r, enum nb_weight_format format)
{
    return (struct rig_options){
        .model = r->path,
        .format = format,
        .nested = format != NB_WEIGHT_BF16,
        .activation = NB_DTYPE_F32,
        .keep = NB_KEEP_NOTHING,
        .limits = {ROW_TOKENS_MAX, 1, ROW_TOKENS_MAX, ROW_TOKENS_MAX, NB_TILE_TOKENS},
        .positions_max = ROW_TOKENS_MAX,
        .memory_bytes = 512u << 20,
    };
}

/* The summed loss of a conversation's answer tokens. */
static double row_loss(struct rig *rig, json_t *row)
{
    int32_t ids[ROW_TOKENS_MAX], labels[ROW_TOKENS_MAX];
    json_t *id = json_object_get(row, "ids"), *mask = json_object_get(row, "mask");
    int length = (int)json_array_size(id);
    assert_in_range(length, 1, ROW_TOKENS_MAX);
    for (int t = 0; t < length; t++) {
        ids[t] = (int32_t)json_integer_value(json_array_get(id, (size_t)t));
        labels[t] = json_integer_value(json_array_get(mask, (size_t)t)) ? ids[t] : -100;
    }
    struct rig_rows rows = {ids, labels, 1, length};
    float losses[ROW_TOKENS_MAX];
    double sum = 0;
    int trained = rig_trained_tokens(&rows, 0, 1);
    assert_int_equal(trained, json_integer_value(json_object_get(row, "answer_tokens")));
    rig_begin_step(rig);
    rig_set_rows(rig, 0, &rows, 0, 1);
    rig_check(nb_pass_forward(rig->pass, 0, 0, nb_model_config_of(rig->model)->layers + 1));
    rig_check(nb_pass_download_losses(rig->pass, 0, losses));
    double step_sum = rig_loss(rig, trained) * trained;
    for (int i = 0; i < trained; i++)
        sum += (double)losses[i];
    assert_true(fabs(sum - step_sum) <= 1e-9 * sum);
    return sum;
}

static void check_losses(const struct reference *r, enum nb_weight_format format, const char *name)
{
    struct rig rig;
    struct rig_options o = options_of(r, format);
    double worst = 0;
    size_t index;
    json_t *row;
    rig_open(&rig, &o);
    json_array_foreach(json_object_get(r->json, "rows"), index, row) {
        double want = json_real_value(json_object_get(row, name)), got = row_loss(&rig, row);
        worst = fmax(worst, fabs(got - want) / want);
    }
    rig_close(&rig);
    print_message("%s: the worst row is off by %.2g of its loss\n", name, worst);
    assert_true(worst <= 1e-4);
}

static void check_greedy(const struct reference *r, enum nb_weight_format format, const char *name)
{
    struct rig rig;
    struct rig_options o = options_of(r, format);
    struct nb_generator_options greedy = {.context_max = 128, .prompt_chunk = 32, .sampling = {.temperature = 0, .top_p = 1}};
    o.limits = (struct nb_batch_limits){0};
    rig_open(&rig, &o);
    for (int p = 0; p < PROMPTS; p++) {
        json_t *want = json_array_get(json_array_get(json_object_get(r->json, name), (size_t)p), 0);
        struct nb_generator *generator;
        rig_check(nb_generator_create(rig.model, NULL, &greedy, rig.arena, rig.stream, &generator));
        rig_check(nb_generator_append(generator, prompt[p], prompt_tokens[p]));
        int32_t id = -1;
        for (size_t i = 0; i < NEW_TOKENS && id != END_OF_TURN; i++) {
            rig_check(nb_generator_next(generator, &id));
            assert_int_equal(id, json_integer_value(json_array_get(want, i)));
        }
        nb_generator_destroy(&generator);
    }
    rig_close(&rig);
}

static void test_bf16_weights(void **state)
{
    check_losses(*state, NB_WEIGHT_BF16, "nll_bf16_weights");
}

static void test_nf4_weights(void **state)
{
    check_losses(*state, NB_WEIGHT_NF4, "nll_nf4_weights");
}

static void test_greedy(void **state)
{
    check_greedy(*state, NB_WEIGHT_BF16, "greedy_bf16_weights");
    check_greedy(*state, NB_WEIGHT_NF4, "greedy_nf4_weights");
}

int main(int argc, char **argv)
{
    if (argc < 2 || !*argv[1] || !nb_path_exists(argv[1])) {
        printf("skipped: SmolLM2-135M-Instruct's GGUF is not here; give its path with -Dsmollm2=PATH\n");
        return 77;
    }
    struct reference reference = {.path = argv[1]};
#define SMOLLM2_TEST(function) {.name = #function, .test_func = function, .setup_func = open_reference, \
                                .teardown_func = close_reference, .initial_state = &reference}
    const struct CMUnitTest tests[] = {
        SMOLLM2_TEST(test_bf16_weights),
        SMOLLM2_TEST(test_nf4_weights),
        SMOLLM2_TEST(test_greedy),
    };
    return cmocka_run_group_tests_name("smollm2", tests, NULL, NULL);
}
