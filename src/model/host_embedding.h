/* Layer 0 where the embedding's table lies in host memory: the host gathers the rows of a micro-batch's tokens, and they
 * are sent to the device as one. Private to src/model/.
 *
 * The rows go through NB_HOST_EMBEDDING_BUFFERS buffers in pinned memory, in turns, so that the host gathers for one
 * micro-batch while the device takes the rows of the one before. Before it writes a buffer again it waits for the upload
 * out of it, and for no more than that: a stream of its own waits for that upload's event, and the host for the stream.
 *
 * What it costs: tokens x hidden x bytes of an activation over the link, before the first block of each micro-batch: 8B,
 * 2048 tokens in bf16: 16 MiB, 0.67 ms at 25 GB/s, beside 0.6 s or so of arithmetic. */
#ifndef NB_MODEL_HOST_EMBEDDING_H
#define NB_MODEL_HOST_EMBEDDING_H

#include "base/arena.h"
#include "device/device.h"

struct nb_pass;

enum { NB_HOST_EMBEDDING_BUFFERS = 2 };

/* All zero where the table is on the device. */
struct nb_host_embedding {
    struct nb_stream *waiter; /* never computes: what the host waits for */
    struct {
        uint64_t rows; /* address in pinned memory, [tokens, hidden] of the activation dtype */
        struct nb_event *sent;
        bool was_sent;
    } buffer[NB_HOST_EMBEDDING_BUFFERS];
    int next;
    uint64_t frame; /* of the pinned arena, before the buffers */
};

/* Takes the buffers from the pass's pinned arena. Does nothing where the table is on the device. Errors: NB_MEMORY. */
nb_status nb_host_embedding_create(struct nb_pass *pass);

/* Waits for the uploads. Takes a pass of which it was not created too. */
void nb_host_embedding_destroy(struct nb_pass *pass);

/* What the op would do with args->table on the device, to the same bits: gathers the rows of `ids`, host memory with
 * `tokens` of them, and enqueues their upload to args->x. */
nb_status nb_host_embedding_run(
    struct nb_pass *pass, const struct nb_embedding *args, const int32_t *ids, uint32_t tokens);

#endif
