/* A run that is killed with SIGKILL in the middle of paging, and resumed: adapter, moments and metrics are those of a
 * run that nobody touched.
 *
 * Where the kill lands is no matter of luck: the device's calls are counted, the updates of masters and moments and the
 * copies of their chunks are told from the rest, and the process kills itself at a call of one of them. The linker puts
 * __wrap_nb_cpu_device_create before the device's own. Everything that computes is a child of its own: the runtime of
 * OpenMP does not survive a fork. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/log.h"
#include "support/deep_model.h"
#include "train/trainer.h"
#include "training.h"

enum { LAYERS = 6, STEPS = 5, ROWS = 12, LENGTH = 12, CALLS_MAX = 1 << 16, KILLS = 6 };

/* ---- the device that kills ---- */

enum phase { PHASE_OTHER, PHASE_PAGING };

/* Shared with the children. */
struct record {
    uint32_t calls;                 /* uploads, downloads and updates so far */
    unsigned char phase[CALLS_MAX]; /* of each */
    uint32_t last;                  /* the process dies at this call; 0: never */
    uint32_t pages;                 /* uploads of masters and moments */
};

static struct record *record;
static enum phase now;

static nb_status (*real_upload)(struct nb_device *, struct nb_stream *, nb_dptr, const void *, uint64_t);
static nb_status (*real_download)(struct nb_device *, struct nb_stream *, void *, nb_dptr, uint64_t);
static nb_status (*real_adamw)(struct nb_device *, struct nb_stream *, const struct nb_adamw *);
static nb_status (*real_clip_scale)(struct nb_device *, struct nb_stream *, const struct nb_clip_scale *);

static void count_call(void)
{
    if (record->calls < CALLS_MAX)
        record->phase[record->calls] = (unsigned char)now;
    if (++record->calls == record->last)
        raise(SIGKILL);
}

static nb_status upload(
    struct nb_device *device, struct nb_stream *stream, nb_dptr to, const void *from, uint64_t bytes)
{
    record->pages += now == PHASE_PAGING;
    count_call();
    return real_upload(device, stream, to, from, bytes);
}

static nb_status download(struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    nb_status status = real_download(device, stream, to, from, bytes);
    if (bytes == sizeof(struct nb_step)) /* the step's results: its updates are enqueued */
        now = PHASE_OTHER;
    count_call();
    return status;
}

static nb_status adamw(struct nb_device *device, struct nb_stream *stream, const struct nb_adamw *args)
{
    nb_status status = real_adamw(device, stream, args);
    count_call();
    return status;
}

/* The updates follow it. */
static nb_status clip_scale(struct nb_device *device, struct nb_stream *stream, const struct nb_clip_scale *args)
{
    now = PHASE_PAGING;
    return real_clip_scale(device, stream, args);
}

nb_status __real_nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device);
nb_status __wrap_nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device);

nb_status __wrap_nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device)
{
    NB_TRY(__real_nb_cpu_device_create(options, device));
    struct nb_device *d = *device;
    real_upload = d->upload;
    real_download = d->download;
    real_adamw = d->adamw;
    real_clip_scale = d->clip_scale;
    d->upload = upload;
    d->download = download;
    d->adamw = adamw;
    d->clip_scale = clip_scale;
    now = PHASE_OTHER;
    return NB_OK;
}

/* ---- runs, each a process ---- */

struct fixture {
    char *folder, *model;
};

struct job {
    const struct fixture *f;
    const char *out, *settings;
    bool resume;
};

/* The exit status, or minus the signal. */
static int in_child(nb_status (*work)(const void *), const void *argument)
{
    int ended;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        nb_status status = work(argument);
        if (status != NB_OK)
            nb_log_error();
        _exit(status == NB_OK ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &ended, 0), child);
    return WIFSIGNALED(ended) ? -WTERMSIG(ended) : WEXITSTATUS(ended);
}

static nb_status train(const void *argument)
{
    const struct job *job = argument;
    struct nb_train_options options = {.resume = job->resume};
    struct nb_config config;
    char *yaml =
        nb_format("base_model: %s\nadapter: qlora\nlora_r: 8\nlora_dropout: 0.1\nlora_target_linear: true\n"
                  "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\nsequence_len: %d\n"
                  "micro_batch_size: 1\ngradient_accumulation_steps: 2\nmax_steps: %d\nsave_steps: 1\nval_set_size: 2\n"
                  "eval_steps: 2\nbf16: false\ndevice: cpu\nthreads: 1\noutput_dir: %s/%s\n%s",
            job->f->model, job->f->folder, LENGTH, STEPS, job->f->folder, job->out, job->settings);
    nb_status status = nb_config_parse(yaml, strlen(yaml), "test.yml", NULL, 0, &config);
    free(yaml);
    if (status == NB_OK)
        status = nb_config_validate_train(&config);
    if (status == NB_OK)
        status = nb_train(&config, &options);
    nb_config_destroy(&config);
    return status;
}

static nb_status write_model(const void *argument)
{
    const struct fixture *f = argument;
    return nb_test_write_deep_model("tests/golden/models/llama", LAYERS, f->model);
}

