/* A block's MLP, and the loss, in chunks: whatever the chunks, a run leaves the same bytes and takes what was planned,
 * less the smaller they are. A model of four layers, all different; micro-batches of up to two chunks and four tokens,
 * some of less than one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "support/deep_model.h"
#include "train/trainer.h"
#include "training.h"

enum { LAYERS = 4, STEPS = 3, ROWS = 14, LONGEST = 258 };

struct model {
    char *folder, *path;
};

/* Rows of 6 to 258 tokens, most so long that two of them are a few tokens more than two tiles. Every third label does
 * not train. */
static void write_rows(const char *folder)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < ROWS; r++) {
        int length = r % 5 == 4 ? 6 + r : LONGEST - r % 2;
        for (int part = 0; part < 2; part++) {
            fputs(part ? "], \"labels\": [" : "{\"input_ids\": [", file);
            for (int i = 0; i < length; i++)
                fprintf(file, "%s%d", i ? ", " : "", part && i % 3 == 0 ? -100 : 3 + (r * 31 + i * 17) % 200);
        }
        fputs("]}\n", file);
    }
    assert_int_equal(fclose(file), 0);
    free(path);
}

static int open_model(void **state)
{
    struct model *m = calloc(1, sizeof *m);
    m->folder = training_folder();
    m->path = nb_path_join(m->folder, "model");
    training_check(nb_test_write_deep_model(*state, LAYERS, m->path));
    write_rows(m->folder);
    *state = m;
    return 0;
}

static int close_model(void **state)
{
    struct model *m = *state;
    training_check(nb_remove_folder(m->folder));
    free(m->folder);
    free(m->path);
    free(m);
    return 0;
}

static char *yaml_of(const struct model *m, const char *more)
{
    return nb_format("base_model: %s\nadapter: qlora\nlora_r: 4\nlora_alpha: 8\n%s"
                     "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-2\nlr_scheduler: constant\n"
                     "sequence_len: %d\nmicro_batch_size: 2\n%sthreads: 1\noutput_dir: %s/out\n%s",
        m->path, strstr(more, "lora_target") ? "" : "lora_target_linear: true\n", m->folder, LONGEST,
        strstr(more, "lora_dropout") ? "" : "lora_dropout: 0.1\n", m->folder, more);
}

/* ---- the same bytes ---- */

struct trained {
    struct nb_step_result step[STEPS];
    float *masters;
    uint64_t bytes, device_bytes;
    double flops;
};

static struct trained train(const char *yaml, training_change *change, uint64_t number)
{
    struct trained r;
    struct training t;
    training_open_changed(&t, yaml, change, number);
    for (int i = 0; i < STEPS; i++)
        r.step[i] = training_step(&t, i + 1);
    r.masters = training_masters(&t);
    r.bytes = nb_adapter_elements(t.session->adapter) * sizeof *r.masters;
    r.device_bytes = t.plan.peak_bytes;
    r.flops = t.plan.step_flops;
    assert_int_equal(nb_arena_high_water(t.session->arena), t.plan.peak_bytes);
    assert_int_equal(nb_arena_high_water(t.session->pinned), t.plan.pinned_bytes);
    training_close(&t);
    return r;
}

static struct trained train_with(
    const struct model *m, const char *more, const char *key, int value, training_change *change, uint64_t number)
{
    char *all = nb_format("%s%s: %d\n", more, key, value), *yaml = yaml_of(m, all);
    struct trained r = train(yaml, change, number);
    free(yaml);
    free(all);
    return r;
}

static void assert_same(const struct trained *a, const struct trained *b)
{
    for (int i = 0; i < STEPS; i++)
        assert_true(a->step[i].loss == b->step[i].loss && a->step[i].grad_norm == b->step[i].grad_norm);
    assert_int_equal(a->bytes, b->bytes);
    assert_memory_equal(a->masters, b->masters, a->bytes);
}

static void keep_this_and_that(struct nb_run *run, uint64_t number)
{
    for (int i = 0; i < LAYERS; i++)
        run->keep[i] = (enum nb_keep)((number + (uint64_t)i) % NB_KEEP_NOTHING);
}

