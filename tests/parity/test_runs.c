/* Whole training runs of the tiny models: the plan to the byte, what ends a run, and a run that is taken up again. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "train/checkpoint_state.h"
#include "train/fit.h"
#include "train/trainer.h"
#include "training.h"

struct family {
    const char *name;
    char *folder; /* the rows, and what a run writes */
};

static int open_family(void **state)
{
    struct family *f = calloc(1, sizeof *f);
    f->name = *state;
    f->folder = training_folder();
    *state = f;
    return 0;
}

static int close_family(void **state)
{
    struct family *f = *state;
    training_check(nb_remove_folder(f->folder));
    free(f->folder);
    free(f);
    return 0;
}

/* Rows of many lengths, the labels of their second halves trained. */
static void write_many_rows(const struct family *f, int rows, int longest)
{
    char *path = nb_path_join(f->folder, "many.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < rows; r++) {
        int length = 4 + (r * 7) % (longest - 3);
        for (int part = 0; part < 2; part++) {
            fputs(part ? "], \"labels\": [" : "{\"input_ids\": [", file);
            for (int i = 0; i < length; i++)
                fprintf(file, "%s%d", i ? ", " : "", part && i < length / 2 ? -100 : 3 + (r * 31 + i * 17) % 200);
        }
        fputs("]}\n", file);
    }
    assert_int_equal(fclose(file), 0);
    free(path);
}

static char *many_yaml(const struct family *f, const char *out, const char *more)
{
    return nb_format(
        "base_model: tests/golden/models/%s\nadapter: qlora\ndatasets: [{path: %s/many.jsonl, type: tokens}]\n"
        "learning_rate: 1e-3\nsequence_len: 40\nlora_r: 4\nlora_alpha: 8\noutput_dir: %s/%s\nthreads: 2\n%s",
        f->name, f->folder, f->folder, out, more);
}

static char *read_metrics(const struct family *f, const char *out)
{
    char *path = nb_format("%s/%s/metrics.jsonl", f->folder, out), *text = NULL;
    size_t bytes = 0;
    training_check(nb_file_read(path, 1 << 24, false, &text, &bytes));
    free(path);
    return text;
}

static void train(const char *yaml, bool resume)
{
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    training_config(yaml, &config);
    training_check(nb_train(&config, &options));
    nb_config_destroy(&config);
}

static uint64_t planned_bytes(const char *yaml)
{
    struct nb_config config;
    struct nb_run *run = NULL;
    struct nb_plan plan;
    training_config(yaml, &config);
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_TRAIN};
    training_check(nb_run_open(&args, &run));
    training_check(nb_plan_make(run, &plan));
    uint64_t sum = 0, peak = plan.peak_bytes;
    for (int c = 0; c < NB_CATEGORY_COUNT; c++)
        sum += plan.category_bytes[c];
    assert_int_equal(sum, peak);
    nb_plan_destroy(&plan);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    return peak;
}

