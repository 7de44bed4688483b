/* Mistral 7B and its kin: Llama's block with a sliding window in every layer. Source: transformers modeling_mistral.py. In GGUF its
 * architecture is "llama", which nb_family_find_gguf gives to Llama first. */
#include "checkpoint/family_tensors.h"

const struct nb_family nb_family_mistral = {
    .name = "mistral",
    .class_name = "MistralForCausalLM",
    .gguf = "llama",
    .windows = true,
    .gguf_permuted = true,
    .tensors = nb_family_llama_tensors,
    .tensor_count = NB_FAMILY_LLAMA_TENSORS,
};
