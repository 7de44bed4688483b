/* What a run takes of the host's memory: one slab for what it keeps off the device, page-locked where it may be
 * (`pinned`), and beside it what copies pass through. Checked against what there is before anything is taken. */
#ifndef NB_TRAIN_HOST_SLAB_H
#define NB_TRAIN_HOST_SLAB_H

#include "base/arena.h"
#include "device/device.h"
#include "train/setup.h"

/* As a dry session finds it, in bytes. */
struct nb_host_need {
    uint64_t kept_bytes[NB_CATEGORY_COUNT]; /* off the device: at the pinned arena's peak, to which they add up */
    uint64_t pageable_bytes;                /* at the pageable arena's peak: an embedding that stays there */
    uint64_t staging_bytes;                 /* at most: batches, and what loading and saving pass through */
};

/* The arguments are a dry session's arenas and device. */
void nb_host_need_of(const struct nb_arena *pinned, const struct nb_arena *pageable, const struct nb_device *dry,
    struct nb_host_need *need);

/* Whether run->host_available_bytes are enough. `device_bytes`: the arena's, which on a CPU are the host's as well. */
bool nb_host_need_fits(const struct nb_run *run, const struct nb_host_need *need, uint64_t device_bytes);

/* The same as an error, NB_MEMORY: how much is needed for what, how much there is by which limit, what takes less. */
nb_status nb_host_need_check(const struct nb_run *run, const struct nb_host_need *need, uint64_t device_bytes);

/* Bytes a second, in units of 10^9, at which copies run between the device and memory that is not page-locked, if the
 * link is no slower. */
float nb_host_pageable_rate(void);

/* A sentence for the plan where what is kept off the device is not to be page-locked, or NULL. The caller frees it. */
char *nb_host_slab_note(const struct nb_run *run, uint64_t bytes);

struct nb_host_slab {
    void *memory; /* NULL: nothing is taken */
    uint64_t bytes;
    bool pageable;
};

/* As run->config->pinned says: auto takes pageable memory where the system refuses to lock it, with a warning. Pageable
 * memory is touched here, so that a lack shows before the first step. 256-byte aligned. Errors: NB_MEMORY. */
nb_status nb_host_slab_take(
    const struct nb_run *run, struct nb_device *device, uint64_t bytes, struct nb_host_slab *slab);

/* Pageable memory, touched as above, whatever `pinned` says: for what no copy reads. Errors: NB_MEMORY. */
nb_status nb_host_slab_take_pageable(uint64_t bytes, struct nb_host_slab *slab);

/* Takes an empty one, and leaves one. */
void nb_host_slab_give_back(struct nb_device *device, struct nb_host_slab *slab);

#endif
