#include "model/generate.h"

#include <stdlib.h>

#include "model/pass.h"

struct nb_generator {
    struct nb_model *model;
    struct nb_pass *pass;
    struct nb_generator_options options; /* prompt_chunk no larger than the context */
    struct nb_work work;
    uint64_t frame; /* of the arena, before the generator */
    int cached;     /* tokens whose keys and values are in the cache */
    bool pending;   /* one more token of the sequence waits to be run: the last one sampled */
    int32_t pending_id;
    uint32_t sampled;
    int last_row;             /* of the slot: the sequence's newest token */
    nb_dptr next;             /* i32 [1] */
    int32_t *id;              /* pinned, [1] */
    int32_t *ids, *positions; /* [prompt_chunk] */
};

static nb_status take_memory(struct nb_generator *g, const struct nb_adapter *adapter)
{
    struct nb_device *device = g->work.device;
    int chunk = g->options.prompt_chunk;
    nb_dptr step;
    g->ids = calloc((size_t)chunk, sizeof *g->ids);
    g->positions = calloc((size_t)chunk, sizeof *g->positions);
    if (!g->ids || !g->positions)
        return nb_fail(NB_MEMORY, "no memory for the generator");
    NB_TRY(device->host_take(device, sizeof *g->id, (void **)&g->id));
    NB_TRY(nb_work_take(&g->work, NB_CATEGORY_BATCH, "step", sizeof(struct nb_step), &step));
    NB_TRY(device->fill_zero(device, g->work.stream, step, sizeof(struct nb_step)));
    NB_TRY(nb_work_take(&g->work, NB_CATEGORY_BATCH, "sampled token", sizeof *g->id, &g->next));
    struct nb_pass_options options = {
        .limits = {.tokens = chunk, .sequences = 1, .longest = chunk},
        .keep = NB_KEEP_NOTHING,
        .slots = 1,
        .batches = 1,
        .cache_tokens = g->options.context_max,
        .step = step,
        .pinned = g->options.pinned,
    };
    return nb_pass_create(g->model, adapter, &options, g->work.arena, g->work.stream, &g->pass);
}

nb_status nb_generator_create(struct nb_model *model, const struct nb_adapter *adapter,
    const struct nb_generator_options *options, struct nb_arena *arena, struct nb_stream *stream,
    struct nb_generator **generator)
{
    if (options->context_max < 1 || options->prompt_chunk < 1)
        return nb_fail(NB_USAGE, "a generator for %d tokens in pieces of %d is not possible", options->context_max,
            options->prompt_chunk);
    struct nb_generator *g = calloc(1, sizeof *g);
    if (!g)
        return nb_fail(NB_MEMORY, "no memory for the generator");
    g->model = model;
    g->options = *options;
    if (g->options.prompt_chunk > options->context_max)
        g->options.prompt_chunk = options->context_max;
    g->work = (struct nb_work){nb_model_device(model), stream, arena};
    g->frame = nb_arena_frame(arena);
    nb_status status = take_memory(g, adapter);
    if (status != NB_OK) {
        nb_generator_destroy(&g);
        return status;
    }
    *generator = g;
    return NB_OK;
}

void nb_generator_destroy(struct nb_generator **generator)
{
    struct nb_generator *g = *generator;
    if (!g)
        return;
    nb_pass_destroy(&g->pass);
    nb_arena_release_to(g->work.arena, g->frame);
    if (g->id)
        g->work.device->host_give_back(g->work.device, g->id);
    free(g->ids);
    free(g->positions);
    free(g);
    *generator = NULL;
}

int nb_generator_tokens(const struct nb_generator *generator)
{
    return generator->cached + (generator->pending ? 1 : 0);
}

