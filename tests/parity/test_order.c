/* Micro-batches that go through a layer together: wherever weights, block inputs, masters and moments are meanwhile, a
 * run leaves the same bytes and takes what was planned, and the weights of a step are fetched, and dequantized, once
 * for all of its micro-batches. A model of seven layers, all different. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "support/deep_model.h"
#include "support/red_zone.h"
#include "train/device.h"
#include "train/trainer.h"
#include "training.h"

enum { LAYERS = 7, STEPS = 3, ROWS = 13, LONGEST = 30, WIDTH = 64, HEADS = 4, MATRICES = 7 };

struct model {
    char *folder, *path;
};

static char *cache_folder;

/* Rows of many lengths, the labels of their second halves trained. */
static void write_rows(const char *folder)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < ROWS; r++) {
        int length = 5 + r * 7 % (LONGEST - 4);
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

static int open_model(void **state)
{
    struct model *m = calloc(1, sizeof *m);
    m->folder = training_folder();
    m->path = nb_path_join(m->folder, "model");
    training_check(nb_test_write_deep_model("tests/golden/models/llama", LAYERS, m->path));
    write_rows(m->folder);
    cache_folder = nb_path_join(m->folder, "cache");
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
    free(cache_folder);
    return 0;
}

static char *yaml_of(const struct model *m, const char *out, int micro_batches, const char *more)
{
    return nb_format("base_model: %s\nadapter: qlora\nlora_r: 4\nlora_alpha: 8\n%s"
                     "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-2\nlr_scheduler: constant\n"
                     "sequence_len: %d\ngradient_accumulation_steps: %d\nlora_dropout: 0.1\nthreads: 1\n"
                     "output_dir: %s/%s\n%s",
        m->path, strstr(more, "lora_target") ? "" : "lora_target_linear: true\n", m->folder, LONGEST, micro_batches,
        m->folder, out, more);
}

/* ---- the same bytes ---- */

struct trained {
    struct nb_step_result step[STEPS];
    uint64_t fetched[STEPS]; /* bytes of weights */
    float *masters;
    uint64_t bytes;
};

static struct trained take_steps(struct training *t)
{
    struct trained r = {0};
    for (int i = 0; i < STEPS; i++) {
        uint64_t before = nb_model_fetched_bytes(t->session->model);
        r.step[i] = training_step(t, i + 1);
        r.fetched[i] = nb_model_fetched_bytes(t->session->model) - before;
    }
    struct nb_measure measured;
    training_check(nb_plan_measure(t->run, &measured));
    assert_true(measured.peak_bytes == t->plan.peak_bytes && measured.pinned_bytes == t->plan.pinned_bytes);
    r.masters = training_masters(t);
    r.bytes = nb_adapter_elements(t->session->adapter) * sizeof *r.masters;
    assert_int_equal(nb_arena_high_water(t->session->arena), t->plan.peak_bytes);
    assert_int_equal(nb_arena_high_water(t->session->pinned), t->plan.pinned_bytes);
    return r;
}

static struct trained train(const char *yaml, training_change *change, uint64_t number)
{
    struct training t;
    training_open_changed(&t, yaml, change, number);
    struct trained r = take_steps(&t);
    training_close(&t);
    return r;
}

static void assert_same(const struct trained *a, const struct trained *b, const char *what, uint64_t number)
{
    bool same = a->bytes == b->bytes && memcmp(a->masters, b->masters, a->bytes) == 0;
    for (int i = 0; i < STEPS; i++)
        same = same && a->step[i].loss == b->step[i].loss && a->step[i].grad_norm == b->step[i].grad_norm;
    if (!same)
        fail_msg("%s, case %llu: losses %.9g %.9g %.9g, not %.9g %.9g %.9g", what, (unsigned long long)number,
            a->step[0].loss, a->step[1].loss, a->step[2].loss, b->step[0].loss, b->step[1].loss, b->step[2].loss);
}

enum { CASES = 32, STRIDE = 7 };

/* By a case's number: what is kept, what leaves the device, and, in the second half, how late. */
static void vary(struct nb_run *run, uint64_t number)
{
    static const int streamed[] = {0, LAYERS, 4};
    int most = nb_pass_offloaded_max(LAYERS, run->micro_batches);
    const int offloaded[] = {most, 0, 1, most - 1, 3};
    run->layer_major = true;
    run->offloaded = offloaded[number % 5];
    run->model.streamed_blocks = streamed[number % 3];
    run->model.streams_from_file = number % 3 && number % 8 >= 5;
    run->model.cache_folder = run->model.streams_from_file ? cache_folder : NULL;
    run->model.dequantize_once = number / 3 % 2;
    run->model.embedding_on_host = number / 2 % 2;
    run->page_bytes = number % 2; /* a tensor a chunk, where they are paged */
    for (int i = 0; i < LAYERS; i++)
        run->keep[i] = number % 4 == 3 ? (enum nb_keep)((number / 4 + (uint64_t)i) % NB_KEEP_NOTHING)
                                       : (enum nb_keep)(number % 4);
    if (number >= CASES / 2)
        run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = true, .deferred_seed = number};
}

