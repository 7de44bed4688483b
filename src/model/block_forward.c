#include "model/block.h"

#include <math.h>

enum { Q_K_V = 3 };

static const struct nb_model_config *config_of(const struct nb_block *b)
{
    return &b->model->config;
}

static enum nb_dtype activation_of(const struct nb_block *b)
{
    return b->model->options.activation;
}

float nb_block_attention_scale(const struct nb_block *block)
{
    return (float)(1 / sqrt((double)config_of(block)->head_dim));
}

static nb_status take_rows(
    const struct nb_block *b, enum nb_category category, const char *name, int columns, nb_dptr *address)
{
    struct nb_matrix_shape shape = {b->tokens_limit, columns, NB_DTYPE_F32};
    return nb_work_take_matrix(b->work, category, name, shape, address);
}

static nb_status take_t(const struct nb_block *b, enum nb_category category, enum nb_tensor_role role, nb_dptr *t)
{
    int rank = nb_block_rank(b, role);
    *t = (nb_dptr){0};
    return rank ? nb_block_take(b, category, "adapter's inner values", rank, t) : NB_OK;
}

/* `lse` is for the backward pass; forward-only work leaves it out, unless it is to be kept, and puts the raw q where o comes later. */
static nb_status take_attention(
    const struct nb_block *b, enum nb_category category, bool backward, struct nb_block_kept *kept)
{
    const struct nb_model_config *c = config_of(b);
    int query = c->heads * c->head_dim, key = c->kv_heads * c->head_dim;
    bool head_norms = b->model->layer[b->index].head_norms;
    NB_TRY(nb_block_take(b, category, "queries", query, &kept->q));
    NB_TRY(nb_block_take(b, category, "keys", key, &kept->k));
    NB_TRY(nb_block_take(b, category, "values", key, &kept->v));
    if (nb_dptr_is_null(kept->o))
        NB_TRY(nb_block_take(b, category, "attention's output", query, &kept->o));
    NB_TRY(take_rows(b, category, "1/rms before attention", 1, &kept->rms1));
    kept->q_raw = kept->q;
    kept->k_raw = kept->k;
    if (backward && nb_dptr_is_null(kept->lse))
        NB_TRY(take_rows(b, category, "attention's log-sum-exp", c->heads, &kept->lse));
    if (head_norms) {
        kept->q_raw = kept->o;
        if (backward)
            NB_TRY(nb_block_take(b, category, "queries before their norm", query, &kept->q_raw));
        NB_TRY(nb_block_take(b, category, "keys before their norm", key, &kept->k_raw));
        NB_TRY(take_rows(b, category, "1/rms of queries", c->heads, &kept->rms_q));
        NB_TRY(take_rows(b, category, "1/rms of keys", c->kv_heads, &kept->rms_k));
    }
    NB_TRY(take_t(b, category, NB_TENSOR_Q, &kept->t[NB_TENSOR_Q]));
    NB_TRY(take_t(b, category, NB_TENSOR_K, &kept->t[NB_TENSOR_K]));
    NB_TRY(take_t(b, category, NB_TENSOR_V, &kept->t[NB_TENSOR_V]));
    return take_t(b, category, NB_TENSOR_O, &kept->t[NB_TENSOR_O]);
}

nb_status nb_block_take_attention_output(
    const struct nb_block *block, enum nb_category category, struct nb_block_kept *kept)
{
    const struct nb_model_config *c = config_of(block);
    NB_TRY(nb_block_take(block, category, "attention's output", c->heads * c->head_dim, &kept->o));
    return take_rows(block, category, "attention's log-sum-exp", c->heads, &kept->lse);
}

nb_status nb_block_take_attention(const struct nb_block *block, enum nb_category category, struct nb_block_kept *kept)
{
    NB_TRY(take_attention(block, category, true, kept));
    return nb_block_take(block, category, "residual between attention and MLP", config_of(block)->hidden, &kept->mid);
}

nb_status nb_block_take_mlp(const struct nb_block *block, enum nb_category category, struct nb_block_kept *kept)
{
    int intermediate = config_of(block)->intermediate;
    NB_TRY(nb_block_take(block, category, "gate", intermediate, &kept->gate));
    NB_TRY(nb_block_take(block, category, "up", intermediate, &kept->up));
    NB_TRY(take_rows(block, category, "1/rms before the MLP", 1, &kept->rms2));
    NB_TRY(take_t(block, category, NB_TENSOR_GATE, &kept->t[NB_TENSOR_GATE]));
    return take_t(block, category, NB_TENSOR_UP, &kept->t[NB_TENSOR_UP]);
}

nb_status nb_block_take_down_t(const struct nb_block *block, enum nb_category category, nb_dptr *t)
{
    return take_t(block, category, NB_TENSOR_DOWN, t);
}