static int open_fixture(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    int32_t ids[ROWS * LENGTH];
    for (int i = 0; i < ROWS * LENGTH; i++)
        ids[i] = 3 + i * 17 % 200;
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(record, MAP_FAILED);
    f->folder = training_folder();
    f->model = nb_path_join(f->folder, "deep");
    assert_int_equal(in_child(write_model, f), 0);
    training_write_rows(f->folder, ids, ids, ROWS, LENGTH);
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    struct fixture *f = *state;
    training_check(nb_remove_folder(f->folder));
    free(f->model);
    free(f->folder);
    free(f);
    return 0;
}

/* ---- what is left ---- */

static void assert_same_file(const struct fixture *f, const char *a, const char *b, const char *name)
{
    char *path[2] = {nb_format("%s/%s/%s", f->folder, a, name), nb_format("%s/%s/%s", f->folder, b, name)};
    struct nb_mapped_file file[2] = {0};
    for (int i = 0; i < 2; i++)
        training_check(nb_mapped_file_open(path[i], &file[i]));
    assert_int_equal(file[0].bytes, file[1].bytes);
    if (memcmp(file[0].data, file[1].data, file[0].bytes) != 0)
        fail_msg("%s differs from %s", path[0], path[1]);
    for (int i = 0; i < 2; i++) {
        nb_mapped_file_close(&file[i]);
        free(path[i]);
    }
}

/* Losses and norms of the metrics, without times and without memory. */
static char *losses_of(const struct fixture *f, const char *out)
{
    char *path = nb_format("%s/%s/metrics.jsonl", f->folder, out), *text, *kept, *to;
    size_t bytes;
    training_check(nb_file_read(path, 1 << 20, false, &text, &bytes));
    to = kept = calloc(bytes + 1, 1);
    static const char *const keys[] = {"\"step\":", "\"loss\":", "\"grad_norm\":", "\"eval_loss\":"};
    for (const char *at = text; *at; at++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            if (strncmp(at, keys[k], strlen(keys[k])) == 0) {
                size_t length = strcspn(at, ",}");
                memcpy(to, at, length);
                to += length;
            }
    free(text);
    free(path);
    return kept;
}

/* The settings page all masters and moments; what else leaves the device differs, also between killed and resumed. */
static const char *const settings[] = {
    "optimizer: paged_adamw_8bit\nresident_optimizer_bytes: 0\n",
    "optimizer: paged_adamw_8bit\nresident_optimizer_bytes: 20kB\nactivation_offloading: true\nresident_layers: 0\n",
    "optimizer: paged_adamw_8bit\nresident_optimizer_bytes: 0\ngradient_checkpointing: attention\nresident_layers: 2\n"
    "pinned: false\n",
};

enum { SETTINGS = sizeof settings / sizeof *settings };

/* The calls while a step's masters and moments pass, the first step apart, before which there is no checkpoint. */
static uint32_t list_paging(uint32_t *call)
{
    uint32_t count = 0, begun = 0;
    assert_true(record->calls < CALLS_MAX);
    for (uint32_t i = 1; i < record->calls; i++) {
        begun += record->phase[i] == PHASE_PAGING && record->phase[i - 1] != PHASE_PAGING;
        if (begun > 1 && record->phase[i] == PHASE_PAGING)
            call[count++] = i + 1;
    }
    return count;
}

static void killed_in_paging_and_resumed(void **state)
{
    const struct fixture *f = *state;
    static uint32_t call[CALLS_MAX];
    struct job whole = {f, "whole", "optimizer: adamw_8bit\n", false};
    assert_int_equal(in_child(train, &whole), 0);
    char *wanted = losses_of(f, "whole");
    for (int s = 0; s < SETTINGS; s++) {
        char *counted_out = nb_format("counted-%d", s);
        struct job counted = {f, counted_out, settings[s], false};
        *record = (struct record){0};
        assert_int_equal(in_child(train, &counted), 0);
        assert_same_file(f, "whole", counted_out, "adapter_model.safetensors");
        uint32_t count = list_paging(call);
        assert_true(count > 2 * KILLS && record->pages >= STEPS);
        for (uint32_t k = 0; k < KILLS; k++) {
            char *out = nb_format("killed-%d-%u", s, k), *checkpoint = nb_format("%s/checkpoint-%d", out, STEPS);
            struct job killed = {f, out, settings[s], false}, resumed = {f, out, settings[(s + 1) % SETTINGS], true};
            *record = (struct record){.last = call[k * (count - 1) / (KILLS - 1)]};
            assert_int_equal(in_child(train, &killed), -SIGKILL);
            assert_int_equal(record->phase[record->last - 1], PHASE_PAGING);
            *record = (struct record){0};
            assert_int_equal(in_child(train, &resumed), 0);
            assert_same_file(f, "whole", out, "adapter_model.safetensors");
            assert_same_file(f, "whole/checkpoint-5", checkpoint, "optimizer.safetensors");
            char *losses = losses_of(f, out);
            assert_string_equal(losses, wanted);
            free(losses);
            free(checkpoint);
            free(out);
        }
        free(counted_out);
    }
    free(wanted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_in_paging_and_resumed),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
