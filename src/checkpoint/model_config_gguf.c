/* GGUF metadata. Keys: ggml docs/gguf.md, "LLM"; what llama.cpp's convert_hf_to_gguf.py writes. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bfloat.h"
#include "checkpoint/family.h"
#include "checkpoint/gguf.h"
#include "checkpoint/model_config_check.h"

enum { KEY_BYTES = 96 };

struct reader {
    const struct nb_gguf *gguf;
    const char *architecture;
    const char *path;
};

/* "ARCHITECTURE.name" */
static const char *key(const struct reader *r, const char *name, char out[KEY_BYTES])
{
    snprintf(out, KEY_BYTES, "%s.%s", r->architecture, name);
    return out;
}

/* A count of at least 1; a missing one becomes `fallback`, or an error when that is 0. */
static nb_status read_count(const struct reader *r, const char *name, int fallback, int *out)
{
    char whole[KEY_BYTES];
    int64_t value;
    if (!nb_gguf_has(r->gguf, key(r, name, whole)) && fallback > 0) {
        *out = fallback;
        return NB_OK;
    }
    if (!nb_gguf_has(r->gguf, whole))
        return nb_fail(NB_FORMAT, "%s: key %s is missing", r->path, whole);
    if (!nb_gguf_integer(r->gguf, whole, &value))
        return nb_fail(NB_UNSUPPORTED,
            "%s: key %s is not one whole number; sizes that differ from layer to layer are not supported", r->path,
            whole);
    if (value < 1 || value > NB_MODEL_EXTENT_MAX)
        return nb_fail(NB_FORMAT, "%s: key %s = %" PRId64 " is out of range", r->path, whole, value);
    *out = (int)value;
    return NB_OK;
}

static nb_status read_number(const struct reader *r, const char *name, double fallback, double *out)
{
    char whole[KEY_BYTES];
    *out = fallback;
    bool found = nb_gguf_number(r->gguf, key(r, name, whole), out);
    if ((!found && nb_gguf_has(r->gguf, whole)) || !(*out >= 1e-30 && *out <= 1e30))
        return nb_fail(NB_FORMAT, "%s: key %s is missing or not a number above 0", r->path, whole);
    return NB_OK;
}

/* Keys that must be absent or neutral. */
static nb_status refuse_arithmetic(const struct reader *r, const struct nb_model_config *config)
{
    static const struct {
        const char *name;
        double neutral;
    } keys[] = {
        {"expert_count", 0},
        {"logit_scale", 1},
        {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0},
        {"residual_scale", 1},
        {"embedding_scale", 1},
        {"attention.scale", 0},
        {"use_parallel_residual", 0},
        {"attention.clamp_kqv", 0},
        {"attention.max_alibi_bias", 0},
    };
    char whole[KEY_BYTES];
    double value;
    bool flag;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        key(r, keys[i].name, whole);
        if (nb_gguf_boolean(r->gguf, whole, &flag))
            value = flag;
        else if (!nb_gguf_number(r->gguf, whole, &value))
            continue;
        if (value != keys[i].neutral)
            return nb_fail(NB_UNSUPPORTED, "%s: key %s = %g changes the model's arithmetic and is not supported",
                r->path, whole, value);
    }
    int rotated, values;
    NB_TRY(read_count(r, "rope.dimension_count", config->head_dim, &rotated));
    NB_TRY(read_count(r, "attention.value_length", config->head_dim, &values));
    if (rotated != config->head_dim || values != config->head_dim)
        return nb_fail(NB_UNSUPPORTED, "%s: heads of %d with %d rotated and %d value elements; all three must be equal",
            r->path, config->head_dim, rotated, values);
    return NB_OK;
}

