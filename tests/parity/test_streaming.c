/* Base weights streamed from pinned host memory: whatever is resident, whenever fetches are done, a run leaves the
 * same bytes and takes what was planned. Models of seven layers, all different, so that a fetch that comes late or
 * brings another layer shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/generate.h"
#include "support/deep_model.h"
#include "train/fit.h"
#include "train/trainer.h"
#include "training.h"

enum { LAYERS = 7, STEPS = 2, ROWS = 12, LONGEST = 30, ANSWER = 6 };

struct model {
    const char *shape;
    char *folder, *path;
};

static int open_model(void **state)
{
    struct model *m = calloc(1, sizeof *m);
    m->shape = *state;
    m->folder = training_folder();
    m->path = nb_path_join(m->folder, "model");
    char *shape = nb_format("tests/golden/models/%s", m->shape);
    training_check(nb_test_write_deep_model(shape, LAYERS, m->path));
    free(shape);
    training_write_varied_rows(m->folder, (struct training_rows){ROWS, LONGEST, 200});
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

/* `base` NULL: the deep model. */
static char *yaml_of(const struct model *m, const char *base, const char *more)
{
    return nb_format("base_model: %s\nadapter: qlora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"
                     "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-2\nlr_scheduler: constant\n"
                     "sequence_len: %d\nmicro_batch_size: 2\ngradient_accumulation_steps: 2\nlora_dropout: 0.1\nthreads: 1\n"
                     "output_dir: %s/out\n%s",
        base ? base : m->path, m->folder, LONGEST, m->folder, more);
}

/* ---- the same bytes ---- */

struct trained {
    struct nb_step_result step[STEPS];
    float *masters;
    uint64_t bytes;
    uint64_t device_bytes, pinned_bytes;
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
    r.pinned_bytes = t.plan.pinned_bytes;
    assert_int_equal(nb_arena_high_water(t.session->arena), r.device_bytes);
    assert_int_equal(nb_arena_high_water(t.session->pinned), r.pinned_bytes);
    training_close(&t);
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

static void what_is_streamed_changes_no_bit(void **state)
{
    const struct model *m = *state;
    static const char *const keeps[] = {"true", "attention", "false"};
    static const int resident[] = {LAYERS, LAYERS - 1, 4, 3, 1, 0};
    struct trained first = {0};
    for (size_t k = 0; k <= sizeof keeps / sizeof *keeps; k++) {
        uint64_t all_device = 0, unit = 0;
        for (size_t i = 0; i < sizeof resident / sizeof *resident; i++) {
            bool mixed = k == sizeof keeps / sizeof *keeps;
            if (k > 0 && resident[i] != LAYERS && resident[i] != 3 && resident[i] != 0)
                continue;
            char *more = nb_format(
                "gradient_checkpointing: %s\nresident_layers: %d\n", mixed ? "true" : keeps[k], resident[i]);
            char *yaml = yaml_of(m, NULL, more);
            struct trained now = train(yaml, mixed ? keep_this_and_that : NULL, i);
            free(more);
            free(yaml);
            if (!first.masters)
                first = now;
            assert_same(&first, &now);
            /* Six of seven resident would save nothing: all are. */
            uint64_t streamed = (uint64_t)(resident[i] >= LAYERS - NB_UNIT_BUFFERS ? 0 : LAYERS - resident[i]);
            if (i == 0)
                all_device = now.device_bytes;
            if (streamed)
                unit = now.pinned_bytes / streamed;
            assert_int_equal(now.pinned_bytes, streamed * unit);
            if (!mixed) /* else what is kept differs as well */
                assert_int_equal(now.device_bytes, all_device - (streamed ? streamed - NB_UNIT_BUFFERS : 0) * unit);
            if (now.masters != first.masters)
                free(now.masters);
        }
    }
    free(first.masters);
}

static void defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = seed > 0, .deferred_seed = seed};
}

