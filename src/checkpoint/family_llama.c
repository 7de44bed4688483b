/* Llama 1 to 3.3, SmolLM2, TinyLlama and others that say model_type "llama". Source: transformers modeling_llama.py. */
#include "checkpoint/family_tensors.h"

const struct nb_family_tensor nb_family_llama_tensors[NB_FAMILY_LLAMA_TENSORS] = {
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

const struct nb_family nb_family_llama = {
    .name = "llama",
    .class_name = "LlamaForCausalLM",
    .gguf = "llama",
    .gguf_permuted = true,
    .tensors = nb_family_llama_tensors,
    .tensor_count = NB_FAMILY_LLAMA_TENSORS,
};
