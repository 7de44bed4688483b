/* Mistral 7B and its kin: Llama's block with a sliding window in every layer. Source: transformers modeling_mistral.py. In GGUF its
 * architecture is "llama", which nb_family_find_gguf gives to Llama first. */
#include "checkpoint/family_tensors.h"

static const struct nb_family_tensor tensors[] = {
    NB_FAMILY_INPUT_NORM,
    NB_FAMILY_Q,
    NB_FAMILY_K,
    NB_FAMILY_V,
    NB_FAMILY_O,
    NB_FAMILY_POST_NORM,
    NB_FAMILY_GATE,
    NB_FAMILY_UP,
    NB_FAMILY_DOWN,
};

const struct nb_family nb_family_mistral = {
    .name = "mistral",
    .class_name = "MistralForCausalLM",
    .gguf = "llama",
    .windows = true,
    .gguf_permuted = true,
    .tensors = tensors,
    .tensor_count = sizeof tensors / sizeof tensors[0],
};