static void the_plan_is_the_program_to_the_byte(void **state)
{
    const struct family *f = *state;
    static const char *const configs[] = {
        "lora_target_linear: true\nmicro_batch_size: 2\nbf16: false\nmax_steps: 3\n",
        "lora_target_linear: true\nmicro_batch_size: 2\nsample_packing: true\nbf16: false\nmax_steps: 3\n",
        "lora_target_linear: true\nmicro_batch_size: 1\ngradient_accumulation_steps: 3\nbf16: true\nmax_steps: 3\n",
        "lora_target_modules: [q_proj, v_proj]\nmicro_batch_size: 3\noptimizer: adamw_8bit\nbf16: false\nmax_steps: "
        "3\n",
        "lora_target_linear: true\nmicro_batch_size: 2\ngradient_checkpointing: false\nbf16: false\nmax_steps: 3\n",
        "lora_target_linear: true\nmicro_batch_size: 2\nval_set_size: 5\neval_steps: 1\nsave_steps: 1\nbf16: "
        "false\nmax_steps: 3\n",
        "lora_target_modules: [down_proj]\nmicro_batch_size: 4\nval_set_size: 0.25\nlora_dropout: 0.1\nbf16: "
        "true\nmax_steps: 3\n",
        "lora_target_linear: true\nmicro_batch_size: 2\ngradient_checkpointing: attention\nbf16: true\nmax_steps: 3\n",
        "lora_target_linear: true\nmicro_batch_size: 2\nbnb_4bit_quant_type: fp4\nbnb_4bit_use_double_quant: "
        "false\nbf16: false\nmax_steps: 2\n",
        "lora_target_linear: true\nmicro_batch_size: 2\noptimizer: paged_adamw_8bit\nval_set_size: 5\neval_steps: 1\n"
        "save_steps: 1\nbf16: true\nmax_steps: 3\n",
        "lora_target_modules: [q_proj, v_proj]\nmicro_batch_size: 1\noptimizer: paged_adamw_32bit\n"
        "resident_optimizer_bytes: 20kB\nbf16: false\nmax_steps: 3\n",
    };
    write_many_rows(f, 24, 40);
    for (size_t i = 0; i < sizeof configs / sizeof configs[0]; i++) {
        char *out = nb_format("plan%zu", i), *yaml = many_yaml(f, out, configs[i]);
        uint64_t planned = planned_bytes(yaml);
        train(yaml, false);
        char *metrics = read_metrics(f, out),
             *wanted = nb_format("\"memory_bytes\":%llu}", (unsigned long long)planned);
        const char *last = NULL;
        for (const char *at = metrics; (at = strstr(at, "\"memory_bytes\":")); at++)
            last = at;
        assert_non_null(last);
        if (strncmp(last, wanted, strlen(wanted)) != 0)
            fail_msg("config %zu: planned %s, the run's last line says %.40s", i, wanted, last);
        free(metrics);
        free(wanted);
        free(yaml);
        free(out);
    }
}

/* The peak with what `auto` keeps in so many bytes, and how many blocks keep something. */
static uint64_t peak_within(struct nb_run *run, uint64_t bytes, int *kept)
{
    struct nb_plan plan;
    run->available_bytes = bytes;
    training_check(nb_fit_choose(run));
    training_check(nb_plan_make(run, &plan));
    uint64_t peak = plan.peak_bytes;
    *kept = 2 * plan.kept_everything + plan.kept_attention;
    nb_plan_destroy(&plan);
    return peak;
}

static void as_much_is_kept_as_fits(void **state)
{
    const struct family *f = *state;
    struct nb_config config;
    struct nb_run *run = NULL;
    int least, most, before = 0;
    write_many_rows(f, 24, 40);
    char *yaml = many_yaml(f, "auto",
        "lora_target_linear: true\nmicro_batch_size: 2\ngradient_checkpointing: auto\nbf16: true\nmax_steps: 2\n");
    training_config(yaml, &config);
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_TRAIN};
    training_check(nb_run_open(&args, &run));
    int blocks = nb_checkpoint_config(run->checkpoint)->layers;
    uint64_t high = peak_within(run, UINT64_MAX, &most), low = peak_within(run, 1, &least);
    assert_true(most == 2 * blocks && least == 0 && low < high);
    for (uint64_t bytes = low; bytes <= high; bytes += (high - low) / 16) {
        int kept;
        assert_true(peak_within(run, bytes, &kept) <= bytes);
        assert_true(kept >= before);
        before = kept;
    }
    assert_true(peak_within(run, high, &most) == high && most == 2 * blocks);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(yaml);
}

static nb_status try_to_train(const char *yaml, const volatile sig_atomic_t *stop)
{
    struct nb_train_options options = {.stop = stop};
    struct nb_config config;
    training_config(yaml, &config);
    nb_status status = nb_train(&config, &options);
    nb_config_destroy(&config);
    return status;
}

static bool exists_in(const struct family *f, const char *name)
{
    char *path = nb_path_join(f->folder, name);
    bool exists = nb_path_exists(path);
    free(path);
    return exists;
}

