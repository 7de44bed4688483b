#include "model/weight_store.h"

#include <limits.h>
#include <stdlib.h>

#include "model/unit_buffers.h"
#include "model/unit_source.h"
#include "quant/codec.h"

/* Offsets of a tensor's parts from the start of its unit. */
struct tensor_place {
    enum nb_weight_format format;
    uint64_t data, absmax, nested_absmax, nested_map, nested_offset, codebook;
};

struct unit_layout {
    int tensors;
    struct nb_tensor_spec spec[NB_TENSOR_LAYER_ROLES];
    struct tensor_place place[NB_TENSOR_LAYER_ROLES]; /* of spec[i] */
    uint64_t bytes;
};

struct unit {
    const struct unit_layout *layout;
    bool streamed, on_host;
    nb_dptr base;  /* of a resident one */
    uint64_t host; /* of a streamed one: its address in pinned memory, 0 where it comes from a file; of one on the host:
                      in pageable memory */
    struct nb_event *written, *released;
    bool was_written, was_released;
    bool by_host; /* is being written */
};

struct nb_weight_store {
    struct nb_device *device;
    bool nested, settled;
    struct unit_layout embedding, block, head;
    int units, head_unit;
    struct unit *unit;
    int streamed; /* units */
    bool from_file;
    struct nb_unit_source *source; /* NULL unless from_file, and before it is set */
    struct nb_unit_buffers buffers;
    const struct nb_weight_access *schedule;
    int scheduled, next;
};

/* Appends one part and returns where it begins. */
static uint64_t place_part(struct unit_layout *layout, uint64_t bytes)
{
    uint64_t begin = layout->bytes;
    layout->bytes += nb_aligned(bytes);
    return begin;
}

static void place_tensor(
    struct unit_layout *layout, const struct nb_tensor_spec *spec, enum nb_weight_format format, bool nested)
{
    uint64_t count = (uint64_t)spec->rows * (uint64_t)spec->columns, blocks = nb_quant_blocks(count);
    struct tensor_place *place = &layout->place[layout->tensors];
    layout->spec[layout->tensors++] = *spec;
    place->format = format;
    if (place->format == NB_WEIGHT_BF16) {
        place->data = place_part(layout, count * sizeof(nb_bf16));
        return;
    }
    place->data = place_part(layout, nb_quant_packed_bytes(count));
    place->absmax = place_part(layout, blocks * (nested ? 1 : sizeof(float)));
    place->codebook = place_part(layout, NB_QUANT_CODES * sizeof(float));
    if (nested) {
        place->nested_absmax = place_part(layout, nb_quant_superblocks(blocks) * sizeof(float));
        place->nested_map = place_part(layout, 256 * sizeof(float));
        place->nested_offset = place_part(layout, sizeof(float));
    }
}

/* What device.h asks of widths: every row of an activation starts at a multiple of 16 bytes. */
static nb_status check_sizes(const struct nb_model_config *config)
{
    const struct {
        const char *name;
        int64_t value, multiple, maximum;
    } size[] = {
        {"hidden_size", config->hidden, 8, INT_MAX},
        {"intermediate_size", config->intermediate, 8, INT_MAX},
        {"head_dim", config->head_dim, 8, 256},
        {"num_attention_heads * head_dim", (int64_t)config->heads * config->head_dim, 8, INT_MAX},
        {"vocab_size", config->vocab, 1, INT_MAX - 8},
    };
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        if (size[i].value % size[i].multiple != 0 || size[i].value > size[i].maximum)
            return nb_fail(NB_UNSUPPORTED, "the model's %s is %lld; only multiples of %lld up to %lld are supported",
                size[i].name, (long long)size[i].value, (long long)size[i].multiple, (long long)size[i].maximum);
    return NB_OK;
}

/* The head's matrix, if it is not the embedding's: read from the embedding's tensor where the model is tied. */
static bool specify_head(const struct nb_model_config *config, enum nb_weight_format format, struct nb_tensor_spec *spec)
{
    if (nb_family_outer_tensor(config, NB_TENSOR_HEAD, spec))
        return true;
    bool copies = format != NB_WEIGHT_BF16 && nb_family_outer_tensor(config, NB_TENSOR_EMBEDDING, spec);
    spec->role = NB_TENSOR_HEAD;
    return copies;
}

