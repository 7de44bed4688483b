/* Block inputs in pinned host memory: the bits are those of inputs that stay, whenever copies happen and however often
 * the buffers are used again; the plan holds to the byte in both memories; and as little leaves the device as makes a
 * run fit.
 *
 * The model is the tiny Llama, its two blocks repeated until there are eight. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bfloat.h"
#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "rig.h"
#include "train/device.h"
#include "train/fit.h"
#include "train/trainer.h"
#include "training.h"

enum { BLOCKS = 8, MOST = BLOCKS - 2, STEPS = 3, TENSORS_MAX = 128, ROWS = 24, LONGEST = 40, WIDTH = 64 };

static const char shallow[] = "tests/golden/models/llama";

struct deep {
    char *folder, *model;
};

/* ---- the model and its rows ---- */

struct writing {
    struct nb_safetensors_entry entries[TENSORS_MAX];
    struct nb_tensor_spec specs[TENSORS_MAX];
    char names[TENSORS_MAX][NB_TENSOR_NAME_BYTES], sources[TENSORS_MAX][NB_TENSOR_NAME_BYTES];
    size_t count;
};

static void add_tensor(struct writing *w, const struct nb_tensor_spec *spec, int layer)
{
    size_t i = w->count++;
    bool vector = spec->tensor->rows == NB_EXTENT_ONE;
    nb_tensor_name(spec, layer, w->names[i]);
    nb_tensor_name(spec, layer % 2, w->sources[i]);
    w->specs[i] = *spec;
    w->entries[i] = (struct nb_safetensors_entry){.name = w->names[i],
        .dtype = NB_SAFETENSORS_BF16,
        .rank = vector ? 1 : 2,
        .shape = {(uint64_t)(vector ? spec->columns : spec->rows), vector ? 1 : (uint64_t)spec->columns}};
}

static void write_tensors(const struct writing *w, const struct nb_checkpoint *checkpoint, const char *folder)
{
    struct nb_safetensors_writer *writer = NULL;
    char *path = nb_path_join(folder, "model.safetensors");
    training_check(nb_safetensors_writer_open(path, w->entries, w->count, &writer));
    for (size_t i = 0; i < w->count; i++) {
        size_t bytes = nb_safetensors_entry_bytes(&w->entries[i]);
        nb_bf16 *values = malloc(bytes);
        training_check(nb_checkpoint_tensor_read_bf16(
            checkpoint, w->sources[i], w->specs[i].rows, w->specs[i].columns, values));
        training_check(nb_safetensors_writer_write(writer, values, bytes));
        free(values);
    }
    training_check(nb_safetensors_writer_finish(&writer, NULL));
    free(path);
}

static void write_config(const char *folder)
{
    char *text = NULL, *path = nb_path_join(shallow, "config.json");
    size_t bytes = 0;
    training_check(nb_file_read(path, 1 << 16, false, &text, &bytes));
    free(path);
    char *layers = strstr(text, "\"num_hidden_layers\": 2");
    assert_non_null(layers);
    layers[strlen("\"num_hidden_layers\": ")] = '0' + BLOCKS;
    path = nb_path_join(folder, "config.json");
    training_check(nb_file_write(path, text, bytes));
    free(path);
    free(text);
}

static void write_model(const char *folder)
{
    struct writing *w = calloc(1, sizeof *w);
    struct nb_checkpoint *checkpoint = NULL;
    struct nb_tensor_spec spec[NB_TENSOR_LAYER_ROLES], outer;
    training_check(nb_checkpoint_open(shallow, &checkpoint));
    const struct nb_model_config *config = nb_checkpoint_config(checkpoint);
    assert_int_equal(config->layers, 2);
    for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
        if (nb_family_outer_tensor(config, (enum nb_tensor_role)role, &outer))
            add_tensor(w, &outer, 0);
    int tensors = nb_family_layer_tensors(config, spec);
    for (int layer = 0; layer < BLOCKS; layer++)
        for (int i = 0; i < tensors; i++)
            add_tensor(w, &spec[i], layer);
    training_check(nb_make_folder(folder));
    write_tensors(w, checkpoint, folder);
    write_config(folder);
    nb_checkpoint_close(&checkpoint);
    free(w);
}

