#include "base/arena.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256 };

/* Checked builds keep this much unusable memory behind each allocation; it counts in the plan of the same build too. */
#ifdef NB_CHECKED_ARENAS
enum { RED_ZONE = 256 };
#else
enum { RED_ZONE = 0 };
#endif

struct entry {
    const char *name;
    enum nb_category category;
    uint64_t offset, bytes; /* bytes as asked for */
};

struct nb_arena {
    char name[32];
    uint64_t base, capacity, used, high_water;
    uint64_t used_of[NB_CATEGORY_COUNT], high_water_of[NB_CATEGORY_COUNT];
    struct entry *entry; /* a stack, oldest first */
    size_t entries, entries_capacity;
    struct entry *high_entry; /* the stack as it stood at the high-water mark */
    size_t high_entries, high_capacity;
    size_t same_entries; /* so many, the oldest, are the same in both */
    nb_arena_mark *mark;
    void *mark_context;
};

const char *nb_category_name(enum nb_category category)
{
    static const char *const name[NB_CATEGORY_COUNT] = {
        [NB_CATEGORY_LINEAR_WEIGHTS] = "linear weights",
        [NB_CATEGORY_EMBEDDING] = "embedding, head, norms",
        [NB_CATEGORY_ADAPTER] = "adapter",
        [NB_CATEGORY_MASTERS] = "adapter masters",
        [NB_CATEGORY_GRADIENTS] = "gradients",
        [NB_CATEGORY_MOMENTS] = "optimizer moments",
        [NB_CATEGORY_BLOCK_INPUTS] = "block inputs",
        [NB_CATEGORY_LIVE_SET] = "live set of a block",
        [NB_CATEGORY_SCRATCH] = "scratch",
        [NB_CATEGORY_LOSS] = "loss chunk",
        [NB_CATEGORY_CACHE] = "key-value cache",
        [NB_CATEGORY_BATCH] = "batch",
    };
    return name[category];
}

nb_status nb_arena_create(const char *name, uint64_t base, uint64_t capacity, struct nb_arena **arena)
{
    struct nb_arena *a = calloc(1, sizeof *a);
    if (!a)
        return nb_fail(NB_MEMORY, "arena %s: no memory for its list", name);
    snprintf(a->name, sizeof a->name, "%s", name);
    a->base = base;
    a->capacity = capacity;
    *arena = a;
    return NB_OK;
}

void nb_arena_destroy(struct nb_arena **arena)
{
    if (!*arena)
        return;
    nb_arena_release_to(*arena, 0);
    free((*arena)->entry);
    free((*arena)->high_entry);
    free(*arena);
    *arena = NULL;
}

void nb_arena_set_mark(struct nb_arena *arena, nb_arena_mark *mark, void *context)
{
    arena->mark = mark;
    arena->mark_context = context;
}

static bool entries_reserve(struct entry **entry, size_t *capacity, size_t count)
{
    if (count <= *capacity)
        return true;
    size_t wanted = *capacity ? *capacity * 2 : 64;
    if (wanted < count)
        wanted = count;
    struct entry *grown = realloc(*entry, wanted * sizeof *grown);
    if (!grown)
        return false;
    *entry = grown;
    *capacity = wanted;
    return true;
}

static bool record_high_water(struct nb_arena *arena)
{
    size_t same = arena->same_entries;
    if (!entries_reserve(&arena->high_entry, &arena->high_capacity, arena->entries))
        return false;
    memcpy(arena->high_entry + same, arena->entry + same, (arena->entries - same) * sizeof *arena->entry);
    arena->high_entries = arena->same_entries = arena->entries;
    arena->high_water = arena->used;
    memcpy(arena->high_water_of, arena->used_of, sizeof arena->used_of);
    return true;
}

nb_status nb_arena_take(
    struct nb_arena *arena, enum nb_category category, const char *name, uint64_t bytes, uint64_t *address)
{
    uint64_t left = arena->capacity - arena->used;
    uint64_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + RED_ZONE;
    if (rounded < bytes || rounded > left)
        return nb_fail(NB_MEMORY, "%s memory: %s needs %" PRIu64 " bytes, %" PRIu64 " of %" PRIu64 " are left",
            arena->name, name, bytes, left, arena->capacity);
    if (!entries_reserve(&arena->entry, &arena->entries_capacity, arena->entries + 1))
        return nb_fail(NB_MEMORY, "arena %s: no memory for its list", arena->name);
    arena->entry[arena->entries++] = (struct entry){name, category, arena->used, bytes};
    *address = arena->base + arena->used;
    arena->used += rounded;
    arena->used_of[category] += rounded;
    if (arena->used > arena->high_water && !record_high_water(arena))
        return nb_fail(NB_MEMORY, "arena %s: no memory for its list", arena->name);
    if (arena->mark)
        arena->mark(arena->mark_context, *address, bytes, true);
    return NB_OK;
}

uint64_t nb_arena_frame(const struct nb_arena *arena)
{
    return arena->used;
}

void nb_arena_release_to(struct nb_arena *arena, uint64_t frame)
{
    while (arena->entries && arena->entry[arena->entries - 1].offset >= frame) {
        const struct entry *e = &arena->entry[--arena->entries];
        if (arena->same_entries > arena->entries)
            arena->same_entries = arena->entries;
        arena->used_of[e->category] -= arena->used - e->offset;
        arena->used = e->offset;
        if (arena->mark)
            arena->mark(arena->mark_context, arena->base + e->offset, e->bytes, false);
    }
}

uint64_t nb_arena_used(const struct nb_arena *arena)
{
    return arena->used;
}

uint64_t nb_arena_high_water(const struct nb_arena *arena)
{
    return arena->high_water;
}

uint64_t nb_arena_high_water_of(const struct nb_arena *arena, enum nb_category category)
{
    return arena->high_water_of[category];
}

/* Larger first; equal ones side by side. */
static int by_bytes_and_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->category != y->category ? (int)x->category - (int)y->category : strcmp(x->name, y->name);
}

void nb_arena_print(const struct nb_arena *arena, FILE *out)
{
    struct entry *sorted = malloc((arena->high_entries + 1) * sizeof *sorted);
    if (!sorted)
        return;
    memcpy(sorted, arena->high_entry, arena->high_entries * sizeof *sorted);
    qsort(sorted, arena->high_entries, sizeof *sorted, by_bytes_and_name);
    fprintf(out, "%s memory, %" PRIu64 " bytes at most:\n", arena->name, arena->high_water);
    for (size_t i = 0, same; i < arena->high_entries; i += same) {
        for (same = 1; i + same < arena->high_entries && by_bytes_and_name(&sorted[i], &sorted[i + same]) == 0; same++)
            ;
        fprintf(out, "  %4zu x %14" PRIu64 "  %-24s %s\n", same, sorted[i].bytes, nb_category_name(sorted[i].category),
            sorted[i].name);
    }
    free(sorted);
}