static void lay_out(
    struct nb_weight_store *store, const struct nb_model_config *config, const struct nb_model_options *options)
{
    struct nb_tensor_spec spec[NB_TENSOR_LAYER_ROLES];
    if (nb_family_outer_tensor(config, NB_TENSOR_EMBEDDING, &spec[0]))
        place_tensor(&store->embedding, &spec[0], NB_WEIGHT_BF16, false);
    int count = nb_family_layer_tensors(config, spec);
    for (int i = 0; i < count; i++)
        place_tensor(
            &store->block, &spec[i], spec[i].linear ? options->linear_format : NB_WEIGHT_BF16, options->nested);
    if (nb_family_outer_tensor(config, NB_TENSOR_FINAL_NORM, &spec[0]))
        place_tensor(&store->head, &spec[0], NB_WEIGHT_BF16, false);
    bool own_head = specify_head(config, options->head_format, &spec[0]);
    if (own_head)
        place_tensor(&store->head, &spec[0], options->head_format, options->nested);
    store->units = config->layers + 2;
    store->head_unit = own_head ? store->units - 1 : 0;
}

/* Streamed blocks lie evenly between resident ones, so that each is fetched while those compute. The last block is
 * one: it is still in its buffer when the backward pass begins with it. */
static bool is_streamed(const struct nb_weight_store *store, int unit)
{
    int64_t blocks = store->units - 2, streamed = store->streamed, block = unit - 1;
    return block >= 0 && block < blocks && (block + 1) * streamed / blocks > block * streamed / blocks;
}

nb_status nb_weight_store_create(struct nb_device *device, const struct nb_model_config *config,
    const struct nb_model_options *options, struct nb_weight_store **store)
{
    NB_TRY(check_sizes(config));
    struct nb_weight_store *s = calloc(1, sizeof *s);
    if (!s)
        return nb_fail(NB_MEMORY, "no memory for the weight store");
    s->device = device;
    s->nested = options->nested;
    lay_out(s, config, options);
    s->streamed = options->streamed_blocks;
    s->from_file = options->streams_from_file;
    s->unit = calloc((size_t)s->units, sizeof *s->unit);
    nb_status status = s->unit ? NB_OK : nb_fail(NB_MEMORY, "no memory for the weight store");
    if (status == NB_OK)
        status = nb_unit_buffers_create(&s->buffers, device, s->streamed, s->block.bytes, s->from_file);
    for (int i = 0; status == NB_OK && i < s->units; i++) {
        s->unit[i].layout = i == 0 ? &s->embedding : i == s->units - 1 ? &s->head : &s->block;
        s->unit[i].streamed = is_streamed(s, i);
        s->unit[i].on_host = i == 0 && options->embedding_on_host;
        status = device->event_create(device, &s->unit[i].written);
        if (status == NB_OK)
            status = device->event_create(device, &s->unit[i].released);
    }
    if (status != NB_OK) {
        nb_weight_store_destroy(&s);
        return status;
    }
    *store = s;
    return NB_OK;
}

void nb_weight_store_destroy(struct nb_weight_store **store)
{
    struct nb_weight_store *s = *store;
    if (!s)
        return;
    nb_unit_buffers_destroy(&s->buffers);
    nb_unit_source_destroy(&s->source);
    for (int i = 0; s->unit && i < s->units; i++) {
        if (s->unit[i].written)
            s->device->event_destroy(s->device, &s->unit[i].written);
        if (s->unit[i].released)
            s->device->event_destroy(s->device, &s->unit[i].released);
    }
    free(s->unit);
    free(s);
    *store = NULL;
}

nb_status nb_weight_store_allocate(struct nb_weight_store *store, const struct nb_model_memory *memory)
{
    NB_TRY(nb_unit_buffers_allocate(&store->buffers, memory->device, memory->pinned));
    for (int i = 0; i < store->units; i++) {
        bool outer = i == 0 || i == store->units - 1;
        if (nb_weight_store_is_in_file(store, i))
            continue;
        if (store->unit[i].streamed) {
            NB_TRY(nb_arena_take(memory->pinned, NB_CATEGORY_LINEAR_WEIGHTS, "weights of a block", store->block.bytes,
                &store->unit[i].host));
            continue;
        }
        if (store->unit[i].on_host) {
            NB_TRY(nb_arena_take(memory->pageable, NB_CATEGORY_EMBEDDING, "embedding", store->embedding.bytes,
                &store->unit[i].host));
            continue;
        }
        NB_TRY(nb_arena_take(memory->device, outer ? NB_CATEGORY_EMBEDDING : NB_CATEGORY_LINEAR_WEIGHTS,
            i == 0  ? "embedding"
            : outer ? "final norm and head"
                    : "weights of a block",
            store->unit[i].layout->bytes, &store->unit[i].base.address));
    }
    return NB_OK;
}

int nb_weight_store_units(const struct nb_weight_store *store)
{
    return store->units;
}

uint64_t nb_weight_store_fetched_bytes(const struct nb_weight_store *store)
{
    return store->buffers.fetched_bytes;
}

int nb_weight_store_tensors(const struct nb_weight_store *store, int unit, const struct nb_tensor_spec **tensors)
{
    *tensors = store->unit[unit].layout->spec;
    return store->unit[unit].layout->tensors;
}

