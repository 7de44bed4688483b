#include "model/host_embedding.h"

#include <string.h>

#include "base/bfloat.h"
#include "model/pass.h"

nb_status nb_host_embedding_create(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    struct nb_host_embedding *h = &pass->host_embedding;
    uint64_t bytes = (uint64_t)pass->options.limits.tokens * (uint64_t)pass->model->config.hidden *
                     nb_dtype_bytes(pass->model->options.activation);
    if (!pass->model->options.embedding_on_host)
        return NB_OK;
    h->frame = nb_arena_frame(pass->options.pinned);
    NB_TRY(device->stream_create(device, &h->waiter));
    for (int i = 0; i < NB_HOST_EMBEDDING_BUFFERS; i++) {
        NB_TRY(device->event_create(device, &h->buffer[i].sent));
        NB_TRY(nb_arena_take(pass->options.pinned, NB_CATEGORY_BATCH, "rows of the embedding on their way", bytes,
            &h->buffer[i].rows));
    }
    return NB_OK;
}

void nb_host_embedding_destroy(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    struct nb_host_embedding *h = &pass->host_embedding;
    if (!h->waiter)
        return;
    for (int i = 0; i < NB_HOST_EMBEDDING_BUFFERS; i++)
        if (h->buffer[i].was_sent)
            device->stream_wait_event(device, h->waiter, h->buffer[i].sent);
    device->stream_destroy(device, &h->waiter);
    for (int i = 0; i < NB_HOST_EMBEDDING_BUFFERS; i++)
        if (h->buffer[i].sent)
            device->event_destroy(device, &h->buffer[i].sent);
    nb_arena_release_to(pass->options.pinned, h->frame);
}

/* One row, rounded as the op does: bf16 times 1 is itself. */
static void put_row(const nb_bf16 *restrict from, const struct nb_embedding *args, void *restrict to)
{
    int width = args->width;
    float scale = args->scale, *wide = to;
    nb_bf16 *narrow = to;
    if (args->activation == NB_DTYPE_F32) {
        for (int i = 0; i < width; i++)
            wide[i] = nb_bf16_to_float(from[i]) * scale;
    } else if (scale == 1) {
        memcpy(narrow, from, (size_t)width * sizeof *narrow);
    } else {
        for (int i = 0; i < width; i++)
            narrow[i] = nb_bf16_from_float(nb_bf16_to_float(from[i]) * scale);
    }
}

nb_status nb_host_embedding_run(
    struct nb_pass *pass, const struct nb_embedding *args, const int32_t *ids, uint32_t tokens)
{
    struct nb_device *device = pass->work.device;
    struct nb_host_embedding *h = &pass->host_embedding;
    int k = h->next;
    uint64_t row_bytes = (uint64_t)args->width * nb_dtype_bytes(args->activation);
    char *rows = (char *)(uintptr_t)h->buffer[k].rows;
    const nb_bf16 *table = nb_weight_store_host_table(pass->model->store);
    h->next = (k + 1) % NB_HOST_EMBEDDING_BUFFERS;
    if (h->buffer[k].was_sent) {
        NB_TRY(device->stream_wait_event(device, h->waiter, h->buffer[k].sent));
        NB_TRY(device->stream_wait(device, h->waiter));
    }
    for (uint32_t i = 0; !device->dry && i < tokens; i++)
        put_row(table + (int64_t)ids[i] * args->width, args, rows + i * row_bytes);
    NB_TRY(device->upload(device, pass->work.stream, args->x, rows, tokens * row_bytes));
    h->buffer[k].was_sent = true;
    return device->event_record(device, pass->work.stream, h->buffer[k].sent);
}