/* Thirteen rows: the epoch's last step has fewer micro-batches than the others, and its last one fewer rows. */
static void no_bit_changes(void **state)
{
    const struct model *m = *state;
    static const char *const ways[] = {
        "bf16: false\nmicro_batch_size: 1\n",
        "bf16: true\nmicro_batch_size: 2\noptimizer: paged_adamw_8bit\n",
        "bf16: false\nmicro_batch_size: 1\nsample_packing: true\n",
        "bf16: true\nmicro_batch_size: 2\n"
        "lora_target_modules: [model.layers.2.self_attn.v_proj, model.layers.2.mlp.down_proj, "
        "model.layers.5.mlp.up_proj]\n",
    };
    static const int micro_batches[] = {1, 2, 3, 5};
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
        for (size_t n = 0; n < sizeof micro_batches / sizeof *micro_batches; n++) {
            char *yaml = yaml_of(m, "out", micro_batches[n], ways[w]);
            struct trained want = train(yaml, NULL, 0);
            for (uint64_t number = (4 * w + n) % STRIDE; number < CASES; number += STRIDE) {
                struct trained got = train(yaml, vary, number);
                assert_same(&got, &want, yaml, number);
                free(got.masters);
            }
            free(want.masters);
            free(yaml);
        }
}

/* ---- once for all ---- */

static void stream_all(struct nb_run *run, uint64_t layer_major)
{
    run->layer_major = layer_major;
    run->model.streamed_blocks = LAYERS;
}

/* From the second step on; in the first, the buffers are empty. */
static void weights_are_fetched_once_a_step(void **state)
{
    const struct model *m = *state;
    for (int n = 2; n <= 4; n += 2) {
        char *yaml = yaml_of(m, "out", n, "micro_batch_size: 1\nbf16: false\n");
        struct training t;
        training_open_changed(&t, yaml, stream_all, 1);
        uint64_t unit = t.plan.pinned_bytes / LAYERS - NB_TEST_RED_ZONE, planned = t.plan.streamed_bytes;
        struct trained by_layer = take_steps(&t), by_batch = train(yaml, stream_all, 0);
        training_close(&t);
        assert_same(&by_layer, &by_batch, "streamed", (uint64_t)n);
        assert_int_equal(planned, by_layer.fetched[0]);
        assert_int_equal(by_layer.fetched[0], (2 * LAYERS - NB_UNIT_BUFFERS) * unit);
        for (int i = 1; i < STEPS; i++) {
            assert_int_equal(by_layer.fetched[i], 2 * (LAYERS - NB_UNIT_BUFFERS) * unit);
            assert_int_equal(by_batch.fetched[i], (uint64_t)n * by_layer.fetched[i]);
        }
        free(by_layer.masters);
        free(by_batch.masters);
        free(yaml);
    }
}

static int dequantized;
static nb_status (*dequantize)(struct nb_device *, struct nb_stream *, const struct nb_dequantize *);

static nb_status count_dequantized(struct nb_device *device, struct nb_stream *stream, const struct nb_dequantize *args)
{
    dequantized++;
    return dequantize(device, stream, args);
}

