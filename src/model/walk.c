/* The walk of a pass's micro-batches through the layers. */
#include "model/head.h"
#include "model/inputs.h"
#include "model/pass.h"

void nb_pass_set_block(
    const struct nb_pass *pass, int slot, int index, const struct nb_unit_view *weights, struct nb_block *block)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    bool cached = pass->cache != NULL;
    *block = (struct nb_block){
        .model = pass->model,
        .adapter = pass->adapter,
        .weights = weights,
        .work = &pass->work,
        .index = index,
        .dropout = nb_pass_trains(pass),
        .step = pass->options.step,
        .slot = nb_pass_slot_address(pass, slot),
        .positions = nb_dptr_at(s->batch, pass->layout.positions),
        .query_starts = nb_dptr_at(s->batch, pass->layout.starts),
        .key_starts = nb_dptr_at(s->batch, cached ? pass->layout.key_starts : pass->layout.starts),
        .site_tokens = s->tokens_max == 1 ? 1 : pass->options.limits.tokens,
        .tokens_limit = pass->options.limits.tokens,
        .tokens_max = s->tokens_max,
        .mlp_chunk_tokens = pass->options.limits.mlp_chunk_tokens,
        .sequences_max = pass->options.limits.sequences,
        .longest_max = cached ? pass->options.cache_tokens : pass->options.limits.longest,
        .key_tokens_max = cached ? pass->options.cache_tokens : pass->options.limits.tokens,
    };
    if (cached) {
        block->k_cache = pass->cache[2 * index];
        block->v_cache = pass->cache[2 * index + 1];
    }
}

static nb_status run_embedding(struct nb_pass *pass, int slot, const struct nb_unit_view *weights)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    struct nb_embedding args = {
        .table = weights->matrix[NB_TENSOR_EMBEDDING].data,
        .ids = nb_dptr_at(s->batch, pass->layout.ids),
        .x = s->input[0],
        .slot = nb_pass_slot_address(pass, slot),
        .tokens_max = s->tokens_max,
        .width = pass->model->config.hidden,
        .vocabulary = pass->model->config.vocab,
        .scale = 1,
        .activation = pass->model->options.activation,
    };
    NB_TRY(nb_inputs_before_write(pass, slot, 0));
    if (pass->model->options.embedding_on_host)
        return nb_host_embedding_run(pass, &args, s->ids, s->tokens);
    return pass->work.device->embedding(pass->work.device, pass->work.stream, &args);
}

static nb_status forward_block(struct nb_pass *pass, int slot, int index, const struct nb_unit_view *weights)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    struct nb_block block;
    nb_pass_set_block(pass, slot, index, weights, &block);
    struct nb_block_forward args = {
        .x = s->input[index],
        .out = s->input[index + 1],
        .down_t = s->down_t[index],
        .keep = nb_pass_keep_of(pass, index),
        .kept = &s->kept[index],
    };
    NB_TRY(nb_inputs_before_write(pass, slot, index + 1));
    NB_TRY(nb_block_forward(&block, &args));
    return nb_inputs_save(pass, slot, index);
}

static nb_status backward_block(struct nb_pass *pass, int slot, int index, const struct nb_unit_view *weights)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    struct nb_block block;
    nb_pass_set_block(pass, slot, index, weights, &block);
    struct nb_block_backward args = {
        .x = s->input[index],
        .gradient = s->gradient,
        .down_t = s->down_t[index],
        .keep = nb_pass_keep_of(pass, index),
        .kept = &s->kept[index],
        .input_gradient = index > pass->lowest,
    };
    NB_TRY(nb_inputs_before_read(pass, slot, index));
    NB_TRY(nb_block_backward(&block, &args));
    return nb_inputs_after_read(pass, slot, index);
}

/* `weights` is the last unit's view, `embedding` that of a tied head's matrix (else NULL). */
static struct nb_head make_head(
    const struct nb_pass *pass, int slot, const struct nb_unit_view *weights, const struct nb_unit_view *embedding)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    const struct nb_batch_limits *limits = &pass->options.limits;
    return (struct nb_head){
        .model = pass->model,
        .adapter = pass->adapter,
        .work = &pass->work,
        .norm = weights->vector[NB_TENSOR_FINAL_NORM],
        .matrix = embedding ? embedding->matrix[NB_TENSOR_EMBEDDING] : weights->matrix[NB_TENSOR_HEAD],
        .trains = nb_pass_trains(pass),
        .input_gradient = nb_pass_trains(pass) && pass->lowest < pass->model->config.layers,
        .step = pass->options.step,
        .slot = nb_pass_slot_address(pass, slot),
        .x = s->input[pass->model->config.layers],
        .trained_row = nb_dptr_at(s->batch, pass->layout.trained_row),
        .label = nb_dptr_at(s->batch, pass->layout.label),
        .losses = s->losses,
        .gradient = s->gradient,
        .tokens_max = limits->tokens,
        .trained_rows_max = limits->trained_rows,
        .loss_rows = limits->loss_rows < limits->trained_rows ? limits->loss_rows : limits->trained_rows,
    };
}

/* Acquires what the head reads: the last unit and, tied, the embedding's. */
static nb_status with_head(
    const struct nb_pass *pass, int slot, nb_status (*run)(const struct nb_head *, void *), void *context)
{
    struct nb_weight_store *store = pass->model->store;
    struct nb_stream *stream = pass->work.stream;
    int last = pass->model->config.layers + 1, matrix = nb_weight_store_head_unit(store);
    struct nb_unit_view weights, embedding;
    NB_TRY(nb_weight_store_acquire(store, last, NB_WEIGHT_FORWARD, stream, &weights));
    if (matrix != last)
        NB_TRY(nb_weight_store_acquire(store, matrix, NB_WEIGHT_FORWARD, stream, &embedding));
    struct nb_head head = make_head(pass, slot, &weights, matrix != last ? &embedding : NULL);
    NB_TRY(run(&head, context));
    if (matrix != last)
        NB_TRY(nb_weight_store_release(store, matrix, stream));
    return nb_weight_store_release(store, last, stream);
}

