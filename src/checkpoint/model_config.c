/* Hugging Face config.json. Defaults are those of transformers' configuration classes (configuration_llama.py and so on). */
#include "checkpoint/model_config.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/family.h"
#include "checkpoint/model_config_check.h"

struct reader {
    const json_t *root;
    const char *path;
};

/* A short text of a value for messages. */
static void show(const json_t *value, char text[64])
{
    size_t bytes = json_dumpb(value, text, 60, JSON_ENCODE_ANY | JSON_COMPACT);
    text[bytes < 60 ? bytes : 60] = '\0';
    if (bytes > 60)
        memcpy(text + 57, "...", 4);
}

static const json_t *present(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static nb_status refuse(const struct reader *r, const char *key, const json_t *value, const char *why)
{
    char text[64];
    show(value, text);
    return nb_fail(NB_UNSUPPORTED, "%s: %s = %s: %s", r->path, key, text, why);
}

static nb_status wrong(const struct reader *r, const char *key, const json_t *value, const char *want)
{
    char text[64];
    if (!value)
        return nb_fail(NB_FORMAT, "%s: \"%s\" is missing; %s is needed", r->path, key, want);
    show(value, text);
    return nb_fail(NB_FORMAT, "%s: %s = %s: %s is needed", r->path, key, text, want);
}

/* A count of at least 1. A missing one becomes `fallback`, or an error when that is 0. */
static nb_status read_count(const struct reader *r, const json_t *object, const char *key, int fallback, int *out)
{
    const json_t *value = present(object, key);
    if (!value && fallback > 0) {
        *out = fallback;
        return NB_OK;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > NB_MODEL_EXTENT_MAX)
        return wrong(r, key, value, "a whole number from 1 to 2^30");
    *out = (int)json_integer_value(value);
    return NB_OK;
}

/* A number above 0, and not so small or large that it is 0 or infinite in fp32. A missing one becomes `fallback`, or an error
 * when that is 0. */
static nb_status read_number(
    const struct reader *r, const json_t *object, const char *key, double fallback, double *out)
{
    const json_t *value = present(object, key);
    if (!value && fallback > 0) {
        *out = fallback;
        return NB_OK;
    }
    double number = json_is_number(value) ? json_number_value(value) : 0;
    if (!(number >= 1e-30 && number <= 1e30))
        return wrong(r, key, value, "a number above 0");
    *out = number;
    return NB_OK;
}

static nb_status read_flag(const struct reader *r, const json_t *object, const char *key, bool *out)
{
    const json_t *value = present(object, key);
    *out = false;
    if (value && !json_is_boolean(value))
        return wrong(r, key, value, "true or false");
    *out = json_is_true(value);
    return NB_OK;
}

static nb_status read_id(const struct reader *r, const json_t *value, const char *key, int *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > NB_MODEL_EXTENT_MAX)
        return wrong(r, key, value, "a token's number");
    *out = (int)json_integer_value(value);
    return NB_OK;
}

/* bos_token_id, pad_token_id and eos_token_id, the last perhaps a list. Absent ones leave what stands in `config`. */
static nb_status read_special_ids(const struct reader *r, struct nb_model_config *config)
{
    const json_t *bos = present(r->root, "bos_token_id"), *pad = present(r->root, "pad_token_id");
    const json_t *eos = present(r->root, "eos_token_id");
    if (bos)
        NB_TRY(read_id(r, bos, "bos_token_id", &config->bos));
    /* Some Llama files say -1 for "none". */
    if (pad && !(json_is_integer(pad) && json_integer_value(pad) == -1))
        NB_TRY(read_id(r, pad, "pad_token_id", &config->pad));
    if (!eos)
        return NB_OK;
    if (!json_is_array(eos)) {
        config->eos_count = 1;
        return read_id(r, eos, "eos_token_id", &config->eos[0]);
    }
    if (json_array_size(eos) > NB_MODEL_EOS_MAX)
        return wrong(r, "eos_token_id", eos, "a list of at most 16 tokens");
    config->eos_count = (int)json_array_size(eos);
    for (int i = 0; i < config->eos_count; i++)
        NB_TRY(read_id(r, json_array_get(eos, (size_t)i), "eos_token_id", &config->eos[i]));
    return NB_OK;
}

