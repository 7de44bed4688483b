#include "model/host_embedding.h"

#include <string.h>

#include "base/bfloat.h"
#include "model/pass.h"

/* Long enough for the link's full rate, and the same however many tokens there are. */
static const uint64_t piece_bytes_default = UINT64_C(16) << 20;

nb_status nb_host_embedding_create(struct nb_pass *pass)
{
    struct nb_device *device = pass->work.device;
    struct nb_host_embedding *h = &pass->host_embedding;
    const struct nb_model_options *options = &pass->model->options;
    if (!options->embedding_on_host)
        return NB_OK;
    uint64_t row_bytes = (uint64_t)pass->model->config.hidden * nb_dtype_bytes(options->activation);
    uint64_t most = options->embedding_piece_bytes ? options->embedding_piece_bytes : piece_bytes_default;
    uint64_t tokens = (uint64_t)pass->options.limits.tokens, rows = most > row_bytes ? most / row_bytes : 1;
    h->piece_rows = (uint32_t)(rows < tokens ? rows : tokens);
    h->frame = nb_arena_frame(pass->options.pinned);
    NB_TRY(device->stream_create(device, &h->waiter));
    for (int i = 0; i < NB_HOST_EMBEDDING_BUFFERS; i++) {
        NB_TRY(device->event_create(device, &h->buffer[i].sent));
        NB_TRY(nb_arena_take(pass->options.pinned, NB_CATEGORY_BATCH, "rows of the embedding on their way",
            h->piece_rows * row_bytes, &h->buffer[i].rows));
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

/* Rows [0, count) of a piece. */
static void gather(const struct nb_embedding *args, const nb_bf16 *table, const int32_t *ids, uint32_t count, char *to)
{
    const uint64_t row_bytes = (uint64_t)args->width * nb_dtype_bytes(args->activation);
#pragma omp parallel for schedule(static) if (count > 1)
    for (uint32_t i = 0; i < count; i++)
        put_row(table + (int64_t)ids[i] * args->width, args, to + i * row_bytes);
}

static nb_status send_piece(
    struct nb_pass *pass, const struct nb_embedding *args, const int32_t *ids, uint32_t count, nb_dptr to)
{
    struct nb_device *device = pass->work.device;
    struct nb_host_embedding *h = &pass->host_embedding;
    int k = h->next;
    char *rows = (char *)(uintptr_t)h->buffer[k].rows;
    h->next = (k + 1) % NB_HOST_EMBEDDING_BUFFERS;
    if (h->buffer[k].was_sent) {
        NB_TRY(device->stream_wait_event(device, h->waiter, h->buffer[k].sent));
        NB_TRY(device->stream_wait(device, h->waiter));
    }
    if (!device->dry)
        gather(args, nb_weight_store_host_table(pass->model->store), ids, count, rows);
    uint64_t bytes = count * (uint64_t)args->width * nb_dtype_bytes(args->activation);
    NB_TRY(device->upload(device, pass->work.stream, to, rows, bytes));
    h->buffer[k].was_sent = true;
    return device->event_record(device, pass->work.stream, h->buffer[k].sent);
}

nb_status nb_host_embedding_run(
    struct nb_pass *pass, const struct nb_embedding *args, const int32_t *ids, uint32_t tokens)
{
    const uint64_t row_bytes = (uint64_t)args->width * nb_dtype_bytes(args->activation);
    const uint32_t most = pass->host_embedding.piece_rows;
    for (uint32_t begin = 0; begin < tokens; begin += most) {
        uint32_t count = tokens - begin < most ? tokens - begin : most;
        NB_TRY(send_piece(pass, args, ids + begin, count, nb_dptr_at(args->x, begin * row_bytes)));
    }
    return NB_OK;
}