/* What the converter divides frequency i by for Llama 3's scaling. */
static double llama3_divisor(const struct nb_rope_spec *rope, int head_dim, int i)
{
    double wavelength = 2 * 3.14159265358979323846 * pow(rope->theta, 2.0 * i / head_dim);
    double turns = rope->original_max_positions / wavelength;
    if (turns > rope->high_freq_factor)
        return 1;
    if (turns < rope->low_freq_factor)
        return rope->factor;
    double smooth = (turns - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return 1 / ((1 - smooth) / rope->factor + smooth);
}

/* A GGUF holds Llama 3's scaling as a tensor of divisors, not as its parameters. They are found again from the published ones
 * (1 and 4; 8192 positions unless a key says otherwise), the largest divisor being the factor, and must give every divisor back. */
static nb_status read_rope_divisors(const struct reader *r, int head_dim, struct nb_rope_spec *rope)
{
    const struct nb_gguf_tensor *tensor = nb_gguf_tensor_find(r->gguf, "rope_freqs.weight");
    if (!tensor)
        return NB_OK;
    if (tensor->type != NB_GGUF_F32 || tensor->count != (uint64_t)head_dim / 2)
        return nb_fail(NB_FORMAT, "%s: tensor rope_freqs.weight is not F32 [%d]", r->path, head_dim / 2);
    struct nb_rope_spec found = {NB_ROPE_LLAMA3, rope->theta, 0, 1, 4, 0};
    NB_TRY(read_count(r, "rope.scaling.original_context_length", 8192, &found.original_max_positions));
    float divisor;
    for (int i = 0; i < head_dim / 2; i++) {
        memcpy(&divisor, tensor->data + (size_t)i * sizeof divisor, sizeof divisor);
        found.factor = divisor > found.factor ? divisor : found.factor;
    }
    for (int i = 0; i < head_dim / 2; i++) {
        memcpy(&divisor, tensor->data + (size_t)i * sizeof divisor, sizeof divisor);
        double want = llama3_divisor(&found, head_dim, i);
        if (!(fabs(divisor - want) <= 1e-4 * want))
            return nb_fail(NB_UNSUPPORTED,
                "%s: tensor rope_freqs.weight: divisor %d is %g, not Llama 3's %g; other rope scalings are "
                "not supported",
                r->path, i, (double)divisor, want);
    }
    if (found.factor > 1)
        *rope = found;
    return NB_OK;
}

static nb_status read_rope(const struct reader *r, int head_dim, struct nb_rope_spec *rope)
{
    char whole[KEY_BYTES];
    struct nb_gguf_text type;
    NB_TRY(read_number(r, "rope.freq_base", 10000.0, &rope->theta));
    key(r, "rope.scaling.type", whole);
    if (nb_gguf_string(r->gguf, whole, &type) && !nb_gguf_string_is(r->gguf, whole, "none"))
        return nb_fail(NB_UNSUPPORTED, "%s: key %s = \"%.*s\": only Llama 3's scaling is supported", r->path, whole,
            (int)(type.bytes < 40 ? type.bytes : 40), type.text);
    if (nb_gguf_has(r->gguf, key(r, "rope.scale_linear", whole)))
        return nb_fail(NB_UNSUPPORTED, "%s: key %s: linear rope scaling is not supported", r->path, whole);
    return read_rope_divisors(r, head_dim, rope);
}

/* Mistral's files say "llama" and, with a window, its size; Qwen's layers that have one are not told apart in the metadata. */
static nb_status read_window(const struct reader *r, struct nb_model_config *config)
{
    char whole[KEY_BYTES];
    int64_t window = 0;
    if (!nb_gguf_integer(r->gguf, key(r, "attention.sliding_window", whole), &window) || window == 0)
        return NB_OK;
    if (config->family != &nb_family_llama)
        return nb_fail(NB_UNSUPPORTED, "%s: key %s = %" PRId64 ": windows of this family are not supported in GGUF",
            r->path, whole, window);
    NB_TRY(read_count(r, "attention.sliding_window", 0, &config->sliding_window));
    config->family = &nb_family_mistral;
    for (int layer = 0; layer < config->layers; layer++)
        config->layer_windowed[layer] = true;
    return NB_OK;
}

static int read_id(const struct reader *r, const char *name)
{
    int64_t id;
    return nb_gguf_integer(r->gguf, name, &id) && id >= 0 && id <= NB_MODEL_EXTENT_MAX ? (int)id : -1;
}

/* The end of a turn is a second eos where the file tells them apart (Llama 3). */
static void read_special_ids(const struct reader *r, struct nb_model_config *config)
{
    static const char *const ends[] = {
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    config->bos = read_id(r, "tokenizer.ggml.bos_token_id");
    config->pad = read_id(r, "tokenizer.ggml.padding_token_id");
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        int id = read_id(r, ends[i]);
        bool seen = id < 0;
        for (int j = 0; j < config->eos_count; j++)
            seen |= config->eos[j] == id;
        if (!seen)
            config->eos[config->eos_count++] = id;
    }
}

/* From the embedding, which cannot be wrong; the key is often missing. */
static nb_status read_vocab(const struct reader *r, struct nb_model_config *config)
{
    const struct nb_gguf_tensor *embedding = nb_gguf_tensor_find(r->gguf, "token_embd.weight");
    if (!embedding || embedding->rank != 2 || embedding->shape[0] > NB_MODEL_EXTENT_MAX)
        return nb_fail(NB_FORMAT, "%s: tensor token_embd.weight is missing or not a matrix", r->path);
    config->vocab = (int)embedding->shape[0];
    config->tied = !nb_gguf_tensor_find(r->gguf, "output.weight");
    return NB_OK;
}

static nb_status read_shape(const struct reader *r, struct nb_model_config *config)
{
    double epsilon;
    NB_TRY(read_vocab(r, config));
    NB_TRY(read_count(r, "embedding_length", 0, &config->hidden));
    NB_TRY(read_count(r, "feed_forward_length", 0, &config->intermediate));
    NB_TRY(read_count(r, "block_count", 0, &config->layers));
    NB_TRY(read_count(r, "attention.head_count", 0, &config->heads));
    NB_TRY(read_count(r, "attention.head_count_kv", config->heads, &config->kv_heads));
    NB_TRY(read_count(r, "attention.key_length",
        config->hidden / config->heads > 0 ? config->hidden / config->heads : 1, &config->head_dim));
    NB_TRY(read_count(r, "context_length", 0, &config->max_positions));
    NB_TRY(read_number(r, "attention.layer_norm_rms_epsilon", 0, &epsilon));
    config->rms_epsilon = (float)epsilon;
    return nb_model_config_check(config, r->path);
}

nb_status nb_model_config_from_gguf(const struct nb_gguf *gguf, struct nb_model_config *config)
{
    struct nb_gguf_text architecture;
    struct reader r = {.gguf = gguf, .path = nb_gguf_path(gguf)};
    *config = (struct nb_model_config){.bos = -1, .pad = -1};
    if (!nb_gguf_string(gguf, "general.architecture", &architecture))
        return nb_fail(NB_FORMAT, "%s: key general.architecture is missing", r.path);
    config->family = nb_family_find_gguf(architecture.text, architecture.bytes);
    if (!config->family)
        return nb_fail(NB_UNSUPPORTED,
            "%s: general.architecture = \"%.*s\" is not supported. Supported are llama, qwen2, qwen3.", r.path,
            (int)(architecture.bytes < 60 ? architecture.bytes : 60), architecture.text);
    r.architecture = config->family->gguf;
    config->attention_bias = config->family->attention_bias;
    config->head_norms = config->family->head_norms;
    NB_TRY(read_shape(&r, config));
    NB_TRY(refuse_arithmetic(&r, config));
    NB_TRY(read_rope(&r, config->head_dim, &config->rope));
    NB_TRY(read_window(&r, config));
    read_special_ids(&r, config);
    if (!config->attention_bias && nb_gguf_tensor_find(gguf, "blk.0.attn_q.bias"))
        return nb_fail(NB_UNSUPPORTED, "%s: tensor blk.0.attn_q.bias: biases of this family are not supported", r.path);
    return NB_OK;
}
