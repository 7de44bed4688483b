/* One block of the decoder: norm, attention, add, norm, MLP, add. Private to src/model/.
 *
 * Memory, in elements of the activation dtype for T tokens; H hidden, Q heads * head_dim, K kv_heads * head_dim, I
 * intermediate, M = max(H, I), r the adapters' ranks (t: what an adapter's A gives). The fp32 values a row (1/rms,
 * log-sum-exp) are not listed.
 *
 *   forward, nothing kept (input in x, output in out, which may be x):
 *     attention   n TH   q TQ   k TK   v TK   o TQ (before that: q before its head norm)   t
 *     MLP         n TH   gate TI (then h)   up TI   t
 *   backward with the block's input alone (gradient checkpointing), the gradient in g TH:
 *     kept        q TQ   k TK   v TK   o TQ   mid TH (before that: n1)   t   [head norms: q TQ, k TK before them]
 *       MLP       gate TI (then its gradient)   up TI (then its gradient)   t
 *                 h TM (n2, then h, then n2 again)   dh TM (the gradient of h, then of n2)
 *       attention do T max(Q, H) (then the gradient of n1)   dq, dk, dv T (Q + 2K), side by side;   n1 again in mid
 *     The MLP's part is released before the attention's is taken. What down's adapter gave (t) is kept from the forward pass beside the
 *     block's input, so that down itself need not be computed again.
 *   attention kept: o and its log-sum-exp stay from forward; the rest as with the input alone, but attention is not computed again.
 *   everything kept: the lines "kept" and gate, up stay from forward; the rest as above. The norms' outputs and h are cheap and
 *     always computed again, so that all ways give the same bytes.
 *   dequantize_once: where a matrix is used twice in a block's backward pass, its bf16 form joins the live set: q, k, v and o with
 *     "kept", gate and up with the MLP's part. */
#ifndef NB_MODEL_BLOCK_H
#define NB_MODEL_BLOCK_H

#include "model/decoder.h"
#include "model/work.h"

/* A block at work on one micro-batch. Owns nothing. */
struct nb_block {
    const struct nb_model *model;
    const struct nb_adapter *adapter;   /* or NULL */
    const struct nb_unit_view *weights; /* acquired */
    const struct nb_work *work;
    int index;    /* from 0 */
    bool dropout; /* of the adapters: training alone */
    nb_dptr step, slot, positions, query_starts, key_starts;
    int tokens_limit; /* rows that memory is taken for */
    int tokens_max;   /* rows that the ops are told of: as many, or fewer whole tiles where the micro-batch is shorter */
    int sequences_max, longest_max, key_tokens_max;
    nb_dptr k_cache, v_cache; /* [key_tokens_max, K]; null without a cache */
};

/* What the forward pass leaves for the backward pass, besides the block's input. t by role; null without an adapter. */
struct nb_block_kept {
    nb_dptr q_raw, k_raw; /* before head norm and rotation; the same memory as q and k without head norms */
    nb_dptr q, k, v, o, lse, mid;
    nb_dptr gate, up;
    nb_dptr rms1, rms2, rms_q, rms_k;
    nb_dptr t[NB_TENSOR_LAYER_ROLES];
};

/* Takes what NB_KEEP_ATTENTION keeps. */
nb_status nb_block_take_attention_output(const struct nb_block *block, enum nb_category category, struct nb_block_kept *kept);

/* Take the rest of `kept` but down's t, from the arena that block->work names. The attention's output and
 * log-sum-exp are taken unless they are there. */
nb_status nb_block_take_attention(const struct nb_block *block, enum nb_category category, struct nb_block_kept *kept);
nb_status nb_block_take_mlp(const struct nb_block *block, enum nb_category category, struct nb_block_kept *kept);

/* The memory of down's t, kept in every mode that trains: a null address without an adapter there. */
nb_status nb_block_take_down_t(const struct nb_block *block, enum nb_category category, nb_dptr *t);

/* out = the block applied to x, both [tokens, hidden]. `kept` has the memory of what `keep` says (NULL with
 * NB_KEEP_INPUT and NB_KEEP_NOTHING) and is filled; down_t, if it is not null, is filled in every mode. out may be x
 * unless everything is kept. */
struct nb_block_forward {
    nb_dptr x, out, down_t;
    enum nb_keep keep;
    struct nb_block_kept *kept;
};
nb_status nb_block_forward(const struct nb_block *block, const struct nb_block_forward *args);

/* gradient [tokens, hidden] = that of the block's output before, that of its input after (undefined if
 * `input_gradient` is false: then only what the block's own adapters need is computed). The adapters' gradients are
 * accumulated. `keep` and `kept` as in the forward pass: what was not kept is computed again from x; what was is
 * consumed. */
struct nb_block_backward {
    nb_dptr x, gradient, down_t;
    enum nb_keep keep;
    const struct nb_block_kept *kept;
    bool input_gradient;
};
nb_status nb_block_backward(const struct nb_block *block, const struct nb_block_backward *args);

/* ---- shared by both directions ---- */

/* 1 / sqrt(head_dim). */
float nb_block_attention_scale(const struct nb_block *block);

int nb_block_rank(const struct nb_block *block, enum nb_tensor_role role);

nb_status nb_block_norm(const struct nb_block *block, enum nb_tensor_role role, nb_dptr x, nb_dptr y, nb_dptr rms);

/* Up to NB_LINEAR_PARTS weights that share their input, in one op. */
struct nb_block_linear {
    const enum nb_tensor_role *roles; /* [count] */
    int count;
    nb_dptr x;        /* [tokens, in] */
    const nb_dptr *y; /* [count], each [tokens, out]: the outputs; in the backward pass their gradients */
    const nb_dptr *t; /* by role: what each adapter's A gives */
    int y_stride;     /* 0: each y is contiguous */
};

/* Fills an op's parts. */
void nb_block_parts(const struct nb_block *block, const struct nb_block_linear *linear, struct nb_linear_part *parts);

/* mid = x + attention's output; all of `kept`'s attention part, o and lse unless `has_output` says that they are
 * there. `n` [tokens, hidden] is room for the normalized input; it may be mid's memory, and mid may be x if n is
 * not. */
nb_status nb_block_attention(
    const struct nb_block *block, nb_dptr x, nb_dptr n, const struct nb_block_kept *kept, bool has_output);

/* gate and up from mid; `n` [tokens, hidden] is left holding the normalized mid. */
nb_status nb_block_gate_up(const struct nb_block *block, nb_dptr n, const struct nb_block_kept *kept);

nb_status nb_block_swiglu(const struct nb_block *block, const struct nb_block_kept *kept, nb_dptr h);

#endif
