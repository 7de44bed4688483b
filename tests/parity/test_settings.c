/* One job under every setting that says what is kept where and in what pieces: metrics, adapter and moments are the
 * same bytes, and both arenas are filled to the byte that was planned. A setting that does nothing is none: each row
 * says whether it takes more or less of the device than the row it is compared with, or what it keeps off the
 * device.
 *
 *   test_settings cpu | deferred | cuda
 *
 * deferred: the CPU device's streams run late, in orders that a seed draws, and its memory is unreadable to the
 * host. cuda: the GPU, or the emulated one, in a smaller form; exit 77 where there is none. To add a setting, add a
 * row.
 *
 * The linker puts __wrap_nb_cpu_device_create before the device's own, to defer it, and __wrap_nb_session_close, to
 * look at the arenas of the program's own sessions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "device/cuda/cuda.h"
#include "support/deep_model.h"
#include "train/trainer.h"
#include "training.h"

enum { LAYERS = 6, ROWS = 26, LONGEST = 40, SKIP = 77 };

/* ---- the settings ---- */

/* What a setting does to the device's memory, against "recomputed". */
enum effect { LESS, MORE, ANY };

struct setting {
    const char *name, *yaml;
    enum effect effect;
    bool pins;  /* something is kept off the device */
    bool small; /* among the few that the emulated GPU runs */
};

#define RECOMPUTED     "gradient_checkpointing: true\n"
#define PAGED          "optimizer: paged_adamw_8bit\n"
#define ALL_PAGED      PAGED "resident_optimizer_bytes: 0\n"
#define OFFLOADED      "activation_offloading: true\n"
#define STREAMED       "resident_layers: 0\n"
#define CHUNKS         "mlp_chunk_tokens: 256\nloss_chunk_rows: 256\n"
#define HOST_EMBEDDING "embedding_device: host\n"
#define LAYER_MAJOR    "accumulation_order: layer_major\n"
#define FROM_FILE      "weights_from: file\nquantized_cache: FOLDER/cache\n"
#define EVERYTHING     RECOMPUTED ALL_PAGED OFFLOADED STREAMED CHUNKS HOST_EMBEDDING

static const struct setting settings[] = {
    {"recomputed", RECOMPUTED, ANY, false, false},
    {"resident", "gradient_checkpointing: false\n", MORE, false, true},
    {"attention kept", "gradient_checkpointing: attention\n", MORE, false, false},
    {"inputs offloaded", RECOMPUTED OFFLOADED, LESS, true, false},
    {"paged", RECOMPUTED ALL_PAGED, LESS, true, false},
    {"paged, partly resident", RECOMPUTED PAGED "resident_optimizer_bytes: 20kB\n", LESS, true, false},
    {"host embedding", RECOMPUTED HOST_EMBEDDING, LESS, true, false},
    {"host embedding, pageable", RECOMPUTED HOST_EMBEDDING "pinned: false\n", LESS, true, true},
    {"MLP in chunks", RECOMPUTED "mlp_chunk_tokens: 256\n", LESS, false, false},
    {"loss in chunks", RECOMPUTED "loss_chunk_rows: 256\n", ANY, false, false},
    {"layer-major", RECOMPUTED LAYER_MAJOR, MORE, false, false},
    {"streamed", RECOMPUTED STREAMED, LESS, true, false},
    {"partly streamed", RECOMPUTED "resident_layers: 2\n", LESS, true, false},
    {"streamed, layer-major", RECOMPUTED STREAMED LAYER_MAJOR, ANY, true, true},
    {"streamed from a file", RECOMPUTED STREAMED FROM_FILE, LESS, true, false},
    {"streamed from a file, again", "gradient_checkpointing: attention\nresident_layers: 1\n" FROM_FILE, ANY, true,
        false},
    {"everything", EVERYTHING, LESS, true, false},
    {"everything, pageable", EVERYTHING "pinned: false\n", LESS, true, false},
    {"everything, layer-major", EVERYTHING LAYER_MAJOR, ANY, true, false},
    {"everything, layer-major, pageable, from a file", EVERYTHING LAYER_MAJOR FROM_FILE "pinned: false\n", ANY, true,
        true},
};

enum { SETTINGS = sizeof settings / sizeof *settings };

/* ---- what stands between the program and the test ---- */

static uint64_t deferred_seed; /* 0: immediately */

/* Of the last session that was not dry. */
static struct {
    uint64_t device, pinned;
    int sessions;
} arenas;