static void dequantize_once(struct nb_run *run, uint64_t number)
{
    run->model.dequantize_once = number > 0;
}

struct setting {
    const char *more;
    training_change *change;
    bool kept; /* all of gate and up: the chunk is not what they take */
};

#define RECOMPUTED "gradient_checkpointing: true\n"
#define KEPT "gradient_checkpointing: false\n"
#define F32 "bf16: false\n"
#define BF16 "bf16: true\n"

static const struct setting settings[] = {
    {RECOMPUTED F32, NULL, false},
    {RECOMPUTED F32 "lora_dropout: 0\n", NULL, false}, /* a few tokens without dropout could be multiplied in another way */
    {RECOMPUTED BF16 "sample_packing: true\n", NULL, false},
    {"gradient_checkpointing: attention\n" F32 "sample_packing: true\ngradient_accumulation_steps: 2\n", NULL, false},
    {KEPT F32, NULL, true},
    {KEPT BF16 "gradient_accumulation_steps: 3\n", NULL, true},
    {RECOMPUTED F32, keep_this_and_that, true},
    {RECOMPUTED BF16, dequantize_once, false},
    {KEPT F32, dequantize_once, true},
    {RECOMPUTED F32 "resident_layers: 0\nactivation_offloading: true\noptimizer: paged_adamw_8bit\n", NULL, false},
    {RECOMPUTED F32 "resident_layers: 1\nembedding_device: host\naccumulation_order: layer_major\n"
                    "gradient_accumulation_steps: 2\n",
        NULL, false},
    /* Gradients that end at down, at gate, and above a block's MLP. */
    {RECOMPUTED F32 "lora_target_modules: [model.layers.1.mlp.down_proj]\n", NULL, false},
    {KEPT F32 "lora_target_modules: [model.layers.0.mlp.down_proj, model.layers.2.mlp.up_proj]\n", NULL, true},
    {RECOMPUTED F32 "lora_target_modules: [model.layers.1.mlp.gate_proj, model.layers.3.self_attn.q_proj]\n", NULL, false},
};

static void the_size_of_chunks_changes_no_bit(void **state)
{
    static const int chunks[] = {256, 512, 768};
    const struct model *m = *state;
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
        struct trained whole = train_with(m, settings[s].more, "mlp_chunk_tokens", 0, settings[s].change, 1);
        uint64_t smaller = 0;
        for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
            struct trained now = train_with(m, settings[s].more, "mlp_chunk_tokens", chunks[i], settings[s].change, 1);
            assert_same(&whole, &now);
            assert_true(now.flops == whole.flops);
            /* A chunk of more tokens than there are is all of them. */
            if (chunks[i] > 2 * LONGEST)
                assert_int_equal(now.device_bytes, whole.device_bytes);
            else if (!settings[s].kept && settings[s].change != dequantize_once)
                assert_true(smaller < now.device_bytes && now.device_bytes < whole.device_bytes);
            smaller = now.device_bytes;
            free(now.masters);
        }
        free(whole.masters);
    }
}

static void matrices_dequantized_once_change_no_bit(void **state)
{
    const struct model *m = *state;
    for (size_t s = 0; s < 4; s++) {
        struct trained anew = train_with(m, settings[s].more, "mlp_chunk_tokens", 256, NULL, 0);
        struct trained once = train_with(m, settings[s].more, "mlp_chunk_tokens", 256, dequantize_once, 1);
        assert_same(&anew, &once);
        free(anew.masters);
        free(once.masters);
    }
}

static void defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = true, .deferred_seed = seed};
}

/* With everything that other streams do beside the MLP. */
static void late_work_changes_no_bit(void **state)
{
    static const char more[] = "gradient_checkpointing: attention\n" F32 "resident_layers: 0\nactivation_offloading: true\n"
                               "optimizer: paged_adamw_32bit\n";
    const struct model *m = *state;
    struct trained whole = train_with(m, "gradient_checkpointing: attention\n" F32, "mlp_chunk_tokens", 0, NULL, 0);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct trained now = train_with(m, more, "mlp_chunk_tokens", 256, defer, seed);
        assert_same(&whole, &now);
        free(now.masters);
    }
    free(whole.masters);
}

