#include "support/deep_model.h"

#include <stdlib.h>
#include <string.h>

#include "base/bfloat.h"
#include "base/file.h"
#include "base/random.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/family.h"
#include "checkpoint/safetensors.h"

enum { TENSORS_MAX = 256 };

struct writing {
    struct nb_safetensors_entry entries[TENSORS_MAX];
    struct nb_tensor_spec specs[TENSORS_MAX];
    char names[TENSORS_MAX][NB_TENSOR_NAME_BYTES];
    size_t count;
};

static void add_tensor(struct writing *w, const struct nb_tensor_spec *spec, int layer)
{
    bool vector = spec->rows == 1;
    nb_tensor_name(spec, layer, w->names[w->count]);
    w->specs[w->count] = *spec;
    w->entries[w->count] = (struct nb_safetensors_entry){
        .name = w->names[w->count],
        .dtype = NB_SAFETENSORS_BF16,
        .rank = vector ? 1 : 2,
        .shape = {(uint64_t)(vector ? spec->columns : spec->rows), vector ? 1 : (uint64_t)spec->columns},
    };
    w->count++;
}

static void list_tensors(struct writing *w, const struct nb_model_config *config)
{
    struct nb_tensor_spec spec[NB_TENSOR_LAYER_ROLES], outer;
    int tensors = nb_family_layer_tensors(config, spec);
    for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
        if (nb_family_outer_tensor(config, (enum nb_tensor_role)role, &outer))
            add_tensor(w, &outer, 0);
    for (int layer = 0; layer < config->layers; layer++)
        for (int i = 0; i < tensors; i++)
            add_tensor(w, &spec[i], layer);
}

/* Norms are about 1, biases and matrices about 0. */
static nb_status write_tensor(struct nb_safetensors_writer *writer, const struct writing *w, size_t i)
{
    const struct nb_tensor_spec *spec = &w->specs[i];
    uint64_t count = (uint64_t)spec->rows * (uint64_t)spec->columns;
    bool bias = spec->role == NB_TENSOR_Q_BIAS || spec->role == NB_TENSOR_K_BIAS || spec->role == NB_TENSOR_V_BIAS;
    float center = spec->rows == 1 && !bias ? 1.0f : 0.0f;
    nb_bf16 *values = malloc(count * sizeof *values);
    if (!values)
        return nb_fail(NB_MEMORY, "no memory for a test's tensor");
    for (uint64_t k = 0; k < count; k++)
        values[k] = nb_bf16_from_float(center + (nb_random_uniform(7, NB_RANDOM_SAMPLE, i, k) - 0.5f) * 0.3f);
    nb_status status = nb_safetensors_writer_write(writer, values, count * sizeof *values);
    free(values);
    return status;
}

static nb_status write_tensors(const struct writing *w, const char *path)
{
    struct nb_safetensors_writer *writer = NULL;
    NB_TRY(nb_safetensors_writer_open(path, w->entries, w->count, &writer));
    nb_status status = NB_OK;
    for (size_t i = 0; status == NB_OK && i < w->count; i++)
        status = write_tensor(writer, w, i);
    if (status == NB_OK)
        return nb_safetensors_writer_finish(&writer, NULL);
    nb_safetensors_writer_abandon(&writer);
    return status;
}

nb_status nb_test_write_deep_model(const char *model, int layers, const char *folder)
{
    struct nb_checkpoint *checkpoint = NULL;
    struct writing *w = calloc(1, sizeof *w);
    if (!w)
        return nb_fail(NB_MEMORY, "no memory for a test's model");
    nb_status status = nb_checkpoint_open(model, &checkpoint);
    if (status == NB_OK)
        status = nb_make_folder(folder);
    if (status == NB_OK) {
        struct nb_model_config config = *nb_checkpoint_config(checkpoint);
        config.layers = layers;
        list_tensors(w, &config);
        char *json = nb_model_config_to_json(&config), *path = nb_path_join(folder, "config.json"),
             *tensors = nb_path_join(folder, "model.safetensors");
        status = nb_file_write(path, json, strlen(json));
        if (status == NB_OK)
            status = write_tensors(w, tensors);
        free(json);
        free(path);
        free(tensors);
    }
    nb_checkpoint_close(&checkpoint);
    free(w);
    return status;
}