int nb_weight_store_head_unit(const struct nb_weight_store *store)
{
    return store->head_unit;
}

const nb_bf16 *nb_weight_store_host_table(const struct nb_weight_store *store)
{
    const struct unit *u = &store->unit[0];
    return u->on_host ? (const nb_bf16 *)(uintptr_t)(u->host + u->layout->place[0].data) : NULL;
}

void nb_weight_store_schedule(struct nb_weight_store *store, const struct nb_weight_access *accesses, int count)
{
    store->schedule = accesses;
    store->scheduled = count;
    store->next = 0;
}

bool nb_weight_store_is_on_host(const struct nb_weight_store *store, int unit)
{
    return store->unit[unit].on_host || (store->unit[unit].streamed && !store->from_file);
}

bool nb_weight_store_is_in_file(const struct nb_weight_store *store, int unit)
{
    return store->unit[unit].streamed && store->from_file;
}

void nb_weight_store_set_source(struct nb_weight_store *store, struct nb_unit_source **source)
{
    nb_unit_source_destroy(&store->source);
    store->source = *source;
    *source = NULL;
}

/* The streamed units of the next accesses, each once, as many as there are buffers and one to be announced. */
static int wanted_next(const struct nb_weight_store *store, int wanted[NB_UNIT_BUFFERS + 1])
{
    int count = 0;
    for (int i = store->next; i < store->scheduled && count < store->buffers.count + 1; i++) {
        int unit = store->schedule[i].unit, k = 0;
        while (k < count && wanted[k] != unit)
            k++;
        if (store->unit[unit].streamed && k == count)
            wanted[count++] = unit;
    }
    return count;
}

/* The host reads the unit here, into the buffer's staging; the disk goes on with the one `after` it (or -1). */
static nb_status read_to_staging(
    struct nb_weight_store *store, const struct nb_unit_buffer *buffer, int unit, int after)
{
    if (store->device->dry)
        return NB_OK;
    if (!store->source)
        return nb_fail(NB_UNSUPPORTED, "weight unit %d is to come from a file, and none is set", unit);
    NB_TRY(nb_unit_buffers_wait(&store->buffers, buffer));
    NB_TRY(nb_unit_source_read(store->source, unit, (void *)(uintptr_t)buffer->staging));
    if (after >= 0)
        nb_unit_source_announce(store->source, after);
    return NB_OK;
}

static nb_status fetch(struct nb_weight_store *store, struct nb_unit_buffer *buffer, int unit, int after)
{
    const struct unit *u = &store->unit[unit];
    if (store->from_file)
        NB_TRY(read_to_staging(store, buffer, unit, after));
    uint64_t host = store->from_file ? buffer->staging : u->host;
    return nb_unit_buffers_fetch(&store->buffers, buffer, unit, (const void *)(uintptr_t)host,
        u->was_written && !store->settled ? u->written : NULL);
}

/* As far as buffers are free. Where the schedule ends they keep what they hold: the other direction begins with it. */
static nb_status fetch_ahead(struct nb_weight_store *store)
{
    int wanted[NB_UNIT_BUFFERS + 1], found = wanted_next(store, wanted);
    int count = found < store->buffers.count ? found : store->buffers.count;
    for (int i = 0; i < count; i++) {
        if (nb_unit_buffers_find(&store->buffers, wanted[i]))
            continue;
        struct nb_unit_buffer *buffer = nb_unit_buffers_free(&store->buffers, wanted, count);
        if (!buffer)
            break;
        NB_TRY(fetch(store, buffer, wanted[i], i + 1 < found ? wanted[i + 1] : -1));
    }
    return NB_OK;
}

static void fill_view(
    const struct nb_weight_store *store, const struct unit *unit, nb_dptr base, struct nb_unit_view *view)
{
    *view = (struct nb_unit_view){0};
    for (int i = 0; i < unit->layout->tensors; i++) {
        const struct tensor_place *place = &unit->layout->place[i];
        const struct nb_tensor_spec *spec = &unit->layout->spec[i];
        enum nb_tensor_role role = spec->role;
        if (spec->rows == 1) {
            view->vector[role] = nb_dptr_at(base, place->data);
            continue;
        }
        bool four_bits = place->format != NB_WEIGHT_BF16, nested = four_bits && store->nested;
        nb_dptr none = {0};
        view->matrix[role] = (struct nb_weight){
            .format = place->format,
            .nested = nested,
            .rows = (int)spec->rows,
            .columns = (int)spec->columns,
            .data = nb_dptr_at(base, place->data),
            .absmax = four_bits ? nb_dptr_at(base, place->absmax) : none,
            .nested_absmax = nested ? nb_dptr_at(base, place->nested_absmax) : none,
            .nested_map = nested ? nb_dptr_at(base, place->nested_map) : none,
            .nested_offset = nested ? nb_dptr_at(base, place->nested_offset) : none,
            .codebook = four_bits ? nb_dptr_at(base, place->codebook) : none,
        };
    }
}

