/* One block of the decoder: norm, attention, add, norm, MLP, add. Private to src/model/.
 *
 * Memory, in elements of the activation dtype for T tokens, C of them in a chunk of the MLP's (T, if it is not cut); H hidden,
 * Q heads * head_dim, K kv_heads * head_dim, I intermediate, M = max(H, I), r the adapters' ranks (t: what an adapter's A gives). The
 * fp32 values a row (1/rms, log-sum-exp) are not listed.
 *
 *   forward, nothing kept (input in x, output in out, which may be x):
 *     attention   n TH   q TQ   k TK   v TK   o TQ (before that: q before its head norm)   t
 *     MLP         n CH   gate CI (then h)   up CI   t
 *   backward with the block's input alone (gradient checkpointing), the gradient in g TH:
 *     kept        q TQ   k TK   v TK   o TQ   mid TH (before that: n1)   t   [head norms: q TQ, k TK before them]
 *       MLP       gate CI (then its gradient)   up CI (then its gradient)   t
 *                 h CM (n2, then h, then n2 again)   dh CM (the gradient of h, then of n2)
 *       attention do T max(Q, H) (then the gradient of n1)   dq, dk, dv T (Q + 2K), side by side;   n1 again in mid
 *                 where Q = H, do has mid's memory and n1 that of o
 *     The MLP's part is released before the attention's is taken. What down's adapter gave (t) is kept from the forward pass beside the
 *     block's input, so that down itself need not be computed again.
 *   attention kept: o and its log-sum-exp stay from forward; the rest as with the input alone, but attention is not computed again.
 *   everything kept: the lines "kept" and gate TI, up TI stay from forward; the rest as above. The norms' outputs and h are cheap and
 *     always computed again, so that all ways give the same bytes.
 *   dequantize_once: where a matrix is used twice in a direction, its bf16 form joins the live set: in the backward pass q, k, v and o
 *     with "kept", gate and up with the MLP's part; where the MLP is cut, gate, up and down in both directions. Without it each chunk
 *     dequantizes anew. */
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
    int site_tokens;      /* what the way to multiply goes by: the most tokens of a micro-batch; 1 where they come one by one */
    int tokens_limit;     /* rows that memory is taken for: as many, or a chunk's */
    int tokens_max;       /* rows that the ops are told of: as many, or fewer whole tiles where the micro-batch is shorter */
    int row_begin;        /* the first row's token: 0 but in a chunk */
    int mlp_chunk_tokens; /* 0: the MLP is not cut */
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

/* [tokens_limit, columns] of the activation dtype. */
nb_status nb_block_take(
    const struct nb_block *block, enum nb_category category, const char *name, int64_t columns, nb_dptr *address);

/* to = from, [tokens, hidden]; nothing where they are the same. */
nb_status nb_block_copy_residual(const struct nb_block *block, nb_dptr to, nb_dptr from);

nb_status nb_block_norm(const struct nb_block *block, enum nb_tensor_role role, nb_dptr x, nb_dptr y, nb_dptr rms);

/* gradient += the share of the norm `role` of x, from the gradient of what it gave. */
struct nb_block_norm_gradient {
    enum nb_tensor_role role;
    nb_dptr x, rms, dy, gradient;
};
nb_status nb_block_norm_backward(const struct nb_block *block, const struct nb_block_norm_gradient *args);

/* Up to NB_LINEAR_PARTS weights that share their input, in one op. */
struct nb_block_linear {
    const enum nb_tensor_role *roles; /* [count] */
    int count;
    nb_dptr x;        /* [tokens, in] */
    const nb_dptr *y; /* [count], each [tokens, out]: the outputs; in the backward pass their gradients */
    const nb_dptr *t; /* by role: what each adapter's A gives */
    int y_stride;     /* 0: each y is contiguous */
};

/* y = the weights applied to x; with `accumulate` added to y. */
nb_status nb_block_multiply(const struct nb_block *block, const struct nb_block_linear *linear, bool accumulate);

/* dx = the gradient through the weights, whose outputs' gradients are linear->y; dx may be null. */
nb_status nb_block_multiply_backward(const struct nb_block *block, const struct nb_block_linear *linear, nb_dptr dx);

/* Replaces 4-bit matrices of `view` by their bf16 form in the live set, for the products that follow. */
nb_status nb_block_dequantize(
    const struct nb_block *block, const enum nb_tensor_role *roles, int count, struct nb_unit_view *view);

/* mid = x + attention's output; all of `kept`'s attention part, o and lse unless `has_output` says that they are
 * there. `n` [tokens, hidden] is room for the normalized input; it may be mid's memory, and mid may be x if n is
 * not. */
nb_status nb_block_attention(
    const struct nb_block *block, nb_dptr x, nb_dptr n, const struct nb_block_kept *kept, bool has_output);

/* out = mid + the MLP's part; out may be mid. Of `kept`, mid and (if it is not null) down's t have memory, and with
 * NB_KEEP_EVERYTHING gate, up, their t and 1/rms too, which are then filled. */
nb_status nb_block_mlp(const struct nb_block *block, enum nb_keep keep, const struct nb_block_kept *kept, nb_dptr out);

/* gradient = that of the block's output before, that of mid after (undefined unless `to_mid`); the adapters' gradients
 * are accumulated. `keep` and `kept` as nb_block_mlp left them: what is kept is consumed. */
struct nb_block_mlp_gradient {
    nb_dptr gradient;
    enum nb_keep keep;
    bool to_gate_up, to_mid; /* how far down gradients must reach */
};
nb_status nb_block_mlp_backward(
    const struct nb_block *block, const struct nb_block_kept *kept, const struct nb_block_mlp_gradient *args);

#endif
