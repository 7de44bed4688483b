/* Arenas: one slab, LIFO frames, named allocations, a high-water mark. Pure accounting over 64-bit addresses, so that the same code
 * plans without memory and serves device, pinned and pageable memory.
 *
 * Order of use: an arena belongs to one stream. What is released may be handed out again at once, because the next user's work is
 * enqueued behind the last user's. Work on another stream that touches an arena's memory is joined to the arena's stream by an
 * event before the release. */
#ifndef NB_BASE_ARENA_H
#define NB_BASE_ARENA_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

/* What memory is for: the rows of the plan's table. */
enum nb_category {
    NB_CATEGORY_LINEAR_WEIGHTS,
    NB_CATEGORY_EMBEDDING,   /* embedding, head, norms */
    NB_CATEGORY_ADAPTER,     /* compute copies */
    NB_CATEGORY_MASTERS,
    NB_CATEGORY_GRADIENTS,
    NB_CATEGORY_MOMENTS,
    NB_CATEGORY_BLOCK_INPUTS,
    NB_CATEGORY_LIVE_SET,    /* activations of the block at work */
    NB_CATEGORY_SCRATCH,
    NB_CATEGORY_LOSS,
    NB_CATEGORY_CACHE,       /* keys and values, for generation */
    NB_CATEGORY_BATCH,       /* token ids, positions, step and slot structs */
    NB_CATEGORY_COUNT
};

/* "linear weights", ... */
const char *nb_category_name(enum nb_category category);

struct nb_arena;

/* Called when bytes become usable (true) or are released (false); checked builds poison and mark red zones with it. */
typedef void nb_arena_mark(void *context, uint64_t address, uint64_t bytes, bool usable);

/* An arena over [base, base + capacity) bytes; base is a multiple of 256 and not 0. Does not own the memory. `name` is copied. A
 * capacity of UINT64_MAX is for planning. Errors: NB_MEMORY. */
nb_status nb_arena_create(const char *name, uint64_t base, uint64_t capacity, struct nb_arena **arena);

/* Releases what is taken. Takes NULL; nulls the handle. */
void nb_arena_destroy(struct nb_arena **arena);

/* Calls `mark` from here on. */
void nb_arena_set_mark(struct nb_arena *arena, nb_arena_mark *mark, void *context);

/* `bytes` at a 256-byte aligned address. 0 bytes give the address of nothing, valid. Errors: NB_MEMORY, naming arena, allocation,
 * what is left and what is missing. `name` must outlive the arena (a literal). */
nb_status nb_arena_take(struct nb_arena *arena, enum nb_category category, const char *name, uint64_t bytes, uint64_t *address);

/* Everything taken after nb_arena_frame is released together by nb_arena_release_to with what it gave. Frames are LIFO. */
uint64_t nb_arena_frame(const struct nb_arena *arena);
void nb_arena_release_to(struct nb_arena *arena, uint64_t frame);

/* Bytes taken at present, and at most so far; alignment included. */
uint64_t nb_arena_used(const struct nb_arena *arena);
uint64_t nb_arena_high_water(const struct nb_arena *arena);

/* Bytes of a category at the moment of the high-water mark, alignment included: the categories add up to it. */
uint64_t nb_arena_high_water_of(const struct nb_arena *arena, enum nb_category category);

/* The allocations that stood at the high-water mark, largest first, alike ones in one line: count, bytes of each, category, name. */
void nb_arena_print(const struct nb_arena *arena, FILE *out);

#endif