nb_status __real_nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device);
nb_status __wrap_nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device);
void __real_nb_session_close(struct nb_session **session);
void __wrap_nb_session_close(struct nb_session **session);

void __real_nb_cpu_memory_mark(void *context, uint64_t address, uint64_t bytes, bool usable);
void __wrap_nb_cpu_memory_mark(void *context, uint64_t address, uint64_t bytes, bool usable);

/* Checked builds mark the memory of a device that the host can read. */
void __wrap_nb_cpu_memory_mark(void *context, uint64_t address, uint64_t bytes, bool usable)
{
    if (!deferred_seed)
        __real_nb_cpu_memory_mark(context, address, bytes, usable);
}

nb_status __wrap_nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device)
{
    struct nb_cpu_options changed = *options;
    changed.deferred = deferred_seed > 0;
    changed.deferred_seed = deferred_seed;
    return __real_nb_cpu_device_create(&changed, device);
}

void __wrap_nb_session_close(struct nb_session **session)
{
    const struct nb_session *s = *session;
    if (s && !s->dry) {
        arenas.device = nb_arena_high_water(s->arena);
        arenas.pinned = nb_arena_high_water(s->pinned);
        arenas.sessions++;
        assert_int_equal(arenas.device, s->capacity);
        assert_int_equal(arenas.pinned, s->host.bytes);
    }
    __real_nb_session_close(session);
}

/* ---- the job ---- */

struct fixture {
    const char *device; /* "cpu" or "cuda" */
    bool small;
    char *folder, *model;
};

static struct fixture job = {.device = "cpu"};

/* Rows of 11 to 40 tokens: a micro-batch of 13 is two tiles of tokens, of a last one a part. */
static void write_rows(const char *folder)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < ROWS; r++)
        for (int part = 0, length = LONGEST - r * 7 % 30; part < 2; part++) {
            fputs(part ? "], \"labels\": [" : "{\"input_ids\": [", file);
            for (int i = 0; i < length; i++)
                fprintf(file, "%s%d", i ? ", " : "", part && i % 9 == 0 ? -100 : 3 + (r * 31 + i * 17) % 200);
            fputs(part ? "]}\n" : "", file);
        }
    assert_int_equal(fclose(file), 0);
    free(path);
}

static int open_fixture(void **state)
{
    struct fixture *f = &job;
    *state = f;
    f->folder = training_folder();
    f->model = nb_path_join(f->folder, "deep");
    training_check(nb_test_write_deep_model("tests/golden/models/llama", LAYERS, f->model));
    write_rows(f->folder);
    return 0;
}

static int close_fixture(void **state)
{
    struct fixture *f = *state;
    training_check(nb_remove_folder(f->folder));
    free(f->model);
    free(f->folder);
    return 0;
}

/* The settings' FOLDER is the test's. */
static char *with_folder(const struct fixture *f, const char *yaml)
{
    const char *at = strstr(yaml, "FOLDER");
    return at ? nb_format("%.*s%s%s", (int)(at - yaml), yaml, f->folder, at + strlen("FOLDER")) : nb_format("%s", yaml);
}

/* Steps of two micro-batches, the second a short one; evaluations and checkpoints between them. */
static void train(const struct fixture *f, const char *out, bool bf16, const char *more)
{
    struct nb_train_options options = {0};
    struct nb_config config;
    char *own = with_folder(f, more);
    char *yaml = nb_format("base_model: %s\nadapter: qlora\nlora_r: 32\nlora_dropout: 0.1\nlora_target_linear: true\n"
                           "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\nsequence_len: %d\n"
                           "micro_batch_size: %d\ngradient_accumulation_steps: 2\nmax_steps: %d\nsave_steps: 2\n"
                           "val_set_size: 2\neval_steps: %d\nbf16: %s\ndevice: %s\nthreads: 2\noutput_dir: %s/%s\n%s%s",
        f->model, f->folder, LONGEST, 13, f->small ? 2 : 3, f->small ? 2 : 1, bf16 ? "true" : "false", f->device,
        f->folder, out, strstr(more, "optimizer:") ? "" : "optimizer: adamw_8bit\n", own);
    training_config(yaml, &config);
    arenas.sessions = 0;
    training_check(nb_train(&config, &options));
    assert_int_equal(arenas.sessions, 1);
    nb_config_destroy(&config);
    free(yaml);
    free(own);
}

/* ---- what is left ---- */

