/* The MLP's half of a block: norm, gate and up, SwiGLU, down, add, and back. Each treats tokens one by one, so they run
 * over mlp_chunk_tokens of them at a time: only what a chunk needs is taken, and what all tokens have (the residual
 * stream, what is kept) is looked at from the chunk's first row on. */
#include "model/block.h"

static const enum nb_tensor_role gate_and_up[2] = {NB_TENSOR_GATE, NB_TENSOR_UP}, down[1] = {NB_TENSOR_DOWN};

static int chunk_tokens(const struct nb_block *b)
{
    return b->mlp_chunk_tokens > 0 && b->mlp_chunk_tokens < b->tokens_limit ? b->mlp_chunk_tokens : b->tokens_limit;
}

static int first_chunk(const struct nb_block *b)
{
    return nb_work_first_chunk(b->work, chunk_tokens(b), b->tokens_max);
}

static int next_chunk(const struct nb_block *b, int begin)
{
    return nb_work_next_chunk(b->work, begin, chunk_tokens(b), b->tokens_max);
}

/* The block at work on the rows from `begin` on. */
static struct nb_block chunk_of(const struct nb_block *b, int begin)
{
    struct nb_block chunk = *b;
    chunk.row_begin = begin;
    chunk.tokens_limit = chunk_tokens(b);
    chunk.tokens_max = b->tokens_max - begin < chunk.tokens_limit ? b->tokens_max - begin : chunk.tokens_limit;
    return chunk;
}

/* Memory of the MLP: `all` has that of all tokens, `own` the chunk's for what is null there. */
struct memory {
    struct nb_block_kept all, own;
};

/* Row `begin` of [tokens, columns], or else the chunk's own. */
static nb_dptr rows_of(nb_dptr all, nb_dptr own, int begin, uint64_t row_bytes)
{
    return nb_dptr_is_null(all) ? own : nb_dptr_at(all, (uint64_t)begin * row_bytes);
}

static struct nb_block_kept chunk_memory(const struct nb_block *chunk, const struct memory *memory)
{
    static const enum nb_tensor_role adapters[3] = {NB_TENSOR_GATE, NB_TENSOR_UP, NB_TENSOR_DOWN};
    const struct nb_block_kept *all = &memory->all, *own = &memory->own;
    uint64_t element = nb_dtype_bytes(chunk->model->options.activation);
    uint64_t hidden = (uint64_t)chunk->model->config.hidden * element;
    uint64_t intermediate = (uint64_t)chunk->model->config.intermediate * element;
    struct nb_block_kept kept = {
        .mid = rows_of(all->mid, own->mid, chunk->row_begin, hidden),
        .gate = rows_of(all->gate, own->gate, chunk->row_begin, intermediate),
        .up = rows_of(all->up, own->up, chunk->row_begin, intermediate),
        .rms2 = rows_of(all->rms2, own->rms2, chunk->row_begin, sizeof(float)),
    };
    for (int i = 0; i < 3; i++) {
        enum nb_tensor_role role = adapters[i];
        uint64_t rank_bytes = (uint64_t)nb_block_rank(chunk, role) * element;
        kept.t[role] = rows_of(all->t[role], own->t[role], chunk->row_begin, rank_bytes);
    }
    return kept;
}

/* Where each of several chunks would dequantize a matrix anew, or one does so twice, once for all: `uses` by a chunk. It
 * goes by the most tokens, so that short micro-batches take the same memory. */
static nb_status dequantize(
    const struct nb_block *b, const enum nb_tensor_role *roles, int count, int uses, struct nb_unit_view *view)
{
    bool again = uses > 1 || (uses == 1 && chunk_tokens(b) < b->tokens_limit);
    return again && b->model->options.dequantize_once ? nb_block_dequantize(b, roles, count, view) : NB_OK;
}

/* gate and up from mid; `n` [tokens, hidden] is left holding the normalized mid. */
static nb_status run_gate_up(const struct nb_block *b, nb_dptr n, const struct nb_block_kept *kept)
{
    const nb_dptr results[2] = {kept->gate, kept->up};
    const struct nb_block_linear linear = {gate_and_up, 2, n, results, kept->t, 0};
    NB_TRY(nb_block_norm(b, NB_TENSOR_POST_NORM, kept->mid, n, kept->rms2));
    return nb_block_multiply(b, &linear, false);
}

