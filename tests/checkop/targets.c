/* The ops of the table with their args' type erased, and the devices that run them. */
#include <inttypes.h>
#include <stdio.h>

#include "harness.h"

/* ---- the table ---- */

#define CHECKOP_WEAK(name) void checkop_##name(struct checkop *c) __attribute__((weak));
NB_OPS(CHECKOP_WEAK)

#define CHECKOP_ERASE(name)                                                                                  \
    static nb_status accept_##name(const void *args)                                                         \
    {                                                                                                        \
        return nb_check_##name(args);                                                                        \
    }                                                                                                        \
    static bool has_##name(const struct nb_device *device)                                                   \
    {                                                                                                        \
        return device->name && device->name##_scratch_bytes;                                                 \
    }                                                                                                        \
    static nb_status call_##name(struct nb_device *device, struct nb_stream *stream, const void *args)       \
    {                                                                                                        \
        return device->name(device, stream, args);                                                           \
    }                                                                                                        \
    static uint64_t scratch_bytes_##name(struct nb_device *device, const void *args)                         \
    {                                                                                                        \
        return device->name##_scratch_bytes(&device->profile, args);                                         \
    }
NB_OPS(CHECKOP_ERASE)

const struct checkop_entry *checkop_entry(enum checkop_op op)
{
#define CHECKOP_ROW(name) {#name, checkop_##name, accept_##name, has_##name, call_##name, scratch_bytes_##name},
    static const struct checkop_entry entry[CHECKOP_OPS] = {NB_OPS(CHECKOP_ROW)};
    return &entry[op];
}

/* ---- targets ---- */

void checkop_must(struct checkop *c, const struct checkop_target *t, nb_status status, const char *what)
{
    if (status != NB_OK)
        checkop_abort(c, "%s: %s: %s", t->name, what, nb_status_message());
}

struct checkop_target *checkop_add_target(struct checkop *c, const char *name, struct nb_device *device, bool under_test)
{
    if (c->targets == CHECKOP_TARGETS_MAX)
        checkop_abort(c, "more than %d devices", CHECKOP_TARGETS_MAX);
    struct checkop_target *t = &c->target[c->targets++];
    *t = (struct checkop_target){.device = device, .under_test = under_test};
    snprintf(t->name, sizeof t->name, "%s", name);
    snprintf(t->where, sizeof t->where, " (%s)", name);
    for (int i = 0; i < CHECKOP_STREAMS; i++) {
        checkop_must(c, t, device->stream_create(device, &t->stream[i]), "stream");
        checkop_must(c, t, device->event_create(device, &t->event[i]), "event");
    }
    return t;
}

void checkop_remove_targets(struct checkop *c)
{
    for (int k = 0; k < c->targets; k++) {
        struct checkop_target *t = &c->target[k];
        for (int i = 0; i < CHECKOP_STREAMS; i++) {
            t->device->event_destroy(t->device, &t->event[i]);
            t->device->stream_destroy(t->device, &t->stream[i]);
        }
        nb_device_destroy(&t->device);
    }
    c->targets = 0;
}

static void add_cpu(struct checkop *c, int threads, bool deferred, uint64_t deferred_seed)
{
    struct nb_cpu_options options = {.threads = threads, .deferred = deferred, .deferred_seed = deferred_seed};
    struct nb_device *device = NULL;
    char name[64];
    if (nb_cpu_device_create(&options, &device) != NB_OK)
        checkop_abort(c, "cpu device: %s", nb_status_message());
    snprintf(name, sizeof name, "cpu, %d threads%s %.0" PRIu64, device->profile.multiprocessors, deferred ? ", deferred" : "",
             deferred_seed);
    checkop_add_target(c, name, device, false);
}

void checkop_add_reference(struct checkop *c)
{
    add_cpu(c, 1, false, 0);
}

void checkop_add_cpu_targets(struct checkop *c)
{
    if (c->bench) {
        add_cpu(c, c->bench_threads, false, 0);
        return;
    }
    checkop_add_reference(c);
    add_cpu(c, 2, false, 0);
    add_cpu(c, 5, false, 0);
    for (uint64_t k = 1; k <= 3; k++)
        add_cpu(c, 2, true, c->seed * 3 + k);
}
