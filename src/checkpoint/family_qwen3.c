/* Qwen 3: RMS norms over the head size of q and k. Source: transformers modeling_qwen3.py. */
#include "checkpoint/family_tensors.h"

static const struct nb_family_tensor tensors[] = {
    NB_FAMILY_INPUT_NORM,
    NB_FAMILY_Q,
    NB_FAMILY_K,
    NB_FAMILY_V,
    NB_FAMILY_VECTOR(NB_TENSOR_Q_NORM, "self_attn.q_norm.weight", "attn_q_norm.weight", NB_EXTENT_HEAD_DIM),
    NB_FAMILY_VECTOR(NB_TENSOR_K_NORM, "self_attn.k_norm.weight", "attn_k_norm.weight", NB_EXTENT_HEAD_DIM),
    NB_FAMILY_O,
    NB_FAMILY_POST_NORM,
    NB_FAMILY_GATE,
    NB_FAMILY_UP,
    NB_FAMILY_DOWN,
};

const struct nb_family nb_family_qwen3 = {
    .name = "qwen3",
    .class_name = "Qwen3ForCausalLM",
    .gguf = "qwen3",
    .head_norms = true,
    .windows = true,
    .tensors = tensors,
    .tensor_count = sizeof tensors / sizeof tensors[0],
};
