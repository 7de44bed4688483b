#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/peft.h"
#include "adapter/registry.h"
#include "base/file.h"
#include "checkpoint/safetensors.h"

struct named {
    const char *name;
    int trainable;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

/* The tensors as PEFT's writer has them: sorted by name. */
static nb_status sort_trainables(const struct nb_adapter *adapter, struct named **sorted)
{
    struct named *list = malloc((size_t)adapter->trainables * sizeof *list);
    if (!list)
        return nb_fail(NB_MEMORY, "no memory to write the adapter");
    for (int i = 0; i < adapter->trainables; i++)
        list[i] = (struct named){adapter->trainable[i].name, i};
    qsort(list, (size_t)adapter->trainables, sizeof *list, by_name);
    *sorted = list;
    return NB_OK;
}

static nb_status write_tensors(const struct nb_adapter *adapter, struct nb_stream *stream, void *staging,
    const struct named *sorted, struct nb_safetensors_writer *writer)
{
    struct nb_device *device = adapter->device;
    for (int i = 0; i < adapter->trainables; i++) {
        const struct nb_trainable *t = &adapter->trainable[sorted[i].trainable];
        const unsigned char *values = nb_adapter_page(adapter, sorted[i].trainable); /* the master comes first */
        if (!values) {
            nb_dptr master = nb_dptr_at(adapter->memory.master, t->offset * sizeof(float));
            NB_TRY(device->download(device, stream, staging, master, t->count * sizeof(float)));
            values = staging;
        }
        NB_TRY(device->stream_wait(device, stream));
        NB_TRY(nb_safetensors_writer_write(writer, values, t->count * sizeof(float)));
    }
    return NB_OK;
}

static nb_status save_model(const struct nb_adapter *adapter, struct nb_stream *stream, void *staging, const char *path)
{
    struct named *sorted = NULL;
    struct nb_safetensors_writer *writer = NULL;
    NB_TRY(sort_trainables(adapter, &sorted));
    struct nb_safetensors_entry *entries = calloc((size_t)adapter->trainables, sizeof *entries);
    nb_status status = entries ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    for (int i = 0; status == NB_OK && i < adapter->trainables; i++) {
        const struct nb_trainable *t = &adapter->trainable[sorted[i].trainable];
        entries[i] = (struct nb_safetensors_entry){.name = t->name,
            .dtype = NB_SAFETENSORS_F32,
            .rank = 2,
            .shape = {(uint64_t)t->rows, (uint64_t)t->columns}};
    }
    if (status == NB_OK)
        status = nb_safetensors_writer_open(path, entries, (size_t)adapter->trainables, &writer);
    if (status == NB_OK)
        status = write_tensors(adapter, stream, staging, sorted, writer);
    if (status == NB_OK)
        status = nb_safetensors_writer_finish(&writer, NULL);
    nb_safetensors_writer_abandon(&writer);
    free(entries);
    free(sorted);
    return status;
}

/* The fields that every release of PEFT since the first with use_rslora reads; newer ones fill in the rest with what they mean
 * when absent, and no release is given a field it does not know. */
static json_t *config_json(const struct nb_adapter_options *options, const char *base_model_name)
{
    json_t *root = json_object(), *targets = json_array();
    double alpha = (double)options->alpha;
    char text[32];
    snprintf(text, sizeof text, "%.7g", (double)options->dropout); /* 0.05, not the float's 0.0500000007 */
    double dropout = strtod(text, NULL);
    for (int i = 0; i < options->target_module_count; i++)
        json_array_append_new(targets, json_string(options->target_modules[i]));
    json_object_set_new(root, "alpha_pattern", json_object());
    json_object_set_new(root, "auto_mapping", json_null());
    json_object_set_new(root, "base_model_name_or_path", json_string(base_model_name));
    json_object_set_new(root, "bias", json_string("none"));
    json_object_set_new(root, "fan_in_fan_out", json_false());
    json_object_set_new(root, "inference_mode", json_true());
    json_object_set_new(root, "init_lora_weights", json_true());
    json_object_set_new(root, "layers_pattern", json_null());
    json_object_set_new(root, "layers_to_transform", json_null());
    bool whole = alpha == floor(alpha) && fabs(alpha) < 1e15;
    json_object_set_new(root, "lora_alpha", whole ? json_integer((json_int_t)alpha) : json_real(alpha));
    json_object_set_new(root, "lora_dropout", json_real(dropout));
    json_object_set_new(root, "modules_to_save", json_null());
    json_object_set_new(root, "peft_type", json_string("LORA"));
    json_object_set_new(root, "r", json_integer(options->rank));
    json_object_set_new(root, "rank_pattern", json_object());
    json_object_set_new(root, "revision", json_null());
    json_object_set_new(root, "target_modules", targets);
    json_object_set_new(root, "task_type", json_string("CAUSAL_LM"));
    json_object_set_new(root, "use_rslora", json_boolean(options->rank_stabilized));
    return root;
}

static nb_status save_config(const struct nb_adapter *adapter, const char *base_model_name, const char *path)
{
    json_t *root = config_json(&adapter->options, base_model_name);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    json_decref(root);
    if (!text)
        return nb_fail(NB_MEMORY, "%s: no memory to write it, or base_model_name is not UTF-8", path);
    nb_status status = nb_file_write(path, text, strlen(text));
    free(text);
    return status;
}

nb_status nb_peft_save(const struct nb_adapter *adapter, struct nb_stream *stream, void *staging, const char *folder,
    const char *base_model_name)
{
    if (adapter->device->dry)
        return NB_OK; /* saving takes no memory but the staging */
    if (!adapter->options.trains)
        return nb_fail(NB_USAGE, "%s: an adapter that does not train has no masters to save", folder);
    char *model = nb_path_join(folder, "adapter_model.safetensors"),
         *config = nb_path_join(folder, "adapter_config.json");
    nb_status status = save_model(adapter, stream, staging, model);
    if (status == NB_OK)
        status = save_config(adapter, base_model_name, config);
    free(model);
    free(config);
    return status;
}
