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

/* What the head reads: the last unit and, tied, the embedding's. */
struct head_views {
    struct nb_unit_view last, embedding;
    int matrix; /* the unit that has the head's matrix */
    bool tied;
};

static nb_status acquire_head(const struct nb_pass *pass, struct head_views *views)
{
    struct nb_weight_store *store = pass->model->store;
    struct nb_stream *stream = pass->work.stream;
    int last = pass->model->config.layers + 1;
    views->matrix = nb_weight_store_head_unit(store);
    views->tied = views->matrix != last;
    NB_TRY(nb_weight_store_acquire(store, last, NB_WEIGHT_FORWARD, stream, &views->last));
    return views->tied ? nb_weight_store_acquire(store, views->matrix, NB_WEIGHT_FORWARD, stream, &views->embedding)
                       : NB_OK;
}

static nb_status release_head(const struct nb_pass *pass, const struct head_views *views)
{
    struct nb_weight_store *store = pass->model->store;
    if (views->tied)
        NB_TRY(nb_weight_store_release(store, views->matrix, pass->work.stream));
    return nb_weight_store_release(store, pass->model->config.layers + 1, pass->work.stream);
}

static struct nb_head make_head(const struct nb_pass *pass, int slot, const struct head_views *views)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    const struct nb_batch_limits *limits = &pass->options.limits;
    return (struct nb_head){
        .model = pass->model,
        .adapter = pass->adapter,
        .work = &pass->work,
        .norm = views->last.vector[NB_TENSOR_FINAL_NORM],
        .matrix = views->tied ? views->embedding.matrix[NB_TENSOR_EMBEDDING] : views->last.matrix[NB_TENSOR_HEAD],
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

/* Slots that go through a layer together: one alone, or with layer_major all that have a micro-batch. */
struct slots {
    int first, last;
};

static nb_status forward_head(struct nb_pass *pass, struct slots slots)
{
    struct head_views views;
    NB_TRY(acquire_head(pass, &views));
    for (int slot = slots.first; slot <= slots.last; slot++) {
        struct nb_head head = make_head(pass, slot, &views);
        NB_TRY(nb_head_run(&head));
        NB_TRY(nb_inputs_after_read(pass, slot, pass->model->config.layers));
    }
    return release_head(pass, &views);
}

/* For several micro-batches, which all use each matrix. For one alone, its blocks dequantize what they use twice. */
static nb_status dequantize_for_all(struct nb_pass *pass, int layer, struct nb_unit_view *weights)
{
    struct nb_block block;
    if (layer == 0 || !pass->options.layer_major || !pass->model->options.dequantize_once)
        return NB_OK;
    nb_pass_set_block(pass, 0, layer - 1, weights, &block);
    for (enum nb_tensor_role role = 0; role < NB_TENSOR_LAYER_ROLES; role++)
        if (weights->matrix[role].rows > 0)
            NB_TRY(nb_block_dequantize(&block, &role, 1, weights));
    return NB_OK;
}

/* Downwards through the slots, for the sake of block inputs that leave the device (inputs.h): nothing is summed up. */
static nb_status forward_layer(struct nb_pass *pass, struct slots slots, int layer)
{
    struct nb_weight_store *store = pass->model->store;
    uint64_t frame = nb_arena_frame(pass->work.arena);
    struct nb_unit_view weights;
    NB_TRY(nb_weight_store_acquire(store, layer, NB_WEIGHT_FORWARD, pass->work.stream, &weights));
    NB_TRY(dequantize_for_all(pass, layer, &weights));
    for (int slot = slots.last; slot >= slots.first; slot--)
        NB_TRY(layer == 0 ? run_embedding(pass, slot, &weights) : forward_block(pass, slot, layer - 1, &weights));
    nb_arena_release_to(pass->work.arena, frame);
    return nb_weight_store_release(store, layer, pass->work.stream);
}

static nb_status forward(struct nb_pass *pass, struct slots slots, int first, int last)
{
    int head = pass->model->config.layers + 1;
    if (last == head && pass->options.limits.trained_rows == 0)
        return nb_fail(NB_USAGE, "a pass without trained rows has no loss");
    announce(pass, first, last, NB_WEIGHT_FORWARD);
    for (int layer = first; layer <= last; layer++)
        NB_TRY(layer == head ? forward_head(pass, slots) : forward_layer(pass, slots, layer));
    return NB_OK;
}

/* Upwards through the slots: the order in which the adapters' gradients are summed up. */
static nb_status backward_layer(struct nb_pass *pass, struct slots slots, int layer)
{
    struct nb_weight_store *store = pass->model->store;
    uint64_t frame = nb_arena_frame(pass->work.arena);
    struct nb_unit_view weights;
    NB_TRY(nb_weight_store_acquire(store, layer, NB_WEIGHT_BACKWARD, pass->work.stream, &weights));
    NB_TRY(dequantize_for_all(pass, layer, &weights));
    for (int slot = slots.first; slot <= slots.last; slot++)
        NB_TRY(backward_block(pass, slot, layer - 1, &weights));
    nb_arena_release_to(pass->work.arena, frame);
    return nb_weight_store_release(store, layer, pass->work.stream);
}

/* The embedding does not train, nor does a block below the lowest adapter: nothing is to be done there. */
static nb_status backward(struct nb_pass *pass, struct slots slots, int first, int last)
{
    int lowest = last > pass->lowest + 1 ? last : pass->lowest + 1;
    if (!nb_pass_trains(pass))
        return nb_fail(NB_USAGE, "a pass that keeps nothing has no backward direction");
    if (first < lowest)
        return NB_OK;
    announce(pass, first, lowest, NB_WEIGHT_BACKWARD);
    for (int layer = first; layer >= lowest; layer--)
        NB_TRY(backward_layer(pass, slots, layer));
    return NB_OK;
}

static nb_status check_range(const struct nb_pass *pass, int slot, int low, int high, int top)
{
    if (slot < 0 || slot >= pass->options.slots || low < 0 || low > high || high > top)
        return nb_fail(NB_USAGE, "slot %d, layers %d to %d: the pass has %d slots and layers 0 to %d there", slot, low,
            high, pass->options.slots, top);
    if (pass->options.layer_major)
        return nb_fail(NB_USAGE, "slot %d cannot go alone: the pass's slots go layer by layer", slot);
    return NB_OK;
}

nb_status nb_pass_forward(struct nb_pass *pass, int slot, int first, int last)
{
    NB_TRY(check_range(pass, slot, first, last, pass->model->config.layers + 1));
    return forward(pass, (struct slots){slot, slot}, first, last);
}

nb_status nb_pass_backward(struct nb_pass *pass, int slot, int first, int last)
{
    NB_TRY(check_range(pass, slot, last, first, pass->model->config.layers));
    return backward(pass, (struct slots){slot, slot}, first, last);
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

nb_status nb_pass_train_layer_major(struct nb_pass *pass, int slots)
{
    struct slots all = {0, slots - 1};
    int head = pass->model->config.layers + 1;
    if (!pass->options.layer_major || slots < 1 || slots > pass->options.slots)
        return nb_fail(NB_USAGE, "%d micro-batches layer by layer: the pass has %d slots for that", slots,
            pass->options.layer_major ? pass->options.slots : 0);
    pass->inputs.active = slots;
    NB_TRY(forward(pass, all, 0, head));
    return backward(pass, all, head - 1, 0);
}

nb_status nb_pass_download_losses(struct nb_pass *pass, int slot, float *losses)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    if (s->trained_rows == 0)
        return NB_OK;
    return pass->work.device->download(
        pass->work.device, pass->work.stream, losses, s->losses, (uint64_t)s->trained_rows * 4);
}

nb_status nb_pass_logits(struct nb_pass *pass, int slot, int token, nb_dptr *logits)
{
    int head = pass->model->config.layers + 1;
    if (nb_pass_trains(pass))
        return nb_fail(NB_USAGE, "a pass that trains has no room for single rows of logits");
    NB_TRY(check_range(pass, slot, head, head, head));
    if (token < 0 || (uint32_t)token >= pass->slot[slot].tokens)
        return nb_fail(NB_USAGE, "logits of token %d of %u", token, pass->slot[slot].tokens);
    struct head_views views;
    announce(pass, head, head, NB_WEIGHT_FORWARD);
    NB_TRY(acquire_head(pass, &views));
    struct nb_head row = make_head(pass, slot, &views);
    NB_TRY(nb_head_logits(&row, token, pass->logits));
    *logits = pass->logits;
    return release_head(pass, &views);
}
