/* The embedding in host memory: where its table lies changes no bit, and takes what was planned. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/generate.h"
#include "outer.h"
#include "rig.h"
#include "support/red_zone.h"
#include "train/evaluate.h"
#include "train/trainer.h"

enum { ANSWER = 6 };

/* ---- where the table lies ---- */

/* What is taken moves to the host, to the byte: the table, and two buffers of rows. */
static void assert_moved(const struct trained *device, const struct trained *host, uint64_t table_bytes)
{
    uint64_t table = nb_aligned(table_bytes) + NB_TEST_RED_ZONE, rows = host->row_bytes + NB_TEST_RED_ZONE;
    assert_int_equal(device->pageable_bytes, 0);
    assert_int_equal(host->pageable_bytes, table);
    assert_int_equal(host->device_bytes, device->device_bytes - table);
    assert_int_equal(host->pinned_bytes, device->pinned_bytes + 2 * rows);
}

static void compare_places(const struct models *m, int shape, const char *more, int seeds)
{
    char *there = nb_format("%sembedding_device: device\n", more), *here = nb_format("%sembedding_device: host\n", more);
    char *on_device = outer_yaml(m, m->path[shape], there), *on_host = outer_yaml(m, m->path[shape], here);
    struct trained first = outer_train(on_device, NULL, 0);
    for (int seed = 0; seed <= seeds; seed++) {
        struct trained now = outer_train(on_host, outer_defer, (uint64_t)seed);
        outer_assert_same(&first, &now, here);
        assert_moved(&first, &now, UINT64_C(259) * 64 * sizeof(nb_bf16));
        free(now.masters);
    }
    free(first.masters);
    free(on_device);
    free(on_host);
    free(there);
    free(here);
}

/* Pieces of one row, since none is smaller; of seven, so that the last is shorter; and of half a micro-batch. */
static void in_pieces(struct nb_run *run, uint64_t seed)
{
    static const uint64_t piece_bytes[] = {1, 7 * 256 + 100, 30 * 256};
    run->model.embedding_piece_bytes = piece_bytes[seed % 3];
    outer_defer(run, seed / 3);
}

static void pieces_change_no_bit(void **state)
{
    static const char *const ways[] = {
        "gradient_checkpointing: true\n",
        "gradient_checkpointing: true\nbf16: true\nsample_packing: true\n",
        "gradient_checkpointing: true\nactivation_offloading: true\nresident_layers: 3\n",
        "gradient_checkpointing: true\naccumulation_order: layer_major\n",
    };
    const struct models *m = *state;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        char *there = nb_format("%sembedding_device: device\n", ways[i]), *here = nb_format("%sembedding_device: host\n", ways[i]);
        char *on_device = outer_yaml(m, m->path[OWN], there), *on_host = outer_yaml(m, m->path[OWN], here);
        const uint64_t row_bytes = i == 1 ? 64 * sizeof(nb_bf16) : 64 * sizeof(float);
        struct trained first = outer_train(on_device, NULL, 0);
        for (uint64_t seed = 0; seed < 9; seed++) {
            const uint64_t bytes[] = {row_bytes, (7 * 256 + 100) / row_bytes * row_bytes, 30 * 256};
            struct trained now = outer_train(on_host, in_pieces, seed);
            outer_assert_same(&first, &now, here);
            uint64_t piece = nb_aligned(bytes[seed % 3]), taken = piece < now.row_bytes ? piece : now.row_bytes;
            assert_int_equal(now.pinned_bytes, first.pinned_bytes + 2 * (taken + NB_TEST_RED_ZONE));
            free(now.masters);
        }
        free(first.masters);
        free(on_device);
        free(on_host);
        free(there);
        free(here);
    }
}

