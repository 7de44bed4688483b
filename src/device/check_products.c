/* What the args of linear and attention, forward and backward, must be on any device. */
#include <math.h>

#include "device/check.h"

enum { RANK_MAX = 1024 };

/* The members that nb_linear and nb_linear_backward share. */
struct linear {
    const char *op;
    const struct nb_linear_part *part;
    nb_dptr step, slot;
    int tokens_max, in, x_stride, parts, row_begin_chunk;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    bool backward;
};

#define LINEAR_OF(name, a, is_backward)               \
    {                                                 \
        .op = name,                                   \
        .part = (a)->part,                            \
        .step = (a)->step,                            \
        .slot = (a)->slot,                            \
        .tokens_max = (a)->tokens_max,                \
        .in = (a)->in,                                \
        .x_stride = (a)->x_stride,                    \
        .parts = (a)->parts,                          \
        .row_begin_chunk = (a)->row_begin_chunk,      \
        .activation = (a)->activation,                \
        .rows_from = (a)->rows_from,                  \
        .backward = is_backward,                      \
    }

/* "part[1].name": a literal, for every op of every step is checked and hardly ever found wrong. */
#define MEMBER(part, name) \
    ((const char *const[NB_LINEAR_PARTS]){"part[0]." name, "part[1]." name, "part[2]." name}[part])
_Static_assert(NB_LINEAR_PARTS == 3, "MEMBER names as many parts as there are");

static nb_status check_finite(const char *op, const char *name, float value)
{
    return isfinite(value) ? NB_OK : nb_fail(NB_UNSUPPORTED, "%s: %s %g is not finite", op, name, (double)value);
}

static nb_status check_lora(const struct linear *l, int p)
{
    const struct nb_lora *lora = &l->part[p].lora;
    if (nb_dptr_is_null(lora->a))
        return NB_OK;
    NB_TRY(nb_check_range(l->op, MEMBER(p, "lora.rank"), lora->rank, 1, RANK_MAX));
    NB_TRY(nb_check_pointer(l->op, MEMBER(p, "lora.a"), lora->a, 4));
    NB_TRY(nb_check_pointer(l->op, MEMBER(p, "lora.b"), lora->b, 4));
    NB_TRY(nb_check_pointer(l->op, MEMBER(p, "lora.t"), lora->t, 4));
    if (l->backward) {
        NB_TRY(nb_check_pointer(l->op, MEMBER(p, "lora.da"), lora->da, 4));
        NB_TRY(nb_check_pointer(l->op, MEMBER(p, "lora.db"), lora->db, 4));
    }
    NB_TRY(check_finite(l->op, MEMBER(p, "lora.scale"), lora->scale));
    if (!(lora->dropout >= 0 && lora->dropout < 1))
        return nb_fail(
            NB_UNSUPPORTED, "%s: %s %g is not in [0, 1)", l->op, MEMBER(p, "lora.dropout"), (double)lora->dropout);
    return lora->dropout > 0 ? nb_check_pointer(l->op, "step", l->step, 16) : NB_OK;
}

static nb_status check_part(const struct linear *l, int p)
{
    const struct nb_linear_part *part = &l->part[p];
    NB_TRY(nb_check_weight(l->op, MEMBER(p, "weight"), &part->weight));
    if (part->weight.columns != l->in)
        return nb_fail(NB_UNSUPPORTED, "%s: %s %d is not `in`, %d", l->op, MEMBER(p, "weight.columns"),
            part->weight.columns, l->in);
    NB_TRY(nb_check_range(l->op, MEMBER(p, "row_begin"), part->row_begin, 0, part->weight.rows - 1));
    NB_TRY(nb_check_range(l->op, MEMBER(p, "out"), part->out, 1, part->weight.rows - part->row_begin));
    NB_TRY(nb_check_pointer(l->op, MEMBER(p, "y"), part->y, 16));
    NB_TRY(nb_check_stride(l->op, MEMBER(p, "y_stride"), part->y_stride, part->out));
    if (!nb_dptr_is_null(part->bias))
        NB_TRY(nb_check_pointer(l->op, MEMBER(p, "bias"), part->bias, 2));
    NB_TRY(check_finite(l->op, MEMBER(p, "output_scale"), part->output_scale));
    return check_lora(l, p);
}

