/* The ops that both halves of a block enqueue, in both directions, on the rows that the block is at work on. */
#include "model/block.h"

static enum nb_dtype activation_of(const struct nb_block *b)
{
    return b->model->options.activation;
}

int nb_block_rank(const struct nb_block *block, enum nb_tensor_role role)
{
    return block->adapter ? nb_adapter_rank(block->adapter, block->index, role) : 0;
}

nb_status nb_block_take(
    const struct nb_block *block, enum nb_category category, const char *name, int64_t columns, nb_dptr *address)
{
    struct nb_matrix_shape shape = {block->tokens_limit, columns, activation_of(block)};
    return nb_work_take_matrix(block->work, category, name, shape, address);
}

nb_status nb_block_copy_residual(const struct nb_block *block, nb_dptr to, nb_dptr from)
{
    if (to.address == from.address)
        return NB_OK;
    uint64_t row_bytes = (uint64_t)block->model->config.hidden * nb_dtype_bytes(activation_of(block));
    return block->work->device->copy(
        block->work->device, block->work->stream, to, from, (uint64_t)block->tokens_max * row_bytes);
}

/* ---- norms ---- */

nb_status nb_block_norm(const struct nb_block *block, enum nb_tensor_role role, nb_dptr x, nb_dptr y, nb_dptr rms)
{
    struct nb_rmsnorm args = {
        .x = x,
        .w = block->weights->vector[role],
        .y = y,
        .rms = rms,
        .slot = block->slot,
        .tokens_max = block->tokens_max,
        .width = block->model->config.hidden,
        .epsilon = block->model->config.rms_epsilon,
        .activation = activation_of(block),
        .rows_from = NB_ROWS_TOKENS,
        .row_begin = block->row_begin,
    };
    return block->work->device->rmsnorm(block->work->device, block->work->stream, &args);
}

nb_status nb_block_norm_backward(const struct nb_block *block, const struct nb_block_norm_gradient *norm)
{
    struct nb_rmsnorm_backward args = {
        .x = norm->x,
        .w = block->weights->vector[norm->role],
        .rms = norm->rms,
        .dy = norm->dy,
        .dx = norm->gradient,
        .slot = block->slot,
        .tokens_max = block->tokens_max,
        .width = block->model->config.hidden,
        .accumulate = true,
        .activation = activation_of(block),
        .rows_from = NB_ROWS_TOKENS,
        .row_begin = block->row_begin,
    };
    return block->work->device->rmsnorm_backward(block->work->device, block->work->stream, &args);
}

/* ---- products ---- */

static enum nb_tensor_role bias_of(enum nb_tensor_role role)
{
    return role == NB_TENSOR_Q ? NB_TENSOR_Q_BIAS : role == NB_TENSOR_K ? NB_TENSOR_K_BIAS : NB_TENSOR_V_BIAS;
}

static void set_parts(const struct nb_block *block, const struct nb_block_linear *linear, struct nb_linear_part *parts)
{
    for (int i = 0; i < linear->count; i++) {
        enum nb_tensor_role role = linear->roles[i];
        const struct nb_weight *weight = &block->weights->matrix[role];
        bool attention_input = role == NB_TENSOR_Q || role == NB_TENSOR_K || role == NB_TENSOR_V;
        parts[i] = (struct nb_linear_part){
            .weight = *weight,
            .out = weight->rows,
            .bias = attention_input ? block->weights->vector[bias_of(role)] : (nb_dptr){0},
            .y = linear->y[i],
            .y_stride = linear->y_stride ? linear->y_stride : weight->rows,
            .output_scale = 1,
        };
        nb_adapter_bind_lora(block->adapter, block->index, role, &parts[i].lora);
        parts[i].lora.t = linear->t[role];
        if (!block->dropout)
            parts[i].lora.dropout = 0;
    }
}

nb_status nb_block_multiply(const struct nb_block *block, const struct nb_block_linear *linear, bool accumulate)
{
    int in = block->weights->matrix[linear->roles[0]].columns;
    struct nb_linear args = {
        .x = linear->x,
        .step = block->step,
        .slot = block->slot,
        .tokens_max = block->tokens_max,
        .in = in,
        .x_stride = in,
        .parts = linear->count,
        .activation = activation_of(block),
        .rows_from = NB_ROWS_TOKENS,
        .row_begin_chunk = block->row_begin,
        .site_tokens = block->site_tokens,
    };
    set_parts(block, linear, args.part);
    for (int i = 0; i < linear->count; i++)
        args.part[i].accumulate = accumulate;
    return nb_work_linear(block->work, &args, block->tokens_limit);
}

nb_status nb_block_multiply_backward(const struct nb_block *block, const struct nb_block_linear *linear, nb_dptr dx)
{
    int in = block->weights->matrix[linear->roles[0]].columns;
    struct nb_linear_backward args = {
        .x = linear->x,
        .dx = dx,
        .step = block->step,
        .slot = block->slot,
        .tokens_max = block->tokens_max,
        .in = in,
        .x_stride = in,
        .dx_stride = in,
        .parts = linear->count,
        .activation = activation_of(block),
        .rows_from = NB_ROWS_TOKENS,
        .row_begin_chunk = block->row_begin,
        .site_tokens = block->site_tokens,
    };
    set_parts(block, linear, args.part);
    return nb_work_linear_backward(block->work, &args, block->tokens_limit);
}

nb_status nb_block_dequantize(
    const struct nb_block *block, const enum nb_tensor_role *roles, int count, struct nb_unit_view *view)
{
    struct nb_device *device = block->work->device;
    for (int i = 0; i < count; i++) {
        struct nb_weight *weight = &view->matrix[roles[i]];
        if (weight->format == NB_WEIGHT_BF16)
            continue;
        struct nb_dequantize args = {.from = *weight};
        struct nb_matrix_shape shape = {weight->rows, weight->columns, NB_DTYPE_BF16};
        NB_TRY(nb_work_take_matrix(block->work, NB_CATEGORY_SCRATCH, "a matrix dequantized", shape, &args.w));
        NB_TRY(device->dequantize(device, block->work->stream, &args));
        *weight = (struct nb_weight){.format = NB_WEIGHT_BF16,
            .dequantized = weight->format,
            .rows = weight->rows,
            .columns = weight->columns,
            .data = args.w};
    }
    return NB_OK;
}