/* Fields whose value must be the neutral one; any other changes the arithmetic in a way that is not done here. */
static nb_status refuse_arithmetic(const struct reader *r, const struct nb_family *family)
{
    static const char *const absent[] = {
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "clip_qkv",
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "no_rope_layers",
        "use_qk_norm",
        "qk_norm",
        "alibi",
        "parallel_attn",
        "use_parallel_residual",
        "mlp_bias",
        "attention_bias",
        "attention_out_bias",
        "no_rope_layer_interval",
        "use_bias",
    };
    static const char *const one[] = {
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "logit_scale",
        "scale_emb",
        "pretraining_tp",
        "partial_rotary_factor",
        "rotary_pct",
        "mup_base_width",
    };
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++) {
        const json_t *value = present(r->root, absent[i]);
        bool zero = json_is_number(value) && json_number_value(value) == 0;
        bool has = family->attention_bias && strcmp(absent[i], "attention_bias") == 0;
        if (value && !json_is_false(value) && !zero && !has)
            return refuse(r, absent[i], value, "this changes the model's arithmetic and is not supported");
    }
    for (size_t i = 0; i < sizeof one / sizeof one[0]; i++) {
        const json_t *value = present(r->root, one[i]);
        if (value && !(json_is_number(value) && json_number_value(value) == 1))
            return refuse(r, one[i], value, "this changes the model's arithmetic; only 1 is supported");
    }
    const json_t *activation = present(r->root, "hidden_act");
    if (activation && (!json_is_string(activation) || strcmp(json_string_value(activation), "silu") != 0))
        return refuse(r, "hidden_act", activation, "only \"silu\" is supported");
    return NB_OK;
}

/* transformers 5 says rope_parameters, with rope_theta inside; before, rope_theta stood outside and rope_scaling (rope_type, or
 * "type" still earlier) held the rest. */