/* However many tokens there are: what is planned of pinned memory stays what it was. */
static void the_pieces_do_not_grow_with_the_tokens(void **state)
{
    enum { ROWS_OF_16_MIB = (16 << 20) / (64 * sizeof(float)) };
    const struct models *m = *state;
    for (int times = 1; times <= 4; times *= 2) {
        const struct rig_options options = {.model = m->path[OWN],
            .format = NB_WEIGHT_NF4,
            .activation = NB_DTYPE_F32,
            .embedding_on_host = true,
            .keep = NB_KEEP_NOTHING,
            .slots = 1,
            .limits = {.tokens = times * ROWS_OF_16_MIB, .sequences = 1, .longest = 64, .trained_rows = 1,
                .loss_rows = NB_TILE_TOKENS},
            .threads = 1,
            .dry = true,
            .memory_bytes = UINT64_C(1) << 40,
            .host_bytes = UINT64_C(1) << 30};
        struct rig rig;
        rig_open(&rig, &options);
        assert_int_equal(nb_arena_high_water(rig.pinned), 2 * ((UINT64_C(16) << 20) + NB_TEST_RED_ZONE));
        rig_close(&rig);
    }
}

static void where_the_table_lies_changes_no_bit(void **state)
{
    const struct models *m = *state;
    static const char *const ways[] = {
        "gradient_checkpointing: true\n",
        "gradient_checkpointing: attention\nbf16: true\n",
        "gradient_checkpointing: false\nsample_packing: true\n",
        "gradient_checkpointing: true\nactivation_offloading: true\n",
        "gradient_checkpointing: true\nresident_layers: 0\n",
        "gradient_checkpointing: true\noptimizer: paged_adamw_32bit\n",
        "gradient_checkpointing: true\nactivation_offloading: true\nresident_layers: 3\noptimizer: paged_adamw_8bit\n"
        "bf16: true\nsample_packing: true\n",
        "lora_target_modules: [layers.3.self_attn.q_proj, layers.5.mlp.down_proj]\nactivation_offloading: true\n"
        "gradient_checkpointing: true\n",
        "adapter: lora\nload_in_4bit: false\ngradient_checkpointing: true\n",
        "gradient_checkpointing: true\nhead_4bit: true\nactivation_offloading: true\n",
        "gradient_checkpointing: true\naccumulation_order: layer_major\nactivation_offloading: true\nresident_layers: 0\n",
    };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        compare_places(m, OWN, ways[i], i == 3 || i == 6 || i == 10 ? 4 : 1);
    compare_places(m, TIED, "gradient_checkpointing: true\nhead_4bit: true\n", 3);
}

/* The cache keeps the table and a head in 4 bits too, and serves a run that has the table elsewhere. */
static void a_cache_gives_them_back(void **state)
{
    const struct models *m = *state;
    char *plain = outer_yaml(m, m->path[TIED], "head_4bit: true\n");
    struct trained want = outer_train(plain, NULL, 0);
    for (int i = 0; i < 3; i++) {
        char *more = nb_format("head_4bit: true\nembedding_device: %s\nquantized_cache: %s/cache\n", i == 1 ? "device" : "host",
            m->folder);
        char *yaml = outer_yaml(m, m->path[TIED], more);
        struct trained got = outer_train(yaml, NULL, 0);
        outer_assert_same(&want, &got, more);
        free(got.masters);
        free(yaml);
        free(more);
    }
    free(want.masters);
    free(plain);
}

static void make_weights(struct nb_run *run, uint64_t number)
{
    (void)number;
    run->model.random_weights = true;
}

/* Files in 4 bits, in other formats of 16 and 32, and none at all. */
static void other_sources_are_the_same(void **state)
{
    const struct models *m = *state;
    char *shape = nb_path_join(m->path[OWN], "config.json");
    const char *const source[] = {"tests/golden/models/llama/bnb4", shape};
    for (size_t i = 0; i < sizeof source / sizeof *source; i++) {
        char *on_device = outer_yaml(m, source[i], "embedding_device: device\n"),
             *on_host = outer_yaml(m, source[i], "embedding_device: host\n");
        struct trained want = outer_train(on_device, i == 1 ? make_weights : NULL, 0);
        struct trained got = outer_train(on_host, i == 1 ? make_weights : NULL, 0);
        outer_assert_same(&want, &got, source[i]);
        assert_moved(&want, &got, UINT64_C(259) * 64 * sizeof(nb_bf16));
        free(want.masters);
        free(got.masters);
        free(on_device);
        free(on_host);
    }
    free(shape);
}