/* A learning rate and a scale that no weights survive: the run stops, names step and rows, and what was saved before stays. */
static void a_loss_that_is_not_finite_stops_the_run(void **state)
{
    const struct family *f = *state;
    write_many_rows(f, 24, 40);
    char *yaml = many_yaml(f, "wild",
        "lora_target_linear: true\nmicro_batch_size: 2\nbf16: false\nmax_steps: 9\nsave_steps: 1\n"
        "lr_scheduler: constant\nshuffle_merged_datasets: false\n");
    struct nb_train_options options = {0};
    struct nb_config config;
    training_config(yaml, &config);
    config.learning_rate = 100; /* beyond what a file may say */
    config.lora_alpha = INT64_MAX;
    assert_int_equal(nb_train(&config, &options), NB_NUMERIC);
    nb_config_destroy(&config);
    const char *said = nb_status_message();
    assert_true(
        strncmp(said, "step ", 5) == 0 && strstr(said, "is not finite on rows ") && strstr(said, "many.jsonl:"));
    int step = said[5] - '0';
    assert_true(step >= 2 && step <= 9); /* the first step's weights are still the initial ones */
    char *last = nb_format("wild/checkpoint-%d", step - 1), *next = nb_format("wild/checkpoint-%d", step);
    assert_non_null(strstr(said, last));
    assert_true(exists_in(f, last));
    assert_false(exists_in(f, next) || exists_in(f, "wild/adapter_model.safetensors"));
    free(last);
    free(next);
    free(yaml);
}

static void a_stop_saves_what_was_done(void **state)
{
    const struct family *f = *state;
    static const volatile sig_atomic_t stop = 1;
    write_many_rows(f, 24, 40);
    char *yaml = many_yaml(f, "stopped", "lora_target_linear: true\nmicro_batch_size: 2\nbf16: false\nmax_steps: 3\n");
    assert_int_equal(try_to_train(yaml, &stop), NB_INTERRUPTED);
    assert_false(exists_in(f, "stopped/adapter_model.safetensors"));
    train(yaml, true); /* nothing was saved before the first step: it begins anew */
    assert_true(
        exists_in(f, "stopped/adapter_model.safetensors") && exists_in(f, "stopped/checkpoint-3/trainer_state.json"));
    free(yaml);
}

/* A rate at which the evaluation soon gets worse: the run ends early, and what is left is the best step's adapter. */
static void find_the_best(const struct family *f, const char *optimizer)
{
    char *more = nb_format("lora_target_linear: true\nmicro_batch_size: 4\nbf16: false\nmax_steps: 40\nval_set_size: 6\n"
                           "eval_steps: 1\nsave_total_limit: 1\nearly_stopping_patience: 3\nload_best_model_at_end: true\n"
                           "lr_scheduler: constant\noptimizer: %s\n",
        optimizer);
    char *yaml = many_yaml(f, "best", more), *rate = strstr(yaml, "learning_rate: 1e-3");
    memcpy(rate, "learning_rate: 2e-1", 19);
    train(yaml, false);
    char *metrics = read_metrics(f, "best"), *best_file = NULL, *kept_file = NULL;
    double least = INFINITY;
    int evaluations = 0, best = 0;
    for (const char *at = metrics; (at = strstr(at, "\"eval_loss\":")); at++) {
        double loss = strtod(at + 12, NULL);
        evaluations++;
        if (loss < least) {
            least = loss;
            best = evaluations;
        }
    }
    assert_true(evaluations < 40);
    assert_int_equal(evaluations, best + 3);
    char *path = nb_format("%s/best/checkpoint-%d/adapter_model.safetensors", f->folder, best);
    char *kept = nb_format("%s/best/adapter_model.safetensors", f->folder);
    size_t best_bytes = 0, kept_bytes = 0;
    training_check(nb_file_read(path, 1 << 24, false, &best_file, &best_bytes));
    training_check(nb_file_read(kept, 1 << 24, false, &kept_file, &kept_bytes));
    assert_int_equal(best_bytes, kept_bytes);
    assert_memory_equal(best_file, kept_file, best_bytes);
    free(best_file);
    free(kept_file);
    free(path);
    free(kept);
    free(metrics);
    free(yaml);
    free(more);
}

static void patience_ends_and_the_best_is_kept(void **state)
{
    const struct family *f = *state;
    static const char *const optimizers[] = {"adamw_torch", "paged_adamw_32bit"};
    write_many_rows(f, 24, 40);
    for (size_t i = 0; i < 2; i++) {
        find_the_best(f, optimizers[i]);
        char *run = nb_path_join(f->folder, "best");
        training_check(nb_remove_folder(run));
        free(run);
    }
}