/* Rows of many lengths, the labels of their second halves trained. */
static void write_rows(const char *folder)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < ROWS; r++) {
        int length = 4 + (r * 7) % (LONGEST - 3);
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

static int open_deep(void **state)
{
    struct deep *d = calloc(1, sizeof *d);
    d->folder = training_folder();
    d->model = nb_path_join(d->folder, "model");
    write_model(d->model);
    write_rows(d->folder);
    *state = d;
    return 0;
}

static int close_deep(void **state)
{
    struct deep *d = *state;
    training_check(nb_remove_folder(d->folder));
    free(d->folder);
    free(d->model);
    free(d);
    return 0;
}

static char *yaml_of(const struct deep *d, const char *out, const char *more)
{
    return nb_format("base_model: %s\nadapter: qlora\ndatasets: [{path: %s/rows.jsonl, type: tokens}]\n"
                     "learning_rate: 1e-3\nsequence_len: %d\nlora_r: 4\nlora_alpha: 8\n%s"
                     "lora_dropout: 0.1\nlr_scheduler: constant\noutput_dir: %s/%s\nthreads: 1\n%s",
        d->model, d->folder, LONGEST, strstr(more, "lora_target") ? "" : "lora_target_linear: true\n", d->folder, out,
        more);
}

/* ---- bits ---- */

struct result {
    double loss[STEPS];
    float norm[STEPS];
    float *masters;
    uint64_t bytes;
};

static void take_steps(struct training *t, struct result *result)
{
    *result = (struct result){0};
    for (int i = 0; i < STEPS; i++) {
        struct nb_step_result r = training_step(t, i + 1);
        result->loss[i] = r.loss;
        result->norm[i] = r.grad_norm;
    }
    result->masters = training_masters(t);
    result->bytes = nb_adapter_elements(t->session->adapter) * sizeof *result->masters;
    assert_int_equal(nb_arena_high_water(t->session->arena), t->plan.peak_bytes);
    assert_int_equal(nb_arena_high_water(t->session->pinned), t->plan.pinned_bytes);
}

static void assert_same(const struct result *a, const struct result *b, const char *what, uint64_t number)
{
    bool same = a->bytes == b->bytes && memcmp(a->loss, b->loss, sizeof a->loss) == 0 &&
                memcmp(a->norm, b->norm, sizeof a->norm) == 0 && memcmp(a->masters, b->masters, a->bytes) == 0;
    if (!same)
        fail_msg("%s, case %llu: losses %.9g %.9g %.9g, not %.9g %.9g %.9g", what, (unsigned long long)number,
            a->loss[0], a->loss[1], a->loss[2], b->loss[0], b->loss[1], b->loss[2]);
}

/* So many matrices of so many bytes; in checked builds each has a red zone. */
static void assert_takes(uint64_t taken, int matrices, uint64_t bytes)
{
    uint64_t least = (uint64_t)matrices * nb_aligned(bytes), most = least + (uint64_t)matrices * NB_ALIGNMENT;
    if (taken < least || taken > most)
        fail_msg("%llu bytes are taken for %d times %llu", (unsigned long long)taken, matrices,
            (unsigned long long)bytes);
}

/* By a case's number: how many blocks' inputs leave, and what blocks keep. */
static void vary(struct nb_run *run, uint64_t number)
{
    static const int offloaded[] = {MOST, 1, MOST - 1, 3};
    run->offloaded = offloaded[number % 4];
    for (int i = 0; i < BLOCKS; i++)
        run->keep[i] = number / 4 % 4 == 3 ? (enum nb_keep)((number / 16 + (uint64_t)i) % NB_KEEP_NOTHING)
                                           : (enum nb_keep)(number / 4 % 4);
}

static void defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = true, .deferred_seed = seed};
}

static void vary_deferred(struct nb_run *run, uint64_t number)
{
    vary(run, number);
    defer(run, number);
}

