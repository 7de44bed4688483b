#include "adapter/peft.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/registry.h"
#include "base/bfloat.h"
#include "base/file.h"
#include "checkpoint/safetensors.h"

enum { CONFIG_BYTES_MAX = 4 << 20 };

static const char prefix[] = "base_model.model.";

struct nb_peft_config {
    char *path;
    char *base_model;
    char **targets;
    size_t target_count;
    bool target_linear;
    int rank;
    double alpha, dropout;
    bool rank_stabilized;
};

/* Whether a field says nothing: what PEFT writes for what is not used. */
static bool is_empty(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

/* Fields read below, and those that change nothing once the tensors are there. */
static bool is_understood(const char *key)
{
    static const char *const known[] = {
        "peft_type",
        "task_type",
        "bias",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "target_modules",
        "init_lora_weights",
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "revision",
        "megatron_core",
        "megatron_config",
        "peft_version",
        "qalora_group_size",
        "exclude_modules",
        "ensure_weight_tying",
        "runtime_config",
        "layers_pattern",
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(known[i], key) == 0)
            return true;
    return false;
}

static nb_status refuse(const char *path, const char *key, const json_t *value, const char *why)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    nb_status status = nb_fail(NB_UNSUPPORTED, "%s: %s: %.120s: %s", path, key, text ? text : "?", why);
    free(text);
    return status;
}

static nb_status refuse_unsupported(const char *path, json_t *root)
{
    const char *key;
    json_t *value;
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    if (!type || strcmp(type, "LORA") != 0)
        return refuse(path, "peft_type", json_object_get(root, "peft_type"), "only LORA adapters are supported");
    const json_t *task = json_object_get(root, "task_type");
    if (!is_empty(task) && (!json_is_string(task) || strcmp(json_string_value(task), "CAUSAL_LM") != 0))
        return refuse(path, "task_type", task, "only CAUSAL_LM adapters are supported");
    const json_t *bias = json_object_get(root, "bias");
    if (!is_empty(bias) && (!json_is_string(bias) || strcmp(json_string_value(bias), "none") != 0))
        return refuse(path, "bias", bias, "adapters that train biases are not supported; make one with bias: none");
    /* These take the adapter's start out of the base weights, which are then no longer the base model's. */
    const json_t *init = json_object_get(root, "init_lora_weights");
    static const char *const keeps_base[] = {"gaussian", "eva", "orthogonal"};
    if (json_is_string(init)) {
        bool keeps = false;
        for (size_t i = 0; i < sizeof keeps_base / sizeof keeps_base[0]; i++)
            keeps = keeps || strcmp(json_string_value(init), keeps_base[i]) == 0;
        if (!keeps)
            return refuse(path, "init_lora_weights", init,
                "this initialization changes the base weights; convert the adapter to plain LoRA when saving it");
    }
    json_object_foreach(root, key, value)
    {
        if (is_empty(value) || is_understood(key))
            continue;
        return refuse(path, key, value,
            strcmp(key, "use_dora") == 0          ? "DoRA adapters are not supported"
            : strcmp(key, "modules_to_save") == 0 ? "adapters that hold whole modules are not supported"
                                                  : "adapters that use this are not supported");
    }
    return NB_OK;
}

static bool keep_target(struct nb_peft_config *config, const char *name, size_t bytes)
{
    char **grown = realloc(config->targets, (config->target_count + 1) * sizeof *grown);
    if (!grown)
        return false;
    config->targets = grown;
    if (!(grown[config->target_count] = strndup(name, bytes)))
        return false;
    config->target_count++;
    return true;
}

/* Targets that are an expression, or come with exceptions, are what the tensors' names say. */
static nb_status targets_from_tensors(struct nb_peft_config *config, const char *folder)
{
    static const char suffix[] = ".lora_A.weight";
    char *path = nb_path_join(folder, "adapter_model.safetensors");
    struct nb_safetensors *file = NULL;
    nb_status status = nb_safetensors_open(path, &file);
    free(path);
    if (status != NB_OK)
        return status;
    for (size_t i = 0; i < nb_safetensors_count(file) && status == NB_OK; i++) {
        const char *name = nb_safetensors_at(file, i)->name;
        size_t length = strlen(name), around = sizeof prefix - 1 + sizeof suffix - 1;
        if (length > around && strncmp(name, prefix, sizeof prefix - 1) == 0 &&
            strcmp(name + length - (sizeof suffix - 1), suffix) == 0 &&
            !keep_target(config, name + sizeof prefix - 1, length - around))
            status = nb_fail(NB_MEMORY, "%s: no memory for its targets", config->path);
    }
    nb_safetensors_close(&file);
    return status;
}