/* ids[0 .. count) as the slot's micro-batch. */
static nb_status set_tokens(struct nb_generator *g, int count)
{
    const int32_t starts[2] = {0, count};
    for (int i = 0; i < count; i++)
        g->positions[i] = g->cached + i;
    struct nb_micro_batch batch = {
        .counts = {.tokens = (uint32_t)count,
            .sequences = 1,
            .key_tokens = (uint32_t)(g->cached + count),
            .cache_tokens = (uint32_t)g->cached,
            .sample_index = g->sampled},
        .ids = g->ids,
        .positions = g->positions,
        .starts = starts,
    };
    NB_TRY(nb_pass_set_batch(g->pass, 0, &batch));
    g->cached += count;
    g->last_row = count - 1;
    return NB_OK;
}

/* Runs ids[0 .. count) through the blocks, and so into the cache. */
static nb_status run_tokens(struct nb_generator *g, int count)
{
    NB_TRY(set_tokens(g, count));
    NB_TRY(nb_pass_forward(g->pass, 0, 0, g->model->config.layers));
    /* The pinned batch serves the next piece. */
    return g->work.device->stream_wait(g->work.device, g->work.stream);
}

nb_status nb_generator_append(struct nb_generator *generator, const int32_t *ids, int count)
{
    struct nb_generator *g = generator;
    int used = nb_generator_tokens(g), taken = 0;
    if (count < 0 || count > g->options.context_max - used)
        return nb_fail(NB_USAGE, "%d more tokens do not fit: the context holds %d, %d are used", count,
            g->options.context_max, used);
    while (taken < count) {
        int filled = 0;
        if (g->pending)
            g->ids[filled++] = g->pending_id;
        while (filled < g->options.prompt_chunk && taken < count)
            g->ids[filled++] = ids[taken++];
        g->pending = false;
        NB_TRY(run_tokens(g, filled));
    }
    return NB_OK;
}

static nb_status sample(struct nb_generator *g)
{
    struct nb_sample args = {
        .next = g->next,
        .slot = nb_pass_slot_address(g->pass, 0),
        .vocabulary = g->model->config.vocab,
        .top_k = g->options.sampling.top_k,
        .temperature = g->options.sampling.temperature,
        .top_p = g->options.sampling.top_p,
        .seed = g->options.sampling.seed,
        .activation = g->model->options.activation,
    };
    NB_TRY(nb_pass_logits(g->pass, 0, g->last_row, &args.logits));
    return nb_work_sample(&g->work, &args);
}

/* One token through the blocks, and the next one from its logits. */
static nb_status enqueue_token(void *context)
{
    struct nb_generator *g = context;
    NB_TRY(nb_pass_forward(g->pass, 0, nb_pass_repeats_from(g->pass), g->model->config.layers));
    return sample(g);
}

nb_status nb_generator_next(struct nb_generator *generator, int32_t *id)
{
    struct nb_generator *g = generator;
    if (nb_generator_tokens(g) >= g->options.context_max)
        return nb_fail(NB_USAGE, "the context of %d tokens is full", g->options.context_max);
    if (nb_generator_tokens(g) == 0)
        return nb_fail(NB_USAGE, "nothing to continue: the sequence is empty");
    struct nb_device *device = g->work.device;
    if (g->pending) {
        g->ids[0] = g->pending_id;
        g->pending = false;
        NB_TRY(set_tokens(g, 1));
        NB_TRY(nb_pass_repeat(g->pass, 0, enqueue_token, g));
    } else {
        NB_TRY(sample(g));
    }
    NB_TRY(device->download(device, g->work.stream, g->id, g->next, sizeof *g->id));
    NB_TRY(device->stream_wait(device, g->work.stream));
    g->sampled++;
    if (!device->dry && *g->id < 0)
        return nb_fail(NB_NUMERIC,
            "token %d: the model's logits are not finite; its weights or the adapter's are damaged, or too "
            "large for this arithmetic (try bf16=false)",
            nb_generator_tokens(g) + 1);
    g->pending_id = device->dry ? 0 : *g->id;
    g->pending = true;
    *id = g->pending_id;
    return NB_OK;
}
