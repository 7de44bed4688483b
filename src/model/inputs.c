#include "model/inputs.h"

#include <stdlib.h>

struct nb_inputs_buffer {
    struct nb_event *copied; /* the last copy out of it, or into it */
    bool copying;            /* the work on the device has not waited for that */
    int holds;               /* the block whose values are in it or on their way; -1: none */
};

/* Addresses of a block's values in pinned memory. */
struct nb_inputs_host {
    uint64_t input, output, lse;
};

struct nb_inputs_slot {
    struct nb_inputs_buffer *buffer; /* [buffers] */
    struct nb_inputs_host *host;     /* [blocks] */
};

/* What is copied together. */
struct range {
    nb_dptr device;
    uint64_t host, bytes;
};

enum { RANGES = 3 };

int nb_pass_offloaded_max(int blocks)
{
    return blocks + 1 > NB_INPUTS_RING ? blocks + 1 - NB_INPUTS_RING : 0;
}

int nb_inputs_buffers(const struct nb_pass *pass)
{
    return pass->model->config.layers + 1 - pass->options.offloaded;
}

static struct nb_inputs_buffer *buffer_of(const struct nb_pass *pass, int slot, int index)
{
    return &pass->inputs.slot[slot].buffer[index % nb_inputs_buffers(pass)];
}

/* Whether a block's values leave the device: another's follow them in their buffer, and they are wanted back. */
static bool leaves(const struct nb_pass *pass, int index)
{
    return index >= pass->lowest && index < pass->options.offloaded;
}

static bool keeps_attention(const struct nb_pass *pass, int index)
{
    return nb_pass_keep_of(pass, index) == NB_KEEP_ATTENTION;
}

/* Bytes of a block's values with so many tokens, in buffers for tokens_max. */
static void measure(const struct nb_pass *pass, uint64_t tokens, uint64_t tokens_max, struct range range[RANGES])
{
    const struct nb_model_config *c = &pass->model->config;
    uint64_t element = nb_dtype_bytes(pass->model->options.activation);
    range[0].bytes = tokens * (uint64_t)c->hidden * element;
    range[1].bytes = tokens * (uint64_t)c->heads * (uint64_t)c->head_dim * element;
    range[2].bytes = tokens_max * (uint64_t)c->heads * sizeof(float); /* [heads, tokens_max] */
}

/* The valid rows of the slot's micro-batch, and where they go. Returns the number of ranges. */
static int find_ranges(const struct nb_pass *pass, int slot, int index, struct range range[RANGES])
{
    const struct nb_pass_slot *s = &pass->slot[slot];
    const struct nb_inputs_host *host = &pass->inputs.slot[slot].host[index];
    measure(pass, s->tokens, (uint64_t)s->tokens_max, range);
    range[0].device = s->input[index];
    range[0].host = host->input;
    range[1].device = s->kept[index].o;
    range[1].host = host->output;
    range[2].device = s->kept[index].lse;
    range[2].host = host->lse;
    return keeps_attention(pass, index) ? RANGES : 1;
}

/* ---- set-up ---- */

static nb_status take_pinned(struct nb_pass *pass, int slot, int index)
{
    struct nb_arena *arena = pass->options.pinned;
    struct nb_inputs_host *host = &pass->inputs.slot[slot].host[index];
    uint64_t tokens = (uint64_t)pass->options.limits.tokens;
    struct range range[RANGES];
    measure(pass, tokens, tokens, range);
    NB_TRY(nb_arena_take(arena, NB_CATEGORY_BLOCK_INPUTS, "a block's input", range[0].bytes, &host->input));
    if (!keeps_attention(pass, index))
        return NB_OK;
    NB_TRY(nb_arena_take(arena, NB_CATEGORY_BLOCK_INPUTS, "attention's output", range[1].bytes, &host->output));
    return nb_arena_take(arena, NB_CATEGORY_BLOCK_INPUTS, "attention's log-sum-exp", range[2].bytes, &host->lse);
}

static nb_status create_slot(struct nb_pass *pass, int slot)
{
    struct nb_device *device = pass->work.device;
    struct nb_inputs_slot *s = &pass->inputs.slot[slot];
    int buffers = nb_inputs_buffers(pass), blocks = pass->model->config.layers;
    s->buffer = calloc((size_t)buffers, sizeof *s->buffer);
    s->host = calloc((size_t)blocks, sizeof *s->host);
    if (!s->buffer || !s->host)
        return nb_fail(NB_MEMORY, "no memory for the lists of a pass's block inputs");
    for (int i = 0; i < buffers; i++) {
        s->buffer[i].holds = -1;
        NB_TRY(device->event_create(device, &s->buffer[i].copied));
    }
    for (int i = 0; i < blocks; i++) {
        if (leaves(pass, i))
            NB_TRY(take_pinned(pass, slot, i));
        /* Copied whole, with the columns between tokens and tokens_max that nobody writes. */
        if (leaves(pass, i) && keeps_attention(pass, i)) {
            struct range range[RANGES];
            uint64_t tokens = (uint64_t)pass->options.limits.tokens;
            measure(pass, tokens, tokens, range);
            NB_TRY(device->fill_zero(device, pass->work.stream, pass->slot[slot].kept[i].lse, range[2].bytes));
        }
    }
    return NB_OK;
}

