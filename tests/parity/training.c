#include "training.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "train/device.h"

void training_check(nb_status status)
{
    if (status != NB_OK)
        fail_msg("%s", nb_status_message());
}

void training_config(const char *yaml, struct nb_config *config)
{
    training_check(nb_config_parse(yaml, strlen(yaml), "test.yml", NULL, 0, config));
    training_check(nb_config_validate_train(config));
}

void training_open_changed(struct training *training, const char *yaml, training_change *change, uint64_t number)
{
    struct nb_run_args run = {.config = &training->config, .purpose = NB_PURPOSE_TRAIN};
    memset(training, 0, sizeof *training);
    training_config(yaml, &training->config);
    training_check(nb_run_open(&run, &training->run));
    if (change)
        change(training->run, number);
    training_check(nb_plan_make(training->run, &training->plan));
    training_check(nb_run_open_device(training->run, training->plan.site, training->plan.sites));
    struct nb_session_args session = {.capacity = training->plan.peak_bytes,
        .pinned_capacity = training->plan.pinned_bytes,
        .pageable_capacity = training->plan.pageable_bytes,
        .host = &training->plan.host,
        .positions_max = training->run->sequence_len};
    struct nb_stepper_options options = nb_stepper_options_of(training->run);
    training_check(nb_session_open(training->run, &session, &training->session));
    training_check(nb_stepper_create(training->session, &options, &training->stepper));
}

void training_open(struct training *training, const char *yaml)
{
    training_open_changed(training, yaml, NULL, 0);
}

static void defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 2, .deferred = true, .deferred_seed = seed};
}

void training_open_deferred(struct training *training, const char *yaml, uint64_t seed)
{
    training_open_changed(training, yaml, defer, seed);
}

void training_close(struct training *training)
{
    nb_stepper_destroy(&training->stepper);
    nb_session_close(&training->session);
    nb_plan_destroy(&training->plan);
    nb_run_destroy(&training->run);
    nb_config_destroy(&training->config);
}

struct nb_step_result training_step(struct training *training, int64_t step)
{
    int64_t per_epoch = training->run->length.steps_per_epoch;
    struct nb_step_result result;
    struct nb_step_rows rows;
    training_check(nb_batch_plan_step(training->run->batches, (uint64_t)((step - 1) / per_epoch), (uint32_t)((step - 1) % per_epoch),
                                      &rows));
    training_check(nb_stepper_run(training->stepper, training->run->data, &rows, step, training->config.learning_rate, &result));
    assert_true(result.finite);
    return result;
}

static float *download(struct training *training, nb_dptr from, uint64_t count)
{
    struct nb_device *device = training->session->device;
    float *values = malloc(count * sizeof *values + 1);
    assert_non_null(values);
    training_check(device->download(device, training->session->stream, values, from, count * sizeof *values));
    training_check(device->stream_wait(device, training->session->stream));
    return values;
}

/* Into `to`; a paged one is read where it stands. */
static void read_master(struct training *training, int trainable, float *to)
{
    const struct nb_adapter *adapter = training->session->adapter;
    const struct nb_trainable *t = nb_adapter_trainable(adapter, trainable);
    const unsigned char *page = nb_adapter_page(adapter, trainable);
    if (page) {
        memcpy(to, page + nb_adapter_record_of(adapter, trainable).master, t->count * sizeof *to);
        return;
    }
    float *values = download(training, nb_dptr_at(nb_adapter_memory_of(adapter)->master, t->offset * sizeof(float)), t->count);
    memcpy(to, values, t->count * sizeof *to);
    free(values);
}

float *training_master(struct training *training, const char *name, uint64_t *count)
{
    const struct nb_adapter *adapter = training->session->adapter;
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(adapter, i);
        if (strcmp(t->name, name) != 0)
            continue;
        *count = t->count;
        float *values = malloc(t->count * sizeof *values);
        assert_non_null(values);
        read_master(training, i, values);
        return values;
    }
    return NULL;
}

float *training_masters(struct training *training)
{
    const struct nb_adapter *adapter = training->session->adapter;
    float *values = calloc(nb_adapter_elements(adapter), sizeof *values);
    assert_non_null(values);
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++)
        read_master(training, i, values + nb_adapter_trainable(adapter, i)->offset);
    return values;
}

char *training_folder(void)
{
    const char *base = getenv("TMPDIR");
    char *path = nb_format("%s/nibble-test-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

void training_write_rows(const char *folder, const int32_t *ids, const int32_t *labels, int rows, int length)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < 2; part++) {
            const int32_t *values = (part ? labels : ids) + r * length;
            fputs(part ? "], \"labels\": [" : "{\"input_ids\": [", file);
            for (int i = 0; i < length; i++)
                fprintf(file, "%s%d", i ? ", " : "", (int)values[i]);
            fputs(part ? "]}\n" : "", file);
        }
    assert_int_equal(fclose(file), 0);
    free(path);
}

void training_write_varied_rows(const char *folder, struct training_rows rows)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int r = 0; r < rows.count; r++) {
        int length = 5 + r * 7 % (rows.longest - 4);
        for (int part = 0; part < 2; part++) {
            fputs(part ? "], \"labels\": [" : "{\"input_ids\": [", file);
            for (int i = 0; i < length; i++)
                fprintf(file, "%s%d", i ? ", " : "", part && i < length / 2 ? -100 : 3 + (r * 31 + i * 17) % rows.ids);
        }
        fputs("]}\n", file);
    }
    assert_int_equal(fclose(file), 0);
    free(path);
}
