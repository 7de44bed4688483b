/* Training the six families' tiny models against PEFT: losses, gradient norms and the adapter after three AdamW steps in fp32
 * arithmetic; and training against itself: however a step is cut, however activations are kept, the plan to the byte, and a run that is
 * taken up again. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bfloat.h"
#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "support/golden.h"
#include "train/trainer.h"
#include "training.h"

enum { LENGTH = 24, ROWS = 2, STEPS = 4 };

struct family {
    const char *name;
    char *folder; /* rows.jsonl, and what a test writes */
    char *model;  /* with the weights that the reference had, and how they are opened */
    const char *adapter;
    struct nb_golden *golden;
};

/* ---- the reference's weights ---- */

struct writing {
    const struct nb_checkpoint *checkpoint;
    struct nb_safetensors_entry entries[256];
    struct nb_tensor_spec specs[256];
    char names[256][NB_TENSOR_NAME_BYTES];
    size_t count;
};

static void add_tensor(struct writing *w, const struct nb_tensor_spec *spec, int layer)
{
    nb_tensor_name(spec, layer, w->names[w->count]);
    bool vector = spec->tensor->rows == NB_EXTENT_ONE;
    w->specs[w->count] = *spec;
    w->entries[w->count] = (struct nb_safetensors_entry){
        .name = w->names[w->count], .dtype = NB_SAFETENSORS_BF16, .rank = vector ? 1 : 2,
        .shape = {(uint64_t)(vector ? spec->columns : spec->rows), vector ? 1 : (uint64_t)spec->columns}};
    w->count++;
}

/* bitsandbytes' CPU build takes the scales of a matrix whose rows are not whole blocks from the blocks of row * (columns / 64), as if each
 * row began a new one. Where the reference was computed so, its weights are made so. */
static void read_reference_matrix(const struct writing *w, size_t i, nb_bf16 *out)
{
    const struct nb_tensor_spec *spec = &w->specs[i];
    struct nb_quant_matrix m;
    if (!spec->linear || spec->columns % NB_QUANT_BLOCK == 0) {
        training_check(nb_checkpoint_tensor_read_bf16(w->checkpoint, w->names[i], spec->rows, spec->columns, out));
        return;
    }
    training_check(nb_checkpoint_matrix_quantized(w->checkpoint, w->names[i], spec->rows, spec->columns, &m));
    uint64_t blocks = nb_quant_blocks(m.rows * m.columns), blocks_a_row = m.columns / NB_QUANT_BLOCK;
    float *absmax = malloc(blocks * sizeof *absmax);
    assert_non_null(absmax);
    nb_dequantize_absmax(&m, 0, blocks, absmax);
    for (uint64_t k = 0; k < m.rows * m.columns; k++) {
        int code = k % 2 ? m.packed[k / 2] & 15 : m.packed[k / 2] >> 4;
        out[k] = nb_bf16_from_float(
            m.codebook[code] * absmax[k / m.columns * blocks_a_row + k % m.columns / NB_QUANT_BLOCK]);
    }
    free(absmax);
}

static void write_reference_model(const char *four_bits, const char *folder)
{
    struct writing *w = calloc(1, sizeof *w);
    struct nb_checkpoint *checkpoint = NULL;
    struct nb_tensor_spec spec[NB_TENSOR_LAYER_ROLES], outer;
    struct nb_safetensors_writer *writer = NULL;
    training_check(nb_checkpoint_open(four_bits, &checkpoint));
    const struct nb_model_config *config = nb_checkpoint_config(checkpoint);
    w->checkpoint = checkpoint;
    for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
        if (nb_family_outer_tensor(config, (enum nb_tensor_role)role, &outer))
            add_tensor(w, &outer, 0);
    int tensors = nb_family_layer_tensors(config, spec);
    for (int layer = 0; layer < config->layers; layer++)
        for (int i = 0; i < tensors; i++)
            add_tensor(w, &spec[i], layer);
    char *json = nb_model_config_to_json(config), *path = nb_path_join(folder, "config.json");
    training_check(nb_make_folder(folder));
    training_check(nb_file_write(path, json, strlen(json)));
    free(json);
    free(path);
    path = nb_path_join(folder, "model.safetensors");
    training_check(nb_safetensors_writer_open(path, w->entries, w->count, &writer));
    for (size_t i = 0; i < w->count; i++) {
        size_t bytes = nb_safetensors_entry_bytes(&w->entries[i]);
        nb_bf16 *values = malloc(bytes);
        read_reference_matrix(w, i, values);
        training_check(nb_safetensors_writer_write(writer, values, bytes));
        free(values);
    }
    training_check(nb_safetensors_writer_finish(&writer, NULL));
    free(path);
    nb_checkpoint_close(&checkpoint);
    free(w);
}

