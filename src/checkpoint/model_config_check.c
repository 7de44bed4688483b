#include "checkpoint/model_config_check.h"

#include <stdint.h>

#include "checkpoint/family.h"

#define PRODUCT_MAX (INT64_C(1) << 40)

nb_status nb_model_config_check(const struct nb_model_config *c, const char *path)
{
    if (c->layers > NB_MODEL_LAYERS_MAX)
        return nb_fail(NB_UNSUPPORTED, "%s: %d layers; at most %d are supported", path, c->layers, NB_MODEL_LAYERS_MAX);
    if (c->heads % c->kv_heads != 0)
        return nb_fail(
            NB_FORMAT, "%s: %d heads are not a multiple of %d key and value heads", path, c->heads, c->kv_heads);
    if (c->head_dim % 2 != 0)
        return nb_fail(NB_FORMAT, "%s: a head size of %d; rotary embeddings need an even one", path, c->head_dim);
    int64_t query = (int64_t)c->heads * c->head_dim;
    if (query > INT32_MAX || query * c->hidden > PRODUCT_MAX || (int64_t)c->vocab * c->hidden > PRODUCT_MAX ||
        (int64_t)c->intermediate * c->hidden > PRODUCT_MAX)
        return nb_fail(NB_FORMAT,
            "%s: sizes of over 2^40 weights a matrix: hidden %d, intermediate %d, vocab %d, heads %d of %d", path,
            c->hidden, c->intermediate, c->vocab, c->heads, c->head_dim);
    return NB_OK;
}

int64_t nb_model_config_parameters(const struct nb_model_config *config)
{
    struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES], outer;
    int count = nb_family_layer_tensors(config, specs);
    int64_t layer = 0, total;
    for (int i = 0; i < count; i++)
        layer += specs[i].rows * specs[i].columns;
    total = layer * config->layers;
    for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
        if (nb_family_outer_tensor(config, (enum nb_tensor_role)role, &outer))
            total += outer.rows * outer.columns;
    return total;
}
