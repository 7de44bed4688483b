/* Micro-batches in flight: their arrays, the block inputs that stay between forward and backward, and the walk through the layers. */
#include "model/pass.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/head.h"
#include "model/inputs.h"

static bool trains(const struct nb_pass *pass)
{
    return pass->options.keep != NB_KEEP_NOTHING;
}

enum nb_keep nb_pass_keep_of(const struct nb_pass *pass, int index)
{
    return pass->options.layer_keep ? pass->options.layer_keep[index] : pass->options.keep;
}

static int lowest_trained_block(const struct nb_model *model, const struct nb_adapter *adapter)
{
    for (int i = 0; adapter && i < model->config.layers; i++)
        for (int role = 0; role < NB_TENSOR_LAYER_ROLES; role++)
            if (nb_adapter_rank(adapter, i, (enum nb_tensor_role)role))
                return i;
    return model->config.layers;
}

static nb_status check_options(
    const struct nb_model *model, const struct nb_adapter *adapter, const struct nb_pass_options *o)
{
    const struct nb_batch_limits *l = &o->limits;
    bool sizes = l->tokens >= 1 && l->sequences >= 1 && l->longest >= 1 && l->trained_rows >= 0 && o->slots >= 1;
    if (!sizes || l->loss_rows < 0 || l->loss_rows % NB_TILE_TOKENS != 0 || (l->trained_rows > 0 && l->loss_rows == 0))
        return nb_fail(NB_USAGE,
            "a pass of %d tokens, %d sequences, %d slots and %d rows of logits at a time is not possible", l->tokens,
            l->sequences, o->slots, l->loss_rows);
    if (o->batches && o->batches < o->slots)
        return nb_fail(NB_USAGE, "a pass of %d slots needs as many batches, not %d", o->slots, o->batches);
    if (o->keep != NB_KEEP_NOTHING && (!adapter || !nb_adapter_options_of(adapter)->trains))
        return nb_fail(NB_USAGE, "a pass keeps activations, but nothing trains");
    for (int i = 0; o->layer_keep && i < model->config.layers; i++)
        if (o->keep == NB_KEEP_NOTHING || o->layer_keep[i] == NB_KEEP_NOTHING)
            return nb_fail(NB_USAGE, "block %d keeps activations, or none, unlike its pass", i);
    if (o->offloaded < 0 || o->offloaded > nb_pass_offloaded_max(model->config.layers))
        return nb_fail(NB_USAGE, "%d of %d blocks' inputs cannot leave the device", o->offloaded, model->config.layers);
    if (o->offloaded && (o->keep == NB_KEEP_NOTHING || !o->pinned))
        return nb_fail(NB_USAGE, "block inputs that leave the device need pinned memory, and a pass that keeps them");
    if (o->cache_tokens && (o->keep != NB_KEEP_NOTHING || o->slots != 1 || l->sequences != 1))
        return nb_fail(NB_USAGE, "a key-value cache serves one sequence without gradients");
    if (model->positions_max == 0)
        return nb_fail(NB_USAGE, "a pass needs its model's memory first");
    return NB_OK;
}

static void set_block(
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
        .dropout = trains(pass),
        .step = pass->options.step,
        .slot = nb_pass_slot_address(pass, slot),
        .positions = nb_dptr_at(s->batch, pass->layout.positions),
        .query_starts = nb_dptr_at(s->batch, pass->layout.starts),
        .key_starts = nb_dptr_at(s->batch, cached ? pass->layout.key_starts : pass->layout.starts),
        .tokens_limit = pass->options.limits.tokens,
        .tokens_max = s->tokens_max,
        .sequences_max = pass->options.limits.sequences,
        .longest_max = cached ? pass->options.cache_tokens : pass->options.limits.longest,
        .key_tokens_max = cached ? pass->options.cache_tokens : pass->options.limits.tokens,
    };
    if (cached) {
        block->k_cache = pass->cache[2 * index];
        block->v_cache = pass->cache[2 * index + 1];
    }
}

/* Attention's output of a block shares memory with that of a block before in the same buffer, if there is one. */
static nb_status take_attention_output(struct nb_pass *pass, int slot, int index, const struct nb_block *block)
{
    struct nb_pass_slot *s = &pass->slot[slot];
    int buffers = nb_inputs_buffers(pass);
    for (int i = index - buffers; i >= 0; i -= buffers)
        if (nb_pass_keep_of(pass, i) == NB_KEEP_ATTENTION) {
            s->kept[index] = s->kept[i];
            return NB_OK;
        }
    return nb_block_take_attention_output(block, NB_CATEGORY_BLOCK_INPUTS, &s->kept[index]);
}