/* Micro-batches of many lengths use the buffers one after the other, in every step. */
static void no_bit_changes(void **state)
{
    const struct deep *d = *state;
    static const char *const ways[] = {
        "bf16: false\nmicro_batch_size: 1\ngradient_accumulation_steps: 3\nactivation_offloading: false\n",
        "bf16: true\nmicro_batch_size: 2\ngradient_accumulation_steps: 2\nactivation_offloading: false\n"
        "optimizer: paged_adamw_8bit\n",
    };
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        char *yaml = yaml_of(d, "out", ways[w]);
        struct training t;
        struct result want, got;
        training_open(&t, yaml);
        uint64_t paged = t.plan.pinned_bytes; /* of the optimizer */
        take_steps(&t, &want);
        training_close(&t);
        for (uint64_t number = 0; number < 32; number++) {
            training_open_changed(&t, yaml, number < 16 ? vary : vary_deferred, number);
            assert_true(t.plan.pinned_bytes > paged && t.plan.offloaded == t.run->offloaded);
            take_steps(&t, &got);
            assert_same(&got, &want, ways[w], number);
            free(got.masters);
            training_close(&t);
        }
        free(want.masters);
        free(yaml);
    }
}

/* Nothing below block 4 trains: of the blocks below nothing is wanted back, so nothing is kept. */
static void what_no_adapter_wants_is_not_kept(void **state)
{
    const struct deep *d = *state;
    static const char more[] =
        "bf16: false\nmicro_batch_size: 2\ngradient_accumulation_steps: 2\nactivation_offloading: %s\n"
        "lora_target_modules: [model.layers.4.self_attn.v_proj, model.layers.6.mlp.up_proj]\n";
    struct result want, got;
    struct training t;
    char *stays = nb_format(more, "false"), *leaves = nb_format(more, "true");
    char *yaml[2] = {yaml_of(d, "out", stays), yaml_of(d, "out", leaves)};
    training_open(&t, yaml[0]);
    take_steps(&t, &want);
    training_close(&t);
    for (uint64_t seed = 1; seed <= 6; seed++) {
        training_open_changed(&t, yaml[1], defer, seed);
        assert_takes(t.plan.pinned_bytes, MOST - 4, (uint64_t)2 * LONGEST * WIDTH * sizeof(float));
        take_steps(&t, &got);
        assert_same(&got, &want, more, seed);
        free(got.masters);
        training_close(&t);
    }
    free(want.masters);
    free(stays);
    free(leaves);
    free(yaml[0]);
    free(yaml[1]);
}

/* ---- ranges of layers ---- */

enum { SLOTS = 2, TOKENS = 40 };

static const struct nb_adapter_options fresh = {.target_linear = true, .rank = 4, .alpha = 8, .dropout = 0.1f};

static struct rig_options rig_of(const struct deep *d, uint64_t seed)
{
    return (struct rig_options){.model = d->model,
        .format = NB_WEIGHT_NF4,
        .activation = NB_DTYPE_F32,
        .fresh_adapter = &fresh,
        .threads = 1,
        .deferred = seed != 0,
        .seed = seed};
}

static struct nb_pass_options pass_of(const struct rig *rig, int slots, int offloaded, struct nb_arena *pinned)
{
    struct nb_batch_limits limits = {
        .tokens = TOKENS, .sequences = 1, .longest = TOKENS, .trained_rows = TOKENS, .loss_rows = NB_TILE_TOKENS};
    return (struct nb_pass_options){.limits = limits,
        .keep = NB_KEEP_INPUT,
        .slots = slots,
        .batches = 2 * slots,
        .step = rig->step,
        .offloaded = offloaded,
        .pinned = pinned};
}

