#include "model/inputs.h"

#include <stdlib.h>

struct nb_inputs_buffer {
    nb_dptr input, output, lse; /* on the device; the last two null until a block in it keeps attention */
    struct nb_event *copied;    /* the last copy out of it, or into it */
    bool copying;               /* the work on the device has not waited for that */
    int holds;                  /* the item whose values are in it or on their way; -1: none */
};

/* Addresses of a block's values in pinned memory. */
struct nb_inputs_host {
    uint64_t input, output, lse;
};

struct nb_inputs_ring {
    struct nb_inputs_buffer *buffer; /* [buffers] */
};

struct nb_inputs_slot {
    struct nb_inputs_host *host; /* [blocks] */
};

/* What is written, and read, in its turn: a block's values of a slot, or the head's. */
struct item {
    int slot, index;
};

/* What is copied together. */
struct range {
    nb_dptr device;
    uint64_t host, bytes;
};

enum { RANGES = 3 };

static bool shares_ring(const struct nb_pass *pass)
{
    return pass->options.layer_major;
}

/* Slots that take turns in a ring. */
static int turns_of(const struct nb_pass *pass)
{
    return shares_ring(pass) ? pass->options.slots : 1;
}

int nb_pass_offloaded_max(int blocks, int slots)
{
    int stay = (slots + NB_INPUTS_AHEAD) / slots; /* whole layers in the fewest buffers */
    return blocks + 1 > stay ? blocks + 1 - stay : 0;
}

int nb_inputs_buffers(const struct nb_pass *pass)
{
    int turns = turns_of(pass), least = turns + NB_INPUTS_AHEAD;
    int buffers = (pass->model->config.layers + 1 - pass->options.offloaded) * turns;
    if (!nb_pass_trains(pass))
        return 1;
    return pass->options.offloaded && buffers < least ? least : buffers;
}

static int number_of(const struct nb_pass *pass, struct item item)
{
    return shares_ring(pass) ? (item.index + 1) * pass->options.slots - 1 - item.slot : item.index;
}

/* The item that follows in the buffer on the way back; its number is negative when there is none. */
static int number_below(const struct nb_pass *pass, struct item of, struct item *item)
{
    int number = number_of(pass, of) - nb_inputs_buffers(pass), turns = turns_of(pass);
    *item = (struct item){shares_ring(pass) ? turns - 1 - number % turns : of.slot, number / turns};
    return number;
}

static struct nb_inputs_buffer *buffer_of(const struct nb_pass *pass, struct item item)
{
    const struct nb_inputs_ring *ring = &pass->inputs.ring[shares_ring(pass) ? 0 : item.slot];
    return &ring->buffer[number_of(pass, item) % nb_inputs_buffers(pass)];
}

