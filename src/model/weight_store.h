/* The weights in units: 0 the embedding, 1 .. L the blocks, L + 1 the final norm and the head. A unit is one
 * contiguous slab; all blocks have the same inner offsets, each part of a tensor at a multiple of 256 bytes. Who
 * computes with a unit acquires it before and releases it after, on its own stream, and sees no more than that.
 * Where their bytes are between two uses is the store's affair: `streamed_blocks` of the blocks lie in pinned host
 * memory and come, ahead of their use, into buffers in device memory (unit_buffers.h); the other units stay in
 * device memory. Private to src/model/. */
#ifndef NB_MODEL_WEIGHT_STORE_H
#define NB_MODEL_WEIGHT_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "checkpoint/family.h"
#include "checkpoint/model_config.h"
#include "device/device.h"
#include "model/model.h"

enum nb_weight_direction { NB_WEIGHT_FORWARD, NB_WEIGHT_BACKWARD };

/* A unit in device memory, by the tensors' roles; a role that the unit lacks has a matrix of 0 rows and a null
 * vector. Valid between acquire and release, for work on the stream that acquired it. */
struct nb_unit_view {
    struct nb_weight matrix[NB_TENSOR_ROLES];
    nb_dptr vector[NB_TENSOR_ROLES]; /* norms and biases, bf16 */
};

/* One use of a unit, in a schedule. */
struct nb_weight_access {
    int unit;
    enum nb_weight_direction direction;
};

struct nb_weight_store;

/* Lays out the units; takes no device memory. `config` is copied. Errors: NB_UNSUPPORTED for sizes that the ops do
 * not take. */
nb_status nb_weight_store_create(struct nb_device *device, const struct nb_model_config *config,
                                 const struct nb_model_options *options, struct nb_weight_store **store);

/* Waits for fetches under way. Takes NULL; nulls the handle. The slabs stay their arenas'. */
void nb_weight_store_destroy(struct nb_weight_store **store);

/* Takes the resident units' slabs and the buffers from `arena`, once, and the streamed units' from `pinned`, whose
 * addresses are those of memory that copies reach (NULL will do where nothing is streamed). Errors: NB_MEMORY. */
nb_status nb_weight_store_allocate(struct nb_weight_store *store, struct nb_arena *arena, struct nb_arena *pinned);

int nb_weight_store_units(const struct nb_weight_store *store);

/* Bytes of streamed units that were fetched to the device so far. */
uint64_t nb_weight_store_fetched_bytes(const struct nb_weight_store *store);

/* The tensors of a unit in the order in which they lie in it, the store's own list; returns how many. */
int nb_weight_store_tensors(const struct nb_weight_store *store, int unit, const struct nb_tensor_spec **tensors);

/* The unit that holds the head's matrix: the last, or the embedding's when they are tied. */
int nb_weight_store_head_unit(const struct nb_weight_store *store);

/* Announces the accesses that follow, in order; they are not copied and must stay until the last has been acquired.
 * An acquire that is not the next of them is an error: streamed units are fetched in this order, as far ahead as
 * buffers are free. What a buffer holds at the end stays, and is not fetched again where the next schedule begins
 * with it, as the backward direction does. */
void nb_weight_store_schedule(struct nb_weight_store *store, const struct nb_weight_access *accesses, int count);

/* Makes `stream` wait until the unit is in device memory, and gives its view. Errors: NB_UNSUPPORTED out of
 * schedule, or when more streamed units are held at a time than there are buffers. */
nb_status nb_weight_store_acquire(struct nb_weight_store *store, int unit, enum nb_weight_direction direction,
                                  struct nb_stream *stream, struct nb_unit_view *view);

/* Work enqueued on `stream` from here on uses the unit no more; of a streamed unit, no other stream uses it any
 * longer either. */
nb_status nb_weight_store_release(struct nb_weight_store *store, int unit, struct nb_stream *stream);

/* The host has waited for all that was written: until the next begin_write, which must be on the stream of the
 * units' users, they simply stay, and acquire and release enqueue nothing, so that work with them may be recorded;
 * never so while any is streamed. */
void nb_weight_store_settle(struct nb_weight_store *store);
bool nb_weight_store_is_settled(const struct nb_weight_store *store);

/* Around the writing of a unit on `stream`: begin makes it wait for the unit's last user, end lets later users wait
 * for the writer. A streamed unit must be written whole: the view is a buffer's, which goes to the host at the end. */
nb_status nb_weight_store_begin_write(struct nb_weight_store *store, int unit, struct nb_stream *stream,
    struct nb_unit_view *view);
nb_status nb_weight_store_end_write(struct nb_weight_store *store, int unit, struct nb_stream *stream);

#endif