nb_status nb_weight_store_acquire(struct nb_weight_store *store, int unit, enum nb_weight_direction direction,
    struct nb_stream *stream, struct nb_unit_view *view)
{
    if (store->next >= store->scheduled || store->schedule[store->next].unit != unit ||
        store->schedule[store->next].direction != direction)
        return nb_fail(NB_UNSUPPORTED, "weight unit %d is acquired out of schedule (access %d of %d)", unit,
            store->next + 1, store->scheduled);
    NB_TRY(fetch_ahead(store));
    struct unit *u = &store->unit[unit];
    nb_dptr base = u->base;
    if (u->streamed) {
        struct nb_unit_buffer *buffer = nb_unit_buffers_find(&store->buffers, unit);
        if (!buffer)
            return nb_fail(NB_UNSUPPORTED, "weight unit %d finds all %d buffers in use", unit, store->buffers.count);
        NB_TRY(nb_unit_buffers_enter(&store->buffers, buffer, stream));
        base = buffer->base;
    } else if (u->was_written && !store->settled) {
        NB_TRY(store->device->stream_wait_event(store->device, stream, u->written));
    }
    store->next++;
    fill_view(store, u, base, view);
    return NB_OK;
}

nb_status nb_weight_store_release(struct nb_weight_store *store, int unit, struct nb_stream *stream)
{
    if (store->unit[unit].streamed) {
        NB_TRY(nb_unit_buffers_leave(&store->buffers, nb_unit_buffers_find(&store->buffers, unit), stream));
        return fetch_ahead(store);
    }
    if (store->settled)
        return NB_OK;
    store->unit[unit].was_released = true;
    return store->device->event_record(store->device, stream, store->unit[unit].released);
}

void nb_weight_store_settle(struct nb_weight_store *store)
{
    store->settled = true;
}

bool nb_weight_store_is_settled(const struct nb_weight_store *store)
{
    return store->settled && store->streamed == 0;
}

uint64_t nb_weight_store_layout(
    const struct nb_weight_store *store, int unit, nb_dptr base, struct nb_unit_view *view)
{
    fill_view(store, &store->unit[unit], base, view);
    return store->unit[unit].layout->bytes;
}

static nb_status begin_in_buffer(struct nb_weight_store *store, int unit, struct nb_stream *stream, nb_dptr *base)
{
    struct nb_unit_buffer *buffer = nb_unit_buffers_find(&store->buffers, unit);
    if (!buffer)
        buffer = nb_unit_buffers_free(&store->buffers, NULL, 0);
    if (!buffer || buffer->users)
        return nb_fail(NB_UNSUPPORTED, "weight unit %d is to be written while its buffers are in use", unit);
    *base = buffer->base;
    return nb_unit_buffers_begin_write(&store->buffers, buffer, unit, stream);
}

nb_status nb_weight_store_begin_write(struct nb_weight_store *store, int unit, struct nb_stream *stream, bool by_host,
    struct nb_unit_place *place)
{
    struct unit *u = &store->unit[unit];
    u->by_host = by_host && nb_weight_store_is_on_host(store, unit);
    /* Users of settled units left no events: the host waits for them. So it does for what writes where it will. */
    if (store->settled || u->by_host)
        NB_TRY(store->device->stream_wait(store->device, stream));
    store->settled = false;
    nb_dptr base = u->base;
    if (u->by_host) {
        NB_TRY(nb_unit_buffers_forget(&store->buffers, unit));
        base.address = u->host;
    } else if (u->streamed) {
        NB_TRY(begin_in_buffer(store, unit, stream, &base));
    } else if (u->was_released) {
        NB_TRY(store->device->stream_wait_event(store->device, stream, u->released));
    }
    place->base = base;
    place->on_host = u->by_host;
    place->bytes = nb_weight_store_layout(store, unit, base, &place->view);
    return NB_OK;
}

/* What the host has written is there. */
nb_status nb_weight_store_end_write(struct nb_weight_store *store, int unit, struct nb_stream *stream)
{
    struct unit *u = &store->unit[unit];
    u->was_written = !u->by_host;
    if (u->by_host)
        return NB_OK;
    if (u->streamed)
        NB_TRY(nb_unit_buffers_end_write(
            &store->buffers, nb_unit_buffers_find(&store->buffers, unit), stream, (void *)(uintptr_t)u->host));
    return store->device->event_record(store->device, stream, u->written);
}
