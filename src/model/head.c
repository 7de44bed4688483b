#include "model/head.h"

/* The rows of an op's buffers: at most `max`, from `begin` on where they are trained rows. */
struct rows {
    enum nb_row_count from;
    int begin, max;
};

/* Memory of one chunk of C trained rows. */
struct chunk {
    struct rows rows;
    nb_dptr x, n;   /* [C, hidden]: gathered, normalized */
    nb_dptr dn;     /* [C, hidden]: the gradient of n, then of x */
    nb_dptr rms;    /* fp32 [C] */
    nb_dptr logits; /* [C, stride]: logits, then their gradient */
    nb_dptr t;      /* [C, rank of the head's adapter] */
};

int nb_head_logits_stride(const struct nb_model *model)
{
    return (model->config.vocab + 7) / 8 * 8;
}

static int head_rank(const struct nb_head *h)
{
    return h->adapter ? nb_adapter_rank(h->adapter, h->model->config.layers, NB_TENSOR_HEAD) : 0;
}

/* [rows, columns] of the activation dtype. */
static nb_status take(const struct nb_head *h, const char *name, int rows, int columns, nb_dptr *address)
{
    struct nb_matrix_shape shape = {rows, columns, h->model->options.activation};
    return nb_work_take_matrix(h->work, NB_CATEGORY_LOSS, name, shape, address);
}

/* fp32 [rows]. */
static nb_status take_rms(const struct nb_head *h, const char *name, int rows, nb_dptr *address)
{
    return nb_work_take(h->work, NB_CATEGORY_LOSS, name, (uint64_t)rows * sizeof(float), address);
}

static nb_status take_chunk(const struct nb_head *h, int rows, struct chunk *chunk)
{
    int hidden = h->model->config.hidden, rank = head_rank(h);
    NB_TRY(take(h, "trained rows", rows, hidden, &chunk->x));
    NB_TRY(take(h, "trained rows, normalized", rows, hidden, &chunk->n));
    NB_TRY(take_rms(h, "1/rms of trained rows", rows, &chunk->rms));
    if (rank)
        NB_TRY(take(h, "adapter's inner values", rows, rank, &chunk->t));
    if (h->input_gradient)
        NB_TRY(take(h, "gradient of trained rows", rows, hidden, &chunk->dn));
    return take(h, "logits", rows, nb_head_logits_stride(h->model), &chunk->logits);
}

static struct nb_linear_part head_part(const struct nb_head *h, nb_dptr logits, nb_dptr t)
{
    struct nb_linear_part part = {
        .weight = h->matrix,
        .out = h->matrix.rows,
        .y = logits,
        .y_stride = nb_head_logits_stride(h->model),
        .output_scale = 1,
    };
    nb_adapter_bind_lora(h->adapter, h->model->config.layers, NB_TENSOR_HEAD, &part.lora);
    part.lora.t = t;
    if (!h->trains)
        part.lora.dropout = 0;
    return part;
}

static nb_status run_norm(const struct nb_head *h, const struct rows *rows, nb_dptr x, nb_dptr y, nb_dptr rms)
{
    struct nb_rmsnorm args = {
        .x = x,
        .w = h->norm,
        .y = y,
        .rms = rms,
        .slot = h->slot,
        .tokens_max = rows->max,
        .width = h->model->config.hidden,
        .epsilon = h->model->config.rms_epsilon,
        .activation = h->model->options.activation,
        .rows_from = rows->from,
        .row_begin = rows->begin,
    };
    return h->work->device->rmsnorm(h->work->device, h->work->stream, &args);
}

static nb_status run_linear(const struct nb_head *h, const struct rows *rows, nb_dptr x, nb_dptr logits, nb_dptr t)
{
    struct nb_linear args = {
        .x = x,
        .step = h->step,
        .slot = h->slot,
        .tokens_max = rows->max,
        .in = h->model->config.hidden,
        .x_stride = h->model->config.hidden,
        .parts = 1,
        .activation = h->model->options.activation,
        .rows_from = rows->from,
        .row_begin_chunk = rows->begin,
        .rows = rows->from == NB_ROWS_TRAINED_CHUNK ? h->trained_row : (nb_dptr){0},
        .site_tokens = rows->from == NB_ROWS_TRAINED_CHUNK ? h->trained_rows_max : rows->max,
        .part = {head_part(h, logits, t)},
    };
    return nb_work_linear(h->work, &args, rows->max);
}

static nb_status run_cross_entropy(const struct nb_head *h, const struct chunk *chunk)
{
    struct nb_cross_entropy args = {
        .logits = chunk->logits,
        .labels = h->label,
        .loss = h->losses,
        .slot = h->slot,
        .row_begin = chunk->rows.begin,
        .rows_max = h->loss_rows,
        .vocabulary = h->model->config.vocab,
        .logits_stride = nb_head_logits_stride(h->model),
        .gradient = h->trains,
        .activation = h->model->options.activation,
    };
    return h->work->device->cross_entropy(h->work->device, h->work->stream, &args);
}

