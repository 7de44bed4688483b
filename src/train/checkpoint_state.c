#include "train/checkpoint_state.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/file.h"
#include "base/log.h"
#include "train/optimizer_state.h"
#include "train/product_table.h"

enum { STATE_BYTES_MAX = 1 << 20, CRC_CHUNK = 1 << 30 };

static const char *const files[] = {
    "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "config.yml", "products.json"};

enum { FILES = sizeof files / sizeof files[0] };

/* ---- checksums ---- */

static uint32_t crc_of(const unsigned char *data, uint64_t bytes)
{
    uLong crc = crc32(0, NULL, 0);
    while (bytes > 0) {
        uInt piece = bytes > CRC_CHUNK ? CRC_CHUNK : (uInt)bytes;
        crc = crc32(crc, data, piece);
        data += piece;
        bytes -= piece;
    }
    return (uint32_t)crc;
}

static nb_status measure_file(const char *folder, const char *name, uint64_t *bytes, uint32_t *crc)
{
    char *path = nb_path_join(folder, name);
    struct nb_mapped_file file;
    nb_status status = nb_mapped_file_open(path, &file);
    free(path);
    if (status != NB_OK)
        return status;
    *bytes = file.bytes;
    *crc = crc_of(file.data, file.bytes);
    nb_mapped_file_close(&file);
    return NB_OK;
}

/* Of the object without its own "crc32", in one spelling. */
static uint32_t crc_of_object(const json_t *root)
{
    char *text = json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    uint32_t crc = text ? crc_of((const unsigned char *)text, strlen(text)) : 0;
    free(text);
    return crc;
}

/* ---- the state's text ---- */

static json_t *state_json(const struct nb_trainer_state *s)
{
    return json_pack("{s:I, s:f, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:i, s:b}", "step", (json_int_t)s->step, "epoch",
        s->epoch, "seed", (json_int_t)s->seed, "tokens", (json_int_t)s->tokens, "trained_tokens",
        (json_int_t)s->trained_tokens, "metrics_bytes", (json_int_t)s->metrics_bytes, "best_loss", s->best_loss,
        "best_step", (json_int_t)s->best_step, "evaluations_without_gain", (json_int_t)s->evaluations_without_gain,
        "micro_batch_size", s->micro_batch_size, "evaluation_due", (int)s->evaluation_due);
}

static bool state_from_json(json_t *root, struct nb_trainer_state *s)
{
    json_int_t step, seed, tokens, trained, metrics, best_step, without_gain;
    int due;
    s->micro_batch_size = 0; /* of a checkpoint from before it was recorded */
    if (json_unpack(root, "{s:I, s:F, s:I, s:I, s:I, s:I, s:F, s:I, s:I, s?i, s:b}", "step", &step, "epoch", &s->epoch,
            "seed", &seed, "tokens", &tokens, "trained_tokens", &trained, "metrics_bytes", &metrics, "best_loss",
            &s->best_loss, "best_step", &best_step, "evaluations_without_gain", &without_gain, "micro_batch_size",
            &s->micro_batch_size, "evaluation_due", &due) != 0)
        return false;
    s->step = step;
    s->seed = (uint64_t)seed;
    s->tokens = (uint64_t)tokens;
    s->trained_tokens = (uint64_t)trained;
    s->metrics_bytes = (uint64_t)metrics;
    s->best_step = best_step;
    s->evaluations_without_gain = without_gain;
    s->evaluation_due = due != 0;
    return step > 0 && metrics >= 0 && s->micro_batch_size >= 0;
}

static nb_status write_state(const char *folder, const struct nb_trainer_state *state)
{
    json_t *root = state_json(state), *list = json_object();
    char *path = nb_path_join(folder, "trainer_state.json"), *text = NULL;
    nb_status status = NB_OK;
    for (int i = 0; status == NB_OK && i < FILES; i++) {
        uint64_t bytes = 0;
        uint32_t crc = 0;
        status = measure_file(folder, files[i], &bytes, &crc);
        json_object_set_new(
            list, files[i], json_pack("{s:I, s:I}", "bytes", (json_int_t)bytes, "crc32", (json_int_t)crc));
    }
    json_object_set_new(root, "files", list);
    json_object_set_new(root, "crc32", json_integer(crc_of_object(root)));
    if (status == NB_OK && !(text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17))))
        status = nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    if (status == NB_OK)
        status = nb_file_write(path, text, strlen(text));
    free(text);
    json_decref(root);
    free(path);
    return status;
}