static int open_family(void **state)
{
    struct family *f = calloc(1, sizeof *f);
    f->name = *state;
    f->folder = training_folder();
    f->adapter = "qlora";
    f->model = nb_format("tests/golden/models/%s", f->name);
    char *path = nb_format("%s/reference.safetensors", f->model);
    f->golden = nb_golden_open(path);
    free(path);
    if (strcmp(f->name, "qwen3") == 0) {
        char *four_bits = nb_format("%s/bnb4", f->model);
        free(f->model);
        f->model = nb_path_join(f->folder, "model");
        write_reference_model(four_bits, f->model);
        f->adapter = "lora"; /* the weights as they are */
        free(four_bits);
    }
    training_write_rows(f->folder, nb_golden_tensor(f->golden, "input_ids").data,
        nb_golden_tensor(f->golden, "labels").data, ROWS, LENGTH);
    *state = f;
    return 0;
}

static int close_family(void **state)
{
    struct family *f = *state;
    nb_golden_close(&f->golden);
    training_check(nb_remove_folder(f->folder));
    free(f->folder);
    free(f->model);
    free(f);
    return 0;
}

/* The reference's run; later keys replace none of these, so what a test varies comes as `more`. */
static char *yaml_of(const struct family *f, const char *rows, const char *more)
{
    return nb_format(
        "base_model: %s\nadapter: %s\nlora_model_dir: tests/golden/models/%s/adapter_start\nload_in_4bit: %s\n"
        "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\nweight_decay: 0.01\nmax_grad_norm: 0.5\n"
        "lr_scheduler: constant\noptimizer: adamw_torch\nsequence_len: 24\nshuffle_merged_datasets: false\n"
        "output_dir: %s/out\nmax_steps: 4\nbf16: false\nthreads: 2\n%s%s",
        f->model, f->adapter, f->name, strcmp(f->adapter, "qlora") == 0 ? "true" : "false", f->folder, f->folder, rows,
        more);
}

static const char both[] = "micro_batch_size: 2\n",
                  accumulated[] = "micro_batch_size: 1\ngradient_accumulation_steps: 2\n";

/* ---- against PEFT ---- */

static void compare_adapter(struct training *t, const struct family *f)
{
    char *path = nb_format("tests/golden/models/%s/adapter_after_3_steps/adapter_model.safetensors", f->name);
    struct nb_golden *golden = nb_golden_open(path);
    uint64_t far = 0, all = 0;
    for (size_t i = 0; nb_golden_name(golden, i); i++) {
        uint64_t count = 0;
        const float *want = nb_golden_f32(golden, "%s", nb_golden_name(golden, i));
        float *got = training_master(t, nb_golden_name(golden, i), &count);
        assert_non_null(got);
        assert_int_equal(count, nb_golden_tensor(golden, nb_golden_name(golden, i)).count);
        for (uint64_t k = 0; k < count; k++) {
            double error = fabs((double)got[k] - (double)want[k]);
            if (error > 2e-4)
                fail_msg("%s[%llu]: %g, not %g", nb_golden_name(golden, i), (unsigned long long)k, (double)got[k],
                    (double)want[k]);
            far += error > 2e-5;
        }
        all += count;
        free(got);
    }
    assert_true(all > 0);
    if (far * 1000 > all)
        fail_msg("%llu of %llu elements are further than 2e-5 off", (unsigned long long)far, (unsigned long long)all);
    nb_golden_close(&golden);
    free(path);
}

static void follow_the_reference(const struct family *f, const char *rows, const char *more)
{
    struct training t;
    const float *losses = nb_golden_f32(f->golden, "train.losses"),
                *norms = nb_golden_f32(f->golden, "train.grad_norms");
    char *yaml = yaml_of(f, rows, more);
    training_open(&t, yaml);
    for (int i = 0; i < STEPS; i++) {
        if (i == 3)
            compare_adapter(&t, f);
        struct nb_step_result r = training_step(&t, i + 1);
        if (fabs(r.loss - (double)losses[i]) > 1e-5 || fabs((double)r.grad_norm - (double)norms[i]) > 1e-5)
            fail_msg("step %d: loss %.7f, not %.7f; norm %.7f, not %.7f (%s%s)", i + 1, r.loss, (double)losses[i],
                (double)r.grad_norm, (double)norms[i], rows, more);
    }
    assert_int_equal(nb_arena_high_water(t.session->arena), t.plan.peak_bytes);
    training_close(&t);
    free(yaml);
}

static void four_steps_are_those_of_peft(void **state)
{
    const struct family *f = *state;
    follow_the_reference(f, both, "");
    follow_the_reference(f, accumulated, "");
    follow_the_reference(f, both, "gradient_checkpointing: false\n");
}