/* ---- micro-batches side by side ---- */

enum { SLOTS = 3, TOKENS = 40 };

/* Three micro-batches through a layer before the next, twice: more than there are buffers for rows. */
static float *walk_by_layer(const struct models *m, bool on_host, uint64_t seed, uint64_t *bytes)
{
    static const struct nb_adapter_options fresh = {.target_linear = true, .rank = 4, .alpha = 8, .dropout = 0.1f};
    struct rig_options options = {.model = m->path[OWN],
        .format = NB_WEIGHT_NF4,
        .activation = NB_DTYPE_F32,
        .fresh_adapter = &fresh,
        .embedding_on_host = on_host,
        .embedding_piece_bytes = seed % 2 ? 9 * 256 : 0, /* of 40 or 33 rows */
        .keep = NB_KEEP_INPUT,
        .slots = SLOTS,
        .batches = 2 * SLOTS,
        .limits = {.tokens = TOKENS, .sequences = 1, .longest = TOKENS, .trained_rows = TOKENS, .loss_rows = NB_TILE_TOKENS},
        .threads = 1,
        .deferred = seed != 0,
        .seed = seed};
    int32_t ids[2 * SLOTS * TOKENS];
    struct rig rig;
    for (int i = 0; i < 2 * SLOTS * TOKENS; i++)
        ids[i] = 3 + i * 29 % 251;
    rig_open(&rig, &options);
    rig_begin_step(&rig);
    rig_clear_gradients(&rig);
    for (int round = 0; round < 2; round++) {
        struct rig_rows rows = {.ids = ids + round * SLOTS * TOKENS, .labels = ids + round * SLOTS * TOKENS,
            .length = TOKENS - 7 * round};
        for (int slot = 0; slot < SLOTS; slot++)
            rig_set_rows(&rig, slot, &rows, slot, 1);
        for (int layer = 0; layer <= LAYERS + 1; layer++)
            for (int slot = 0; slot < SLOTS; slot++)
                rig_check(nb_pass_forward(rig.pass, slot, layer, layer));
        for (int layer = LAYERS; layer >= 0; layer--)
            for (int slot = 0; slot < SLOTS; slot++)
                rig_check(nb_pass_backward(rig.pass, slot, layer, layer));
    }
    float *gradients = rig_gradients(&rig);
    *bytes = nb_adapter_elements(rig.adapter) * sizeof *gradients;
    rig_close(&rig);
    return gradients;
}

static void slots_take_turns_at_the_buffers(void **state)
{
    const struct models *m = *state;
    uint64_t bytes;
    float *want = walk_by_layer(m, false, 0, &bytes);
    for (uint64_t seed = 0; seed <= 6; seed++) {
        float *got = walk_by_layer(m, true, seed, &bytes);
        assert_memory_equal(want, got, bytes);
        free(got);
    }
    free(want);
}

static void embeddings_of_other_dtypes_are_the_same(void **state)
{
    const struct models *m = *state;
    static const enum nb_safetensors_dtype dtype[] = {NB_SAFETENSORS_F16, NB_SAFETENSORS_F32};
    for (size_t i = 0; i < sizeof dtype / sizeof *dtype; i++) {
        struct rewriting how = {.embedding = dtype[i]};
        char *path = nb_path_join(m->folder, nb_safetensors_dtype_name(dtype[i]));
        outer_write_again(m->path[OWN], path, &how);
        char *on_device = outer_yaml(m, path, "embedding_device: device\n"), *on_host = outer_yaml(m, path, "embedding_device: host\n");
        struct trained want = outer_train(on_device, NULL, 0), got = outer_train(on_host, NULL, 0);
        outer_assert_same(&want, &got, path);
        free(want.masters);
        free(got.masters);
        free(on_device);
        free(on_host);
        free(path);
    }
}

