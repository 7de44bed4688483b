#include "model/block.h"

/* Which gradients a block computes: the lowest adapter decides how far down they must reach. */
struct reach {
    bool q_k_v;   /* through attention to q, k and v */
    bool o;       /* to the output projection's result, that is to mid */
    bool gate_up; /* to gate and up */
};

static enum nb_dtype activation_of(const struct nb_block *b)
{
    return b->model->options.activation;
}

static struct reach find_reach(const struct nb_block *b, bool input_gradient)
{
    struct reach reach;
    reach.q_k_v = input_gradient || nb_block_rank(b, NB_TENSOR_Q) || nb_block_rank(b, NB_TENSOR_K) ||
                  nb_block_rank(b, NB_TENSOR_V);
    reach.o = reach.q_k_v || nb_block_rank(b, NB_TENSOR_O);
    reach.gate_up = reach.o || nb_block_rank(b, NB_TENSOR_GATE) || nb_block_rank(b, NB_TENSOR_UP);
    return reach;
}

static nb_status take(const struct nb_block *b, const char *name, int columns, nb_dptr *address)
{
    return nb_block_take(b, NB_CATEGORY_LIVE_SET, name, columns, address);
}

static nb_status run_attention_backward(
    const struct nb_block *b, const struct nb_block_kept *kept, nb_dptr d_o, const nb_dptr d_q_k_v[3])
{
    const struct nb_model_config *c = &b->model->config;
    int query = c->heads * c->head_dim, key = c->kv_heads * c->head_dim;
    struct nb_attention_backward args = {
        .q = kept->q,
        .k = kept->k,
        .v = kept->v,
        .o = kept->o,
        .lse = kept->lse,
        .d_o = d_o,
        .dq = d_q_k_v[0],
        .dk = d_q_k_v[1],
        .dv = d_q_k_v[2],
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
        .q_stride = query,
        .k_stride = key,
        .v_stride = key,
        .o_stride = query,
        .d_o_stride = query,
        .dq_stride = query + 2 * key,
        .dk_stride = query + 2 * key,
        .dv_stride = query + 2 * key,
        .window = b->model->layer[b->index].window,
        .scale = nb_block_attention_scale(b),
        .activation = activation_of(b),
    };
    return nb_work_attention_backward(b->work, &args, b->tokens_limit);
}

/* In place, from after the rotation (and head norm) to before it. */
static nb_status run_rope_backward(
    const struct nb_block *b, enum nb_tensor_role norm, nb_dptr x, nb_dptr rms, nb_dptr gradient)
{
    const struct nb_layer_spec *layer = &b->model->layer[b->index];
    const struct nb_rope_table *table = &b->model->rope[layer->rope_table];
    const struct nb_model_config *c = &b->model->config;
    int head_dim = c->head_dim, heads = norm == NB_TENSOR_Q_NORM ? c->heads : c->kv_heads;
    int stride = (c->heads + 2 * c->kv_heads) * head_dim;
    struct nb_rope_backward args = {
        .x = x,
        .w = layer->head_norms ? b->weights->vector[norm] : (nb_dptr){0},
        .rms = rms,
        .dy = gradient,
        .dx = gradient,
        .positions = b->positions,
        .cosine = table->cosine,
        .sine = table->sine,
        .slot = b->slot,
        .tokens_max = b->tokens_max,
        .heads = heads,
        .head_dim = head_dim,
        .x_stride = heads * head_dim,
        .dy_stride = stride,
        .dx_stride = stride,
        .activation = activation_of(b),
    };
    return b->work->device->rope_backward(b->work->device, b->work->stream, &args);
}