static nb_status read_targets(struct nb_peft_config *config, const json_t *root, const char *folder)
{
    const json_t *targets = json_object_get(root, "target_modules"), *target;
    size_t i;
    if (!is_empty(json_object_get(root, "exclude_modules")))
        return targets_from_tensors(config, folder);
    if (json_is_string(targets) && strcmp(json_string_value(targets), "all-linear") == 0) {
        config->target_linear = true;
        return NB_OK;
    }
    if (json_is_string(targets))
        return targets_from_tensors(config, folder);
    if (!json_is_array(targets) || json_array_size(targets) == 0)
        return nb_fail(NB_FORMAT, "%s: target_modules: a list of module names is expected", config->path);
    json_array_foreach(targets, i, target)
    {
        if (!json_is_string(target))
            return nb_fail(NB_FORMAT, "%s: target_modules: entry %zu is not a string", config->path, i + 1);
        if (!keep_target(config, json_string_value(target), json_string_length(target)))
            return nb_fail(NB_MEMORY, "%s: no memory for its targets", config->path);
    }
    return NB_OK;
}

static nb_status read_numbers(struct nb_peft_config *config, const json_t *root)
{
    const json_t *rank = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    const json_t *dropout = json_object_get(root, "lora_dropout");
    if (!json_is_integer(rank) || json_integer_value(rank) < 1 || json_integer_value(rank) > 1024)
        return nb_fail(NB_FORMAT, "%s: r: a whole number from 1 to 1024 is expected", config->path);
    if (!json_is_number(alpha) || json_number_value(alpha) == 0)
        return nb_fail(NB_FORMAT, "%s: lora_alpha: a number other than 0 is expected", config->path);
    if (dropout && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) >= 0 && json_number_value(dropout) < 1))
        return nb_fail(NB_FORMAT, "%s: lora_dropout: a number from 0 to below 1 is expected", config->path);
    config->rank = (int)json_integer_value(rank);
    config->alpha = json_number_value(alpha);
    config->dropout = json_number_value(dropout);
    config->rank_stabilized = json_is_true(json_object_get(root, "use_rslora"));
    const char *base = json_string_value(json_object_get(root, "base_model_name_or_path"));
    config->base_model = strdup(base ? base : "");
    return config->base_model ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory to read it", config->path);
}

static nb_status read_config(struct nb_peft_config *config, const char *folder)
{
    char *text = NULL;
    size_t bytes;
    json_error_t error;
    if (!nb_path_is_folder(folder))
        return nb_fail(
            NB_IO, "%s: no such adapter folder; it holds adapter_config.json and adapter_model.safetensors", folder);
    NB_TRY(nb_file_read(config->path, CONFIG_BYTES_MAX, false, &text, &bytes));
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!root)
        return nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", config->path, error.line, error.column, error.text);
    nb_status status = NB_OK;
    if (!json_is_object(root))
        status = nb_fail(NB_FORMAT, "%s: a JSON object is expected", config->path);
    if (status == NB_OK)
        status = refuse_unsupported(config->path, root);
    if (status == NB_OK)
        status = read_numbers(config, root);
    if (status == NB_OK)
        status = read_targets(config, root, folder);
    json_decref(root);
    return status;
}

nb_status nb_peft_config_read(const char *folder, struct nb_peft_config **config)
{
    struct nb_peft_config *c = calloc(1, sizeof *c);
    *config = NULL;
    if (!c)
        return nb_fail(NB_MEMORY, "%s: no memory to read the adapter", folder);
    c->path = nb_path_join(folder, "adapter_config.json");
    nb_status status = read_config(c, folder);
    if (status != NB_OK)
        nb_peft_config_destroy(&c);
    *config = c;
    return status;
}

void nb_peft_config_destroy(struct nb_peft_config **config)
{
    struct nb_peft_config *c = *config;
    if (!c)
        return;
    for (size_t i = 0; i < c->target_count; i++)
        free(c->targets[i]);
    free(c->targets);
    free(c->base_model);
    free(c->path);
    free(c);
    *config = NULL;
}

void nb_peft_config_options(const struct nb_peft_config *config, struct nb_adapter_options *options)
{
    options->target_modules = (const char *const *)config->targets;
    options->target_module_count = (int)config->target_count;
    options->target_linear = config->target_linear;
    options->rank = config->rank;
    options->alpha = (float)config->alpha;
    options->dropout = (float)config->dropout;
    options->rank_stabilized = config->rank_stabilized;
}