/* A metrics line without its three fields of time. */
static void blank_times(char *text)
{
    static const char *const fields[] = {"\"seconds\":", "\"tokens_per_second\":", "\"memory_bytes\":"};
    for (size_t i = 0; i < 3; i++)
        for (char *at = text; (at = strstr(at, fields[i]));) {
            char *end = at + strcspn(at, ",}");
            memmove(at, end, strlen(end) + 1);
        }
}

static void forget(const struct family *f, const char *name)
{
    char *path = nb_format("%s/whole/%s", f->folder, name);
    assert_true(nb_path_exists(path));
    training_check(nb_remove_folder(path));
    free(path);
}

/* Everything after step 4 is lost, and some of what came after it is half written: the run ends with the same bytes. */
static void a_run_taken_up_again_ends_with_the_same_bytes(void **state)
{
    const struct family *f = *state;
    static const char more[] =
        "lora_target_linear: true\nmicro_batch_size: 2\nsample_packing: true\nlora_dropout: 0.1\noptimizer: "
        "adamw_8bit\n"
        "val_set_size: 6\neval_steps: 3\nsave_steps: 2\nmax_steps: 9\nlr_scheduler: cosine\nwarmup_steps: 2\n"
        "bf16: false\n";
    write_many_rows(f, 24, 40);
    char *yaml = many_yaml(f, "whole", more), *adapter = nb_format("%s/whole/adapter_model.safetensors", f->folder);
    char *first = NULL, *second = NULL;
    size_t first_bytes = 0, second_bytes = 0;
    train(yaml, false);
    training_check(nb_file_read(adapter, 1 << 26, false, &first, &first_bytes));
    char *first_metrics = read_metrics(f, "whole");
    forget(f, "checkpoint-9");
    forget(f, "checkpoint-8");
    forget(f, "checkpoint-6");
    forget(f, "adapter_model.safetensors");
    char *cut = nb_format("%s/whole/checkpoint-8.tmp/config.yml", f->folder), *slash = strrchr(cut, '/');
    *slash = 0;
    training_check(nb_make_folder(cut));
    *slash = '/';
    training_check(nb_file_write(cut, "half", 4));
    train(yaml, true);
    training_check(nb_file_read(adapter, 1 << 26, false, &second, &second_bytes));
    char *second_metrics = read_metrics(f, "whole");
    assert_false(nb_path_exists(cut));
    assert_int_equal(first_bytes, second_bytes);
    assert_memory_equal(first, second, first_bytes);
    blank_times(first_metrics);
    blank_times(second_metrics);
    assert_string_equal(first_metrics, second_metrics);
    free(cut);
    free(first);
    free(second);
    free(first_metrics);
    free(second_metrics);
    free(adapter);
    free(yaml);
}

/* ---- paging ---- */

static void same_file(const struct family *f, const char *a, const char *b)
{
    char *path[2] = {nb_path_join(f->folder, a), nb_path_join(f->folder, b)}, *text[2];
    size_t bytes[2];
    for (int i = 0; i < 2; i++)
        training_check(nb_file_read(path[i], 1 << 26, false, &text[i], &bytes[i]));
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(text[0], text[1], bytes[0]);
    for (int i = 0; i < 2; i++) {
        free(path[i]);
        free(text[i]);
    }
}

/* Rank 64: tensors with moments in 8 bits and in 32. */
static void train_paged(const struct family *f, const char *out, const char *optimizer, bool resume)
{
    char *yaml = nb_format(
        "base_model: tests/golden/models/%s\nadapter: qlora\ndatasets: [{path: %s/many.jsonl, type: tokens}]\n"
        "learning_rate: 1e-3\nsequence_len: 40\nlora_r: 64\nlora_target_linear: true\nlora_dropout: 0.1\nmicro_batch_size: 2\n"
        "gradient_accumulation_steps: 2\nval_set_size: 6\neval_steps: 2\nsave_steps: 2\nmax_steps: 6\nbf16: true\nthreads: 2\n"
        "output_dir: %s/%s\noptimizer: %s",
        f->name, f->folder, f->folder, out, optimizer);
    train(yaml, resume);
    free(yaml);
}

static void lose_the_end(const struct family *f, const char *run)
{
    static const char *const lost[] = {"checkpoint-6", "adapter_model.safetensors"};
    for (size_t i = 0; i < 2; i++) {
        char *path = nb_format("%s/%s/%s", f->folder, run, lost[i]);
        training_check(nb_remove_folder(path));
        free(path);
    }
}