static nb_status read_rope(const struct reader *r, struct nb_rope_spec *rope)
{
    const char *name = present(r->root, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const json_t *scaling = present(r->root, name), *older = present(r->root, "rope_scaling");
    if (older && json_object_size(older) > 0 && !json_equal(older, scaling))
        return refuse(r, "rope_scaling", older, "rope_parameters stands beside it and says otherwise; remove one");
    if (scaling && !json_is_object(scaling))
        return wrong(r, name, scaling, "an object");
    const json_t *theta_holder = present(scaling, "rope_theta") ? scaling : r->root;
    NB_TRY(read_number(r, theta_holder, "rope_theta", 10000.0, &rope->theta));
    const json_t *partial = present(scaling, "partial_rotary_factor");
    if (partial && json_number_value(partial) != 1)
        return refuse(r, "partial_rotary_factor", partial, "only 1 is supported");
    const json_t *type = present(scaling, "rope_type");
    const char *key = "rope_type";
    if (!type) {
        type = present(scaling, "type");
        key = "type";
    }
    if (!type && json_is_object(json_object_iter_value(json_object_iter((json_t *)scaling))))
        return refuse(r, name, scaling, "rope parameters that differ from layer to layer are not supported");
    if (!type && scaling && present(scaling, "factor"))
        return wrong(r, "rope_type", NULL, "\"llama3\"");
    if (!type || (json_is_string(type) && strcmp(json_string_value(type), "default") == 0))
        return NB_OK;
    if (!json_is_string(type) || strcmp(json_string_value(type), "llama3") != 0) {
        char where[64];
        snprintf(where, sizeof where, "%s.%s", name, key);
        return refuse(r, where, type, "only \"default\" and \"llama3\" are supported");
    }
    rope->type = NB_ROPE_LLAMA3;
    NB_TRY(read_number(r, scaling, "factor", 0, &rope->factor));
    NB_TRY(read_number(r, scaling, "low_freq_factor", 0, &rope->low_freq_factor));
    NB_TRY(read_number(r, scaling, "high_freq_factor", 0, &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return wrong(r, "high_freq_factor", present(scaling, "high_freq_factor"), "more than low_freq_factor");
    return read_count(r, scaling, "original_max_position_embeddings", 0, &rope->original_max_positions);
}

static nb_status read_layer_types(const struct reader *r, const json_t *types, struct nb_model_config *config)
{
    if (!json_is_array(types) || json_array_size(types) != (size_t)config->layers)
        return wrong(r, "layer_types", types, "a list with one entry a layer");
    for (int layer = 0; layer < config->layers; layer++) {
        const json_t *type = json_array_get(types, (size_t)layer);
        const char *name = json_string_value(type);
        bool sliding = name && strcmp(name, "sliding_attention") == 0;
        if (!sliding && (!name || strcmp(name, "full_attention") != 0))
            return refuse(r, "layer_types", type, "only \"full_attention\" and \"sliding_attention\" are supported");
        if (sliding && config->sliding_window == 0)
            return refuse(r, "layer_types", type, "the model has no sliding_window");
        config->layer_windowed[layer] = sliding;
    }
    return NB_OK;
}

/* Mistral: every layer, if sliding_window is set. Qwen: if use_sliding_window as well, and from layer max_window_layers on.
 * layer_types, where the file has it, says it layer by layer. Llama has none, whatever the field says. */
static nb_status read_window(const struct reader *r, struct nb_model_config *config)
{
    const struct nb_family *family = config->family;
    const json_t *types = present(r->root, "layer_types");
    bool qwen = family == &nb_family_qwen2 || family == &nb_family_qwen3, use = family->windows;
    int first = 0;
    if (qwen) {
        NB_TRY(read_flag(r, r->root, "use_sliding_window", &use));
        const json_t *layers = present(r->root, "max_window_layers");
        if (layers && !(json_is_integer(layers) && json_integer_value(layers) == 0))
            NB_TRY(read_count(r, r->root, "max_window_layers", 0, &first));
        else if (!layers)
            first = 28;
    }
    /* An explicit null is "none"; a missing field is the class's default. */
    bool missing = !json_object_get(r->root, "sliding_window");
    if (use && (missing || present(r->root, "sliding_window")))
        NB_TRY(read_count(r, r->root, "sliding_window", 4096, &config->sliding_window));
    if (types)
        NB_TRY(read_layer_types(r, types, config));
    else
        for (int layer = first; layer < config->layers && config->sliding_window > 0; layer++)
            config->layer_windowed[layer] = true;
    bool any = false;
    for (int layer = 0; layer < config->layers; layer++)
        any |= config->layer_windowed[layer];
    if (!any)
        config->sliding_window = 0;
    return NB_OK;
}

static nb_status read_quantization(const struct reader *r, struct nb_model_config *config)
{
    const json_t *quantization = present(r->root, "quantization_config");
    if (!quantization)
        return NB_OK;
    const json_t *method = present(quantization, "quant_method"), *type = present(quantization, "bnb_4bit_quant_type");
    bool four = false;
    if (method && (!json_is_string(method) || strcmp(json_string_value(method), "bitsandbytes") != 0))
        return refuse(r, "quantization_config.quant_method", method, "only bitsandbytes 4-bit weights are read");
    NB_TRY(read_flag(r, quantization, "load_in_4bit", &four));
    if (!four)
        return refuse(r, "quantization_config", quantization, "only bitsandbytes 4-bit weights are read");
    config->quantized = true;
    config->quantized_fp4 = true; /* BitsAndBytesConfig's default */
    if (type) {
        const char *name = json_string_value(type);
        if (!name || (strcmp(name, "nf4") != 0 && strcmp(name, "fp4") != 0))
            return refuse(r, "quantization_config.bnb_4bit_quant_type", type, "only \"nf4\" and \"fp4\" are read");
        config->quantized_fp4 = strcmp(name, "fp4") == 0;
    }
    return read_flag(r, quantization, "bnb_4bit_use_double_quant", &config->quantized_nested);
}

static nb_status read_family(const struct reader *r, struct nb_model_config *config)
{
    const json_t *type = present(r->root, "model_type");
    if (!json_is_string(type))
        return wrong(r, "model_type", type, "the name of a family of models");
    config->family = nb_family_find(json_string_value(type));
    if (!config->family)
        return nb_fail(NB_UNSUPPORTED, "%s: model_type = \"%.60s\" is not supported. Supported are %s.", r->path,
            json_string_value(type), nb_family_names());
    config->attention_bias = config->family->attention_bias;
    config->head_norms = config->family->head_norms;
    return NB_OK;
}

/* What a file may leave out, as each class of transformers defines it. */
struct defaults {
    int max_positions, kv_heads, head_dim; /* kv_heads 0: as many as heads; head_dim 0: hidden / heads */
};

static struct defaults family_defaults(const struct nb_family *family)
{
    if (family == &nb_family_mistral)
        return (struct defaults){131072, 8, 0};
    if (family == &nb_family_qwen2)
        return (struct defaults){32768, 32, 0};
    if (family == &nb_family_qwen3)
        return (struct defaults){32768, 32, 128};
    return (struct defaults){2048, 0, 0};
}

static nb_status read_shape(const struct reader *r, struct nb_model_config *config)
{
    struct defaults defaults = family_defaults(config->family);
    double epsilon;
    NB_TRY(read_count(r, r->root, "hidden_size", 0, &config->hidden));
    NB_TRY(read_count(r, r->root, "intermediate_size", 0, &config->intermediate));
    NB_TRY(read_count(r, r->root, "num_hidden_layers", 0, &config->layers));
    NB_TRY(read_count(r, r->root, "num_attention_heads", 0, &config->heads));
    /* A null is not a missing field: the classes take it as "as many as heads". */
    bool null_heads = json_is_null(json_object_get(r->root, "num_key_value_heads"));
    int kv_heads = defaults.kv_heads == 0 || null_heads ? config->heads : defaults.kv_heads;
    NB_TRY(read_count(r, r->root, "num_key_value_heads", kv_heads, &config->kv_heads));
    int head_dim = defaults.head_dim > 0 ? defaults.head_dim : config->hidden / config->heads;
    if (defaults.head_dim == 0 && !present(r->root, "head_dim") && config->hidden % config->heads != 0)
        return wrong(r, "num_attention_heads", present(r->root, "num_attention_heads"), "a divisor of hidden_size");
    NB_TRY(read_count(r, r->root, "head_dim", head_dim, &config->head_dim));
    NB_TRY(read_count(r, r->root, "vocab_size", 0, &config->vocab));
    NB_TRY(read_count(r, r->root, "max_position_embeddings", defaults.max_positions, &config->max_positions));
    NB_TRY(read_number(r, r->root, "rms_norm_eps", 1e-6, &epsilon));
    config->rms_epsilon = (float)epsilon;
    return nb_model_config_check(config, r->path);
}

static nb_status read_config(const struct reader *r, struct nb_model_config *config)
{
    if (!json_is_object(r->root))
        return nb_fail(NB_FORMAT, "%s: not a JSON object", r->path);
    NB_TRY(read_family(r, config));
    NB_TRY(refuse_arithmetic(r, config->family));
    NB_TRY(read_shape(r, config));
    NB_TRY(read_rope(r, &config->rope));
    NB_TRY(read_window(r, config));
    NB_TRY(read_flag(r, r->root, "tie_word_embeddings", &config->tied));
    NB_TRY(read_special_ids(r, config));
    return read_quantization(r, config);
}

nb_status nb_model_config_parse(const char *text, size_t bytes, const char *path, struct nb_model_config *config)
{
    json_error_t error;
    *config = (struct nb_model_config){.bos = -1, .pad = -1};
    struct reader r = {json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error), path};
    if (!r.root)
        return nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", path, error.line, error.column, error.text);
    nb_status status = read_config(&r, config);
    json_decref((json_t *)r.root);
    return status;
}

nb_status nb_model_config_parse_generation(
    const char *text, size_t bytes, const char *path, struct nb_model_config *config)
{
    json_error_t error;
    struct reader r = {json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error), path};
    if (!r.root)
        return nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", path, error.line, error.column, error.text);
    nb_status status =
        json_is_object(r.root) ? read_special_ids(&r, config) : nb_fail(NB_FORMAT, "%s: not a JSON object", path);
    json_decref((json_t *)r.root);
    return status;
}