static nb_status run_head(const struct nb_head *head, void *context)
{
    (void)context;
    return nb_head_run(head);
}

/* Announces the units of layers first .. last, upwards or downwards, to the weight store. */
static void announce(const struct nb_pass *pass, int first, int last, enum nb_weight_direction direction)
{
    struct nb_weight_store *store = pass->model->store;
    int count = 0, step = first <= last ? 1 : -1, head = pass->model->config.layers + 1;
    for (int layer = first; layer != last + step; layer += step) {
        pass->schedule[count++] = (struct nb_weight_access){layer, direction};
        if (layer == head && nb_weight_store_head_unit(store) != head)
            pass->schedule[count++] = (struct nb_weight_access){nb_weight_store_head_unit(store), direction};
    }
    nb_weight_store_schedule(store, pass->schedule, count);
}

static nb_status check_range(const struct nb_pass *pass, int slot, int low, int high, int top)
{
    if (slot < 0 || slot >= pass->options.slots || low < 0 || low > high || high > top)
        return nb_fail(NB_USAGE, "slot %d, layers %d to %d: the pass has %d slots and layers 0 to %d there", slot, low,
            high, pass->options.slots, top);
    return NB_OK;
}

nb_status nb_pass_forward(struct nb_pass *pass, int slot, int first, int last)
{
    struct nb_weight_store *store = pass->model->store;
    int head = pass->model->config.layers + 1;
    NB_TRY(check_range(pass, slot, first, last, head));
    if (last == head && pass->options.limits.trained_rows == 0)
        return nb_fail(NB_USAGE, "a pass without trained rows has no loss");
    announce(pass, first, last, NB_WEIGHT_FORWARD);
    for (int layer = first; layer <= last; layer++) {
        if (layer == head) {
            NB_TRY(with_head(pass, slot, run_head, NULL));
            NB_TRY(nb_inputs_after_read(pass, slot, layer - 1));
            continue;
        }
        struct nb_unit_view weights;
        NB_TRY(nb_weight_store_acquire(store, layer, NB_WEIGHT_FORWARD, pass->work.stream, &weights));
        NB_TRY(layer == 0 ? run_embedding(pass, slot, &weights) : forward_block(pass, slot, layer - 1, &weights));
        NB_TRY(nb_weight_store_release(store, layer, pass->work.stream));
    }
    return NB_OK;
}

/* The embedding does not train, nor does a block below the lowest adapter: nothing is to be done there. */
nb_status nb_pass_backward(struct nb_pass *pass, int slot, int first, int last)
{
    struct nb_weight_store *store = pass->model->store;
    NB_TRY(check_range(pass, slot, last, first, pass->model->config.layers));
    if (!nb_pass_trains(pass))
        return nb_fail(NB_USAGE, "a pass that keeps nothing has no backward direction");
    int lowest = last > pass->lowest + 1 ? last : pass->lowest + 1;
    if (first < lowest)
        return NB_OK;
    announce(pass, first, lowest, NB_WEIGHT_BACKWARD);
    for (int layer = first; layer >= lowest; layer--) {
        struct nb_unit_view weights;
        NB_TRY(nb_weight_store_acquire(store, layer, NB_WEIGHT_BACKWARD, pass->work.stream, &weights));
        NB_TRY(backward_block(pass, slot, layer - 1, &weights));
        NB_TRY(nb_weight_store_release(store, layer, pass->work.stream));
    }
    return NB_OK;
}

struct training {
    struct nb_pass *pass;
    int slot;
};

static nb_status enqueue_training(void *context)
{
    const struct training *training = context;
    int head = training->pass->model->config.layers + 1;
    NB_TRY(nb_pass_forward(training->pass, training->slot, nb_pass_repeats_from(training->pass), head));
    return nb_pass_backward(training->pass, training->slot, head - 1, 0);
}

nb_status nb_pass_train(struct nb_pass *pass, int slot)
{
    struct training training = {pass, slot};
    return nb_pass_repeat(pass, slot, enqueue_training, &training);
}

nb_status nb_pass_download_losses(struct nb_pass *pass, int slot, float *losses)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    if (s->trained_rows == 0)
        return NB_OK;
    return pass->work.device->download(
        pass->work.device, pass->work.stream, losses, s->losses, (uint64_t)s->trained_rows * 4);
}

struct logits_of {
    int token;
    nb_dptr logits;
};

static nb_status run_logits(const struct nb_head *head, void *context)
{
    const struct logits_of *wanted = context;
    return nb_head_logits(head, wanted->token, wanted->logits);
}

nb_status nb_pass_logits(struct nb_pass *pass, int slot, int token, nb_dptr *logits)
{
    int head = pass->model->config.layers + 1;
    if (nb_pass_trains(pass))
        return nb_fail(NB_USAGE, "a pass that trains has no room for single rows of logits");
    NB_TRY(check_range(pass, slot, head, head, head));
    if (token < 0 || (uint32_t)token >= pass->slot[slot].tokens)
        return nb_fail(NB_USAGE, "logits of token %d of %u", token, pass->slot[slot].tokens);
    struct logits_of wanted = {token, pass->logits};
    announce(pass, head, head, NB_WEIGHT_FORWARD);
    NB_TRY(with_head(pass, slot, run_logits, &wanted));
    *logits = pass->logits;
    return NB_OK;
}
