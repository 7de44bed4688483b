/* Qwen 2 and 2.5: biases on q, k and v. Source: transformers modeling_qwen2.py. */
#include "checkpoint/family_tensors.h"

static const struct nb_family_tensor tensors[] = {
    NB_FAMILY_INPUT_NORM,
    NB_FAMILY_Q,
    NB_FAMILY_VECTOR(NB_TENSOR_Q_BIAS, "self_attn.q_proj.bias", "attn_q.bias", NB_EXTENT_QUERY),
    NB_FAMILY_K,
    NB_FAMILY_VECTOR(NB_TENSOR_K_BIAS, "self_attn.k_proj.bias", "attn_k.bias", NB_EXTENT_KEY),
    NB_FAMILY_V,
    NB_FAMILY_VECTOR(NB_TENSOR_V_BIAS, "self_attn.v_proj.bias", "attn_v.bias", NB_EXTENT_KEY),
    NB_FAMILY_O,
    NB_FAMILY_POST_NORM,
    NB_FAMILY_GATE,
    NB_FAMILY_UP,
    NB_FAMILY_DOWN,
};

const struct nb_family nb_family_qwen2 = {
    .name = "qwen2",
    .class_name = "Qwen2ForCausalLM",
    .gguf = "qwen2",
    .attention_bias = true,
    .windows = true,
    .tensors = tensors,
    .tensor_count = sizeof tensors / sizeof tensors[0],
};
