/* The shape of a model and the constants of its arithmetic, from a Hugging Face config.json or from GGUF metadata. */
#ifndef NB_CHECKPOINT_MODEL_CONFIG_H
#define NB_CHECKPOINT_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nb_family;
struct nb_gguf;

enum { NB_MODEL_LAYERS_MAX = 512, NB_MODEL_EOS_MAX = 16 };

enum nb_rope_type {
    NB_ROPE_DEFAULT,
    NB_ROPE_LLAMA3, /* frequencies scaled as in Llama 3.1: transformers' _compute_llama3_parameters */
};

struct nb_rope_spec {
    enum nb_rope_type type;
    double theta;
    /* of NB_ROPE_LLAMA3 alone, else 0 */
    double factor, low_freq_factor, high_freq_factor;
    int original_max_positions;
};

/* Plain data: may be copied. Every size is at least 1, heads is a multiple of kv_heads, head_dim is even, and
 * heads * head_dim, vocab * hidden and intermediate * hidden fit in 40 bits. */
struct nb_model_config {
    const struct nb_family *family; /* static; its name is "llama", "mistral", "qwen2" or "qwen3" */
    int hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions;
    float rms_epsilon;
    struct nb_rope_spec rope;
    int sliding_window;                       /* 0: no layer has one. Key j is visible to i if i - j < window. */
    bool layer_windowed[NB_MODEL_LAYERS_MAX]; /* whether layer l uses it */
    bool tied;                                /* the head is the embedding */
    bool attention_bias;                      /* biases on q, k and v (not o) */
    bool head_norms;                          /* RMS norms over head_dim of q and k, before the rotation */
    int bos, pad;                             /* -1: none */
    int eos[NB_MODEL_EOS_MAX], eos_count;     /* generation_config.json's where it has them, else config.json's */
    bool quantized;                           /* the files hold bitsandbytes 4-bit weights */
    bool quantized_fp4;                       /* their type is FP4, not NF4 */
    bool quantized_nested;                    /* their scales are quantized as well */
};

/* The window of a layer, 0 for none. */
static inline int nb_model_config_window(const struct nb_model_config *config, int layer)
{
    return config->layer_windowed[layer] ? config->sliding_window : 0;
}

/* From the text of a config.json, transformers 5's form (rope_parameters, dtype) or the older one (rope_theta, rope_scaling,
 * torch_dtype); `path` is for messages. Errors: NB_FORMAT (not JSON, a field missing, of the wrong kind or out of range);
 * NB_UNSUPPORTED for an unknown model_type and for each field that would change the arithmetic in a way not done here, naming
 * field and value. */
nb_status nb_model_config_parse(const char *text, size_t bytes, const char *path, struct nb_model_config *config);

/* The ids of a generation_config.json (eos_token_id may be a list) replace those in `config`. Errors: NB_FORMAT. */
nb_status nb_model_config_parse_generation(
    const char *text, size_t bytes, const char *path, struct nb_model_config *config);

/* From a GGUF's metadata: general.architecture llama (mistral comes as llama), qwen2 or qwen3. Errors as above. */
nb_status nb_model_config_from_gguf(const struct nb_gguf *gguf, struct nb_model_config *config);

/* The config.json that transformers would need for this model (form of transformers 5), without quantization_config. Allocated; the
 * caller frees it. NULL when memory is out. */
char *nb_model_config_to_json(const struct nb_model_config *config);

/* Parameters of the whole model, tied weights counted once. */
int64_t nb_model_config_parameters(const struct nb_model_config *config);

#endif