/* ---- refusals ---- */

static void refuse(const struct models *m, int shape, enum nb_purpose purpose, const char *more, const char *words)
{
    char *yaml = outer_yaml(m, m->path[shape], more);
    struct nb_config config;
    struct nb_run *run = NULL;
    training_config(yaml, &config);
    struct nb_run_args args = {.config = &config, .purpose = purpose};
    assert_int_equal(nb_run_open(&args, &run), NB_USAGE);
    assert_null(run);
    if (!strstr(nb_status_message(), words))
        fail_msg("\"%s\" does not say %s", nb_status_message(), words);
    nb_config_destroy(&config);
    free(yaml);
}

static void what_cannot_be_is_refused(void **state)
{
    const struct models *m = *state;
    refuse(m, TIED, NB_PURPOSE_TRAIN, "embedding_device: host\n", "set head_4bit: true");
    refuse(m, TIED, NB_PURPOSE_GENERATE, "embedding_device: host\n", "tie_word_embeddings");
    refuse(m, OWN, NB_PURPOSE_TRAIN, "adapter: lora\nload_in_4bit: false\nhead_4bit: true\n", "load_in_4bit: true");
    /* And by the model itself, and by a pass without memory for the rows. */
    struct nb_checkpoint *checkpoint = NULL;
    struct nb_model *model = NULL;
    struct nb_device *device = NULL;
    struct nb_model_options options = {.linear_format = NB_WEIGHT_NF4, .activation = NB_DTYPE_F32, .embedding_on_host = true};
    training_check(nb_checkpoint_open(m->path[TIED], &checkpoint));
    training_check(nb_cpu_device_create(&(struct nb_cpu_options){.threads = 1}, &device));
    assert_int_equal(nb_model_create(device, checkpoint, &options, &model), NB_USAGE);
    options.head_format = NB_WEIGHT_FP4;
    assert_int_equal(nb_model_create(device, checkpoint, &options, &model), NB_USAGE);
    assert_null(model);
    nb_checkpoint_close(&checkpoint);
    nb_device_destroy(&device);
}

/* ---- whole runs ---- */