static void late_fetches_change_no_bit(void **state)
{
    const struct model *m = *state;
    static const int resident[] = {0, 3};
    for (size_t i = 0; i < sizeof resident / sizeof *resident; i++) {
        char *more = nb_format("gradient_checkpointing: attention\nresident_layers: %d\n", resident[i]);
        char *yaml = yaml_of(m, NULL, more), *plain = yaml_of(m, NULL, "resident_layers: auto\n");
        struct trained first = train(plain, NULL, 0);
        assert_int_equal(first.pinned_bytes, 0);
        for (uint64_t seed = 1; seed <= 6; seed++) {
            struct trained now = train(yaml, defer, seed);
            assert_same(&first, &now);
            free(now.masters);
        }
        free(first.masters);
        free(more);
        free(yaml);
        free(plain);
    }
}

static void stream_all(struct nb_run *run, uint64_t number)
{
    defer(run, number / 2);
    run->model.streamed_blocks = number % 2 ? nb_checkpoint_config(run->checkpoint)->layers : 0;
}

/* Files that are in 4 bits already, and weights that stay in bf16. */
static void other_weights_stream_too(void **state)
{
    const struct model *m = *state;
    char *four_bits = nb_format("tests/golden/models/%s/bnb4", m->shape);
    for (int i = 0; i < 2; i++) {
        char *yaml = yaml_of(m, i ? NULL : four_bits, ""), *adapter = strstr(yaml, "qlora");
        if (i) /* "adapter: lora " */
            memcpy(adapter, "lora ", 5);
        struct trained first = train(yaml, stream_all, 0);
        for (uint64_t seed = 0; seed <= 2; seed++) {
            struct trained now = train(yaml, stream_all, 2 * seed + 1);
            assert_true(now.pinned_bytes > 0);
            assert_same(&first, &now);
            free(now.masters);
        }
        free(first.masters);
        free(yaml);
    }
    free(four_bits);
}

/* ---- whole runs ---- */

static char *train_whole(const struct model *m, const char *out, const char *more, bool resume)
{
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    char *yaml = yaml_of(m, NULL, more), *path = nb_format("%s/%s", m->folder, out), *text = NULL;
    const char *override[] = {NULL};
    char *output = nb_format("output_dir=%s", path);
    size_t bytes;
    override[0] = output;
    training_check(nb_config_parse(yaml, strlen(yaml), "test.yml", override, 1, &config));
    training_check(nb_config_validate_train(&config));
    training_check(nb_train(&config, &options));
    nb_config_destroy(&config);
    char *metrics = nb_path_join(path, "metrics.jsonl");
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

/* Evaluation between the steps goes upwards twice in a row; a run that is taken up again may have more or fewer
 * layers resident. */
static void runs_with_evaluation_and_a_pause_are_the_same(void **state)
{
    const struct model *m = *state;
    static const char common[] = "max_steps: 4\nval_set_size: 4\neval_steps: 1\nsave_steps: 2\noptimizer: adamw_8bit\nseed: 5\n";
    char *resident = nb_format("%sresident_layers: 7\n", common), *streamed = nb_format("%sresident_layers: 0\n", common),
         *some = nb_format("%sresident_layers: 3\n", common);
    char *all = train_whole(m, "all", resident, false), *none = train_whole(m, "none", streamed, false);
    assert_string_equal(all, none);
    char *last = nb_format("%s/none/checkpoint-4", m->folder);
    training_check(nb_remove_folder(last));
    free(none);
    none = train_whole(m, "none", some, true);
    assert_string_equal(all, none);
    free(last);
    free(all);
    free(none);
    free(resident);
    free(streamed);
    free(some);
}

/* ---- generation ---- */

struct answer {
    int32_t id[ANSWER];
    int streamed;
};

static nb_status answer(struct nb_session *session, void *context)
{
    static const int32_t prompt[] = {5, 77, 130, 9, 21, 64, 200};
    struct answer *a = context;
    struct nb_generator_options options = {
        .context_max = 20, .prompt_chunk = 3, .sampling = {.temperature = 1, .top_p = 1, .seed = 3}, .pinned = session->pinned};
    struct nb_generator *generator = NULL;
    NB_TRY(nb_generator_create(session->model, NULL, &options, session->arena, session->stream, &generator));
    nb_status status = nb_generator_append(generator, prompt, sizeof prompt / sizeof *prompt);
    for (int i = 0; status == NB_OK && i < ANSWER; i++)
        status = nb_generator_next(generator, &a->id[i]);
    nb_generator_destroy(&generator);
    a->streamed = session->run->model.streamed_blocks;
    return status;
}

static struct answer generate(const struct model *m, const char *resident, uint64_t seed, const char *budget, uint64_t *planned)
{
    const char *overrides[] = {"bf16=false", "threads=1", "embedding_device=device", resident, budget};
    struct nb_config config;
    struct nb_run *run = NULL;
    struct answer a;
    training_check(nb_config_from_overrides(overrides, budget ? 5 : 4, &config));
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_GENERATE, .model = m->path};
    training_check(nb_run_open(&args, &run));
    defer(run, seed);
    training_check(nb_session_run(run, 20, answer, &a, planned));
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    return a;
}