/* From the gradient of mid to that of the block's input, in args->gradient. */
static nb_status attention_backward(const struct nb_block *b, const struct nb_block_backward *args,
    const struct nb_block_kept *kept, const struct reach *reach)
{
    static const enum nb_tensor_role input[3] = {NB_TENSOR_Q, NB_TENSOR_K, NB_TENSOR_V}, output[1] = {NB_TENSOR_O};
    const struct nb_model_config *c = &b->model->config;
    int query = c->heads * c->head_dim, key = c->kv_heads * c->head_dim;
    bool one_width = query == c->hidden; /* then mid serves for the gradient of o, and o for the normalized input */
    nb_dptr d_o = kept->mid;
    nb_dptr d_q_k_v[3]; /* side by side, so that the gradient of their input may be one product */
    if (!one_width)
        NB_TRY(take(b, "gradient of attention's output", query > c->hidden ? query : c->hidden, &d_o));
    NB_TRY(take(b, "gradients of queries, keys and values", query + 2 * key, &d_q_k_v[0]));
    d_q_k_v[1] = nb_dptr_at(d_q_k_v[0], (uint64_t)query * nb_dtype_bytes(activation_of(b)));
    d_q_k_v[2] = nb_dptr_at(d_q_k_v[1], (uint64_t)key * nb_dtype_bytes(activation_of(b)));

    const struct nb_block_linear last = {output, 1, kept->o, &args->gradient, kept->t, 0};
    NB_TRY(nb_block_multiply_backward(b, &last, reach->q_k_v ? d_o : (nb_dptr){0}));
    if (!reach->q_k_v)
        return NB_OK;
    NB_TRY(run_attention_backward(b, kept, d_o, d_q_k_v));
    NB_TRY(run_rope_backward(b, NB_TENSOR_Q_NORM, kept->q_raw, kept->rms_q, d_q_k_v[0]));
    NB_TRY(run_rope_backward(b, NB_TENSOR_K_NORM, kept->k_raw, kept->rms_k, d_q_k_v[1]));

    nb_dptr n = one_width ? kept->o : kept->mid, dn = d_o; /* o, mid and the gradient of o are done with */
    if (nb_block_rank(b, NB_TENSOR_Q) || nb_block_rank(b, NB_TENSOR_K) || nb_block_rank(b, NB_TENSOR_V))
        NB_TRY(nb_block_norm(b, NB_TENSOR_INPUT_NORM, args->x, n, kept->rms1));
    const struct nb_block_linear first = {input, 3, n, d_q_k_v, kept->t, query + 2 * key};
    NB_TRY(nb_block_multiply_backward(b, &first, args->input_gradient ? dn : (nb_dptr){0}));
    if (!args->input_gradient)
        return NB_OK;
    const struct nb_block_norm_gradient norm = {NB_TENSOR_INPUT_NORM, args->x, kept->rms1, dn, args->gradient};
    return nb_block_norm_backward(b, &norm);
}

nb_status nb_block_backward(const struct nb_block *block, const struct nb_block_backward *args)
{
    static const enum nb_tensor_role matrices[4] = {NB_TENSOR_Q, NB_TENSOR_K, NB_TENSOR_V, NB_TENSOR_O};
    struct nb_arena *arena = block->work->arena;
    struct reach reach = find_reach(block, args->input_gradient);
    struct nb_block_kept kept = args->kept ? *args->kept : (struct nb_block_kept){0};
    bool recomputes = args->keep != NB_KEEP_EVERYTHING;
    const struct nb_block_mlp_gradient mlp = {args->gradient, args->keep, reach.gate_up, reach.o};
    struct nb_unit_view weights = *block->weights;
    struct nb_block b = *block;
    b.weights = &weights;
    kept.t[NB_TENSOR_DOWN] = args->down_t;
    uint64_t frame = nb_arena_frame(arena);
    if (recomputes && block->model->options.dequantize_once && reach.q_k_v)
        NB_TRY(nb_block_dequantize(&b, matrices, 4, &weights));
    if (recomputes) {
        NB_TRY(nb_block_take_attention(&b, NB_CATEGORY_LIVE_SET, &kept));
        NB_TRY(nb_block_attention(&b, args->x, kept.mid, &kept, args->keep == NB_KEEP_ATTENTION));
    }
    NB_TRY(nb_block_mlp_backward(&b, &kept, &mlp));
    if (reach.o)
        NB_TRY(attention_backward(&b, args, &kept, &reach));
    nb_arena_release_to(arena, frame);
    return NB_OK;
}
