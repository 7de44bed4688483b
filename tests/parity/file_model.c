#include "file_model.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/bnb.h"
#include "support/deep_model.h"
#include "train/trainer.h"

enum { ROWS = 12, LONGEST = 30 };

static void write_four_bits(const char *from, const char *to)
{
    struct nb_checkpoint *source = NULL;
    training_check(nb_checkpoint_open(from, &source));
    const struct nb_bnb_write args = {
        .source = source, .folder = to, .type = NB_QUANT_NF4, .nested = true, .shard_bytes = 100000};
    training_check(nb_bnb_write(&args));
    nb_checkpoint_close(&source);
}

int file_model_open(void **state)
{
    struct file_model *m = calloc(1, sizeof *m);
    m->shape = *state;
    m->folder = training_folder();
    m->path = nb_path_join(m->folder, "model");
    m->four_bits = nb_path_join(m->folder, "four_bits");
    char *shape = nb_format("tests/golden/models/%s", m->shape);
    training_check(nb_test_write_deep_model(shape, FILE_MODEL_LAYERS, m->path));
    write_four_bits(m->path, m->four_bits);
    free(shape);
    training_write_varied_rows(m->folder, (struct training_rows){ROWS, LONGEST, 200});
    *state = m;
    return 0;
}

int file_model_close(void **state)
{
    struct file_model *m = *state;
    training_check(nb_remove_folder(m->folder));
    free(m->folder);
    free(m->path);
    free(m->four_bits);
    free(m);
    return 0;
}

char *file_model_yaml(const struct file_model *m, const char *base, const char *more)
{
    return nb_format(
        "base_model: %s\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"
        "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-2\nlr_scheduler: constant\n"
        "sequence_len: %d\nmicro_batch_size: 2\ngradient_accumulation_steps: 2\nlora_dropout: 0.1\nthreads: 1\n"
        "output_dir: %s/out\n%s",
        base, m->folder, LONGEST, m->folder, more);
}

static void defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = seed > 0, .deferred_seed = seed};
}

struct file_trained file_model_train(const char *yaml, uint64_t seed)
{
    struct file_trained r;
    struct training t;
    training_open_changed(&t, yaml, defer, seed);
    for (int i = 0; i < FILE_MODEL_STEPS; i++)
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

bool file_trained_same(const struct file_trained *a, const struct file_trained *b)
{
    for (int i = 0; i < FILE_MODEL_STEPS; i++)
        if (a->step[i].loss != b->step[i].loss || a->step[i].grad_norm != b->step[i].grad_norm)
            return false;
    return a->bytes == b->bytes && memcmp(a->masters, b->masters, a->bytes) == 0;
}

/* The one file in the cache's folder, which the caller frees; NULL when it is empty. More than one is a failure. */
char *file_model_cached(const char *folder)
{
    char *path = NULL;
    DIR *names = opendir(folder);
    for (struct dirent *entry; names && (entry = readdir(names));) {
        if (entry->d_name[0] == '.')
            continue;
        assert_null(path);
        path = nb_path_join(folder, entry->d_name);
    }
    if (names)
        closedir(names);
    return path;
}

struct stat file_model_stat(const char *path)
{
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    return status;
}

nb_status file_model_run(const struct file_model *m, const char *out, const char *more, bool resume, char **metrics)
{
    static const char *const fields[] = {"\"seconds\":", "\"tokens_per_second\":", "\"memory_bytes\":"};
    struct nb_train_options options = {.resume = resume};
    struct nb_config config;
    char *yaml = file_model_yaml(m, m->path, more), *path = nb_format("%s/%s", m->folder, out);
    char *output = nb_format("output_dir=%s", path), *file = nb_path_join(path, "metrics.jsonl");
    const char *override[] = {output};
    size_t bytes;
    training_check(nb_config_parse(yaml, strlen(yaml), "test.yml", override, 1, &config));
    training_check(nb_config_validate_train(&config));
    nb_status status = nb_train(&config, &options);
    nb_config_destroy(&config);
    *metrics = NULL;
    if (status == NB_OK)
        status = nb_file_read(file, 1 << 24, false, metrics, &bytes);
    for (size_t i = 0; status == NB_OK && i < sizeof fields / sizeof *fields; i++)
        for (char *at = *metrics; (at = strstr(at, fields[i]));) {
            char *end = at + strcspn(at, ",}");
            memmove(at, end, strlen(end) + 1);
        }
    free(file);
    free(output);
    free(path);
    free(yaml);
    return status;
}