/* Losses, norms and rates as they stand in the metrics. */
static char *numbers_of(const struct fixture *f, const char *out)
{
    static const char *const keys[] = {
        "\"step\":", "\"loss\":", "\"grad_norm\":", "\"eval_loss\":", "\"learning_rate\":"};
    char *path = nb_format("%s/%s/metrics.jsonl", f->folder, out), *text;
    size_t bytes, used = 0, losses = 0;
    training_check(nb_file_read(path, 1 << 20, false, &text, &bytes));
    char *kept = calloc(bytes + 1, 1);
    for (const char *at = text; *at; at++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            if (strncmp(at, keys[k], strlen(keys[k])) == 0) {
                size_t length = strcspn(at, ",}");
                memcpy(kept + used, at, length);
                used += length;
                losses += k == 1;
            }
    assert_true(losses >= 2);
    free(text);
    free(path);
    return kept;
}

static void assert_same_file(const struct fixture *f, const char *a, const char *b, const char *name)
{
    char *path[2] = {nb_format("%s/%s/%s", f->folder, a, name), nb_format("%s/%s/%s", f->folder, b, name)};
    struct nb_mapped_file file[2] = {0};
    for (int i = 0; i < 2; i++)
        training_check(nb_mapped_file_open(path[i], &file[i]));
    if (file[0].bytes != file[1].bytes || memcmp(file[0].data, file[1].data, file[0].bytes) != 0)
        fail_msg("%s differs from %s", path[1], path[0]);
    for (int i = 0; i < 2; i++) {
        nb_mapped_file_close(&file[i]);
        free(path[i]);
    }
}

static void assert_same_run(const struct fixture *f, const char *a, const char *b)
{
    char *wanted = numbers_of(f, a), *numbers = numbers_of(f, b);
    assert_string_equal(numbers, wanted);
    assert_same_file(f, a, b, "adapter_model.safetensors");
    assert_same_file(f, a, b, "checkpoint-2/optimizer.safetensors");
    free(wanted);
    free(numbers);
}

static void assert_effect(const struct setting *s, uint64_t reference_bytes)
{
    if ((s->effect == LESS && arenas.device >= reference_bytes) ||
        (s->effect == MORE && arenas.device <= reference_bytes))
        fail_msg("%s: %llu bytes of the device beside %llu", s->name, (unsigned long long)arenas.device,
            (unsigned long long)reference_bytes);
    assert_int_equal(s->pins, arenas.pinned > 0);
}

/* Every setting, with each seed from `first` to `last`, beside the first setting run immediately. */
static void compare(const struct fixture *f, bool bf16, uint64_t first, uint64_t last)
{
    char *reference = nb_format("reference-%d", bf16);
    deferred_seed = 0;
    train(f, reference, bf16, settings[0].yaml);
    uint64_t reference_bytes = arenas.device;
    for (size_t i = 0; i < SETTINGS; i++)
        for (uint64_t seed = first; seed <= last && (settings[i].small || !f->small); seed++) {
            char *out = nb_format("%zu-%d-%llu", i, bf16, (unsigned long long)seed);
            print_message("%s, %s, seed %llu\n", settings[i].name, bf16 ? "bf16" : "fp32", (unsigned long long)seed);
            deferred_seed = seed;
            train(f, out, bf16, settings[i].yaml);
            assert_effect(&settings[i], reference_bytes);
            assert_same_run(f, reference, out);
            free(out);
        }
    free(reference);
}

static void no_setting_changes_a_bit(void **state)
{
    const struct fixture *f = *state;
    if (!f->small)
        compare(f, false, 0, 0);
    compare(f, true, 0, 0);
}

static void no_setting_changes_a_bit_when_work_runs_late(void **state)
{
    compare(*state, false, 1, 1);
    compare(*state, true, 2, 2);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest immediate[] = {cmocka_unit_test(no_setting_changes_a_bit)};
    const struct CMUnitTest deferred[] = {cmocka_unit_test(no_setting_changes_a_bit_when_work_runs_late)};
    const struct nb_cuda_options options = {0};
    struct nb_device_profile profile;
    if (argc != 2)
        return 2;
    if (strcmp(argv[1], "deferred") == 0)
        return cmocka_run_group_tests(deferred, open_fixture, close_fixture);
    job.small = strcmp(argv[1], "cuda") == 0;
    job.device = argv[1];
    if (job.small && nb_cuda_probe(&options, &profile) != NB_OK) {
        printf("%s\n", nb_status_message());
        return SKIP;
    }
    return cmocka_run_group_tests(immediate, open_fixture, close_fixture);
}