/* What a block's backward pass will read, kept from its forward pass. */
static nb_status take_kept(struct nb_pass *pass, int slot, int index)
{
    struct nb_pass_slot *s = &pass->slot[slot];
    struct nb_block block;
    set_block(pass, slot, index, NULL, &block);
    NB_TRY(nb_block_take_down_t(&block, NB_CATEGORY_BLOCK_INPUTS, &s->down_t[index]));
    if (nb_pass_keep_of(pass, index) == NB_KEEP_ATTENTION)
        return take_attention_output(pass, slot, index, &block);
    if (nb_pass_keep_of(pass, index) != NB_KEEP_EVERYTHING)
        return NB_OK;
    NB_TRY(nb_block_take_attention(&block, NB_CATEGORY_BLOCK_INPUTS, &s->kept[index]));
    return nb_block_take_mlp(&block, NB_CATEGORY_BLOCK_INPUTS, &s->kept[index]);
}

static nb_status take_slot(struct nb_pass *pass, int slot)
{
    struct nb_pass_slot *s = &pass->slot[slot];
    const struct nb_batch_limits *limits = &pass->options.limits;
    struct nb_matrix_shape stream = {limits->tokens, pass->model->config.hidden, pass->model->options.activation};
    int layers = pass->model->config.layers, buffers = trains(pass) ? nb_inputs_buffers(pass) : 1;
    s->tokens_max = limits->tokens;
    NB_TRY(nb_work_take(&pass->work, NB_CATEGORY_BATCH, "micro-batch", pass->layout.bytes, &s->batch));
    NB_TRY(nb_work_take(
        &pass->work, NB_CATEGORY_LOSS, "losses", (uint64_t)limits->trained_rows * sizeof(float), &s->losses));
    for (int i = 0; i <= layers; i++) {
        if (i < buffers)
            NB_TRY(nb_work_take_matrix(&pass->work, NB_CATEGORY_BLOCK_INPUTS, "a block's input", stream, &s->input[i]));
        else
            s->input[i] = s->input[i - buffers];
        if (trains(pass) && i < layers)
            NB_TRY(take_kept(pass, slot, i));
    }
    if (trains(pass))
        NB_TRY(nb_work_take_matrix(
            &pass->work, NB_CATEGORY_LIVE_SET, "gradient of the residual stream", stream, &s->gradient));
    return NB_OK;
}

static nb_status take_cache(struct nb_pass *pass)
{
    const struct nb_model_config *c = &pass->model->config;
    struct nb_matrix_shape shape = {
        pass->options.cache_tokens, (int64_t)c->kv_heads * c->head_dim, pass->model->options.activation};
    for (int i = 0; i < 2 * c->layers; i++)
        NB_TRY(nb_work_take_matrix(
            &pass->work, NB_CATEGORY_CACHE, i % 2 ? "values of a layer" : "keys of a layer", shape, &pass->cache[i]));
    return NB_OK;
}

static nb_status take_all(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    uint64_t staging_bytes = pass->layout.bytes * (uint64_t)pass->options.batches;
    NB_TRY(device->host_take(device, staging_bytes, (void **)&pass->staging));
    if (!device->dry)
        memset(pass->staging, 0, staging_bytes);
    for (int i = 0; i < pass->options.slots; i++)
        NB_TRY(take_slot(pass, i));
    if (pass->cache)
        NB_TRY(take_cache(pass));
    if (trains(pass))
        return NB_OK;
    struct nb_matrix_shape row = {1, nb_head_logits_stride(pass->model), pass->model->options.activation};
    return nb_work_take_matrix(&pass->work, NB_CATEGORY_LOSS, "a row of logits", row, &pass->logits);
}

/* Host memory of the pass's lists. */
static nb_status make_lists(struct nb_pass *pass)
{
    size_t layers = (size_t)pass->model->config.layers;
    bool ok = (pass->slot = calloc((size_t)pass->options.slots, sizeof *pass->slot)) != NULL;
    ok = ok && (pass->schedule = calloc(layers + 3, sizeof *pass->schedule)) != NULL;
    if (ok && pass->options.cache_tokens)
        ok = (pass->cache = calloc(2 * layers, sizeof *pass->cache)) != NULL;
    for (int i = 0; ok && i < pass->options.slots; i++) {
        struct nb_pass_slot *s = &pass->slot[i];
        s->input = calloc(layers + 1, sizeof *s->input);
        s->down_t = calloc(layers, sizeof *s->down_t);
        s->kept = calloc(layers, sizeof *s->kept);
        ok = s->input && s->down_t && s->kept;
    }
    return ok ? NB_OK : nb_fail(NB_MEMORY, "no memory for the pass");
}

