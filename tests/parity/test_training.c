/* Training the six families' tiny models against PEFT: losses, gradient norms and the adapter after three AdamW steps in fp32
 * arithmetic; and training against itself: however a step is cut, however activations are kept, whenever work is done. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bfloat.h"
#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "support/golden.h"
#include "train/optimizer_state.h"
#include "train/pager.h"
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

/* What the blocks keep, drawn from `number`, and whether matrices are dequantized once. */
static void keep_this_and_that(struct nb_run *run, uint64_t number)
{
    int blocks = nb_checkpoint_config(run->checkpoint)->layers;
    for (int i = 0; number >= 2 && i < blocks; i++)
        run->keep[i] = (enum nb_keep)((number / 2 + (uint64_t)i) % NB_KEEP_NOTHING);
    run->model.dequantize_once = number % 2;
}

static void threads_and_recomputing_change_no_bit(void **state)
{
    const struct family *f = *state;
    static const char *const keeps[] = {"true", "attention", "false", "auto"};
    float *first = NULL;
    uint64_t bytes = 0;
    for (int v = 0; v < 12; v++) {
        struct training t;
        char *checkpointing = nb_format("gradient_checkpointing: %s\n", keeps[v % 4]);
        char *yaml = yaml_of(f, both, checkpointing), *threads = strstr(yaml, "threads: 2");
        free(checkpointing);
        threads[9] = (char)('0' + (v / 4 == 0 ? 1 : v / 4 == 1 ? 2 : 5));
        training_open_changed(&t, yaml, keep_this_and_that, (uint64_t)v);
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

/* ---- paging ---- */

/* Masters and moments as a checkpoint has them, and the adapter as PEFT reads it, of a run of STEPS steps. */
struct outcome {
    double loss[STEPS];
    float grad_norm[STEPS];
    char *state, *adapter;
    size_t state_bytes, adapter_bytes;
};

static void read_state(struct training *t, const struct family *f, struct outcome *outcome)
{
    char *state = nb_path_join(f->folder, "state.safetensors"), *adapter = nb_path_join(f->folder, "adapter_model.safetensors");
    struct nb_session *s = t->session;
    training_check(nb_optimizer_state_save(s, state));
    training_check(nb_peft_save(s->adapter, s->stream, s->staging, f->folder, "base"));
    training_check(nb_file_read(state, 1 << 26, false, &outcome->state, &outcome->state_bytes));
    training_check(nb_file_read(adapter, 1 << 26, false, &outcome->adapter, &outcome->adapter_bytes));
    free(state);
    free(adapter);
}

static void free_outcome(struct outcome *outcome)
{
    free(outcome->state);
    free(outcome->adapter);
}

static void take_steps(struct training *t, const struct family *f, struct outcome *outcome)
{
    for (int i = 0; i < STEPS; i++) {
        struct nb_step_result r = training_step(t, i + 1);
        outcome->loss[i] = r.loss;
        outcome->grad_norm[i] = r.grad_norm;
    }
    read_state(t, f, outcome);
    assert_int_equal(nb_arena_high_water(t->session->arena), t->plan.peak_bytes);
    assert_int_equal(nb_arena_high_water(t->session->pinned), t->plan.pinned_bytes);
}

static void assert_same_outcome(const struct outcome *want, const struct outcome *got)
{
    assert_memory_equal(want->loss, got->loss, sizeof want->loss);
    assert_memory_equal(want->grad_norm, got->grad_norm, sizeof want->grad_norm);
    assert_int_equal(want->state_bytes, got->state_bytes);
    assert_memory_equal(want->state, got->state, want->state_bytes);
    assert_int_equal(want->adapter_bytes, got->adapter_bytes);
    assert_memory_equal(want->adapter, got->adapter, want->adapter_bytes);
}

/* How a run pages: bytes of a chunk, and the seed of a device whose work is late (0: it is done at once). */
enum { SEEDS = 16 };

static void page(struct nb_run *run, uint64_t number)
{
    run->page_bytes = number / SEEDS;
    if (number % SEEDS)
        run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = true, .deferred_seed = number % SEEDS};
}

/* Rank 64 gives some tensors moments in 8 bits and some in 32; without a start its values are drawn. */
static char *paging_yaml(const struct family *f, const char *optimizer, const char *more)
{
    return nb_format(
        "base_model: %s\nadapter: %s\ndatasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\n"
        "weight_decay: 0.01\nmax_grad_norm: 0.5\nlr_scheduler: constant\noptimizer: %s\nsequence_len: 24\n"
        "lora_dropout: 0.2\nmicro_batch_size: 1\ngradient_accumulation_steps: 2\noutput_dir: %s/out\nmax_steps: 4\nthreads: 1\n%s",
        f->model, f->adapter, f->folder, optimizer, f->folder, more);
}

static const char drawn[] = "lora_target_linear: true\nlora_r: 64\nbf16: false\n",
                  drawn_bf16[] = "lora_target_linear: true\nlora_r: 64\nbf16: true\n";

/* In the first so many of the ways below. */
static void compare_paged(const struct family *f, const char *const names[2], const char *more, size_t count)
{
    static const struct {
        uint64_t page_bytes; /* 1: a tensor a chunk; 0: the pager's choice */
        const char *resident;
        int seed;
    } ways[] = {
        {0, NULL, 0}, {1, "auto", 1}, {40000, "20kB", 2}, {1, "100GB", 0}, {1, "20kB", 3}, {0, "auto", 4}, {1, "auto", 5},
    };
    struct outcome want = {0};
    struct training t;
    char *yaml = paging_yaml(f, names[0], more);
    training_open(&t, yaml);
    uint64_t whole = t.plan.peak_bytes;
    assert_null(nb_stepper_pager(t.stepper));
    take_steps(&t, f, &want);
    training_close(&t);
    free(yaml);
    for (size_t i = 0; i < count && i < sizeof ways / sizeof *ways; i++) {
        bool keeps_all = ways[i].resident && strcmp(ways[i].resident, "100GB") == 0;
        char *how = ways[i].resident ? nb_format("%sresident_optimizer_bytes: %s\n", more, ways[i].resident)
                                     : nb_format("%s", more);
        struct outcome got = {0};
        yaml = paging_yaml(f, names[1], how);
        training_open_changed(&t, yaml, page, ways[i].page_bytes * SEEDS + (uint64_t)ways[i].seed);
        take_steps(&t, f, &got);
        assert_same_outcome(&want, &got);
        assert_int_equal(t.plan.pinned_bytes == 0, keeps_all);
        assert_true(keeps_all ? t.plan.peak_bytes == whole : t.plan.peak_bytes < whole);
        if (ways[i].page_bytes == 1 && !keeps_all) {
            const struct nb_pager_layout *layout = nb_pager_layout_of(nb_stepper_pager(t.stepper));
            assert_int_equal(layout->chunks,
                nb_adapter_trainable_count(t.session->adapter) - nb_adapter_resident(t.session->adapter));
            assert_true(layout->chunks > 2 * NB_PAGER_BUFFERS_MAX && layout->buffers == NB_PAGER_BUFFERS_MAX);
        }
        free_outcome(&got);
        training_close(&t);
        free(yaml);
        free(how);
    }
    free_outcome(&want);
}

static void paging_changes_no_bit(void **state)
{
    const struct family *f = *state;
    static const char *const in_8[] = {"adamw_8bit", "paged_adamw_8bit"}, *const in_32[] = {"adamw_torch", "paged_adamw_32bit"};
    char *started = nb_format("lora_model_dir: tests/golden/models/%s/adapter_start\nbf16: false\n", f->name);
    compare_paged(f, in_8, drawn_bf16, SIZE_MAX);
    compare_paged(f, in_32, drawn, 3);
    compare_paged(f, in_32, started, 4);
    free(started);
}

/* A step whose loss is not finite: everything comes back as it went, on the device and in the records, padding included. */
static void an_abandoned_step_writes_back_what_it_read(void **state)
{
    const struct family *f = *state;
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct training t;
        struct outcome before = {0}, after = {0};
        char *yaml = paging_yaml(f, "paged_adamw_8bit", drawn);
        training_open_changed(&t, yaml, page, 1 * SEEDS + seed);
        struct nb_session *s = t.session;
        training_step(&t, 1);
        training_step(&t, 2);
        read_state(&t, f, &before);
        uint64_t bytes = nb_adapter_paged_bytes(s->adapter);
        unsigned char *pages = malloc(bytes);
        assert_non_null(pages);
        memcpy(pages, nb_adapter_page(s->adapter, 0), bytes);
        float not_finite = NAN;
        nb_dptr copy = nb_adapter_memory_of(s->adapter)->copy;
        training_check(s->device->upload(s->device, s->stream, copy, &not_finite, sizeof not_finite));
        training_check(s->device->stream_wait(s->device, s->stream));
        struct nb_step_rows rows;
        struct nb_step_result result;
        training_check(nb_batch_plan_step(t.run->batches, 2, 0, &rows));
        training_check(nb_stepper_run(t.stepper, t.run->data, &rows, 3, 1e-3, &result));
        assert_false(result.finite);
        assert_memory_equal(pages, nb_adapter_page(s->adapter, 0), bytes);
        read_state(&t, f, &after);
        assert_same_outcome(&before, &after);
        free(pages);
        free_outcome(&before);
        free_outcome(&after);
        training_close(&t);
        free(yaml);
    }
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
        cmocka_unit_test_prestate_setup_teardown(paging_changes_no_bit, open_family, close_family, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            an_abandoned_step_writes_back_what_it_read, open_family, close_family, argv[1]),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