/* Two micro-batches through a layer before the next, twice, the second time other tokens. Returns the gradients. */
static float *walk_by_layer(const struct deep *d, int offloaded, uint64_t seed)
{
    static const enum nb_keep keep[BLOCKS] = {NB_KEEP_ATTENTION, NB_KEEP_INPUT, NB_KEEP_ATTENTION, NB_KEEP_ATTENTION,
        NB_KEEP_EVERYTHING, NB_KEEP_ATTENTION, NB_KEEP_INPUT, NB_KEEP_ATTENTION};
    int32_t ids[2 * SLOTS * TOKENS];
    struct rig rig;
    struct rig_options options = rig_of(d, seed);
    for (int i = 0; i < 2 * SLOTS * TOKENS; i++)
        ids[i] = 3 + i * 29 % 200;
    rig_open(&rig, &options);
    struct nb_arena *pinned = NULL;
    void *host = NULL;
    training_check(rig.device->host_take(rig.device, 1 << 20, &host));
    training_check(nb_arena_create("pinned", (uintptr_t)host, 1 << 20, &pinned));
    struct nb_pass_options pass = pass_of(&rig, SLOTS, offloaded, pinned);
    pass.layer_keep = keep;
    training_check(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass));
    rig_begin_step(&rig);
    rig_clear_gradients(&rig);
    for (int round = 0; round < 2; round++) {
        struct rig_rows rows = {.ids = ids + round * SLOTS * TOKENS, .labels = ids + round * SLOTS * TOKENS,
            .length = TOKENS - 7 * round};
        for (int slot = 0; slot < SLOTS; slot++)
            rig_set_rows(&rig, slot, &rows, slot, 1);
        for (int layer = 0; layer <= BLOCKS + 1; layer++)
            for (int slot = 0; slot < SLOTS; slot++)
                training_check(nb_pass_forward(rig.pass, slot, layer, layer));
        for (int layer = BLOCKS; layer >= 0; layer--)
            for (int slot = 0; slot < SLOTS; slot++)
                training_check(nb_pass_backward(rig.pass, slot, layer, layer));
        if (offloaded) /* the values of a block whose backward pass is done may be elsewhere's by now */
            assert_int_equal(nb_pass_backward(rig.pass, 0, BLOCKS, BLOCKS), NB_USAGE);
    }
    float *gradients = rig_gradients(&rig);
    nb_pass_destroy(&rig.pass);
    assert_int_equal(nb_arena_used(pinned), 0);
    nb_arena_destroy(&pinned);
    rig.device->host_give_back(rig.device, host);
    rig_close(&rig);
    return gradients;
}

static uint64_t count_gradients(const struct deep *d)
{
    struct rig rig;
    struct rig_options options = rig_of(d, 0);
    rig_open(&rig, &options);
    uint64_t count = nb_adapter_elements(rig.adapter);
    rig_close(&rig);
    return count;
}

static void slots_do_not_mix(void **state)
{
    const struct deep *d = *state;
    uint64_t bytes = count_gradients(d) * sizeof(float);
    float *want = walk_by_layer(d, 0, 0);
    for (uint64_t seed = 0; seed < 9; seed++) {
        float *got = walk_by_layer(d, seed % 2 ? MOST : 2, seed);
        assert_memory_equal(got, want, bytes);
        free(got);
    }
    free(want);
}

/* ---- the choice ---- */

static struct nb_run *open_run(const char *yaml, struct nb_config *config)
{
    struct nb_run *run = NULL;
    training_config(yaml, config);
    struct nb_run_args args = {.config = config, .purpose = NB_PURPOSE_TRAIN};
    training_check(nb_run_open(&args, &run));
    return run;
}

static uint64_t peak_of(const struct nb_run *run)
{
    struct nb_plan plan;
    training_check(nb_plan_make(run, &plan));
    uint64_t peak = plan.peak_bytes;
    nb_plan_destroy(&plan);
    return peak;
}