static void answers_are_the_same(void **state)
{
    const struct model *m = *state;
    uint64_t all, some, least;
    struct answer first = generate(m, "resident_layers=7", 0, NULL, &all);
    for (uint64_t seed = 0; seed <= 2; seed++) {
        struct answer none = generate(m, "resident_layers=0", seed, NULL, &least);
        struct answer half = generate(m, "resident_layers=3", seed, NULL, &some);
        assert_true(none.streamed == LAYERS && half.streamed == 4 && least < some && some < all);
        assert_memory_equal(first.id, none.id, sizeof first.id);
        assert_memory_equal(first.id, half.id, sizeof first.id);
    }
    /* Within what three resident layers take, auto finds those three; with less than any of them take, the run ends. */
    char *budget = nb_format("memory_budget=%llu", (unsigned long long)some);
    uint64_t planned;
    struct answer found = generate(m, "resident_layers=auto", 0, budget, &planned);
    assert_true(found.streamed == 4 && planned == some);
    assert_memory_equal(first.id, found.id, sizeof first.id);
    free(budget);
}

/* ---- auto ---- */

static uint64_t peak_of(const struct nb_run *run)
{
    struct nb_plan plan;
    training_check(nb_plan_make(run, &plan));
    uint64_t peak = plan.peak_bytes;
    nb_plan_destroy(&plan);
    return peak;
}

/* As few are streamed as must be: one fewer would not fit. What is kept gives way before. */
static void as_many_stay_as_fit(void **state)
{
    const struct model *m = *state;
    struct nb_config config;
    struct nb_run *run = NULL;
    char *yaml = yaml_of(m, NULL, "gradient_checkpointing: auto\nmemory_budget: 1GB\n");
    training_config(yaml, &config);
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_TRAIN};
    training_check(nb_run_open(&args, &run));
    assert_int_equal(run->model.streamed_blocks, 0);
    uint64_t high = peak_of(run);
    int before = 0;
    run->available_bytes = 1;
    training_check(nb_fit_choose(run));
    assert_int_equal(run->model.streamed_blocks, LAYERS);
    uint64_t low = peak_of(run);
    for (uint64_t bytes = high; bytes >= low; bytes -= (high - low) / 24) {
        run->available_bytes = bytes;
        training_check(nb_fit_choose(run));
        assert_true(peak_of(run) <= bytes);
        int streamed = run->model.streamed_blocks;
        assert_true(streamed >= before && (streamed == 0 || streamed > NB_UNIT_BUFFERS));
        before = streamed;
        if (streamed == 0)
            continue;
        for (int i = 0; i < LAYERS; i++)
            run->keep[i] = NB_KEEP_INPUT;
        run->model.streamed_blocks = streamed == NB_UNIT_BUFFERS + 1 ? 0 : streamed - 1;
        assert_true(peak_of(run) > bytes);
    }
    assert_int_equal(before, LAYERS);
    /* Without a budget, the CPU's device memory is the host's: what does not fit is not streamed. */
    config.memory_budget = -1;
    run->available_bytes = low;
    training_check(nb_fit_choose(run));
    assert_int_equal(run->model.streamed_blocks, 0);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(what_is_streamed_changes_no_bit, open_model, close_model, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(late_fetches_change_no_bit, open_model, close_model, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(other_weights_stream_too, open_model, close_model, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            runs_with_evaluation_and_a_pause_are_the_same, open_model, close_model, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(answers_are_the_same, open_model, close_model, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(as_many_stay_as_fit, open_model, close_model, argv[1]),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