/* ---- the loss ---- */

static void the_rows_of_logits_at_a_time_change_no_bit(void **state)
{
    static const char *const more[] = {
        F32, BF16 "sample_packing: true\n", F32 "lora_target_modules: [v_proj, lm_head]\n",
        F32 "head_4bit: true\n"};
    const struct model *m = *state;
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        struct trained wide = train_with(m, more[i], "loss_chunk_rows", 1024, NULL, 0);
        struct trained two = train_with(m, more[i], "loss_chunk_rows", 512, NULL, 0);
        struct trained one = train_with(m, more[i], "loss_chunk_rows", 256, NULL, 0);
        assert_same(&wide, &two);
        assert_same(&wide, &one);
        assert_true(one.device_bytes <= two.device_bytes && two.device_bytes <= wide.device_bytes);
        free(one.masters);
        free(two.masters);
        free(wide.masters);
    }
}

/* ---- whole runs ---- */

static char *train_whole(const struct model *m, const char *out, const char *more, bool resume)
{
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    char *yaml = yaml_of(m, more), *path = nb_format("%s/%s", m->folder, out), *output = nb_format("output_dir=%s", path);
    const char *override[] = {output};
    char *text = NULL, *metrics = nb_path_join(path, "metrics.jsonl");
    size_t bytes;
    training_check(nb_config_parse(yaml, strlen(yaml), "test.yml", override, 1, &config));
    training_check(nb_config_validate_train(&config));
    training_check(nb_train(&config, &options));
    nb_config_destroy(&config);
    training_check(nb_file_read(metrics, 1 << 24, false, &text, &bytes));
    static const char *const fields[] = {"\"seconds\":", "\"tokens_per_second\":", "\"memory_bytes\":"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (char *at = text; (at = strstr(at, fields[i]));) {
            char *end = at + strcspn(at, ",}");
            memmove(at, end, strlen(end) + 1);
        }
    free(metrics);
    free(output);
    free(path);
    free(yaml);
    return text;
}

/* Evaluation goes in chunks as well; a run that is taken up again may have others. */
static void runs_with_evaluation_and_a_pause_are_the_same(void **state)
{
    static const char common[] = "max_steps: 4\nval_set_size: 4\neval_steps: 2\nsave_steps: 2\nbf16: false\nseed: 5\n";
    const struct model *m = *state;
    char *at_once = nb_format("%smlp_chunk_tokens: 0\n", common),
         *chunks = nb_format("%smlp_chunk_tokens: 256\nloss_chunk_rows: 256\n", common),
         *others = nb_format("%smlp_chunk_tokens: 512\n", common);
    char *whole = train_whole(m, "whole", at_once, false), *cut = train_whole(m, "cut", chunks, false);
    assert_string_equal(whole, cut);
    char *last = nb_format("%s/cut/checkpoint-4", m->folder);
    training_check(nb_remove_folder(last));
    free(cut);
    cut = train_whole(m, "cut", others, true);
    assert_string_equal(whole, cut);
    free(last);
    free(whole);
    free(cut);
    free(at_once);
    free(chunks);
    free(others);
}

int main(int argc, char **argv)
{
    char *shape = argc == 2 ? nb_format("tests/golden/models/%s", argv[1]) : NULL;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(the_size_of_chunks_changes_no_bit, open_model, close_model, shape),
        cmocka_unit_test_prestate_setup_teardown(matrices_dequantized_once_change_no_bit, open_model, close_model, shape),
        cmocka_unit_test_prestate_setup_teardown(late_work_changes_no_bit, open_model, close_model, shape),
        cmocka_unit_test_prestate_setup_teardown(the_rows_of_logits_at_a_time_change_no_bit, open_model, close_model, shape),
        cmocka_unit_test_prestate_setup_teardown(
            runs_with_evaluation_and_a_pause_are_the_same, open_model, close_model, shape),
    };
    if (!shape) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(shape);
    return failed;
}