static void dequantize_by_layer(struct nb_run *run, uint64_t number)
{
    run->layer_major = true;
    run->model.dequantize_once = true;
    for (int i = 0; i < LAYERS; i++)
        run->keep[i] = (enum nb_keep)number;
}

static void weights_are_dequantized_once_a_direction(void **state)
{
    const struct model *m = *state;
    char *yaml = yaml_of(m, "out", 3, "micro_batch_size: 1\nbf16: false\n");
    for (uint64_t keep = 0; keep < NB_KEEP_NOTHING; keep++) {
        struct training t;
        training_open_changed(&t, yaml, dequantize_by_layer, keep);
        struct nb_device *device = t.session->device;
        dequantize = device->dequantize;
        device->dequantize = count_dequantized;
        dequantized = 0;
        training_step(&t, 1);
        assert_int_equal(dequantized, 2 * LAYERS * MATRICES);
        device->dequantize = dequantize;
        training_close(&t);
    }
    free(yaml);
}

/* ---- memory ---- */

/* So many blocks' inputs, and attention's outputs with their log-sum-exp; in checked builds each has a red zone. */
static void assert_takes(uint64_t taken, int inputs, int attentions)
{
    uint64_t rows = LONGEST * sizeof(float);
    uint64_t least = (uint64_t)(inputs + attentions) * nb_aligned(rows * WIDTH);
    least += (uint64_t)attentions * nb_aligned(rows * HEADS);
    uint64_t most = least + (uint64_t)(inputs + 2 * attentions) * NB_ALIGNMENT;
    if (taken < least || taken > most)
        fail_msg("%llu bytes are taken, not %llu", (unsigned long long)taken, (unsigned long long)least);
}

static uint64_t measure(const char *yaml, int offloaded, uint64_t *pinned)
{
    struct nb_config config;
    struct nb_run *run = NULL;
    struct nb_plan plan;
    training_config(yaml, &config);
    training_check(nb_run_open(&(struct nb_run_args){.config = &config, .purpose = NB_PURPOSE_TRAIN}, &run));
    run->layer_major = true;
    run->offloaded = offloaded;
    training_check(nb_plan_make(run, &plan));
    uint64_t peak = plan.peak_bytes;
    *pinned = plan.pinned_bytes;
    nb_plan_destroy(&plan);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    return peak;
}

/* On the device stay whole layers' inputs, or two more than micro-batches; the rest is on the host, each once. */
static void buffers_are_shared(void **state)
{
    const struct model *m = *state;
    for (int n = 2; n <= 5; n++) {
        bool attention = n > 3;
        char *more = nb_format("micro_batch_size: 1\nbf16: false\nlora_target_modules: [q_proj, v_proj]\n"
                               "activation_offloading: false\ngradient_checkpointing: %s\n",
            attention ? "attention" : "true");
        char *yaml = yaml_of(m, "out", n, more);
        uint64_t pinned, all = measure(yaml, 0, &pinned);
        assert_int_equal(pinned, 0);
        int most = nb_pass_offloaded_max(LAYERS, n), items = (LAYERS + 1) * n;
        assert_int_equal(most, n == 2 ? LAYERS - 1 : LAYERS);
        for (int blocks = 1; blocks <= most; blocks++) {
            int stay = blocks == most ? n + 2 : (LAYERS + 1 - blocks) * n;
            uint64_t less = all - measure(yaml, blocks, &pinned);
            /* The head's inputs had no attention beside them; now they take turns with blocks'. */
            assert_takes(less, items - stay, attention ? items - n - stay : 0);
            assert_takes(pinned, items - stay, attention ? items - stay : 0);
        }
        free(more);
        free(yaml);
    }
}

