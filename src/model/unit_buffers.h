/* Device memory in which units that lie in pinned host memory take turns. Fetches run on a stream of their own, so
 * that one unit comes while another computes: a fetch waits for the buffer's last user, a user for the fetch.
 *
 * Two buffers are as fast as any number. Where computing takes longer than fetching, the second is full when the
 * first is left; where fetching takes longer, the link never stands still, for a buffer is always free when the
 * other has come.
 *
 * Units that come from a file pass through pinned memory, one unit's for each buffer, which the host fills when a
 * fetch is enqueued: as soon as a user leaves a buffer, for the next unit that has none. It waits there for the disk, and
 * needs no thread for that. What was enqueued before goes on meanwhile: the work of the unit that was left, and the fetch
 * of the one that comes. The latter's work is enqueued after the reading, even where its unit has arrived already: a
 * direction begins that much later, and then the slowest of disk, link and device sets the pace. Each buffer's fetches
 * have a stream of their own, so that the host waits for the upload that its staging was last read by, two fetches ago,
 * and not for the one that is under way, whose buffer is still in use: a unit is read while another is uploaded. Private
 * to the weight store. */
#ifndef NB_MODEL_UNIT_BUFFERS_H
#define NB_MODEL_UNIT_BUFFERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "device/device.h"
#include "model/model.h"

struct nb_unit_buffer {
    int unit; /* whose bytes are here, or on their way; -1: none's */
    int users;
    uint64_t last_use; /* a count of all buffers' uses */
    nb_dptr base;
    struct nb_stream *stream; /* of its fetches */
    uint64_t staging;         /* where units come from a file: the host's address of pinned memory for one; else 0 */
    struct nb_event *filled, *left; /* by the fetch; by the last user */
    struct nb_event *ready;         /* the one that users wait for: what was written here and left was not fetched */
    bool was_left;
};

struct nb_unit_buffers {
    struct nb_device *device;
    struct nb_stream *stream[NB_UNIT_BUFFERS]; /* of the fetches: one, or with staging one a buffer; the others NULL */
    struct nb_event *drained;
    struct nb_unit_buffer buffer[NB_UNIT_BUFFERS];
    int count;
    bool with_staging;
    uint64_t unit_bytes, uses;
    uint64_t fetched_bytes; /* so far */
};

/* min(units, NB_UNIT_BUFFERS) empty buffers of unit_bytes each, which nb_unit_buffers_allocate takes, with staging as
 * much again from `pinned` (else it may be NULL). Destroy them after an error too. */
nb_status nb_unit_buffers_create(struct nb_unit_buffers *buffers, struct nb_device *device, int units,
    uint64_t unit_bytes, bool with_staging);
void nb_unit_buffers_destroy(struct nb_unit_buffers *buffers);
nb_status nb_unit_buffers_allocate(struct nb_unit_buffers *buffers, struct nb_arena *arena, struct nb_arena *pinned);

/* The buffer that holds `unit`, or NULL. */
struct nb_unit_buffer *nb_unit_buffers_find(struct nb_unit_buffers *buffers, int unit);

/* The buffer without users that was left longest ago and holds none of the `wanted` units; NULL when there is none. */
struct nb_unit_buffer *nb_unit_buffers_free(struct nb_unit_buffers *buffers, const int *wanted, int wanted_count);

/* Enqueues the upload of a unit from host memory into a buffer without users. `written` (or NULL) is what the bytes
 * on the host wait for. */
nb_status nb_unit_buffers_fetch(struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, int unit,
    const void *host, struct nb_event *written);

/* Waits until the fetches into a buffer are over: its staging may be written. */
nb_status nb_unit_buffers_wait(struct nb_unit_buffers *buffers, const struct nb_unit_buffer *buffer);

/* No buffer holds this unit any longer: its bytes on the host are about to change. Waits until no fetch reads them. */
nb_status nb_unit_buffers_forget(struct nb_unit_buffers *buffers, int unit);

/* A user on `stream` begins, and ends. */
nb_status nb_unit_buffers_enter(struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer,
    struct nb_stream *stream);
nb_status nb_unit_buffers_leave(struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer,
    struct nb_stream *stream);

/* The same for who writes the whole of `unit` into a buffer without users: begins when no fetch is under way and
 * its last user is gone, and ends with the bytes at `host` in host memory (or NULL: nowhere else). */
nb_status nb_unit_buffers_begin_write(struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer, int unit,
    struct nb_stream *stream);
nb_status nb_unit_buffers_end_write(struct nb_unit_buffers *buffers, struct nb_unit_buffer *buffer,
    struct nb_stream *stream, void *host);

#endif