const char *nb_peft_config_base_model(const struct nb_peft_config *config)
{
    return config->base_model;
}

static nb_status check_tensor(const struct nb_safetensors_tensor *tensor, const struct nb_trainable *t)
{
    if (tensor->rank != 2 || tensor->shape[0] != (uint64_t)t->rows || tensor->shape[1] != (uint64_t)t->columns)
        return nb_fail(NB_USAGE,
            "%s: tensor %s is %" PRIu64 " x %" PRIu64 " (rank %d), this base model needs %d x %d: the adapter "
            "belongs to another model",
            tensor->path, tensor->name, tensor->rank > 0 ? tensor->shape[0] : 1,
            tensor->rank > 1 ? tensor->shape[1] : 1, tensor->rank, t->rows, t->columns);
    if (tensor->dtype != NB_SAFETENSORS_F32 && tensor->dtype != NB_SAFETENSORS_F16 &&
        tensor->dtype != NB_SAFETENSORS_BF16)
        return nb_fail(NB_UNSUPPORTED, "%s: tensor %s is %s; adapters are F32, F16 or BF16", tensor->path, tensor->name,
            nb_safetensors_dtype_name(tensor->dtype));
    return NB_OK;
}

static nb_status read_values(const struct nb_safetensors_tensor *tensor, float *values)
{
    for (uint64_t i = 0; i < tensor->count; i++) {
        uint16_t half;
        if (tensor->dtype == NB_SAFETENSORS_F32) {
            memcpy(&values[i], tensor->data + 4 * i, 4);
        } else {
            memcpy(&half, tensor->data + 2 * i, 2);
            values[i] = tensor->dtype == NB_SAFETENSORS_F16 ? nb_half_to_float(half) : nb_bf16_to_float(half);
        }
        if (!isfinite(values[i]))
            return nb_fail(
                NB_FORMAT, "%s: tensor %s: element %" PRIu64 " is not finite", tensor->path, tensor->name, i);
    }
    return NB_OK;
}

static nb_status load_tensors(
    struct nb_adapter *adapter, struct nb_stream *stream, void *staging, const struct nb_safetensors *file)
{
    size_t found = 0, count = nb_safetensors_count(file);
    for (int i = 0; i < adapter->trainables; i++) {
        const struct nb_trainable *t = &adapter->trainable[i];
        const struct nb_safetensors_tensor *tensor = nb_safetensors_find(file, t->name);
        if (!tensor)
            return nb_fail(NB_USAGE, "%s: tensor %s is missing, which adapter_config.json and the base model ask for",
                count ? nb_safetensors_at(file, 0)->path : "adapter_model.safetensors", t->name);
        NB_TRY(check_tensor(tensor, t));
        if (!adapter->device->dry) {
            NB_TRY(nb_safetensors_fetch(file, tensor));
            NB_TRY(read_values(tensor, staging));
        }
        NB_TRY(nb_adapter_put(adapter, stream, staging, i));
        found++;
    }
    for (size_t i = 0; found < count && i < count; i++) {
        const struct nb_safetensors_tensor *tensor = nb_safetensors_at(file, i);
        bool known = false;
        for (int k = 0; k < adapter->trainables && !known; k++)
            known = strcmp(adapter->trainable[k].name, tensor->name) == 0;
        if (!known)
            return nb_fail(NB_USAGE,
                "%s: tensor %s has no place in this base model, or adapter_config.json does not name it: the "
                "adapter belongs to another model",
                tensor->path, tensor->name);
    }
    return NB_OK;
}

nb_status nb_peft_load(struct nb_adapter *adapter, struct nb_stream *stream, void *staging, const char *folder)
{
    char *path = nb_path_join(folder, "adapter_model.safetensors"), *pickle = nb_path_join(folder, "adapter_model.bin");
    struct nb_safetensors *file = NULL;
    nb_status status = NB_OK;
    if (!nb_path_exists(path) && nb_path_exists(pickle))
        status = nb_fail(NB_UNSUPPORTED,
            "%s: adapters in PyTorch's pickle form are not read; save it as adapter_model.safetensors", pickle);
    if (status == NB_OK)
        status = nb_safetensors_open(path, &file);
    if (status == NB_OK)
        status = load_tensors(adapter, stream, staging, file);
    nb_safetensors_close(&file);
    free(path);
    free(pickle);
    return status;
}
