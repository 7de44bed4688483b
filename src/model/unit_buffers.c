#include "model/unit_buffers.h"

nb_status nb_unit_buffers_create(
    struct nb_unit_buffers *buffers, struct nb_device *device, int units, uint64_t unit_bytes, bool with_staging)
{
    *buffers = (struct nb_unit_buffers){.device = device,
        .count = units < NB_UNIT_BUFFERS ? units : NB_UNIT_BUFFERS,
        .with_staging = with_staging,
        .unit_bytes = unit_bytes};
    if (buffers->count == 0)
        return NB_OK;
    NB_TRY(device->event_create(device, &buffers->drained));
    for (int i = 0; i < buffers->count; i++) {
        if (i == 0 || with_staging)
            NB_TRY(device->stream_create(device, &buffers->stream[i]));
        buffers->buffer[i].stream = buffers->stream[with_staging ? i : 0];
        buffers->buffer[i].unit = -1;
        NB_TRY(device->event_create(device, &buffers->buffer[i].filled));
        NB_TRY(device->event_create(device, &buffers->buffer[i].left));
    }
    return NB_OK;
}

/* Before the events: what the stream still has to do waits for them. */
void nb_unit_buffers_destroy(struct nb_unit_buffers *buffers)
{
    struct nb_device *device = buffers->device;
    for (int i = 0; i < buffers->count; i++)
        if (buffers->stream[i])
            device->stream_destroy(device, &buffers->stream[i]);
    if (buffers->drained)
        device->event_destroy(device, &buffers->drained);
    for (int i = 0; i < buffers->count; i++) {
        if (buffers->buffer[i].filled)
            device->event_destroy(device, &buffers->buffer[i].filled);
        if (buffers->buffer[i].left)
            device->event_destroy(device, &buffers->buffer[i].left);
    }
}

nb_status nb_unit_buffers_allocate(struct nb_unit_buffers *buffers, struct nb_arena *arena, struct nb_arena *pinned)
{
    for (int i = 0; i < buffers->count; i++) {
        NB_TRY(nb_arena_take(arena, NB_CATEGORY_LINEAR_WEIGHTS, "buffer of a streamed block", buffers->unit_bytes,
            &buffers->buffer[i].base.address));
        if (buffers->with_staging)
            NB_TRY(nb_arena_take(pinned, NB_CATEGORY_LINEAR_WEIGHTS, "block on its way from the file",
                buffers->unit_bytes, &buffers->buffer[i].staging));
    }
    return NB_OK;
}

struct nb_unit_buffer *nb_unit_buffers_find(struct nb_unit_buffers *buffers, int unit)
{
    for (int i = 0; i < buffers->count; i++)
        if (buffers->buffer[i].unit == unit)
            return &buffers->buffer[i];
    return NULL;
}

static bool is_among(const int *wanted, int count, int unit)
{
    for (int i = 0; i < count; i++)
        if (wanted[i] == unit)
            return true;
    return false;
}

struct nb_unit_buffer *nb_unit_buffers_free(struct nb_unit_buffers *buffers, const int *wanted, int wanted_count)
{
    struct nb_unit_buffer *oldest = NULL;
    for (int i = 0; i < buffers->count; i++) {
        struct nb_unit_buffer *b = &buffers->buffer[i];
        if (b->users == 0 && !is_among(wanted, wanted_count, b->unit) && (!oldest || b->last_use < oldest->last_use))
            oldest = b;
    }
    return oldest;
}

nb_status nb_unit_buffers_fetch(struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, int unit,
    const void *host, struct nb_event *written)
{
    struct nb_device *device = buffers->device;
    if (written)
        NB_TRY(device->stream_wait_event(device, buffer->stream, written));
    if (buffer->was_left)
        NB_TRY(device->stream_wait_event(device, buffer->stream, buffer->left));
    buffer->unit = -1;
    NB_TRY(device->upload(device, buffer->stream, buffer->base, host, buffers->unit_bytes));
    NB_TRY(device->event_record(device, buffer->stream, buffer->filled));
    buffer->unit = unit;
    buffer->ready = buffer->filled;
    buffer->last_use = ++buffers->uses;
    buffers->fetched_bytes += buffers->unit_bytes;
    return NB_OK;
}

nb_status nb_unit_buffers_wait(struct nb_unit_buffers *buffers, const struct nb_unit_buffer *buffer)
{
    return buffers->device->stream_wait(buffers->device, buffer->stream);
}

nb_status nb_unit_buffers_forget(struct nb_unit_buffers *buffers, int unit)
{
    struct nb_unit_buffer *buffer = nb_unit_buffers_find(buffers, unit);
    for (int i = 0; i < buffers->count; i++)
        NB_TRY(nb_unit_buffers_wait(buffers, &buffers->buffer[i]));
    if (buffer)
        buffer->unit = -1;
    return NB_OK;
}

nb_status nb_unit_buffers_enter(
    struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, struct nb_stream *stream)
{
    NB_TRY(buffers->device->stream_wait_event(buffers->device, stream, buffer->ready));
    buffer->users++;
    return NB_OK;
}

nb_status nb_unit_buffers_leave(
    struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, struct nb_stream *stream)
{
    buffer->users--;
    buffer->last_use = ++buffers->uses;
    buffer->was_left = true;
    return buffers->device->event_record(buffers->device, stream, buffer->left);
}

/* A fetch under way may still write this buffer, or read what the unit was on the host. */
nb_status nb_unit_buffers_begin_write(
    struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, int unit, struct nb_stream *stream)
{
    struct nb_device *device = buffers->device;
    NB_TRY(device->event_record(device, buffer->stream, buffers->drained));
    NB_TRY(device->stream_wait_event(device, stream, buffers->drained));
    if (buffer->was_left)
        NB_TRY(device->stream_wait_event(device, stream, buffer->left));
    buffer->unit = unit;
    buffer->users++;
    return NB_OK;
}

nb_status nb_unit_buffers_end_write(
    struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, struct nb_stream *stream, void *host)
{
    if (host)
        NB_TRY(buffers->device->download(buffers->device, stream, host, buffer->base, buffers->unit_bytes));
    buffer->ready = buffer->left;
    return nb_unit_buffers_leave(buffers, buffer, stream);
}