static nb_status run_rope(
    const struct nb_block *b, enum nb_tensor_role norm, nb_dptr x, nb_dptr y, nb_dptr rms, int heads)
{
    const struct nb_layer_spec *layer = &b->model->layer[b->index];
    const struct nb_rope_table *table = &b->model->rope[layer->rope_table];
    int head_dim = config_of(b)->head_dim;
    struct nb_rope args = {
        .x = x,
        .y = y,
        .w = layer->head_norms ? b->weights->vector[norm] : (nb_dptr){0},
        .rms = rms,
        .positions = b->positions,
        .cosine = table->cosine,
        .sine = table->sine,
        .slot = b->slot,
        .tokens_max = b->tokens_max,
        .heads = heads,
        .head_dim = head_dim,
        .x_stride = heads * head_dim,
        .y_stride = heads * head_dim,
        .epsilon = config_of(b)->rms_epsilon,
        .activation = activation_of(b),
    };
    return b->work->device->rope(b->work->device, b->work->stream, &args);
}

static nb_status append_to_cache(const struct nb_block *b, const struct nb_block_kept *kept)
{
    int key = config_of(b)->kv_heads * config_of(b)->head_dim;
    struct nb_kv_append args = {
        .k = kept->k,
        .v = kept->v,
        .k_cache = b->k_cache,
        .v_cache = b->v_cache,
        .slot = b->slot,
        .tokens_max = b->tokens_max,
        .width = key,
        .k_stride = key,
        .v_stride = key,
        .capacity = b->key_tokens_max,
        .activation = activation_of(b),
    };
    return b->work->device->kv_append(b->work->device, b->work->stream, &args);
}

static nb_status run_attention(const struct nb_block *b, const struct nb_block_kept *kept)
{
    const struct nb_model_config *c = config_of(b);
    bool cached = !nb_dptr_is_null(b->k_cache);
    if (cached)
        NB_TRY(append_to_cache(b, kept));
    struct nb_attention args = {
        .q = kept->q,
        .k = cached ? b->k_cache : kept->k,
        .v = cached ? b->v_cache : kept->v,
        .o = kept->o,
        .lse = kept->lse,
        .query_starts = b->query_starts,
        .key_starts = b->key_starts,
        .slot = b->slot,
        .tokens_max = b->tokens_max,
        .key_tokens_max = b->key_tokens_max,
        .sequences_max = b->sequences_max,
        .longest_max = b->longest_max,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .q_stride = c->heads * c->head_dim,
        .k_stride = c->kv_heads * c->head_dim,
        .v_stride = c->kv_heads * c->head_dim,
        .o_stride = c->heads * c->head_dim,
        .window = b->model->layer[b->index].window,
        .scale = nb_block_attention_scale(b),
        .activation = activation_of(b),
    };
    return nb_work_attention(b->work, &args, b->tokens_limit);
}

nb_status nb_block_attention(
    const struct nb_block *block, nb_dptr x, nb_dptr n, const struct nb_block_kept *kept, bool has_output)
{
    static const enum nb_tensor_role input[Q_K_V] = {NB_TENSOR_Q, NB_TENSOR_K, NB_TENSOR_V}, output[1] = {NB_TENSOR_O};
    const nb_dptr q_k_v[Q_K_V] = {kept->q_raw, kept->k_raw, kept->v};
    const struct nb_block_linear in = {input, Q_K_V, n, q_k_v, kept->t, 0},
                                 out = {output, 1, kept->o, &kept->mid, kept->t, 0};
    NB_TRY(nb_block_norm(block, NB_TENSOR_INPUT_NORM, x, n, kept->rms1));
    NB_TRY(nb_block_multiply(block, &in, false));
    NB_TRY(run_rope(block, NB_TENSOR_Q_NORM, kept->q_raw, kept->q, kept->rms_q, config_of(block)->heads));
    NB_TRY(run_rope(block, NB_TENSOR_K_NORM, kept->k_raw, kept->k, kept->rms_k, config_of(block)->kv_heads));
    if (!has_output)
        NB_TRY(run_attention(block, kept));
    NB_TRY(nb_block_copy_residual(block, kept->mid, x));
    return nb_block_multiply(block, &out, true);
}

/* Everything is kept: `kept` has all the memory. */
static nb_status forward_keeping(const struct nb_block *block, const struct nb_block_forward *args)
{
    args->kept->t[NB_TENSOR_DOWN] = args->down_t;
    NB_TRY(nb_block_attention(block, args->x, args->kept->mid, args->kept, false));
    return nb_block_mlp(block, args->keep, args->kept, args->out);
}

nb_status nb_block_forward(const struct nb_block *block, const struct nb_block_forward *args)
{
    if (args->keep == NB_KEEP_EVERYTHING)
        return forward_keeping(block, args);
    uint64_t frame = nb_arena_frame(block->work->arena);
    struct nb_block_kept live = {.mid = args->out};
    nb_dptr n;
    if (args->keep == NB_KEEP_ATTENTION) {
        live.o = args->kept->o;
        live.lse = args->kept->lse;
    }
    NB_TRY(nb_block_take(block, NB_CATEGORY_LIVE_SET, "normalized input", config_of(block)->hidden, &n));
    NB_TRY(take_attention(block, NB_CATEGORY_LIVE_SET, false, &live));
    NB_TRY(nb_block_attention(block, args->x, n, &live, false));
    nb_arena_release_to(block->work->arena, frame);
    const struct nb_block_kept after = {.mid = args->out, .t[NB_TENSOR_DOWN] = args->down_t};
    return nb_block_mlp(block, args->keep, &after, args->out);
}