/* ---- saving ---- */

static nb_status write_config(const char *folder, const struct nb_config *config)
{
    char *text = NULL, *path = nb_path_join(folder, "config.yml");
    size_t bytes;
    nb_status status = nb_config_format(config, &text, &bytes);
    if (status == NB_OK)
        status = nb_file_write(path, text, bytes);
    free(text);
    free(path);
    return status;
}

static nb_status write_products(const char *folder, const struct nb_run *run)
{
    static const struct nb_product_table none = {0};
    char *path = nb_path_join(folder, "products.json");
    nb_status status = nb_product_table_write(path, run->recorded ? run->recorded : &none);
    free(path);
    return status;
}

static nb_status write_folder(struct nb_session *session, const char *folder, const struct nb_trainer_state *state)
{
    const struct nb_config *config = session->run->config;
    const char *base = config->base_model_name ? config->base_model_name : config->base_model;
    NB_TRY(nb_remove_folder(folder));
    NB_TRY(nb_make_folder(folder));
    NB_TRY(nb_peft_save(session->adapter, session->stream, session->staging, folder, base));
    char *path = nb_path_join(folder, "optimizer.safetensors");
    nb_status status = nb_optimizer_state_save(session, path);
    free(path);
    if (status == NB_OK)
        status = write_config(folder, config);
    if (status == NB_OK)
        status = write_products(folder, session->run);
    return status == NB_OK ? write_state(folder, state) : status;
}

nb_status nb_checkpoint_state_save(
    struct nb_session *session, const struct nb_run_folder *folder, const struct nb_trainer_state *state)
{
    char *unfinished = nb_run_folder_unfinished(folder, state->step);
    nb_status status = write_folder(session, unfinished, state);
    if (status == NB_OK)
        status = nb_run_folder_publish(folder, state->step);
    if (status != NB_OK) { /* the first error stays the one to report */
        char *message = nb_format("%s", nb_status_message());
        nb_remove_folder(unfinished);
        nb_fail(status, "%s", message);
        free(message);
    }
    free(unfinished);
    return status;
}

/* ---- reading ---- */

static nb_status check_files(const char *folder, const json_t *list)
{
    for (int i = 0; i < FILES; i++) {
        json_int_t bytes, crc;
        uint64_t found_bytes;
        uint32_t found_crc;
        json_t *entry = json_object_get(list, files[i]);
        if (!entry || json_unpack(entry, "{s:I, s:I}", "bytes", &bytes, "crc32", &crc) != 0)
            return nb_fail(
                NB_FORMAT, "%s/trainer_state.json: files: %s is missing; the checkpoint is damaged", folder, files[i]);
        NB_TRY(measure_file(folder, files[i], &found_bytes, &found_crc));
        if (found_bytes != (uint64_t)bytes)
            return nb_fail(NB_FORMAT, "%s/%s: %" PRIu64 " bytes, %" PRId64 " were written; the checkpoint is damaged",
                folder, files[i], found_bytes, (int64_t)bytes);
        if (found_crc != (uint32_t)crc)
            return nb_fail(NB_FORMAT,
                "%s/%s: its checksum is not the one it was written with; the checkpoint is damaged", folder, files[i]);
    }
    return NB_OK;
}

nb_status nb_checkpoint_state_read(const char *checkpoint_folder, struct nb_trainer_state *state)
{
    char *path = nb_path_join(checkpoint_folder, "trainer_state.json"), *text = NULL;
    size_t bytes;
    json_error_t error;
    json_t *root = NULL;
    *state = (struct nb_trainer_state){0};
    nb_status status = nb_file_read(path, STATE_BYTES_MAX, false, &text, &bytes);
    if (status == NB_OK && !(root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error)))
        status = nb_fail(
            NB_FORMAT, "%s:%d:%d: not JSON: %s; the checkpoint is damaged", path, error.line, error.column, error.text);
    if (status == NB_OK) {
        json_int_t crc = json_integer_value(json_object_get(root, "crc32"));
        json_object_del(root, "crc32");
        if (!json_is_object(root) || crc != (json_int_t)crc_of_object(root) || !state_from_json(root, state))
            status = nb_fail(NB_FORMAT, "%s: its contents are not what was written; the checkpoint is damaged", path);
    }
    if (status == NB_OK)
        status = check_files(checkpoint_folder, json_object_get(root, "files"));
    json_decref(root);
    free(text);
    free(path);
    return status;
}

