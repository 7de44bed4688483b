#include "train/pager.h"

#include <stdlib.h>

/* Large enough that a copy runs at the link's rate, small enough that three are less than a block's live set. */
static const uint64_t chunk_bytes_max = 32u << 20;

/* A small adapter is cut as well: while one chunk computes, one comes and one goes. */
static const uint64_t chunks_wanted = 8;

struct buffer {
    nb_dptr at;
    struct nb_event *arrived, *updated, *left;
};

struct nb_pager {
    struct nb_session *session; /* not owned */
    struct nb_stream *prefetch, *write_back;
    struct nb_event *begun; /* the session's stream no longer uses the buffers' memory */
    struct buffer buffer[NB_PAGER_BUFFERS_MAX];
    uint64_t *record_bytes; /* [tensors] */
    int *first;             /* [chunks + 1], room for tensors + 1; counted from the first paged tensor */
    int resident, tensors;
    struct nb_pager_layout layout;
    uint64_t frame; /* of the arena, before the buffers */
};

/* ---- chunks ---- */

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void nb_pager_cut(const uint64_t *bytes, int count, uint64_t target, uint64_t free_bytes, int *first,
    struct nb_pager_layout *layout)
{
    uint64_t largest = 0, filled = 0;
    *layout = (struct nb_pager_layout){0};
    for (int i = 0; i < count; i++)
        largest = bytes[i] > largest ? bytes[i] : largest;
    int buffers = NB_PAGER_BUFFERS_MAX;
    while (buffers > 1 && free_bytes / (uint64_t)buffers < largest)
        buffers--;
    uint64_t most = smaller(target, free_bytes / (uint64_t)buffers);
    for (int i = 0; i < count; i++) {
        if (i == 0 || filled + bytes[i] > most) {
            first[layout->chunks++] = i;
            filled = 0;
        }
        filled += bytes[i];
        layout->buffer_bytes = filled > layout->buffer_bytes ? filled : layout->buffer_bytes;
    }
    first[layout->chunks] = count;
    layout->buffers = buffers < layout->chunks ? buffers : layout->chunks;
}

/* The arena's high-water mark stands: the buffers lie below it, and room is left for a checked build's red zone. */
static void cut(struct nb_pager *p)
{
    const struct nb_arena *arena = p->session->arena;
    uint64_t dead = nb_arena_high_water(arena) - nb_arena_used(arena), bytes = 0;
    for (int i = 0; i < p->tensors; i++)
        bytes += p->record_bytes[i];
    uint64_t target = p->session->run->page_bytes;
    if (target == 0)
        target = smaller(bytes / chunks_wanted, chunk_bytes_max);
    dead -= smaller(dead, NB_ALIGNMENT);
    nb_pager_cut(p->record_bytes, p->tensors, target, dead, p->first, &p->layout);
}

static uint64_t chunk_bytes(const struct nb_pager *p, int chunk)
{
    uint64_t bytes = 0;
    for (int i = p->first[chunk]; i < p->first[chunk + 1]; i++)
        bytes += p->record_bytes[i];
    return bytes;
}

static void *chunk_pages(const struct nb_pager *p, int chunk)
{
    return nb_adapter_page(p->session->adapter, p->resident + p->first[chunk]);
}

/* ---- life ---- */

static nb_status create(struct nb_pager *p)
{
    struct nb_device *device = p->session->device;
    p->record_bytes = calloc((size_t)p->tensors, sizeof *p->record_bytes);
    p->first = calloc((size_t)p->tensors + 1, sizeof *p->first);
    if (!p->record_bytes || !p->first)
        return nb_fail(NB_MEMORY, "no memory for the list of paged tensors");
    for (int i = 0; i < p->tensors; i++)
        p->record_bytes[i] = nb_adapter_record_of(p->session->adapter, p->resident + i).bytes;
    NB_TRY(device->stream_create(device, &p->prefetch));
    NB_TRY(device->stream_create(device, &p->write_back));
    NB_TRY(device->event_create(device, &p->begun));
    for (int i = 0; i < NB_PAGER_BUFFERS_MAX; i++) {
        NB_TRY(device->event_create(device, &p->buffer[i].arrived));
        NB_TRY(device->event_create(device, &p->buffer[i].updated));
        NB_TRY(device->event_create(device, &p->buffer[i].left));
    }
    return NB_OK;
}