static void as_little_leaves_as_fits(void **state)
{
    const struct deep *d = *state;
    struct nb_config config;
    uint64_t peak[MOST + 1];
    char *yaml = yaml_of(
        d, "out", "bf16: true\nmicro_batch_size: 2\ngradient_checkpointing: auto\nmemory_budget: 1GB\nresident_layers: 8\n");
    struct nb_run *run = open_run(yaml, &config);
    assert_int_equal(run->offloaded, 0);
    assert_int_equal(run->keep[0], NB_KEEP_EVERYTHING);
    run->available_bytes = 1; /* computing again comes first */
    training_check(nb_fit_choose(run));
    assert_int_equal(run->offloaded, MOST);
    for (int i = 0; i < BLOCKS; i++)
        assert_int_equal(run->keep[i], NB_KEEP_INPUT);
    uint64_t input = (uint64_t)2 * LONGEST * WIDTH * 2;
    for (int n = 0; n <= MOST; n++) {
        run->offloaded = n;
        peak[n] = peak_of(run);
        if (n > 0)
            assert_takes(peak[n - 1] - peak[n], 1, input);
    }
    for (int n = 0; n <= MOST; n++)
        for (uint64_t less = 0; less < 2; less++) { /* just enough, and a byte too little */
            run->available_bytes = peak[n] - less;
            training_check(nb_fit_choose(run));
            assert_int_equal(run->offloaded, n + (int)less > MOST ? MOST : n + (int)less);
        }
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(yaml);
}