nb_status nb_pass_create(struct nb_model *model, const struct nb_adapter *adapter,
    const struct nb_pass_options *options, struct nb_arena *arena, struct nb_stream *stream, struct nb_pass **pass)
{
    NB_TRY(check_options(model, adapter, options));
    struct nb_pass *p = calloc(1, sizeof *p);
    if (!p)
        return nb_fail(NB_MEMORY, "no memory for the pass");
    p->model = model;
    p->adapter = adapter;
    p->options = *options;
    if (p->options.batches == 0)
        p->options.batches = p->options.slots;
    p->work = (struct nb_work){model->device, stream, arena};
    p->frame = nb_arena_frame(arena);
    p->lowest = lowest_trained_block(model, adapter);
    nb_batch_lay_out(&p->options.limits, &p->layout);
    nb_status status = make_lists(p);
    if (status == NB_OK)
        status = take_all(p);
    if (status == NB_OK)
        status = nb_inputs_create(p);
    if (status != NB_OK) {
        nb_pass_destroy(&p);
        return status;
    }
    *pass = p;
    return NB_OK;
}

void nb_pass_destroy(struct nb_pass **pass)
{
    struct nb_pass *p = *pass;
    if (!p)
        return;
    for (int i = 0; i < p->recordings; i++)
        if (p->recording[i].graph)
            p->work.device->graph_destroy(p->work.device, &p->recording[i].graph);
    nb_inputs_destroy(p);
    nb_arena_release_to(p->work.arena, p->frame);
    if (p->staging)
        p->work.device->host_give_back(p->work.device, p->staging);
    for (int i = 0; p->slot && i < p->options.slots; i++) {
        free(p->slot[i].input);
        free(p->slot[i].down_t);
        free(p->slot[i].kept);
    }
    free(p->slot);
    free(p->schedule);
    free(p->cache);
    free(p);
    *pass = NULL;
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
    return pass->work.device->embedding(pass->work.device, pass->work.stream, &args);
}

static nb_status forward_block(struct nb_pass *pass, int slot, int index, const struct nb_unit_view *weights)
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    struct nb_block block;
    set_block(pass, slot, index, weights, &block);
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
    set_block(pass, slot, index, weights, &block);
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
        .trains = trains(pass),
        .input_gradient = trains(pass) && pass->lowest < pass->model->config.layers,
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
    if (!trains(pass))
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

/* Records the work, once. Where the driver has no memory for that, it is enqueued each time: the same bits, a little later. Of two errors
 * the work's own is told, from which recording only suffers. */
static nb_status record(struct nb_pass *pass, struct nb_pass_recording *recording, nb_status (*enqueue)(void *context), void *context)
{
    struct nb_device *device = pass->work.device;
    struct nb_graph *graph = NULL;
    char why[1024];
    NB_TRY(device->graph_begin(device, pass->work.stream));
    nb_status status = enqueue(context);
    if (status != NB_OK)
        snprintf(why, sizeof why, "%s", nb_status_message());
    nb_status ended = device->graph_end(device, pass->work.stream, &graph);
    if (status != NB_OK) {
        if (graph)
            device->graph_destroy(device, &graph);
        return nb_fail(status, "%s", why);
    }
    recording->graph = graph;
    recording->refused = ended == NB_MEMORY;
    return recording->refused ? NB_OK : ended;
}

/* The slot's recording at its tokens_max, a new one if there is room, or NULL. */
static struct nb_pass_recording *find_recording(struct nb_pass *pass, int slot)
{
    int tokens_max = pass->slot[slot].tokens_max;
    for (int i = 0; i < pass->recordings; i++)
        if (pass->recording[i].slot == slot && pass->recording[i].tokens_max == tokens_max)
            return &pass->recording[i];
    if (pass->recordings == NB_PASS_RECORDINGS_MAX)
        return NULL;
    struct nb_pass_recording *recording = &pass->recording[pass->recordings++];
    *recording = (struct nb_pass_recording){.slot = slot, .tokens_max = tokens_max};
    return recording;
}

nb_status nb_pass_repeat(struct nb_pass *pass, int slot, nb_status (*enqueue)(void *context), void *context)
{
    struct nb_device *device = pass->work.device;
    struct nb_stream *stream = pass->work.stream;
    bool records = device->graph_begin && !pass->inputs.stream && nb_weight_store_is_settled(pass->model->store);
    struct nb_pass_recording *recording = records ? find_recording(pass, slot) : NULL;
    if (!recording || !recording->has_run || recording->refused) {
        if (recording)
            recording->has_run = true;
        return enqueue(context);
    }
    if (!recording->graph)
        NB_TRY(record(pass, recording, enqueue, context));
    return recording->graph ? device->graph_launch(device, stream, recording->graph) : enqueue(context);
}

struct training {
    struct nb_pass *pass;
    int slot;
};

static nb_status enqueue_training(void *context)
{
    const struct training *training = context;
    int head = training->pass->model->config.layers + 1;
    NB_TRY(nb_pass_forward(training->pass, training->slot, 0, head));
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
    if (trains(pass))
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