nb_status nb_inputs_create(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    struct nb_inputs *inputs = &pass->inputs;
    if (pass->options.offloaded == 0)
        return NB_OK;
    inputs->frame = nb_arena_frame(pass->options.pinned);
    NB_TRY(device->stream_create(device, &inputs->stream));
    NB_TRY(device->event_create(device, &inputs->computed));
    if (!(inputs->slot = calloc((size_t)pass->options.slots, sizeof *inputs->slot)))
        return nb_fail(NB_MEMORY, "no memory for the lists of a pass's block inputs");
    for (int i = 0; i < pass->options.slots; i++)
        NB_TRY(create_slot(pass, i));
    return NB_OK;
}

void nb_inputs_destroy(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    struct nb_inputs *inputs = &pass->inputs;
    if (!inputs->stream)
        return;
    device->stream_destroy(device, &inputs->stream);
    for (int i = 0; inputs->slot && i < pass->options.slots; i++) {
        struct nb_inputs_slot *s = &inputs->slot[i];
        for (int k = 0; s->buffer && k < nb_inputs_buffers(pass); k++)
            device->event_destroy(device, &s->buffer[k].copied);
        free(s->buffer);
        free(s->host);
    }
    free(inputs->slot);
    device->event_destroy(device, &inputs->computed);
    nb_arena_release_to(pass->options.pinned, inputs->frame);
}

/* ---- copies ---- */

/* Behind what is enqueued on the device so far. */
static nb_status copy(struct nb_pass *pass, int slot, int index, bool to_host)
{
    struct nb_device *device = pass->work.device;
    struct nb_inputs *inputs = &pass->inputs;
    struct nb_inputs_buffer *buffer = buffer_of(pass, slot, index);
    struct range range[RANGES];
    int ranges = find_ranges(pass, slot, index, range);
    NB_TRY(device->event_record(device, pass->work.stream, inputs->computed));
    NB_TRY(device->stream_wait_event(device, inputs->stream, inputs->computed));
    for (int i = 0; i < ranges; i++) {
        void *host = (void *)(uintptr_t)range[i].host;
        NB_TRY(to_host ? device->download(device, inputs->stream, host, range[i].device, range[i].bytes)
                       : device->upload(device, inputs->stream, range[i].device, host, range[i].bytes));
    }
    buffer->copying = true;
    return device->event_record(device, inputs->stream, buffer->copied);
}

static nb_status fetch(struct nb_pass *pass, int slot, int index)
{
    NB_TRY(copy(pass, slot, index, false));
    buffer_of(pass, slot, index)->holds = index;
    return NB_OK;
}

/* Lets the work on the device wait for the last copy. */
static nb_status join(struct nb_pass *pass, struct nb_inputs_buffer *buffer)
{
    struct nb_device *device = pass->work.device;
    if (!buffer->copying)
        return NB_OK;
    buffer->copying = false;
    return device->stream_wait_event(device, pass->work.stream, buffer->copied);
}

nb_status nb_inputs_before_write(struct nb_pass *pass, int slot, int index)
{
    if (!pass->inputs.stream)
        return NB_OK;
    struct nb_inputs_buffer *buffer = buffer_of(pass, slot, index);
    buffer->holds = index;
    return join(pass, buffer);
}

nb_status nb_inputs_save(struct nb_pass *pass, int slot, int index)
{
    return pass->inputs.stream && leaves(pass, index) ? copy(pass, slot, index, true) : NB_OK;
}

nb_status nb_inputs_before_read(struct nb_pass *pass, int slot, int index)
{
    if (!pass->inputs.stream)
        return NB_OK;
    struct nb_inputs_buffer *buffer = buffer_of(pass, slot, index);
    if (buffer->holds != index) {
        if (!leaves(pass, index))
            return nb_fail(
                NB_USAGE, "slot %d: the input of block %d is gone: it was there for one backward pass", slot, index);
        NB_TRY(fetch(pass, slot, index));
    }
    return join(pass, buffer);
}

nb_status nb_inputs_after_read(struct nb_pass *pass, int slot, int index)
{
    int next = index - nb_inputs_buffers(pass);
    return pass->inputs.stream && next >= 0 && leaves(pass, next) ? fetch(pass, slot, next) : NB_OK;
}