/* Whether an item's values leave the device: another's follow them in their buffer, and they are wanted back. */
static bool leaves(const struct nb_pass *pass, struct item item)
{
    int items = (pass->model->config.layers + 1) * turns_of(pass);
    return item.index >= pass->lowest && number_of(pass, item) + nb_inputs_buffers(pass) < items;
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
static int find_ranges(const struct nb_pass *pass, struct item item, struct range range[RANGES])
{
    const struct nb_pass_slot *s = &pass->slot[item.slot];
    const struct nb_inputs_host *host = &pass->inputs.slot[item.slot].host[item.index];
    measure(pass, s->tokens, (uint64_t)s->tokens_max, range);
    range[0].device = s->input[item.index];
    range[0].host = host->input;
    range[1].device = s->kept[item.index].o;
    range[1].host = host->output;
    range[2].device = s->kept[item.index].lse;
    range[2].host = host->lse;
    return keeps_attention(pass, item.index) ? RANGES : 1;
}

/* ---- set-up ---- */

static nb_status take_pinned(struct nb_pass *pass, struct item item)
{
    struct nb_arena *arena = pass->options.pinned;
    struct nb_inputs_host *host = &pass->inputs.slot[item.slot].host[item.index];
    uint64_t tokens = (uint64_t)pass->options.limits.tokens;
    struct range range[RANGES];
    measure(pass, tokens, tokens, range);
    NB_TRY(nb_arena_take(arena, NB_CATEGORY_BLOCK_INPUTS, "a block's input", range[0].bytes, &host->input));
    if (!keeps_attention(pass, item.index))
        return NB_OK;
    NB_TRY(nb_arena_take(arena, NB_CATEGORY_BLOCK_INPUTS, "attention's output", range[1].bytes, &host->output));
    return nb_arena_take(arena, NB_CATEGORY_BLOCK_INPUTS, "attention's log-sum-exp", range[2].bytes, &host->lse);
}

static nb_status create_ring(struct nb_pass *pass, struct nb_inputs_ring *ring)
{
    int buffers = nb_inputs_buffers(pass);
    if (!(ring->buffer = calloc((size_t)buffers, sizeof *ring->buffer)))
        return nb_fail(NB_MEMORY, "no memory for the list of a pass's block inputs");
    for (int i = 0; i < buffers; i++) {
        ring->buffer[i].holds = -1;
        if (pass->options.offloaded)
            NB_TRY(pass->work.device->event_create(pass->work.device, &ring->buffer[i].copied));
    }
    return NB_OK;
}

static nb_status create_slot(struct nb_pass *pass, int slot)
{
    int blocks = pass->model->config.layers;
    struct nb_inputs_slot *s = &pass->inputs.slot[slot];
    if (!(s->host = calloc((size_t)blocks, sizeof *s->host)))
        return nb_fail(NB_MEMORY, "no memory for the list of a pass's block inputs");
    for (int i = 0; i < blocks; i++)
        if (leaves(pass, (struct item){slot, i}))
            NB_TRY(take_pinned(pass, (struct item){slot, i}));
    return NB_OK;
}

static nb_status create_copies(struct nb_pass *pass)
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

nb_status nb_inputs_create(struct nb_pass *pass)
{
    struct nb_inputs *inputs = &pass->inputs;
    inputs->active = pass->options.slots;
    inputs->rings = shares_ring(pass) ? 1 : pass->options.slots;
    if (!(inputs->ring = calloc((size_t)inputs->rings, sizeof *inputs->ring)))
        return nb_fail(NB_MEMORY, "no memory for the lists of a pass's block inputs");
    NB_TRY(create_copies(pass));
    for (int i = 0; i < inputs->rings; i++)
        NB_TRY(create_ring(pass, &inputs->ring[i]));
    return NB_OK;
}

/* What follows in the buffer, of whatever slot and block, lies there as well. */
static nb_status place_attention(struct nb_pass *pass, struct item item, struct nb_inputs_buffer *buffer)
{
    struct nb_device *device = pass->work.device;
    struct nb_block_kept kept = {.o = buffer->output, .lse = buffer->lse};
    if (nb_dptr_is_null(buffer->output)) {
        struct nb_block block;
        struct range range[RANGES];
        uint64_t tokens = (uint64_t)pass->options.limits.tokens;
        nb_pass_set_block(pass, item.slot, item.index, NULL, &block);
        NB_TRY(nb_block_take_attention_output(&block, NB_CATEGORY_BLOCK_INPUTS, &kept));
        buffer->output = kept.o;
        buffer->lse = kept.lse;
        /* Copied whole, with the columns between tokens and tokens_max that nobody writes. */
        measure(pass, tokens, tokens, range);
        if (pass->inputs.stream)
            NB_TRY(device->fill_zero(device, pass->work.stream, kept.lse, range[2].bytes));
    }
    pass->slot[item.slot].kept[item.index].o = kept.o;
    pass->slot[item.slot].kept[item.index].lse = kept.lse;
    return NB_OK;
}

nb_status nb_inputs_place(struct nb_pass *pass, int slot, int index)
{
    struct item item = {slot, index};
    struct nb_inputs_buffer *buffer = buffer_of(pass, item);
    struct nb_matrix_shape stream = {
        pass->options.limits.tokens, pass->model->config.hidden, pass->model->options.activation};
    if (nb_dptr_is_null(buffer->input))
        NB_TRY(
            nb_work_take_matrix(&pass->work, NB_CATEGORY_BLOCK_INPUTS, "a block's input", stream, &buffer->input));
    pass->slot[slot].input[index] = buffer->input;
    if (!nb_pass_trains(pass) || index == pass->model->config.layers || !keeps_attention(pass, index))
        return NB_OK;
    return place_attention(pass, item, buffer);
}

void nb_inputs_destroy(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    struct nb_inputs *inputs = &pass->inputs;
    bool copied = inputs->stream != NULL;
    if (copied)
        device->stream_destroy(device, &inputs->stream);
    for (int i = 0; inputs->slot && i < pass->options.slots; i++)
        free(inputs->slot[i].host);
    free(inputs->slot);
    for (int i = 0; inputs->ring && i < inputs->rings; i++) {
        struct nb_inputs_buffer *buffer = inputs->ring[i].buffer;
        for (int k = 0; buffer && k < nb_inputs_buffers(pass); k++)
            if (buffer[k].copied)
                device->event_destroy(device, &buffer[k].copied);
        free(buffer);
    }
    free(inputs->ring);
    if (inputs->computed)
        device->event_destroy(device, &inputs->computed);
    if (copied)
        nb_arena_release_to(pass->options.pinned, inputs->frame);
}

/* ---- copies ---- */

/* Behind what is enqueued on the device so far. */
static nb_status copy(struct nb_pass *pass, struct item item, bool to_host)
{
    struct nb_device *device = pass->work.device;
    struct nb_inputs *inputs = &pass->inputs;
    struct nb_inputs_buffer *buffer = buffer_of(pass, item);
    struct range range[RANGES];
    int ranges = find_ranges(pass, item, range);
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

static nb_status fetch(struct nb_pass *pass, struct item item)
{
    NB_TRY(copy(pass, item, false));
    buffer_of(pass, item)->holds = number_of(pass, item);
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
    struct item item = {slot, index};
    if (!pass->inputs.stream)
        return NB_OK;
    struct nb_inputs_buffer *buffer = buffer_of(pass, item);
    buffer->holds = number_of(pass, item);
    return join(pass, buffer);
}

nb_status nb_inputs_save(struct nb_pass *pass, int slot, int index)
{
    struct item item = {slot, index};
    return pass->inputs.stream && leaves(pass, item) ? copy(pass, item, true) : NB_OK;
}

nb_status nb_inputs_before_read(struct nb_pass *pass, int slot, int index)
{
    struct item item = {slot, index};
    if (!pass->inputs.stream)
        return NB_OK;
    struct nb_inputs_buffer *buffer = buffer_of(pass, item);
    if (buffer->holds != number_of(pass, item)) {
        if (!leaves(pass, item))
            return nb_fail(
                NB_USAGE, "slot %d: the input of block %d is gone: it was there for one backward pass", slot, index);
        NB_TRY(fetch(pass, item));
    }
    return join(pass, buffer);
}

static nb_status fetch_below(struct nb_pass *pass, struct item item)
{
    struct item below;
    if (number_below(pass, item, &below) < 0 || below.slot >= pass->inputs.active || !leaves(pass, below))
        return NB_OK;
    return fetch(pass, below);
}

/* The idle slots' turns come after the last active one's: their buffers are free as well. */
nb_status nb_inputs_after_read(struct nb_pass *pass, int slot, int index)
{
    if (!pass->inputs.stream)
        return NB_OK;
    int last = shares_ring(pass) && slot == pass->inputs.active - 1 ? pass->options.slots - 1 : slot;
    for (int i = slot; i <= last; i++)
        NB_TRY(fetch_below(pass, (struct item){i, index}));
    return NB_OK;
}