nb_status nb_pager_create(struct nb_session *session, struct nb_pager **pager)
{
    *pager = NULL;
    if (nb_adapter_paged_bytes(session->adapter) == 0)
        return NB_OK;
    struct nb_pager *p = calloc(1, sizeof *p);
    if (!p)
        return nb_fail(NB_MEMORY, "no memory for paging");
    p->session = session;
    p->resident = nb_adapter_resident(session->adapter);
    p->tensors = nb_adapter_trainable_count(session->adapter) - p->resident;
    nb_status status = create(p);
    if (status != NB_OK)
        nb_pager_destroy(&p);
    *pager = p;
    return status;
}

static void destroy_event(struct nb_device *device, struct nb_event **event)
{
    if (*event)
        device->event_destroy(device, event);
}

void nb_pager_destroy(struct nb_pager **pager)
{
    struct nb_pager *p = *pager;
    if (!p)
        return;
    struct nb_device *device = p->session->device;
    if (p->prefetch)
        device->stream_destroy(device, &p->prefetch);
    if (p->write_back)
        device->stream_destroy(device, &p->write_back);
    destroy_event(device, &p->begun);
    for (int i = 0; i < NB_PAGER_BUFFERS_MAX; i++) {
        destroy_event(device, &p->buffer[i].arrived);
        destroy_event(device, &p->buffer[i].updated);
        destroy_event(device, &p->buffer[i].left);
    }
    free(p->record_bytes);
    free(p->first);
    free(p);
    *pager = NULL;
}

const struct nb_pager_layout *nb_pager_layout_of(const struct nb_pager *pager)
{
    return &pager->layout;
}

/* ---- an update ---- */

static struct buffer *buffer_of(struct nb_pager *p, int chunk)
{
    return &p->buffer[chunk % p->layout.buffers];
}

static nb_status prefetch(struct nb_pager *p, int chunk)
{
    struct nb_device *device = p->session->device;
    struct buffer *buffer = buffer_of(p, chunk);
    NB_TRY(device->upload(device, p->prefetch, buffer->at, chunk_pages(p, chunk), chunk_bytes(p, chunk)));
    return device->event_record(device, p->prefetch, buffer->arrived);
}

nb_status nb_pager_begin(struct nb_pager *pager)
{
    struct nb_session *session = pager->session;
    struct nb_device *device = session->device;
    nb_dptr base;
    pager->frame = nb_arena_frame(session->arena);
    if (pager->layout.chunks == 0)
        cut(pager);
    uint64_t bytes = pager->layout.buffer_bytes;
    NB_TRY(nb_arena_take(session->arena, NB_CATEGORY_SCRATCH, "chunks of masters and moments",
        (uint64_t)pager->layout.buffers * bytes, &base.address));
    NB_TRY(device->event_record(device, session->stream, pager->begun));
    NB_TRY(device->stream_wait_event(device, pager->prefetch, pager->begun));
    for (int i = 0; i < pager->layout.buffers; i++) {
        pager->buffer[i].at = nb_dptr_at(base, (uint64_t)i * bytes);
        NB_TRY(prefetch(pager, i));
    }
    return NB_OK;
}

nb_status nb_pager_acquire(struct nb_pager *pager, int chunk, struct nb_pager_chunk *at)
{
    struct nb_device *device = pager->session->device;
    const struct buffer *buffer = buffer_of(pager, chunk);
    *at = (struct nb_pager_chunk){
        .first = pager->resident + pager->first[chunk],
        .last = pager->resident + pager->first[chunk + 1],
        .records = buffer->at,
    };
    return device->stream_wait_event(device, pager->session->stream, buffer->arrived);
}

nb_status nb_pager_release(struct nb_pager *pager, int chunk)
{
    struct nb_device *device = pager->session->device;
    struct buffer *buffer = buffer_of(pager, chunk);
    int next = chunk + pager->layout.buffers;
    NB_TRY(device->event_record(device, pager->session->stream, buffer->updated));
    NB_TRY(device->stream_wait_event(device, pager->write_back, buffer->updated));
    NB_TRY(device->download(
        device, pager->write_back, chunk_pages(pager, chunk), buffer->at, chunk_bytes(pager, chunk)));
    NB_TRY(device->event_record(device, pager->write_back, buffer->left));
    if (next >= pager->layout.chunks)
        return NB_OK;
    NB_TRY(device->stream_wait_event(device, pager->prefetch, buffer->left));
    return prefetch(pager, next);
}

/* Write-backs pass in order: behind the last one are all. */
nb_status nb_pager_end(struct nb_pager *pager)
{
    struct nb_session *session = pager->session;
    const struct buffer *last = buffer_of(pager, pager->layout.chunks - 1);
    NB_TRY(session->device->stream_wait_event(session->device, session->stream, last->left));
    nb_arena_release_to(session->arena, pager->frame);
    return NB_OK;
}