static nb_status run_swiglu(const struct nb_block *b, const struct nb_block_kept *kept, nb_dptr h)
{
    struct nb_swiglu args = {
        .gate = kept->gate,
        .up = kept->up,
        .y = h,
        .slot = b->slot,
        .tokens_max = b->tokens_max,
        .width = b->model->config.intermediate,
        .row_begin = b->row_begin,
        .activation = b->model->options.activation,
    };
    return b->work->device->swiglu(b->work->device, b->work->stream, &args);
}

static nb_status run_swiglu_backward(const struct nb_block *b, const struct nb_block_kept *kept, nb_dptr dh)
{
    struct nb_swiglu_backward args = {
        .gate = kept->gate,
        .up = kept->up,
        .dy = dh,
        .d_gate = kept->gate,
        .d_up = kept->up,
        .slot = b->slot,
        .tokens_max = b->tokens_max,
        .width = b->model->config.intermediate,
        .row_begin = b->row_begin,
        .activation = b->model->options.activation,
    };
    return b->work->device->swiglu_backward(b->work->device, b->work->stream, &args);
}

static int widest(const struct nb_block *b)
{
    const struct nb_model_config *c = &b->model->config;
    return c->hidden > c->intermediate ? c->hidden : c->intermediate;
}

/* ---- forward ---- */

/* h may be n or gate. */
struct forward {
    struct memory memory;
    nb_dptr n, h, out;
};

static nb_status take_forward(const struct nb_block *b, bool keeps, struct forward *f)
{
    const struct nb_block chunk = chunk_of(b, 0);
    if (keeps) {
        NB_TRY(nb_block_take(&chunk, NB_CATEGORY_LIVE_SET, "MLP's inner values", widest(b), &f->n));
        f->h = f->n;
        return NB_OK;
    }
    NB_TRY(nb_block_take(&chunk, NB_CATEGORY_LIVE_SET, "normalized input", b->model->config.hidden, &f->n));
    NB_TRY(nb_block_take_mlp(&chunk, NB_CATEGORY_LIVE_SET, &f->memory.own));
    f->h = f->memory.own.gate;
    if (nb_dptr_is_null(f->memory.all.t[NB_TENSOR_DOWN]))
        return nb_block_take_down_t(&chunk, NB_CATEGORY_LIVE_SET, &f->memory.own.t[NB_TENSOR_DOWN]);
    return NB_OK;
}

static nb_status forward_chunk(const struct nb_block *chunk, const struct forward *f)
{
    uint64_t hidden = (uint64_t)chunk->model->config.hidden * nb_dtype_bytes(chunk->model->options.activation);
    const struct nb_block_kept kept = chunk_memory(chunk, &f->memory);
    nb_dptr out = nb_dptr_at(f->out, (uint64_t)chunk->row_begin * hidden);
    const struct nb_block_linear last = {down, 1, f->h, &out, kept.t, 0};
    NB_TRY(run_gate_up(chunk, f->n, &kept));
    NB_TRY(run_swiglu(chunk, &kept, f->h));
    NB_TRY(nb_block_copy_residual(chunk, out, kept.mid));
    return nb_block_multiply(chunk, &last, true);
}

nb_status nb_block_mlp(const struct nb_block *block, enum nb_keep keep, const struct nb_block_kept *kept, nb_dptr out)
{
    struct nb_arena *arena = block->work->arena;
    struct nb_unit_view weights = *block->weights;
    struct nb_block b = *block;
    struct forward f = {.memory.all = *kept, .out = out};
    uint64_t frame = nb_arena_frame(arena);
    b.weights = &weights;
    NB_TRY(dequantize(&b, gate_and_up, 2, 1, &weights));
    NB_TRY(dequantize(&b, down, 1, 1, &weights));
    NB_TRY(take_forward(&b, keep == NB_KEEP_EVERYTHING, &f));
    for (int begin = first_chunk(&b); begin < b.tokens_max; begin = next_chunk(&b, begin)) {
        const struct nb_block chunk = chunk_of(&b, begin);
        NB_TRY(forward_chunk(&chunk, &f));
    }
    nb_arena_release_to(arena, frame);
    return NB_OK;
}