static char *train_whole(const struct models *m, const char *out, const char *more, bool resume)
{
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    char *yaml = outer_yaml(m, m->path[OWN], more), *path = nb_format("%s/%s", m->folder, out), *text = NULL;
    char *output = nb_format("output_dir=%s", path);
    const char *override[] = {output};
    size_t bytes;
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

/* Evaluation between the steps takes the rows too; a run that is taken up again may have its table elsewhere. */
static void runs_with_evaluation_and_a_pause_are_the_same(void **state)
{
    const struct models *m = *state;
    static const char common[] = "max_steps: 4\nval_set_size: 4\neval_steps: 1\nsave_steps: 2\noptimizer: adamw_8bit\nseed: 5\n";
    char *device = nb_format("%sembedding_device: device\n", common), *host = nb_format("%sembedding_device: host\n", common);
    char *want = train_whole(m, "device", device, false), *got = train_whole(m, "host", host, false);
    assert_string_equal(want, got);
    char *last = nb_format("%s/device/checkpoint-4", m->folder);
    training_check(nb_remove_folder(last));
    free(got);
    got = train_whole(m, "device", host, true);
    assert_string_equal(want, got);
    free(last);
    free(want);
    free(got);
    free(device);
    free(host);
}

/* ---- generation and evaluation ---- */

struct answer {
    int32_t id[ANSWER];
    double loss_sum;
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
    return status;
}

static nb_status evaluate(struct nb_session *session, void *context)
{
    struct answer *a = context;
    struct nb_evaluation evaluation = {0};
    struct nb_evaluate_args args = {.session = session, .dataset = session->run->data};
    NB_TRY(nb_evaluate(&args, &evaluation));
    a->loss_sum = evaluation.loss_sum;
    nb_evaluation_free(&evaluation);
    return NB_OK;
}

static struct answer run_both(const char *model, const char *rows, const char *place, const char *head, uint64_t seed)
{
    const char *overrides[] = {"bf16=false", "threads=1", "sequence_len=30", place, head};
    struct nb_config config;
    struct answer a = {0};
    training_check(nb_config_from_overrides(overrides, 5, &config));
    for (int i = 0; i < 2; i++) {
        struct nb_run_args args = {
            .config = &config, .purpose = i ? NB_PURPOSE_EVALUATE : NB_PURPOSE_GENERATE, .model = model, .data = i ? rows : NULL};
        struct nb_run *run = NULL;
        training_check(nb_run_open(&args, &run));
        outer_defer(run, seed);
        training_check(nb_session_run(run, LONGEST, i ? evaluate : answer, &a, NULL));
        nb_run_destroy(&run);
    }
    nb_config_destroy(&config);
    return a;
}

static void assert_answers(const struct answer *a, const struct answer *b)
{
    assert_memory_equal(a->id, b->id, sizeof a->id);
    assert_true(a->loss_sum == b->loss_sum && a->loss_sum > 0);
}

static void answers_and_losses_are_the_same(void **state)
{
    const struct models *m = *state;
    char *rows = nb_path_join(m->folder, "rows.jsonl");
    for (int shape = 0; shape < SHAPES; shape++) {
        struct rewriting how = {.head = true, .type = NB_QUANT_NF4, .nested = true, .embedding = NB_SAFETENSORS_BF16};
        char *path = nb_format("%s/answers-%d", m->folder, shape);
        outer_write_again(m->path[shape], path, &how);
        struct answer reference = run_both(path, rows, "embedding_device=device", "head_4bit=false", 0);
        struct answer device = run_both(m->path[shape], rows, "embedding_device=device", "head_4bit=true", 0);
        struct answer wide = run_both(m->path[shape], rows, "embedding_device=device", "head_4bit=false", 0);
        assert_answers(&reference, &device);
        assert_true(wide.loss_sum != device.loss_sum);
        for (uint64_t seed = 0; seed <= 3; seed++) {
            struct answer host = run_both(m->path[shape], rows, "embedding_device=host", "head_4bit=true", seed);
            assert_answers(&reference, &host);
            if (shape == OWN) {
                host = run_both(m->path[shape], rows, "embedding_device=host", "head_4bit=false", seed);
                assert_answers(&wide, &host);
            }
        }
        free(path);
    }
    free(rows);
}

/* ---- what is said ---- */

static void the_plan_says_so(void **state)
{
    const struct models *m = *state;
    struct training t;
    char *yaml = outer_yaml(m, m->path[TIED], "embedding_device: host\nhead_4bit: true\n"), *text = NULL;
    size_t bytes;
    training_open(&t, yaml);
    FILE *out = open_memstream(&text, &bytes);
    nb_plan_print(t.run, &t.plan, out);
    assert_int_equal(fclose(out), 0);
    static const char *const wanted[] = {"note: head_4bit: ", "note: embedding_device: ", "of pageable host memory"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(text, wanted[i]))
            fail_msg("the plan does not say \"%s\":\n%s", wanted[i], text);
    free(text);
    free(yaml);
    training_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(where_the_table_lies_changes_no_bit),
        cmocka_unit_test(pieces_change_no_bit),
        cmocka_unit_test(the_pieces_do_not_grow_with_the_tokens),
        cmocka_unit_test(other_sources_are_the_same),
        cmocka_unit_test(embeddings_of_other_dtypes_are_the_same),
        cmocka_unit_test(a_cache_gives_them_back),
        cmocka_unit_test(slots_take_turns_at_the_buffers),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(runs_with_evaluation_and_a_pause_are_the_same),
        cmocka_unit_test(answers_and_losses_are_the_same),
        cmocka_unit_test(the_plan_says_so),
    };
    return cmocka_run_group_tests(tests, outer_open_models, outer_close_models);
}
