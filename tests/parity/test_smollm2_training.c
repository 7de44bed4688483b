/* Twelve steps of the real SmolLM2-135M-Instruct from its GGUF, on NF4 weights, against PEFT's curve: two conversations a step, in file
 * order. The file is not part of the project: the test is skipped without it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "training.h"

enum { STEPS = 12 };

struct reference {
    const char *path; /* of the GGUF */
    char *folder;
    json_t *json;
};

/* FOLDER/rows.jsonl: the reference's ids, and labels where its mask trains. */
static void write_rows(const struct reference *r)
{
    char *path = nb_path_join(r->folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    size_t i, k;
    json_t *row, *id;
    assert_non_null(file);
    json_array_foreach(json_object_get(r->json, "rows"), i, row)
    {
        const json_t *mask = json_object_get(row, "mask");
        json_t *labels = json_array();
        json_array_foreach(json_object_get(row, "ids"), k, id) json_array_append_new(
            labels, json_integer_value(json_array_get(mask, k)) ? json_copy(id) : json_integer(-100));
        json_t *line = json_pack("{s:O, s:o}", "input_ids", json_object_get(row, "ids"), "labels", labels);
        assert_int_equal(json_dumpf(line, file, JSON_COMPACT), 0);
        fputc('\n', file);
        json_decref(line);
    }
    assert_int_equal(fclose(file), 0);
    free(path);
}

static int open_reference(void **state)
{
    struct reference *r = *state;
    json_error_t error;
    r->json = json_load_file("tests/golden/smollm2/reference.json", 0, &error);
    if (!r->json)
        fail_msg("tests/golden/smollm2/reference.json: %s", error.text);
    r->folder = training_folder();
    write_rows(r);
    return 0;
}

static int close_reference(void **state)
{
    struct reference *r = *state;
    json_decref(r->json);
    training_check(nb_remove_folder(r->folder));
    free(r->folder);
    return 0;
}

/* Mean and largest relative distance of the losses from the reference's curve. */
static void follow(const struct reference *r, const char *bf16, double *mean, double *largest)
{
    struct training t;
    char *yaml = nb_format(
        "base_model: %s\nadapter: qlora\nload_in_4bit: true\nlora_model_dir: tests/golden/smollm2/adapter_start\n"
        "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\nweight_decay: 0\nmax_grad_norm: 1.0\n"
        "lr_scheduler: constant\noptimizer: adamw_torch\nsequence_len: 256\nshuffle_merged_datasets: false\n"
        "output_dir: %s/out\nmax_steps: %d\nmicro_batch_size: 2\nbf16: %s\n",
        r->path, r->folder, r->folder, STEPS, bf16);
    const json_t *curve = json_object_get(json_object_get(r->json, "train"), "curve");
    training_open(&t, yaml);
    *mean = *largest = 0;
    for (int i = 0; i < STEPS; i++) {
        const json_t *want = json_array_get(curve, (size_t)i);
        struct nb_step_result got = training_step(&t, i + 1);
        double loss = json_number_value(json_object_get(want, "loss")), error = fabs(got.loss - loss) / loss;
        assert_int_equal(got.trained_tokens, json_integer_value(json_object_get(want, "answer_tokens")));
        printf("bf16 %s, step %2d: loss %.6f, reference %.6f (%+.1e); norm %.5f, reference %.5f\n", bf16, i + 1,
            got.loss, loss, (got.loss - loss) / loss, (double)got.grad_norm,
            json_number_value(json_object_get(want, "grad_norm")));
        *mean += error / STEPS;
        *largest = error > *largest ? error : *largest;
    }
    assert_int_equal(nb_arena_high_water(t.session->arena), t.plan.peak_bytes);
    training_close(&t);
    free(yaml);
}

static void in_fp32_the_curve_is_the_references(void **state)
{
    const struct reference *r = *state;
    double mean, largest;
    follow(r, "false", &mean, &largest);
    assert_true(largest <= 1e-4);
}

static void in_bf16_the_curve_is_near_it(void **state)
{
    const struct reference *r = *state;
    double mean, largest;
    follow(r, "true", &mean, &largest);
    assert_true(mean <= 0.015 && largest <= 0.04);
}

static void train_within(const struct reference *r, const char *budget, struct nb_step_result result[2])
{
    struct training t;
    char *yaml = nb_format(
        "base_model: %s\nadapter: qlora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\n"
        "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\nlr_scheduler: constant\n"
        "optimizer: adamw_8bit\nsequence_len: 256\nshuffle_merged_datasets: false\noutput_dir: %s/out\nmax_steps: 2\n"
        "micro_batch_size: 4\nbf16: true\n%s",
        r->path, r->folder, r->folder, budget);
    training_open(&t, yaml);
    for (int i = 0; i < 2; i++)
        result[i] = training_step(&t, i + 1);
    printf("%.1f MiB%s%s", (double)nb_arena_high_water(t.session->arena) / 1048576.0, *budget ? " within " : "\n", budget);
    assert_int_equal(nb_arena_high_water(t.session->arena), t.plan.peak_bytes);
    assert_true(!*budget || t.plan.peak_bytes <= (uint64_t)256 << 20);
    assert_true(*budget || t.plan.peak_bytes > (uint64_t)256 << 20);
    training_close(&t);
    free(yaml);
}

/* Weights and embedding are 107 MiB of it. */
static void in_256_mebibytes_no_bit_changes(void **state)
{
    const struct reference *r = *state;
    struct nb_step_result free_run[2], bounded[2];
    train_within(r, "", free_run);
    train_within(r, "memory_budget: 256MiB\n", bounded);
    for (int i = 0; i < 2; i++)
        assert_true(free_run[i].loss == bounded[i].loss && free_run[i].grad_norm == bounded[i].grad_norm);
}

int main(int argc, char **argv)
{
    struct reference reference = {.path = argc > 1 ? argv[1] : ""};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(
            in_fp32_the_curve_is_the_references, open_reference, close_reference, &reference),
        cmocka_unit_test_prestate_setup_teardown(
            in_bf16_the_curve_is_near_it, open_reference, close_reference, &reference),
        cmocka_unit_test_prestate_setup_teardown(
            in_256_mebibytes_no_bit_changes, open_reference, close_reference, &reference),
    };
    if (!reference.path[0] || !nb_path_exists(reference.path)) {
        printf("skipped: no SmolLM2 GGUF; give its path with the meson option smollm2 (tools/quickstart fetches it)\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