/* ---- backward ---- */

struct backward {
    const struct nb_block_mlp_gradient *args;
    struct memory memory;
    nb_dptr h, dh; /* [chunk, widest]: h (before and after it the normalized mid), and the gradient of either */
    bool recomputes;
};

static nb_status backward_chunk(const struct nb_block *chunk, const struct backward *k)
{
    uint64_t hidden = (uint64_t)chunk->model->config.hidden * nb_dtype_bytes(chunk->model->options.activation);
    const struct nb_block_kept kept = chunk_memory(chunk, &k->memory);
    nb_dptr gradient = nb_dptr_at(k->args->gradient, (uint64_t)chunk->row_begin * hidden), none = {0};
    if (k->recomputes)
        NB_TRY(run_gate_up(chunk, k->h, &kept));
    NB_TRY(run_swiglu(chunk, &kept, k->h));
    const struct nb_block_linear last = {down, 1, k->h, &gradient, kept.t, 0};
    NB_TRY(nb_block_multiply_backward(chunk, &last, k->args->to_gate_up ? k->dh : none));
    if (!k->args->to_gate_up)
        return NB_OK;
    NB_TRY(run_swiglu_backward(chunk, &kept, k->dh));

    nb_dptr n = k->h, dn = k->dh; /* h and its gradient are done with */
    if (nb_block_rank(chunk, NB_TENSOR_GATE) || nb_block_rank(chunk, NB_TENSOR_UP))
        NB_TRY(nb_block_norm(chunk, NB_TENSOR_POST_NORM, kept.mid, n, kept.rms2));
    const nb_dptr gradients[2] = {kept.gate, kept.up};
    const struct nb_block_linear first = {gate_and_up, 2, n, gradients, kept.t, 0};
    NB_TRY(nb_block_multiply_backward(chunk, &first, k->args->to_mid ? dn : none));
    if (!k->args->to_mid)
        return NB_OK;
    const struct nb_block_norm_gradient norm = {NB_TENSOR_POST_NORM, kept.mid, kept.rms2, dn, gradient};
    return nb_block_norm_backward(chunk, &norm);
}

nb_status nb_block_mlp_backward(
    const struct nb_block *block, const struct nb_block_kept *kept, const struct nb_block_mlp_gradient *args)
{
    struct nb_arena *arena = block->work->arena;
    struct nb_unit_view weights = *block->weights;
    struct nb_block b = *block;
    struct backward k = {.args = args, .memory.all = *kept, .recomputes = args->keep != NB_KEEP_EVERYTHING};
    uint64_t frame = nb_arena_frame(arena);
    b.weights = &weights;
    NB_TRY(dequantize(&b, gate_and_up, 2, (k.recomputes ? 1 : 0) + (args->to_mid ? 1 : 0), &weights));
    NB_TRY(dequantize(&b, down, 1, args->to_gate_up ? 1 : 0, &weights));
    const struct nb_block memory = chunk_of(&b, 0);
    if (k.recomputes)
        NB_TRY(nb_block_take_mlp(&memory, NB_CATEGORY_LIVE_SET, &k.memory.own));
    NB_TRY(nb_block_take(&memory, NB_CATEGORY_LIVE_SET, "MLP's inner values", widest(&b), &k.h));
    NB_TRY(nb_block_take(&memory, NB_CATEGORY_LIVE_SET, "gradient of MLP's inner values", widest(&b), &k.dh));
    for (int begin = first_chunk(&b); begin < b.tokens_max; begin = next_chunk(&b, begin)) {
        const struct nb_block chunk = chunk_of(&b, begin);
        NB_TRY(backward_chunk(&chunk, &k));
    }
    nb_arena_release_to(arena, frame);
    return NB_OK;
}