static nb_status run_gather(const struct nb_head *h, const struct chunk *chunk)
{
    struct nb_gather_rows args = {
        .x = h->x,
        .rows = h->trained_row,
        .y = chunk->x,
        .slot = h->slot,
        .row_begin = chunk->rows.begin,
        .rows_max = h->loss_rows,
        .width = h->model->config.hidden,
        .activation = h->model->options.activation,
    };
    return h->work->device->gather_rows(h->work->device, h->work->stream, &args);
}

/* From the gradient of the logits to that of x, at the chunk's rows of h->gradient. */
static nb_status chunk_backward(const struct nb_head *h, const struct chunk *chunk)
{
    struct nb_device *device = h->work->device;
    int hidden = h->model->config.hidden;
    enum nb_dtype activation = h->model->options.activation;
    struct nb_linear_backward linear = {
        .x = chunk->n,
        .dx = chunk->dn,
        .step = h->step,
        .slot = h->slot,
        .tokens_max = h->loss_rows,
        .in = hidden,
        .x_stride = hidden,
        .dx_stride = hidden,
        .parts = 1,
        .activation = activation,
        .rows_from = NB_ROWS_TRAINED_CHUNK,
        .row_begin_chunk = chunk->rows.begin,
        .rows = h->trained_row,
        .site_tokens = h->trained_rows_max,
        .part = {head_part(h, chunk->logits, chunk->t)},
    };
    NB_TRY(nb_work_linear_backward(h->work, &linear, h->loss_rows));
    if (!h->input_gradient)
        return NB_OK;
    struct nb_rmsnorm_backward norm = {
        .x = chunk->x,
        .w = h->norm,
        .rms = chunk->rms,
        .dy = chunk->dn,
        .dx = chunk->dn,
        .slot = h->slot,
        .tokens_max = h->loss_rows,
        .width = hidden,
        .activation = activation,
        .rows_from = NB_ROWS_TRAINED_CHUNK,
        .row_begin = chunk->rows.begin,
    };
    NB_TRY(device->rmsnorm_backward(device, h->work->stream, &norm));
    struct nb_scatter_rows scatter = {
        .x = chunk->dn,
        .rows = h->trained_row,
        .y = h->gradient,
        .slot = h->slot,
        .row_begin = chunk->rows.begin,
        .rows_max = h->loss_rows,
        .width = hidden,
        .activation = activation,
    };
    return device->scatter_rows(device, h->work->stream, &scatter);
}

static nb_status run_chunk(const struct nb_head *h, const struct chunk *chunk)
{
    NB_TRY(run_gather(h, chunk));
    NB_TRY(run_norm(h, &chunk->rows, chunk->x, chunk->n, chunk->rms));
    NB_TRY(run_linear(h, &chunk->rows, chunk->n, chunk->logits, chunk->t));
    NB_TRY(run_cross_entropy(h, chunk));
    bool backward = h->input_gradient || (h->trains && head_rank(h));
    return backward ? chunk_backward(h, chunk) : NB_OK;
}

nb_status nb_head_run(const struct nb_head *head)
{
    struct nb_device *device = head->work->device;
    uint64_t frame = nb_arena_frame(head->work->arena);
    struct chunk chunk = {.rows = {.from = NB_ROWS_TRAINED_CHUNK, .max = head->loss_rows}};
    NB_TRY(take_chunk(head, head->loss_rows, &chunk));
    if (head->input_gradient) {
        uint64_t row_bytes = (uint64_t)head->model->config.hidden * nb_dtype_bytes(head->model->options.activation);
        NB_TRY(device->fill_zero(device, head->work->stream, head->gradient, (uint64_t)head->tokens_max * row_bytes));
    }
    int rows = head->loss_rows, end = head->trained_rows_max;
    for (int at = nb_work_first_chunk(head->work, rows, end); at < end; at = nb_work_next_chunk(head->work, at, rows, end)) {
        chunk.rows.begin = at;
        NB_TRY(run_chunk(head, &chunk));
    }
    nb_arena_release_to(head->work->arena, frame);
    struct nb_loss_sum sum = {
        .loss = head->losses, .step = head->step, .slot = head->slot, .rows_max = head->trained_rows_max};
    return device->loss_sum(device, head->work->stream, &sum);
}

nb_status nb_head_logits(const struct nb_head *head, int token, nb_dptr logits)
{
    const struct rows row = {.from = NB_ROWS_TOKENS, .max = 1};
    int hidden = head->model->config.hidden, rank = head_rank(head);
    uint64_t row_bytes = (uint64_t)hidden * nb_dtype_bytes(head->model->options.activation);
    uint64_t frame = nb_arena_frame(head->work->arena);
    nb_dptr x = nb_dptr_at(head->x, (uint64_t)token * row_bytes), n, rms, t = {0};
    NB_TRY(take(head, "normalized row", 1, hidden, &n));
    NB_TRY(take_rms(head, "1/rms of a row", 1, &rms));
    if (rank)
        NB_TRY(take(head, "adapter's inner values", 1, rank, &t));
    NB_TRY(run_norm(head, &row, x, n, rms));
    NB_TRY(run_linear(head, &row, n, logits, t));
    nb_arena_release_to(head->work->arena, frame);
    return NB_OK;
}
