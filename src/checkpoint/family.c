#include "checkpoint/family.h"

#include <stdio.h>
#include <string.h>

#include "checkpoint/model_config.h"

static const struct nb_family *const families[] = {
    &nb_family_llama, &nb_family_mistral, &nb_family_qwen2, &nb_family_qwen3};

enum { FAMILIES = sizeof families / sizeof families[0] };

const struct nb_family *nb_family_find(const char *name)
{
    for (int i = 0; i < FAMILIES; i++)
        if (strcmp(families[i]->name, name) == 0)
            return families[i];
    return NULL;
}

const struct nb_family *nb_family_find_gguf(const char *architecture, size_t bytes)
{
    for (int i = 0; i < FAMILIES; i++)
        if (strlen(families[i]->gguf) == bytes && memcmp(families[i]->gguf, architecture, bytes) == 0)
            return families[i];
    return NULL;
}

const char *nb_family_names(void)
{
    return "llama, mistral, qwen2, qwen3";
}

static int64_t extent(const struct nb_model_config *config, enum nb_tensor_extent which)
{
    switch (which) {
    case NB_EXTENT_HIDDEN:
        return config->hidden;
    case NB_EXTENT_INTERMEDIATE:
        return config->intermediate;
    case NB_EXTENT_QUERY:
        return (int64_t)config->heads * config->head_dim;
    case NB_EXTENT_KEY:
        return (int64_t)config->kv_heads * config->head_dim;
    case NB_EXTENT_HEAD_DIM:
        return config->head_dim;
    case NB_EXTENT_VOCAB:
        return config->vocab;
    case NB_EXTENT_ONE:
        break;
    }
    return 1;
}

static struct nb_tensor_spec specify(const struct nb_model_config *config, const struct nb_family_tensor *tensor)
{
    return (struct nb_tensor_spec){
        .tensor = tensor,
        .role = tensor->role,
        .rows = extent(config, tensor->rows),
        .columns = extent(config, tensor->columns),
        .linear = tensor->module != NULL,
    };
}

int nb_family_layer_tensors(const struct nb_model_config *config, struct nb_tensor_spec out[NB_TENSOR_LAYER_ROLES])
{
    const struct nb_family *family = config->family;
    int count = 0;
    for (int i = 0; i < family->tensor_count; i++)
        if (family->tensors[i].role < NB_TENSOR_LAYER_ROLES)
            out[count++] = specify(config, &family->tensors[i]);
    return count;
}

bool nb_family_outer_tensor(const struct nb_model_config *config, enum nb_tensor_role role, struct nb_tensor_spec *out)
{
    static const struct nb_family_tensor outer[] = {
        {NB_TENSOR_EMBEDDING, "model.embed_tokens.weight", "token_embd.weight", NULL, NULL, NB_EXTENT_VOCAB,
            NB_EXTENT_HIDDEN},
        {NB_TENSOR_FINAL_NORM, "model.norm.weight", "output_norm.weight", NULL, NULL, NB_EXTENT_ONE, NB_EXTENT_HIDDEN},
        {NB_TENSOR_HEAD, "lm_head.weight", "output.weight", NULL, NULL, NB_EXTENT_VOCAB, NB_EXTENT_HIDDEN},
    };
    if (role < NB_TENSOR_EMBEDDING || (role == NB_TENSOR_HEAD && config->tied))
        return false;
    *out = specify(config, &outer[role - NB_TENSOR_EMBEDDING]);
    return true;
}

const char *nb_tensor_name(const struct nb_tensor_spec *spec, int layer, char out[NB_TENSOR_NAME_BYTES])
{
    if (spec->role < NB_TENSOR_LAYER_ROLES)
        snprintf(out, NB_TENSOR_NAME_BYTES, "model.layers.%d.%s", layer, spec->tensor->name);
    else
        snprintf(out, NB_TENSOR_NAME_BYTES, "%s", spec->tensor->name);
    return out;
}

const char *nb_tensor_gguf_name(const struct nb_tensor_spec *spec, int layer, char out[NB_TENSOR_NAME_BYTES])
{
    if (spec->role < NB_TENSOR_LAYER_ROLES)
        snprintf(out, NB_TENSOR_NAME_BYTES, "blk.%d.%s", layer, spec->tensor->gguf);
    else
        snprintf(out, NB_TENSOR_NAME_BYTES, "%s", spec->tensor->gguf);
    return out;
}

const char *nb_tensor_module(const struct nb_tensor_spec *spec, int layer, char out[NB_TENSOR_NAME_BYTES])
{
    snprintf(out, NB_TENSOR_NAME_BYTES, "model.layers.%d.%s", layer, spec->tensor->module);
    return out;
}

/* The rest of `name` after "model.layers.N.", N a layer of the model; NULL for another name. */
static const char *within_layer(const struct nb_model_config *config, const char *name)
{
    int layer = -1, length = 0;
    if (sscanf(name, "model.layers.%9d.%n", &layer, &length) != 1 || length == 0 || layer < 0 || layer >= config->layers)
        return NULL;
    return name + length;
}

/* Whether `name` is the tensor, or a part of it in a 4-bit file. */
static bool is_part(const char *name, const char *tensor)
{
    size_t length = strlen(tensor);
    return strncmp(name, tensor, length) == 0 && (name[length] == 0 || name[length] == '.');
}

bool nb_family_knows_tensor(const struct nb_model_config *config, const char *name)
{
    const char *rest = within_layer(config, name);
    if (!rest) {
        struct nb_tensor_spec spec;
        for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
            if (nb_family_outer_tensor(config, (enum nb_tensor_role)role, &spec) && is_part(name, spec.tensor->name))
                return true;
        return config->tied && strcmp(name, "lm_head.weight") == 0;
    }
    for (int i = 0; i < config->family->tensor_count; i++)
        if (is_part(rest, config->family->tensors[i].name))
            return true;
    return strcmp(rest, "self_attn.rotary_emb.inv_freq") == 0;
}
