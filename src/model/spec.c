/* What a model is: its layers and their options, before any memory. */
#include <stdlib.h>

#include "checkpoint/family.h"
#include "model/decoder.h"

static const char *format_name(enum nb_weight_format format)
{
    return format == NB_WEIGHT_NF4 ? "nf4" : format == NB_WEIGHT_FP4 ? "fp4" : "bf16";
}

/* Files in 4 bits are used as they are; another 4-bit type would quantize twice. bf16 is the same values, dequantized. */
static nb_status check_stored_format(const struct nb_checkpoint *checkpoint, const struct nb_model_options *options)
{
    const struct nb_model_config *config = nb_checkpoint_config(checkpoint);
    if (!config->quantized || options->linear_format == NB_WEIGHT_BF16)
        return NB_OK;
    enum nb_weight_format stored = config->quantized_fp4 ? NB_WEIGHT_FP4 : NB_WEIGHT_NF4;
    if (options->linear_format == stored && options->nested == config->quantized_nested)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED,
        "%s holds %s weights %s double quantization and cannot be opened as %s %s it; set "
        "bnb_4bit_quant_type and bnb_4bit_use_double_quant to what it holds, or load_in_4bit to false",
        nb_checkpoint_path(checkpoint), format_name(stored), config->quantized_nested ? "with" : "without",
        format_name(options->linear_format), options->nested ? "with" : "without");
}

static nb_status check_outer_weights(const struct nb_model_config *config, const struct nb_model_options *options)
{
    bool own_head = !config->tied || options->head_format != NB_WEIGHT_BF16;
    if (options->head_format != NB_WEIGHT_BF16 && options->head_format != options->linear_format)
        return nb_fail(NB_USAGE, "a head in %s beside linears in %s: it is bf16 or as they are",
            format_name(options->head_format), format_name(options->linear_format));
    if (options->embedding_on_host && !own_head)
        return nb_fail(NB_USAGE, "the embedding cannot lie on the host: it is the head's matrix too (head_4bit: true "
                                 "gives the head one of its own)");
    return NB_OK;
}

static void describe_layers(struct nb_model *model)
{
    const struct nb_model_config *config = &model->config;
    for (int i = 0; i < config->layers; i++)
        model->layer[i] = (struct nb_layer_spec){
            .residual = NB_RESIDUAL_SERIAL,
            .mlp = NB_MLP_SWIGLU,
            .rope_table = 0,
            .window = nb_model_config_window(config, i),
            .head_norms = config->head_norms,
            .attention_bias = config->attention_bias,
        };
}

nb_status nb_model_create(struct nb_device *device, const struct nb_checkpoint *checkpoint,
    const struct nb_model_options *options, struct nb_model **model)
{
    NB_TRY(nb_device_require_all(device));
    NB_TRY(check_stored_format(checkpoint, options));
    NB_TRY(check_outer_weights(nb_checkpoint_config(checkpoint), options));
    struct nb_model *m = calloc(1, sizeof *m);
    if (!m)
        return nb_fail(NB_MEMORY, "no memory for the model's description");
    m->device = device;
    m->checkpoint = checkpoint;
    m->config = *nb_checkpoint_config(checkpoint);
    m->options = *options;
    m->layer = calloc((size_t)m->config.layers, sizeof *m->layer);
    nb_status status = m->layer ? NB_OK : nb_fail(NB_MEMORY, "no memory for the model's description");
    if (status == NB_OK) {
        describe_layers(m);
        status = nb_weight_store_create(device, &m->config, options, &m->store);
    }
    if (status != NB_OK) {
        nb_model_destroy(&m);
        return status;
    }
    *model = m;
    return NB_OK;
}

void nb_model_destroy(struct nb_model **model)
{
    if (!*model)
        return;
    nb_weight_store_destroy(&(*model)->store);
    free((*model)->layer);
    free(*model);
    *model = NULL;
}

nb_status nb_model_allocate(struct nb_model *model, const struct nb_model_memory *memory, int positions_max)
{
    struct nb_arena *arena = memory->device;
    NB_TRY(nb_weight_store_allocate(model->store, memory));
    uint64_t bytes = (uint64_t)positions_max * (uint64_t)(model->config.head_dim / 2) * sizeof(float);
    for (int i = 0; i < NB_ROPE_TABLES; i++) {
        NB_TRY(nb_arena_take(arena, NB_CATEGORY_EMBEDDING, "rotation cosines", bytes, &model->rope[i].cosine.address));
        NB_TRY(nb_arena_take(arena, NB_CATEGORY_EMBEDDING, "rotation sines", bytes, &model->rope[i].sine.address));
    }
    model->positions_max = positions_max;
    return NB_OK;
}

const struct nb_model_config *nb_model_config_of(const struct nb_model *model)
{
    return &model->config;
}

struct nb_device *nb_model_device(const struct nb_model *model)
{
    return model->device;
}

uint64_t nb_model_fetched_bytes(const struct nb_model *model)
{
    return nb_weight_store_fetched_bytes(model->store);
}