/* Packed into bins of two rows, the rows do not see each other. (The reader drops no row: 24 and 24 fit 48.) */
static void packed_rows_are_rows(void **state)
{
    const struct family *f = *state;
    char *yaml = yaml_of(f, "micro_batch_size: 1\n", "sample_packing: true\n"),
         *longer = strstr(yaml, "sequence_len: 24");
    struct training t;
    const float *losses = nb_golden_f32(f->golden, "train.losses");
    memcpy(longer, "sequence_len: 48", 16);
    training_open(&t, yaml);
    assert_int_equal(t.run->length.steps_per_epoch, 1);
    for (int i = 0; i < STEPS; i++) {
        struct nb_step_result r = training_step(&t, i + 1);
        assert_true(r.tokens == 2 * LENGTH && fabs(r.loss - (double)losses[i]) <= 1e-5);
    }
    training_close(&t);
    free(yaml);
}

/* ---- against itself ---- */

static void steps_do_not_depend_on_how_they_are_cut(void **state)
{
    const struct family *f = *state;
    struct training a, b;
    char *whole = yaml_of(f, both, ""), *cut = yaml_of(f, accumulated, "");
    training_open(&a, whole);
    training_open(&b, cut);
    for (int i = 0; i < STEPS; i++) {
        struct nb_step_result x = training_step(&a, i + 1), y = training_step(&b, i + 1);
        assert_true(x.trained_tokens == y.trained_tokens && x.tokens == y.tokens);
        assert_true(fabs(x.loss - y.loss) <= 1e-6);
        assert_true(fabs((double)x.grad_norm - (double)y.grad_norm) <= 1e-5 * (double)x.grad_norm);
    }
    float *p = training_masters(&a), *q = training_masters(&b);
    for (uint64_t i = 0; i < nb_adapter_elements(a.session->adapter); i++)
        assert_true(fabsf(p[i] - q[i]) <=
                    2e-5f); /* Adam turns a tiny gradient's last bits into a step of up to the learning rate */
    free(p);
    free(q);
    training_close(&a);
    training_close(&b);
    free(whole);
    free(cut);
}

static void threads_and_recomputing_change_no_bit(void **state)
{
    const struct family *f = *state;
    static const char *const variants[] = {"gradient_checkpointing: true\n", "gradient_checkpointing: false\n"};
    float *first = NULL;
    uint64_t bytes = 0;
    for (int v = 0; v < 6; v++) {
        struct training t;
        char *yaml = yaml_of(f, both, variants[v % 2]), *threads = strstr(yaml, "threads: 2");
        threads[9] = (char)('0' + (v / 2 == 0 ? 1 : v / 2 == 1 ? 2 : 5));
        training_open(&t, yaml);
        for (int i = 0; i < STEPS; i++)
            training_step(&t, i + 1);
        float *masters = training_masters(&t);
        bytes = nb_adapter_elements(t.session->adapter) * sizeof *masters;
        if (first)
            assert_memory_equal(first, masters, bytes);
        else
            first = masters;
        if (first != masters)
            free(masters);
        training_close(&t);
        free(yaml);
    }
    free(first);
}

/* Steps enqueue and wait once: nothing of the host's may be needed, or changed, before. */
static void late_work_changes_no_bit(void **state)
{
    const struct family *f = *state;
    struct training at_once;
    char *yaml = yaml_of(f, accumulated, "lora_dropout: 0.2\n");
    training_open(&at_once, yaml);
    for (int i = 0; i < STEPS; i++)
        training_step(&at_once, i + 1);
    float *want = training_masters(&at_once);
    for (uint64_t seed = 1; seed <= 2; seed++) {
        struct training late;
        training_open_deferred(&late, yaml, seed);
        for (int i = 0; i < STEPS; i++)
            training_step(&late, i + 1);
        float *got = training_masters(&late);
        assert_memory_equal(want, got, nb_adapter_elements(late.session->adapter) * sizeof *got);
        free(got);
        training_close(&late);
    }
    free(want);
    training_close(&at_once);
    free(yaml);
}

/* ---- the plan, and whole runs ---- */

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
        "lora_target_linear: true\nmicro_batch_size: 2\nbnb_4bit_quant_type: fp4\nbnb_4bit_use_double_quant: "
        "false\nbf16: false\nmax_steps: 2\n",
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
static void patience_ends_and_the_best_is_kept(void **state)
{
    const struct family *f = *state;
    write_many_rows(f, 24, 40);
    char *
        yaml = many_yaml(f, "best",
           "lora_target_linear: true\nmicro_batch_size: 4\nbf16: false\nmax_steps: 40\nval_set_size: 6\neval_steps: 1\n"
           "save_total_limit: 1\nearly_stopping_patience: 3\nload_best_model_at_end: true\n"
           "lr_scheduler: constant\n"),
       *rate = strstr(yaml, "learning_rate: 1e-3");
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(four_steps_are_those_of_peft, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(packed_rows_are_rows, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            steps_do_not_depend_on_how_they_are_cut, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            threads_and_recomputing_change_no_bit, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(late_work_changes_no_bit, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            the_plan_is_the_program_to_the_byte, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            a_loss_that_is_not_finite_stops_the_run, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(a_stop_saves_what_was_done, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            patience_ends_and_the_best_is_kept, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            a_run_taken_up_again_ends_with_the_same_bytes, open_family, close_family, argv[1]),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