/* To a size that the steps of the data do not have. */
static void a_resized_run_can_be_planned(void **state)
{
    const struct model *m = *state;
    struct nb_config config;
    struct nb_run *run = NULL;
    struct nb_plan two, four;
    char *yaml = yaml_of(m, "out", 2,
        "micro_batch_size: 2\nbf16: false\naccumulation_order: layer_major\nresident_layers: 0\n");
    training_config(yaml, &config);
    training_check(nb_run_open(&(struct nb_run_args){.config = &config, .purpose = NB_PURPOSE_TRAIN}, &run));
    training_check(nb_plan_make(run, &two));
    nb_run_resize(run, run->sequence_len, 1, 2);
    training_check(nb_plan_make(run, &four));
    assert_true(four.streamed_bytes == two.streamed_bytes && four.peak_bytes < two.peak_bytes);
    nb_plan_destroy(&two);
    nb_plan_destroy(&four);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(yaml);
}

/* ---- whole runs ---- */

static void what_is_said_is_done(void **state)
{
    const struct model *m = *state;
    static const struct {
        const char *more;
        bool layer_major;
    } cases[] = {{"accumulation_order: layer_major\n", true}, {"accumulation_order: batch_major\n", false},
        {"accumulation_order: auto\n", false}, {"", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nb_config config;
        struct nb_run *run = NULL;
        char *yaml = yaml_of(m, "out", 3, cases[i].more);
        training_config(yaml, &config);
        training_check(nb_run_open(&(struct nb_run_args){.config = &config, .purpose = NB_PURPOSE_TRAIN}, &run));
        assert_int_equal(run->layer_major, cases[i].layer_major);
        nb_run_destroy(&run);
        nb_config_destroy(&config);
        free(yaml);
    }
}

static void train_whole(const struct model *m, const char *out, const char *more, bool resume)
{
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    char *yaml = yaml_of(m, out, 3, more);
    training_config(yaml, &config);
    training_check(nb_train(&config, &options));
    nb_config_destroy(&config);
    free(yaml);
}

static void assert_same_file(const struct model *m, const char *name)
{
    static const char *const out[2] = {"by_batch", "by_layer"};
    char *text[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        char *path = nb_format("%s/%s/%s", m->folder, out[i], name);
        training_check(nb_file_read(path, 1 << 26, false, &text[i], &bytes[i]));
        free(path);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(text[0], text[1], bytes[0]);
    free(text[0]);
    free(text[1]);
}

/* Evaluation between the steps; then everything after step 2 is lost, and each run goes on in the other order. */
static void evaluation_and_resuming_change_no_bit(void **state)
{
    const struct model *m = *state;
    static const char common[] =
        "bf16: false\nmicro_batch_size: 1\nmax_steps: 6\nsave_steps: 2\nval_set_size: 3\neval_steps: 1\n"
        "optimizer: adamw_8bit\nactivation_offloading: true\nresident_layers: 2\n";
    static const char *const out[2] = {"by_batch", "by_layer"};
    char *more[2] = {nb_format("%saccumulation_order: batch_major\n", common),
        nb_format("%saccumulation_order: layer_major\n", common)};
    for (int i = 0; i < 2; i++)
        train_whole(m, out[i], more[i], false);
    assert_same_file(m, "adapter_model.safetensors");
    assert_same_file(m, "checkpoint-6/optimizer.safetensors");
    for (int i = 0; i < 2; i++) {
        static const char *const lost[] = {"checkpoint-6", "checkpoint-4", "adapter_model.safetensors"};
        for (size_t k = 0; k < sizeof lost / sizeof *lost; k++) {
            char *path = nb_format("%s/%s/%s", m->folder, out[i], lost[k]);
            training_check(nb_remove_folder(path));
            free(path);
        }
        train_whole(m, out[i], more[1 - i], true);
    }
    assert_same_file(m, "adapter_model.safetensors");
    assert_same_file(m, "checkpoint-6/optimizer.safetensors");
    for (int i = 0; i < 2; i++)
        free(more[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_bit_changes),
        cmocka_unit_test(weights_are_fetched_once_a_step),
        cmocka_unit_test(weights_are_dequantized_once_a_direction),
        cmocka_unit_test(buffers_are_shared),
        cmocka_unit_test(a_resized_run_can_be_planned),
        cmocka_unit_test(what_is_said_is_done),
        cmocka_unit_test(evaluation_and_resuming_change_no_bit),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
