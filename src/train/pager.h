/* Paging of the optimizer's state: masters and moments stand in pinned host memory (adapter.h: records, paging), and an
 * update brings them through device memory chunk by chunk. Three streams: prefetch, the session's, which computes, and
 * write-back; events between them.
 *
 *   nb_pager_begin            the device buffers, and the first copies to them
 *   for each chunk, in order:
 *       nb_pager_acquire      the session's stream waits for the chunk
 *       ... adamw of the chunk's tensors, on the session's stream
 *       nb_pager_release      the chunk is written back, and its buffer filled with a later one
 *   nb_pager_end              the session's stream waits for the last chunk; the buffers are gone
 *
 * The buffers are the arena's memory above what stands: between passes that is a block's live set, which is dead then,
 * so that they add nothing to the peak unless a single tensor's record is larger. For the same reason no copy to them
 * may start before the session's stream has done what was enqueued before nb_pager_begin: the first prefetch runs
 * beside the sum of the gradients' squares, not beside the backward pass.
 *
 * A chunk comes back whole whether or not its tensors were updated: after a step that nb_adamw left alone (finite 0),
 * the same bytes. Once the session's stream has passed nb_pager_end, the host may read the records. */
#ifndef NB_TRAIN_PAGER_H
#define NB_TRAIN_PAGER_H

#include "train/session.h"

struct nb_pager;

/* How many tensors a chunk holds, and how many chunks are on the device at once. */
struct nb_pager_layout {
    int chunks, buffers;
    uint64_t buffer_bytes; /* of each buffer: the largest chunk */
};

enum { NB_PAGER_BUFFERS_MAX = 3 };

/* Cuts tensors with records of `bytes` [count] into chunks of whole tensors: a chunk is as large as `target` allows and
 * holds one tensor at least. `free_bytes` is what the buffers may take; as many as fit with chunks of `target`, or else
 * with smaller ones. One buffer for the largest tensor there always is, free or not. first [count + 1] receives each
 * chunk's first tensor, and `count`. */
void nb_pager_cut(const uint64_t *bytes, int count, uint64_t target, uint64_t free_bytes, int *first,
    struct nb_pager_layout *layout);

/* Of the session's adapter. *pager is NULL where nothing is paged. The session outlives it. Errors: NB_MEMORY, the
 * device's. */
nb_status nb_pager_create(struct nb_session *session, struct nb_pager **pager);

/* Waits for the copies. Takes NULL; nulls the handle. What an abandoned update took of the arena is its caller's frame
 * to release. */
void nb_pager_destroy(struct nb_pager **pager);

/* Decided at the first nb_pager_begin, from what the arena then has above what stands; zero before. */
const struct nb_pager_layout *nb_pager_layout_of(const struct nb_pager *pager);

nb_status nb_pager_begin(struct nb_pager *pager);

/* A chunk on the device: tensors first .. last - 1 of the registry, their records one behind the other from `records`. */
struct nb_pager_chunk {
    int first, last;
    nb_dptr records;
};

nb_status nb_pager_acquire(struct nb_pager *pager, int chunk, struct nb_pager_chunk *at);
nb_status nb_pager_release(struct nb_pager *pager, int chunk);
nb_status nb_pager_end(struct nb_pager *pager);

#endif
