/* Layer 0 where the embedding's table lies in host memory: the host gathers the rows of a micro-batch's tokens, and they
 * are sent to the device in pieces of whole rows. Private to src/model/.
 *
 * The pieces go through NB_HOST_EMBEDDING_BUFFERS buffers in pinned memory, in turns, so that the host gathers one while
 * the device takes the one before, of the same micro-batch or of the last; what they take does not grow with the tokens.
 * Before it writes a buffer again it waits for the upload out of it, and for no more than that: a stream of its own waits
 * for that upload's event, and the host for the stream. Uploads stand in line behind what was enqueued before, so that
 * with more pieces than buffers the host stays until the micro-batch before is done: by then arithmetic on as many tokens
 * takes far longer than the gathering.
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
        uint64_t rows; /* address in pinned memory, [piece_rows, hidden] of the activation dtype */
        struct nb_event *sent;
        bool was_sent;
    } buffer[NB_HOST_EMBEDDING_BUFFERS];
    int next;
    uint32_t piece_rows;
    uint64_t frame; /* of the pinned arena, before the buffers */
};

/* Takes the buffers from the pass's pinned arena. Does nothing where the table is on the device. Errors: NB_MEMORY. */
nb_status nb_host_embedding_create(struct nb_pass *pass);

/* Waits for the uploads. Takes a pass of which it was not created too. */
void nb_host_embedding_destroy(struct nb_pass *pass);

/* What the op would do with args->table on the device, to the same bits: gathers the rows of `ids`, host memory with
 * `tokens` of them, piece by piece, and enqueues their uploads to args->x. */
nb_status nb_host_embedding_run(
    struct nb_pass *pass, const struct nb_embedding *args, const int32_t *ids, uint32_t tokens);

#endif
