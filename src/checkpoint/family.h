/* Families of decoders: which tensors a layer has, their shapes, and their names in Hugging Face files, in GGUF files and as LoRA
 * targets. One file a family. */
#ifndef NB_CHECKPOINT_FAMILY_H
#define NB_CHECKPOINT_FAMILY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nb_model_config;

/* What a tensor is for. Those before NB_TENSOR_LAYER_ROLES stand in every layer that has them, in this order in a weight-store
 * unit; the others once in a model. */
enum nb_tensor_role {
    NB_TENSOR_INPUT_NORM,
    NB_TENSOR_Q,
    NB_TENSOR_Q_BIAS,
    NB_TENSOR_K,
    NB_TENSOR_K_BIAS,
    NB_TENSOR_V,
    NB_TENSOR_V_BIAS,
    NB_TENSOR_Q_NORM,
    NB_TENSOR_K_NORM,
    NB_TENSOR_O,
    NB_TENSOR_POST_NORM,
    NB_TENSOR_GATE,
    NB_TENSOR_UP,
    NB_TENSOR_DOWN,
    NB_TENSOR_LAYER_ROLES,
    NB_TENSOR_EMBEDDING = NB_TENSOR_LAYER_ROLES,
    NB_TENSOR_FINAL_NORM,
    NB_TENSOR_HEAD,
    NB_TENSOR_ROLES,
};

/* A size that a config gives. */
enum nb_tensor_extent {
    NB_EXTENT_ONE,
    NB_EXTENT_HIDDEN,
    NB_EXTENT_INTERMEDIATE,
    NB_EXTENT_QUERY, /* heads * head_dim */
    NB_EXTENT_KEY,   /* kv_heads * head_dim */
    NB_EXTENT_HEAD_DIM,
    NB_EXTENT_VOCAB,
};

struct nb_family_tensor {
    enum nb_tensor_role role;
    const char *name;   /* "self_attn.q_proj.weight" after "model.layers.N.", or a whole name outside layers */
    const char *gguf;   /* "attn_q.weight" after "blk.N.", or a whole name */
    const char *module; /* "self_attn.q_proj" for a linear that LoRA and quantization may take, else NULL */
    const char *target; /* its last part, "q_proj", as lora_target_modules says it; else NULL */
    enum nb_tensor_extent rows, columns; /* of a weight [out, in]; a vector has one row */
};

struct nb_family {
    const char *name;       /* config.json's model_type */
    const char *class_name; /* config.json's architectures[0] */
    const char *gguf;       /* general.architecture */
    bool attention_bias;    /* q, k and v have biases */
    bool head_norms;
    bool windows;                           /* sliding_window may be set */
    bool gguf_permuted;                     /* llama.cpp's converter permutes the rows of q and k */
    const struct nb_family_tensor *tensors; /* in the order of the roles */
    int tensor_count;
};

extern const struct nb_family nb_family_llama, nb_family_mistral, nb_family_qwen2, nb_family_qwen3;

/* By model_type; by GGUF architecture. NULL when unknown. */
const struct nb_family *nb_family_find(const char *name);
const struct nb_family *nb_family_find_gguf(const char *architecture, size_t bytes);

/* "llama, mistral, qwen2, qwen3", for messages. */
const char *nb_family_names(void);

/* One tensor of a model with its shape; what the weight store, the adapters and the planner walk over. */
struct nb_tensor_spec {
    const struct nb_family_tensor *tensor; /* static */
    enum nb_tensor_role role;
    int64_t rows, columns; /* a vector is 1 x columns, and has rank 1 in files */
    bool linear;           /* a target of LoRA and of quantization (the head is not) */
};

/* The tensors of a layer (all layers are alike) in the order of their roles; returns how many. */
int nb_family_layer_tensors(const struct nb_model_config *config, struct nb_tensor_spec out[NB_TENSOR_LAYER_ROLES]);

/* A tensor outside the layers: NB_TENSOR_EMBEDDING, NB_TENSOR_FINAL_NORM or NB_TENSOR_HEAD. False when the model has none (a tied
 * model's head). */
bool nb_family_outer_tensor(const struct nb_model_config *config, enum nb_tensor_role role, struct nb_tensor_spec *out);

enum { NB_TENSOR_NAME_BYTES = 128 };

/* Whether a tensor of a Hugging Face file belongs to such a model: by its whole name, as a part of a 4-bit matrix
 * ("...weight.absmax"), or as something older files hold besides (a tied head, the rotation's frequencies). */
bool nb_family_knows_tensor(const struct nb_model_config *config, const char *name);

/* The whole Hugging Face name, the whole GGUF name, and a linear's module path ("model.layers.0.self_attn.q_proj", what PEFT puts
 * after "base_model.model."). `layer` is ignored outside layers. Returns `out`. */
const char *nb_tensor_name(const struct nb_tensor_spec *spec, int layer, char out[NB_TENSOR_NAME_BYTES]);
const char *nb_tensor_gguf_name(const struct nb_tensor_spec *spec, int layer, char out[NB_TENSOR_NAME_BYTES]);
const char *nb_tensor_module(const struct nb_tensor_spec *spec, int layer, char out[NB_TENSOR_NAME_BYTES]);

#endif