nb_status nb_checkpoint_state_load(struct nb_session *session, const char *checkpoint_folder)
{
    char *path = nb_path_join(checkpoint_folder, "optimizer.safetensors");
    nb_status status = nb_optimizer_state_load(session, path);
    free(path);
    return status;
}

/* ---- resuming ---- */

/* Whether the learning rate of a step depends on how many there will be. */
static bool depends_on_length(const struct nb_config *config)
{
    bool warmup_is_a_share = config->warmup_steps < 0 || (config->warmup_steps == 0 && config->warmup_ratio > 0);
    return config->lr_scheduler != NB_CONFIG_SCHEDULER_CONSTANT &&
           !(config->lr_scheduler == NB_CONFIG_SCHEDULER_CONSTANT_WITH_WARMUP && !warmup_is_a_share);
}

nb_status nb_checkpoint_state_check_config(const char *checkpoint_folder, const struct nb_config *config)
{
    char *path = nb_path_join(checkpoint_folder, "config.yml");
    struct nb_config stored;
    nb_status status = nb_config_read(path, NULL, 0, &stored);
    free(path);
    if (status != NB_OK)
        return status;
    status = nb_config_validate_train(&stored);
    if (nb_config_moments_8bit(&stored) == nb_config_moments_8bit(config)) /* they differ in name, or in paging */
        stored.optimizer = config->optimizer;
    if (!depends_on_length(config)) {
        stored.num_epochs = config->num_epochs;
        stored.max_steps = config->max_steps;
    }
    const char *key = status == NB_OK ? nb_config_first_lasting_difference(&stored, config) : NULL;
    if (key)
        status = nb_fail(NB_USAGE,
            "%s: is not what this run began with (%s/config.yml); set it back, or start anew in another "
            "output_dir",
            key, checkpoint_folder);
    nb_config_destroy(&stored);
    return status;
}

static nb_status find_newest(const char *run_folder, char **checkpoint_folder, struct nb_trainer_state *state)
{
    int64_t *steps = NULL;
    int count = 0;
    NB_TRY(nb_run_checkpoints_in(run_folder, &steps, &count));
    nb_status status = NB_OK;
    for (int i = count - 1; i >= 0; i--) {
        char *path = nb_run_checkpoint_in(run_folder, steps[i]);
        status = nb_checkpoint_state_read(path, state);
        if (status == NB_OK) {
            *checkpoint_folder = path;
            break;
        }
        if (i > 0)
            nb_warn("%s; trying the one before", nb_status_message());
        free(path);
    }
    free(steps);
    return status;
}

nb_status nb_checkpoint_state_find(
    const struct nb_run_folder *folder, const char *named, char **checkpoint_folder, struct nb_trainer_state *state)
{
    *checkpoint_folder = NULL;
    *state = (struct nb_trainer_state){0};
    if (!named)
        return find_newest(nb_run_folder_path(folder), checkpoint_folder, state);
    if (!nb_path_is_folder(named))
        return nb_fail(
            NB_IO, "--resume %s: no such folder; name a checkpoint, or a run's folder for its newest", named);
    char *inside = nb_path_join(named, "trainer_state.json");
    bool is_checkpoint = nb_path_exists(inside);
    free(inside);
    if (!is_checkpoint) {
        NB_TRY(find_newest(named, checkpoint_folder, state));
        return *checkpoint_folder ? NB_OK
                                  : nb_fail(NB_IO, "--resume %s: neither a checkpoint nor a folder with some", named);
    }
    NB_TRY(nb_checkpoint_state_read(named, state));
    *checkpoint_folder = nb_format("%s", named);
    return NB_OK;
}
