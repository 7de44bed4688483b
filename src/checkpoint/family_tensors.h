/* The tensors that all families of the Llama line share, as initializers of a family's table. */
#ifndef NB_CHECKPOINT_FAMILY_TENSORS_H
#define NB_CHECKPOINT_FAMILY_TENSORS_H

#include "checkpoint/family.h"

/* Llama's own table, which Mistral's blocks share. */
enum { NB_FAMILY_LLAMA_TENSORS = 9 };
extern const struct nb_family_tensor nb_family_llama_tensors[NB_FAMILY_LLAMA_TENSORS];

#define NB_FAMILY_LINEAR(role, module, target, gguf, rows, columns)           \
    {                                                                         \
        role, module ".weight", gguf ".weight", module, target, rows, columns \
    }
#define NB_FAMILY_VECTOR(role, name, gguf, columns)          \
    {                                                        \
        role, name, gguf, NULL, NULL, NB_EXTENT_ONE, columns \
    }

#define NB_FAMILY_INPUT_NORM \
    NB_FAMILY_VECTOR(NB_TENSOR_INPUT_NORM, "input_layernorm.weight", "attn_norm.weight", NB_EXTENT_HIDDEN)
#define NB_FAMILY_Q \
    NB_FAMILY_LINEAR(NB_TENSOR_Q, "self_attn.q_proj", "q_proj", "attn_q", NB_EXTENT_QUERY, NB_EXTENT_HIDDEN)
#define NB_FAMILY_K \
    NB_FAMILY_LINEAR(NB_TENSOR_K, "self_attn.k_proj", "k_proj", "attn_k", NB_EXTENT_KEY, NB_EXTENT_HIDDEN)
#define NB_FAMILY_V \
    NB_FAMILY_LINEAR(NB_TENSOR_V, "self_attn.v_proj", "v_proj", "attn_v", NB_EXTENT_KEY, NB_EXTENT_HIDDEN)
#define NB_FAMILY_O \
    NB_FAMILY_LINEAR(NB_TENSOR_O, "self_attn.o_proj", "o_proj", "attn_output", NB_EXTENT_HIDDEN, NB_EXTENT_QUERY)
#define NB_FAMILY_POST_NORM \
    NB_FAMILY_VECTOR(NB_TENSOR_POST_NORM, "post_attention_layernorm.weight", "ffn_norm.weight", NB_EXTENT_HIDDEN)
#define NB_FAMILY_GATE \
    NB_FAMILY_LINEAR(NB_TENSOR_GATE, "mlp.gate_proj", "gate_proj", "ffn_gate", NB_EXTENT_INTERMEDIATE, NB_EXTENT_HIDDEN)
#define NB_FAMILY_UP \
    NB_FAMILY_LINEAR(NB_TENSOR_UP, "mlp.up_proj", "up_proj", "ffn_up", NB_EXTENT_INTERMEDIATE, NB_EXTENT_HIDDEN)
#define NB_FAMILY_DOWN \
    NB_FAMILY_LINEAR(NB_TENSOR_DOWN, "mlp.down_proj", "down_proj", "ffn_down", NB_EXTENT_HIDDEN, NB_EXTENT_INTERMEDIATE)

#endif