/* Paged from the beginning, from step 4 on, or until then: one run. */
static void a_paged_run_is_the_run_it_pages(void **state)
{
    const struct family *f = *state;
    static const char *const ends[] = {
        "paged_adamw_8bit\n", "paged_adamw_8bit\nresident_optimizer_bytes: 300kB\n", "adamw_bnb_8bit\n"};
    write_many_rows(f, 24, 40);
    train_paged(f, "resident", "adamw_8bit\n", false);
    train_paged(f, "paged", "paged_adamw_8bit\n", false);
    for (size_t i = 0; i <= sizeof ends / sizeof *ends; i++) {
        same_file(f, "resident/adapter_model.safetensors", "paged/adapter_model.safetensors");
        same_file(f, "resident/checkpoint-6/adapter_model.safetensors", "paged/checkpoint-6/adapter_model.safetensors");
        same_file(f, "resident/checkpoint-6/optimizer.safetensors", "paged/checkpoint-6/optimizer.safetensors");
        if (i < sizeof ends / sizeof *ends) {
            lose_the_end(f, "paged");
            train_paged(f, "paged", ends[i], true);
        }
    }
}

static void train_chosen(const struct family *f, const char *out, const char *more, bool resume)
{
    char *yaml = nb_format(
        "base_model: tests/golden/models/%s\nadapter: qlora\ndatasets: [{path: %s/many.jsonl, type: tokens}]\n"
        "learning_rate: 1e-3\nsequence_len: 40\nlora_r: 4\nlora_target_linear: true\nmicro_batch_size: auto\n"
        "gradient_accumulation_steps: 4\nsave_steps: 2\nmax_steps: 6\nbf16: true\nthreads: 2\noutput_dir: %s/%s\n%s",
        f->name, f->folder, f->folder, out, more);
    train(yaml, resume);
    free(yaml);
}

/* The last bits depend on it: a run that goes on with less memory takes the one that it began with. */
static void a_chosen_micro_batch_is_taken_again(void **state)
{
    const struct family *f = *state;
    struct nb_trainer_state read;
    write_many_rows(f, 24, 40);
    train_chosen(f, "whole", "", false);
    train_chosen(f, "halves", "", false);
    lose_the_end(f, "halves");
    train_chosen(f, "halves", "gradient_checkpointing: true\nmemory_budget: 6600kB\n", true);
    same_file(f, "whole/adapter_model.safetensors", "halves/adapter_model.safetensors");
    same_file(f, "whole/checkpoint-6/optimizer.safetensors", "halves/checkpoint-6/optimizer.safetensors");
    char *path = nb_format("%s/halves/checkpoint-6", f->folder);
    training_check(nb_checkpoint_state_read(path, &read));
    assert_int_equal(read.micro_batch_size, 4);
    free(path);
}

static void moments_keep_their_bits(void **state)
{
    const struct family *f = *state;
    struct nb_train_options options = {.resume = true};
    struct nb_config config;
    write_many_rows(f, 24, 40);
    char *yaml = many_yaml(f, "bits", "lora_target_linear: true\nbf16: false\nmax_steps: 1\noptimizer: paged_adamw_8bit\n");
    train(yaml, false);
    free(yaml);
    yaml = many_yaml(f, "bits", "lora_target_linear: true\nbf16: false\nmax_steps: 1\noptimizer: paged_adamw_32bit\n");
    training_config(yaml, &config);
    assert_int_equal(nb_train(&config, &options), NB_USAGE);
    assert_int_equal(strncmp(nb_status_message(), "optimizer: ", 11), 0);
    nb_config_destroy(&config);
    free(yaml);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(as_much_is_kept_as_fits, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(the_plan_is_the_program_to_the_byte, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(a_loss_that_is_not_finite_stops_the_run, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(a_stop_saves_what_was_done, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(patience_ends_and_the_best_is_kept, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(a_run_taken_up_again_ends_with_the_same_bytes, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(a_paged_run_is_the_run_it_pages, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(a_chosen_micro_batch_is_taken_again, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(moments_keep_their_bits, open_family, close_family, argv[1]),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
