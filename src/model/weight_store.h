/* The weights in units: 0 the embedding, 1 .. L the blocks, L + 1 the final norm and the head. A unit is one
 * contiguous slab; all blocks have the same inner offsets, each part of a tensor at a multiple of 256 bytes. Who
 * computes with a unit acquires it before and releases it after, on its own stream, and sees no more than that.
 * Where their bytes are between two uses is the store's affair: `streamed_blocks` of the blocks lie in pinned host
 * memory, or in a file (unit_source.h), and come, ahead of their use, into buffers in device memory (unit_buffers.h);
 * the embedding may lie in host memory for good (host_embedding.h); the other units stay in device memory. Private to
 * src/model/. */
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

struct nb_unit_source;

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

/* Takes, once, the resident units' slabs and the buffers from memory->device; from memory->pinned the streamed units'
 * slabs or, when they come from a file, as much as the buffers have; and from memory->pageable an embedding on the host.
 * Errors: NB_MEMORY. */
nb_status nb_weight_store_allocate(struct nb_weight_store *store, const struct nb_model_memory *memory);

int nb_weight_store_units(const struct nb_weight_store *store);

/* Bytes of streamed units that were fetched to the device so far. */
uint64_t nb_weight_store_fetched_bytes(const struct nb_weight_store *store);

/* The tensors of a unit in the order in which they lie in it, the store's own list; returns how many. */
int nb_weight_store_tensors(const struct nb_weight_store *store, int unit, const struct nb_tensor_spec **tensors);

/* The unit that holds the head's matrix: the last, or the embedding's where the head is that table. A tied head in 4
 * bits is a matrix of its own in the last unit, made from the embedding's tensor. */
int nb_weight_store_head_unit(const struct nb_weight_store *store);

/* The embedding's table [vocab, hidden] where it lies on the host, or NULL. Its unit is acquired like any other, with a
 * view of null addresses. On a dry device not to be touched. */
const nb_bf16 *nb_weight_store_host_table(const struct nb_weight_store *store);

/* Announces the accesses that follow, in order; they are not copied and must stay until the last has been acquired.
 * An acquire that is not the next of them is an error: streamed units are fetched in this order, as far ahead as
 * buffers are free. What a buffer holds at the end stays, and is not fetched again where the next schedule begins
 * with it, as the backward direction does. */
void nb_weight_store_schedule(struct nb_weight_store *store, const struct nb_weight_access *accesses, int count);

/* Makes `stream` wait until the unit is in device memory, and gives its view. Errors: NB_UNSUPPORTED out of
 * schedule, or when more streamed units are held at a time than there are buffers; NB_IO, NB_FORMAT where a file can
 * not be read, naming it and the offset. */
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

/* Where a unit that is being written lies. */
struct nb_unit_place {
    struct nb_unit_view view;
    nb_dptr base;
    uint64_t bytes;
    bool on_host; /* in host memory: the addresses are the host's, and it writes there itself, at once */
};

/* Whether a unit lies in host memory. */
bool nb_weight_store_is_on_host(const struct nb_weight_store *store, int unit);

/* Whether a unit is read from a file at each use: what is written of it stays in a buffer at most. */
bool nb_weight_store_is_in_file(const struct nb_weight_store *store, int unit);

/* Around the writing of a unit: begin waits for the unit's last user, end lets later users wait for the writer, which
 * works on `stream`, or on the host where `by_host` and the unit lies there. A streamed unit must be written whole:
 * without by_host its place is a buffer's on the device, which goes to the host at the end. */
nb_status nb_weight_store_begin_write(struct nb_weight_store *store, int unit, struct nb_stream *stream, bool by_host,
    struct nb_unit_place *place);
nb_status nb_weight_store_end_write(struct nb_weight_store *store, int unit, struct nb_stream *stream);

/* Where the units lie that are in a file, before the first is acquired; the store takes it over, *source is nulled. */
void nb_weight_store_set_source(struct nb_weight_store *store, struct nb_unit_source **source);

/* A unit's view as if it lay at `base` (not null), and its bytes. */
uint64_t nb_weight_store_layout(const struct nb_weight_store *store, int unit, nb_dptr base, struct nb_unit_view *view);

#endif
