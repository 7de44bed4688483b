/* What a run has on a device: one arena taken at once, and in it the model, the adapter and the step struct. The
 * same code opens it on the real device and, to plan, on the dry one. */
#ifndef NB_TRAIN_SESSION_H
#define NB_TRAIN_SESSION_H

#include "base/arena.h"
#include "train/host_slab.h"
#include "train/setup.h"

struct nb_session {
    const struct nb_run *run;
    bool dry;
    struct nb_device *device; /* the run's; a dry session's own */
    struct nb_stream *stream;
    struct nb_arena *arena;
    nb_dptr slab;
    uint64_t capacity; /* of the slab */
    struct nb_arena *pinned;  /* host memory that copies reach: what is kept off the device. Host addresses */
    struct nb_host_slab host; /* under it; empty on a dry session, whose addresses are invented */
    struct nb_arena *pageable;         /* host memory that no copy reads or writes: an embedding that stays there */
    struct nb_host_slab pageable_slab; /* under it */
    struct nb_model *model;
    struct nb_adapter *adapter; /* NULL without one */
    void *staging;              /* nb_adapter_staging_bytes of host memory; NULL without an adapter */
    nb_dptr step;               /* struct nb_step */
};

struct nb_session_args {
    bool dry;
    uint64_t capacity;    /* of the arena, to the byte; ignored when dry */
    uint64_t pinned_capacity, pageable_capacity; /* the same of the host's; 0: nothing is kept there */
    const struct nb_host_need *host; /* what the plan takes of it, checked before anything is taken; NULL: unchecked */
    int positions_max;    /* rows of the rope tables */
    bool shows_progress;  /* of loading */
};

/* On the run's device, which must be open (nb_run_open_device), or on a dry one. Takes the memory, loads the model,
 * makes or loads the adapter (run->start_folder), sets the step struct to zero. The stream has passed everything on
 * return. Errors: NB_MEMORY when device or host have less than is asked for, or the plan does not hold; loading's.
 * On an error *session is NULL. */
nb_status nb_session_open(const struct nb_run *run, const struct nb_session_args *args, struct nb_session **session);

/* Takes NULL; nulls the handle. Passes and generators made in the arena are destroyed before. */
void nb_session_close(struct nb_session **session);

/* The same work first on dry sessions, of which the last's high-water mark is the capacity of the real one: one, or
 * with resident_layers: auto a few, where not all layers fit. `body` must do the same allocations on all;
 * session->dry tells it not to look at results. `planned` (may be NULL) receives the capacity. For evaluate and
 * generate; train does the same through nb_plan_make. */
typedef nb_status nb_session_body(struct nb_session *session, void *context);
nb_status nb_session_run(struct nb_run *run, int positions_max, nb_session_body *body, void *context, uint64_t *planned);

#endif
