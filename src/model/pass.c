/* Micro-batches in flight: the memory of their arrays, of what stays between forward and backward, and its life time. */
#include "model/pass.h"

#include <stdlib.h>
#include <string.h>

#include "model/head.h"
#include "model/inputs.h"

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
    if (l->mlp_chunk_tokens < 0 || l->mlp_chunk_tokens % NB_TILE_TOKENS != 0)
        return nb_fail(NB_USAGE, "the MLP of %d tokens at a time: not a multiple of %d", l->mlp_chunk_tokens, NB_TILE_TOKENS);
    if (o->batches && o->batches < o->slots)
        return nb_fail(NB_USAGE, "a pass of %d slots needs as many batches, not %d", o->slots, o->batches);
    if (o->keep != NB_KEEP_NOTHING && (!adapter || !nb_adapter_options_of(adapter)->trains))
        return nb_fail(NB_USAGE, "a pass keeps activations, but nothing trains");
    for (int i = 0; o->layer_keep && i < model->config.layers; i++)
        if (o->keep == NB_KEEP_NOTHING || o->layer_keep[i] == NB_KEEP_NOTHING)
            return nb_fail(NB_USAGE, "block %d keeps activations, or none, unlike its pass", i);
    if (o->offloaded < 0 || o->offloaded > nb_pass_offloaded_max(model->config.layers, o->layer_major ? o->slots : 1))
        return nb_fail(NB_USAGE, "%d of %d blocks' inputs cannot leave the device", o->offloaded, model->config.layers);
    if (o->offloaded && (o->keep == NB_KEEP_NOTHING || !o->pinned))
        return nb_fail(NB_USAGE, "block inputs that leave the device need pinned memory, and a pass that keeps them");
    if (model->options.embedding_on_host && !o->pinned)
        return nb_fail(NB_USAGE, "an embedding on the host needs pinned memory for its rows");
    if (o->layer_major && o->keep == NB_KEEP_NOTHING)
        return nb_fail(NB_USAGE, "a pass goes layer by layer to train, and this one keeps nothing");
    if (o->cache_tokens && (o->keep != NB_KEEP_NOTHING || o->slots != 1 || l->sequences != 1))
        return nb_fail(NB_USAGE, "a key-value cache serves one sequence without gradients");
    if (model->positions_max == 0)
        return nb_fail(NB_USAGE, "a pass needs its model's memory first");
    return NB_OK;
}

/* What a block's backward pass will read, kept from its forward pass, besides what inputs.h has. */
static nb_status take_kept(struct nb_pass *pass, int slot, int index)
{
    struct nb_pass_slot *s = &pass->slot[slot];
    struct nb_block block;
    nb_pass_set_block(pass, slot, index, NULL, &block);
    NB_TRY(nb_block_take_down_t(&block, NB_CATEGORY_BLOCK_INPUTS, &s->down_t[index]));
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
    int layers = pass->model->config.layers;
    s->tokens_max = limits->tokens;
    NB_TRY(nb_work_take(&pass->work, NB_CATEGORY_BATCH, "micro-batch", pass->layout.bytes, &s->batch));
    NB_TRY(nb_work_take(
        &pass->work, NB_CATEGORY_LOSS, "losses", (uint64_t)limits->trained_rows * sizeof(float), &s->losses));
    for (int i = 0; i <= layers; i++) {
        NB_TRY(nb_inputs_place(pass, slot, i));
        if (nb_pass_trains(pass) && i < layers)
            NB_TRY(take_kept(pass, slot, i));
    }
    if (nb_pass_trains(pass))
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
    if (nb_pass_trains(pass))
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
        status = nb_host_embedding_create(p);
    if (status == NB_OK)
        status = nb_inputs_create(p);
    if (status == NB_OK)
        status = take_all(p);
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
    nb_host_embedding_destroy(p);
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