static void what_is_said_is_done(void **state)
{
    const struct deep *d = *state;
    static const struct {
        const char *more;
        int offloaded;
    } cases[] = {
        {"activation_offloading: true\n", MOST},
        {"activation_offloading: false\nmemory_budget: 1MB\nresident_layers: 8\nembedding_device: device\n", 0},
        {"activation_offloading: auto\nmemory_budget: 1MB\nresident_layers: 8\nembedding_device: device\n", MOST},
        {"memory_budget: 1GB\n", 0},
        {"activation_offloading: auto\n", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nb_config config;
        char *yaml = yaml_of(d, "out", cases[i].more);
        struct nb_run *run = open_run(yaml, &config);
        struct nb_plan plan;
        training_check(nb_plan_make(run, &plan));
        uint64_t input = (uint64_t)LONGEST * WIDTH * nb_dtype_bytes(run->model.activation);
        assert_int_equal(run->offloaded, cases[i].offloaded);
        assert_takes(plan.pinned_bytes, cases[i].offloaded, input);
        bool noted = false;
        for (int k = 0; k < plan.notes; k++)
            noted = noted || strstr(plan.note[k], "the inputs of 6 of 8 blocks");
        assert_int_equal(noted, cases[i].offloaded == MOST);
        nb_plan_destroy(&plan);
        if (i == 4) { /* the CPU's memory is the host's: nothing is gained */
            run->available_bytes = 1;
            training_check(nb_fit_choose(run));
            assert_int_equal(run->offloaded, 0);
        }
        nb_run_destroy(&run);
        nb_config_destroy(&config);
        free(yaml);
    }
    for (int blocks = 1; blocks <= 3; blocks++)
        assert_int_equal(nb_pass_offloaded_max(blocks, 1), blocks == 3 ? 1 : 0);
}

/* ---- whole runs ---- */

static void train(const char *yaml, bool resume)
{
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    training_config(yaml, &config);
    training_check(nb_train(&config, &options));
    nb_config_destroy(&config);
}

static void assert_same_file(const struct deep *d, const char *a, const char *b, const char *name)
{
    const char *out[2] = {a, b};
    char *text[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        char *path = nb_format("%s/%s/%s", d->folder, out[i], name);
        training_check(nb_file_read(path, 1 << 26, false, &text[i], &bytes[i]));
        free(path);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(text[0], text[1], bytes[0]);
    free(text[0]);
    free(text[1]);
}

/* Evaluation between the steps; then everything after step 2 is lost, and the run goes on without offloading. */
static void evaluation_and_resuming_change_no_bit(void **state)
{
    const struct deep *d = *state;
    static const char more[] =
        "bf16: false\nmicro_batch_size: 1\ngradient_accumulation_steps: 2\nmax_steps: 5\nsave_steps: 2\n"
        "val_set_size: 6\neval_steps: 1\noptimizer: adamw_8bit\ngradient_checkpointing: attention\n";
    for (int i = 0; i < 2; i++) {
        char *with = nb_format("%sactivation_offloading: %s\n", more, i ? "true" : "false");
        char *yaml = yaml_of(d, i ? "offloaded" : "stays", with);
        train(yaml, false);
        free(with);
        free(yaml);
    }
    assert_same_file(d, "stays", "offloaded", "adapter_model.safetensors");
    assert_same_file(d, "stays/checkpoint-4", "offloaded/checkpoint-4", "optimizer.safetensors");
    for (int i = 0; i < 2; i++) {
        static const char *const lost[] = {"checkpoint-5", "checkpoint-4", "adapter_model.safetensors"};
        for (size_t k = 0; k < sizeof lost / sizeof *lost; k++) {
            char *path = nb_format("%s/%s/%s", d->folder, i ? "offloaded" : "stays", lost[k]);
            training_check(nb_remove_folder(path));
            free(path);
        }
        char *with = nb_format("%sactivation_offloading: %s\n", more, i ? "false" : "true");
        char *yaml = yaml_of(d, i ? "offloaded" : "stays", with);
        train(yaml, true);
        free(with);
        free(yaml);
    }
    assert_same_file(d, "stays", "offloaded", "adapter_model.safetensors");
    assert_same_file(d, "stays/checkpoint-5", "offloaded/checkpoint-5", "optimizer.safetensors");
}

/* ---- refusals ---- */

static uint64_t refused_bytes; /* what no memory can be pinned for */
static nb_status (*host_take)(struct nb_device *, uint64_t, void **);

static nb_status refuse(struct nb_device *device, uint64_t bytes, void **memory)
{
    return bytes == refused_bytes ? nb_fail(NB_MEMORY, "the limit is reached") : host_take(device, bytes, memory);
}

static void refused_memory_is_explained(void **state)
{
    const struct deep *d = *state;
    struct nb_config config;
    struct nb_plan plan;
    struct nb_session *session = NULL;
    char *yaml = yaml_of(d, "out", "activation_offloading: true\nmicro_batch_size: 2\nbf16: true\npinned: true\n");
    struct nb_run *run = open_run(yaml, &config);
    training_check(nb_plan_make(run, &plan));
    training_check(nb_run_open_device(run, plan.site, plan.sites));
    refused_bytes = plan.pinned_bytes;
    host_take = run->device->host_take;
    run->device->host_take = refuse;
    struct nb_session_args args = {
        .capacity = plan.peak_bytes, .pinned_capacity = plan.pinned_bytes,
        .pageable_capacity = plan.pageable_bytes, .positions_max = run->sequence_len};
    assert_int_equal(nb_session_open(run, &args, &session), NB_MEMORY);
    assert_null(session);
    const char *said = nb_status_message(), *const wanted[] = {"0.1 MiB", "the limit is reached", " leaves ", "container",
        "activation_offloading: false", "pinned: auto"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!strstr(said, wanted[i]))
            fail_msg("\"%s\" does not say %s", said, wanted[i]);
    nb_plan_destroy(&plan);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(yaml);
}

static void a_pass_refuses_what_cannot_be(void **state)
{
    const struct deep *d = *state;
    struct rig rig;
    struct rig_options options = rig_of(d, 0);
    rig_open(&rig, &options);
    struct nb_pass_options pass = pass_of(&rig, 1, MOST + 1, rig.arena);
    assert_int_equal(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass), NB_USAGE);
    pass.offloaded = -1;
    assert_int_equal(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass), NB_USAGE);
    pass.offloaded = 1;
    pass.pinned = NULL;
    assert_int_equal(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass), NB_USAGE);
    pass.pinned = rig.arena;
    pass.keep = NB_KEEP_NOTHING;
    assert_int_equal(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass), NB_USAGE);
    assert_null(rig.pass);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_bit_changes),
        cmocka_unit_test(what_no_adapter_wants_is_not_kept),
        cmocka_unit_test(slots_do_not_mix),
        cmocka_unit_test(as_little_leaves_as_fits),
        cmocka_unit_test(what_is_said_is_done),
        cmocka_unit_test(evaluation_and_resuming_change_no_bit),
        cmocka_unit_test(refused_memory_is_explained),
        cmocka_unit_test(a_pass_refuses_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, open_deep, close_deep);
}