static nb_status check_linear(const struct linear *l)
{
    NB_TRY(nb_check_activation(l->op, l->activation));
    NB_TRY(nb_check_range(l->op, "tokens_max", l->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_width(l->op, "in", l->in));
    NB_TRY(nb_check_stride(l->op, "x_stride", l->x_stride, l->in));
    NB_TRY(nb_check_range(l->op, "parts", l->parts, 1, NB_LINEAR_PARTS));
    if (l->rows_from != NB_ROWS_TOKENS && l->rows_from != NB_ROWS_TRAINED_CHUNK)
        return nb_fail(
            NB_UNSUPPORTED, "%s: rows_from %d is neither tokens nor a chunk of trained rows", l->op, (int)l->rows_from);
    NB_TRY(nb_check_range(l->op, "row_begin_chunk", l->row_begin_chunk, 0, INT32_MAX));
    NB_TRY(nb_check_pointer(l->op, "slot", l->slot, 16));
    for (int p = 0; p < l->parts; p++)
        NB_TRY(check_part(l, p));
    return NB_OK;
}

nb_status nb_check_linear(const struct nb_linear *a)
{
    struct linear l = LINEAR_OF("linear", a, false);
    NB_TRY(check_linear(&l));
    NB_TRY(nb_check_pointer(l.op, "x", a->x, 16));
    for (int p = 0; p < a->parts; p++)
        NB_TRY(nb_check_apart(l.op, "x", a->x, MEMBER(p, "y"), a->part[p].y));
    return NB_OK;
}

nb_status nb_check_linear_backward(const struct nb_linear_backward *a)
{
    struct linear l = LINEAR_OF("linear_backward", a, true);
    NB_TRY(check_linear(&l));
    bool adapters = false;
    for (int p = 0; p < a->parts; p++)
        adapters = adapters || !nb_dptr_is_null(a->part[p].lora.a);
    if (adapters)
        NB_TRY(nb_check_pointer(l.op, "x", a->x, 16));
    if (nb_dptr_is_null(a->dx))
        return NB_OK;
    NB_TRY(nb_check_pointer(l.op, "dx", a->dx, 16));
    NB_TRY(nb_check_stride(l.op, "dx_stride", a->dx_stride, a->in));
    if (adapters)
        NB_TRY(nb_check_apart(l.op, "x", a->x, "dx", a->dx));
    for (int p = 0; p < a->parts; p++)
        NB_TRY(nb_check_apart(l.op, MEMBER(p, "y"), a->part[p].y, "dx", a->dx));
    return NB_OK;
}

/* ---- attention ---- */

struct buffer {
    const char *name, *stride_name;
    nb_dptr pointer;
    int stride, heads;
};

/* The members that nb_attention and nb_attention_backward share. */
struct attention {
    const char *op;
    nb_dptr query_starts, key_starts, slot;
    int tokens_max, key_tokens_max, sequences_max, longest_max, heads, kv_heads, head_dim, window;
    float scale, soft_cap;
    enum nb_dtype activation;
};

#define ATTENTION_OF(name, a)                         \
    {                                                 \
        .op = name,                                   \
        .query_starts = (a)->query_starts,            \
        .key_starts = (a)->key_starts,                \
        .slot = (a)->slot,                            \
        .tokens_max = (a)->tokens_max,                \
        .key_tokens_max = (a)->key_tokens_max,        \
        .sequences_max = (a)->sequences_max,          \
        .longest_max = (a)->longest_max,              \
        .heads = (a)->heads,                          \
        .kv_heads = (a)->kv_heads,                    \
        .head_dim = (a)->head_dim,                    \
        .window = (a)->window,                        \
        .scale = (a)->scale,                          \
        .soft_cap = (a)->soft_cap,                    \
        .activation = (a)->activation,                \
    }

static nb_status check_attention(const struct attention *t, const struct buffer *buffers, int count)
{
    NB_TRY(nb_check_activation(t->op, t->activation));
    NB_TRY(nb_check_range(t->op, "tokens_max", t->tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_range(t->op, "key_tokens_max", t->key_tokens_max, 1, INT32_MAX));
    NB_TRY(nb_check_range(t->op, "sequences_max", t->sequences_max, 1, INT32_MAX));
    NB_TRY(nb_check_range(t->op, "longest_max", t->longest_max, 1, INT32_MAX));
    NB_TRY(nb_check_heads(t->op, "heads", t->heads, t->head_dim));
    NB_TRY(nb_check_heads(t->op, "kv_heads", t->kv_heads, t->head_dim));
    if (t->heads % t->kv_heads != 0)
        return nb_fail(NB_UNSUPPORTED, "%s: %d heads do not share %d kv_heads evenly", t->op, t->heads, t->kv_heads);
    NB_TRY(nb_check_range(t->op, "window", t->window, 0, INT32_MAX));
    NB_TRY(check_finite(t->op, "scale", t->scale));
    if (!(isfinite(t->soft_cap) && t->soft_cap >= 0))
        return nb_fail(NB_UNSUPPORTED, "%s: soft_cap %g is neither 0 nor positive", t->op, (double)t->soft_cap);
    for (int i = 0; i < count; i++) {
        NB_TRY(nb_check_pointer(t->op, buffers[i].name, buffers[i].pointer, 16));
        int64_t width = (int64_t)buffers[i].heads * t->head_dim;
        NB_TRY(nb_check_stride(t->op, buffers[i].stride_name, buffers[i].stride, width));
    }
    NB_TRY(nb_check_pointer(t->op, "query_starts", t->query_starts, 4));
    NB_TRY(nb_check_pointer(t->op, "key_starts", t->key_starts, 4));
    return nb_check_pointer(t->op, "slot", t->slot, 16);
}

nb_status nb_check_attention(const struct nb_attention *a)
{
    struct attention t = ATTENTION_OF("attention", a);
    const struct buffer buffers[] = {
        {"q", "q_stride", a->q, a->q_stride, a->heads},
        {"k", "k_stride", a->k, a->k_stride, a->kv_heads},
        {"v", "v_stride", a->v, a->v_stride, a->kv_heads},
        {"o", "o_stride", a->o, a->o_stride, a->heads},
    };
    NB_TRY(check_attention(&t, buffers, 4));
    if (!nb_dptr_is_null(a->lse))
        NB_TRY(nb_check_pointer(t.op, "lse", a->lse, 4));
    for (int i = 0; i < 3; i++)
        NB_TRY(nb_check_apart(t.op, buffers[i].name, buffers[i].pointer, "o", a->o));
    return NB_OK;
}

nb_status nb_check_attention_backward(const struct nb_attention_backward *a)
{
    struct attention t = ATTENTION_OF("attention_backward", a);
    const struct buffer buffers[] = {
        {"q", "q_stride", a->q, a->q_stride, a->heads},
        {"k", "k_stride", a->k, a->k_stride, a->kv_heads},
        {"v", "v_stride", a->v, a->v_stride, a->kv_heads},
        {"o", "o_stride", a->o, a->o_stride, a->heads},
        {"d_o", "d_o_stride", a->d_o, a->d_o_stride, a->heads},
        {"dq", "dq_stride", a->dq, a->dq_stride, a->heads},
        {"dk", "dk_stride", a->dk, a->dk_stride, a->kv_heads},
        {"dv", "dv_stride", a->dv, a->dv_stride, a->kv_heads},
    };
    NB_TRY(check_attention(&t, buffers, 8));
    NB_TRY(nb_check_pointer(t.op, "lse", a->lse, 4));
    for (int out = 5; out < 8; out++)
        for (int i = 0; i < out; i++)
            NB_TRY(nb_check_apart(t.op, buffers[i].name, buffers[i].pointer, buffers[out].name, buffers[out].pointer));
    return NB_OK;
}
