#include "train/session.h"

#include <stdlib.h>

#include "base/progress.h"
#include "train/device.h"
#include "train/fit_advice.h"

/* The dry device invents addresses; an arena over it only has to begin at one that is not null. */
static const uint64_t dry_base = 1u << 20;

static const double mebibyte = 1024.0 * 1024.0;

/* In checked builds, whether the arena watches the slab: the device writes its own memory at once there. */
static void watch_memory(struct nb_session *s, uint64_t capacity, bool watched)
{
#ifdef NB_CHECKED_ARENAS
    if (s->run->cpu.deferred) /* its memory is unreadable to the host, and watched already */
        return;
    nb_cpu_memory_mark(NULL, s->slab.address, capacity, !watched);
    if (watched)
        nb_arena_set_mark(s->arena, nb_cpu_memory_mark, NULL);
#else
    (void)s;
    (void)capacity;
    (void)watched;
#endif
}

/* The plan fits what was free when the device was opened: somebody else has taken some of it since. */
static nb_status explain_lack(const struct nb_session *s, uint64_t capacity)
{
    uint64_t now = 0;
    NB_TRY(s->device->memory_available(s->device, &now));
    return nb_fail(NB_MEMORY,
        "%s: the plan of %.1f MiB was made when %.1f MiB could be taken; now it is %.1f: another process has taken "
        "memory in between. End it (`nvidia-smi` lists them), start again when it needs no more, or set memory_budget "
        "to what it leaves",
        s->device->profile.name, (double)capacity / mebibyte, (double)s->run->free_bytes / mebibyte,
        (double)now / mebibyte);
}

static nb_status take_memory(struct nb_session *s, uint64_t capacity)
{
    if (s->dry)
        return nb_arena_create("device", dry_base, UINT64_MAX, &s->arena);
    if (capacity > s->run->available_bytes)
        return nb_fail(NB_MEMORY,
            "%s has %.0f MiB%s, this needs %.0f MiB; lower sequence_len, micro_batch_size or lora_r, or set "
            "gradient_checkpointing: true, optimizer: paged_adamw_8bit or load_in_4bit: true",
            s->device->profile.name, (double)s->run->available_bytes / mebibyte,
            s->run->config->memory_budget >= 0                              ? " within memory_budget"
            : s->run->available_bytes < s->device->profile.memory_bytes ? " free"
                                                                        : "",
            (double)capacity / mebibyte);
    nb_status status = s->device->memory_take(s->device, capacity, &s->slab);
    if (status == NB_MEMORY && s->device->memory_available)
        return explain_lack(s, capacity);
    NB_TRY(status);
    NB_TRY(nb_arena_create("device", s->slab.address, capacity, &s->arena));
    s->capacity = capacity;
    watch_memory(s, capacity, true);
    return NB_OK;
}

/* Copies run at the link's full rate only from and to pinned memory, and only then beside the device's work. */
static nb_status take_host_slab(struct nb_session *s, uint64_t capacity)
{
    if (s->dry)
        return nb_arena_create("pinned host memory", dry_base, UINT64_MAX, &s->pinned);
    NB_TRY(nb_host_slab_take(s->run, s->device, capacity, &s->host));
    uint64_t base = capacity ? (uintptr_t)s->host.memory : dry_base;
    const char *name = s->host.pageable ? "pageable host memory" : "pinned host memory";
    return nb_arena_create(name, base, capacity, &s->pinned);
}

static nb_status take_pageable_memory(struct nb_session *s, uint64_t capacity)
{
    if (s->dry)
        return nb_arena_create("host memory", dry_base, UINT64_MAX, &s->pageable);
    if (capacity == 0)
        return nb_arena_create("host memory", dry_base, 0, &s->pageable);
    NB_TRY(nb_host_slab_take_pageable(capacity, &s->pageable_slab));
    return nb_arena_create("host memory", (uintptr_t)s->pageable_slab.memory, capacity, &s->pageable);
}

static nb_status make_adapter(struct nb_session *s)
{
    const struct nb_run *run = s->run;
    if (!run->has_adapter)
        return NB_OK;
    NB_TRY(nb_adapter_create(nb_model_config_of(s->model), &run->adapter, &s->adapter));
    NB_TRY(nb_adapter_allocate(s->adapter, s->device, s->arena, s->pinned));
    return s->device->host_take(s->device, nb_adapter_staging_bytes(s->adapter), &s->staging);
}

static nb_status fill_adapter(struct nb_session *s)
{
    if (!s->adapter)
        return NB_OK;
    NB_TRY(nb_adapter_initialize(s->adapter, s->stream, s->staging));
    return s->run->start_folder ? nb_peft_load(s->adapter, s->stream, s->staging, s->run->start_folder) : NB_OK;
}

static nb_status load_model(struct nb_session *s, bool shows_progress)
{
    struct nb_progress progress;
    return nb_model_load(s->model, s->stream, s->arena, s->dry || !shows_progress ? NULL : &progress);
}

static nb_status open_session(struct nb_session *s, const struct nb_session_args *args)
{
    const struct nb_run *run = s->run;
    if (s->dry)
        NB_TRY(nb_dry_device_create(&run->profile, &s->device));
    else if (!(s->device = run->device))
        return nb_fail(NB_UNSUPPORTED, "a session needs its run's device opened");
    NB_TRY(nb_device_require_all(s->device));
    NB_TRY(s->device->stream_create(s->device, &s->stream));
    if (!s->dry && args->host)
        NB_TRY(nb_host_need_check(run, args->host, args->capacity));
    NB_TRY(take_memory(s, args->capacity));
    NB_TRY(take_host_slab(s, args->pinned_capacity));
    NB_TRY(take_pageable_memory(s, args->pageable_capacity));
    struct nb_model_memory memory = {.device = s->arena, .pinned = s->pinned, .pageable = s->pageable};
    NB_TRY(nb_arena_take(s->arena, NB_CATEGORY_BATCH, "step", sizeof(struct nb_step), &s->step.address));
    NB_TRY(s->device->fill_zero(s->device, s->stream, s->step, sizeof(struct nb_step)));
    NB_TRY(nb_model_create(s->device, run->checkpoint, &run->model, &s->model));
    NB_TRY(nb_model_allocate(s->model, &memory, args->positions_max));
    NB_TRY(make_adapter(s));
    NB_TRY(load_model(s, args->shows_progress));
    NB_TRY(fill_adapter(s));
    return s->device->stream_wait(s->device, s->stream);
}

nb_status nb_session_open(const struct nb_run *run, const struct nb_session_args *args, struct nb_session **session)
{
    struct nb_session *s = calloc(1, sizeof *s);
    *session = NULL;
    if (!s)
        return nb_fail(NB_MEMORY, "no memory for a session");
    s->run = run;
    s->dry = args->dry;
    nb_status status = open_session(s, args);
    if (status != NB_OK)
        nb_session_close(&s);
    *session = s;
    return status;
}

void nb_session_close(struct nb_session **session)
{
    struct nb_session *s = *session;
    if (!s)
        return;
    if (s->stream) /* after an error there may be work left that reads what goes away here */
        s->device->stream_wait(s->device, s->stream);
    nb_model_destroy(&s->model);
    nb_adapter_destroy(&s->adapter);
    nb_arena_destroy(&s->arena);
    nb_arena_destroy(&s->pinned);
    nb_arena_destroy(&s->pageable);
    if (s->device) {
        if (s->stream)
            s->device->stream_destroy(s->device, &s->stream);
        if (s->staging)
            s->device->host_give_back(s->device, s->staging);
        nb_host_slab_give_back(s->device, &s->host);
        nb_host_slab_give_back(s->device, &s->pageable_slab);
        if (!nb_dptr_is_null(s->slab)) {
            watch_memory(s, s->capacity, false);
            s->device->memory_give_back(s->device, s->slab);
        }
    }
    if (s->dry)
        nb_device_destroy(&s->device);
    free(s);
    *session = NULL;
}

/* A body on a dry session. */
struct rehearsal {
    int positions_max;
    nb_session_body *body;
    void *context;
};

/* The first time, the run's device is opened for the products that came up. */
static nb_status rehearse(struct nb_run *run, void *context, struct nb_measure *measured)
{
    const struct rehearsal *r = context;
    const struct nb_session_args args = {.dry = true, .positions_max = r->positions_max};
    struct nb_session *session = NULL;
    int library = run->profile.cublaslt_version;
    *measured = (struct nb_measure){0};
    NB_TRY(nb_session_open(run, &args, &session));
    nb_status status = r->body(session, r->context);
    if (status == NB_OK) {
        int sites;
        const struct nb_product_site *site = nb_dry_device_sites(session->device, &sites);
        status = nb_run_open_device(run, site, sites);
    }
    if (status == NB_OK && run->profile.cublaslt_version != library) {
        nb_session_close(&session);
        return rehearse(run, context, measured); /* this one was for another way to multiply */
    }
    nb_measure_session(session, measured);
    nb_session_close(&session);
    return status;
}

nb_status nb_session_run(
    struct nb_run *run, int positions_max, nb_session_body *body, void *context, uint64_t *planned)
{
    struct rehearsal r = {.positions_max = positions_max, .body = body, .context = context};
    struct nb_session *session = NULL;
    struct nb_measure measured;
    NB_TRY(nb_fit_search(run, rehearse, &r));
    NB_TRY(rehearse(run, &r, &measured));
    NB_TRY(nb_fit_check(run, &measured, rehearse, &r));
    const struct nb_session_args args = {.capacity = measured.peak_bytes, .pinned_capacity = measured.pinned_bytes,
        .pageable_capacity = measured.pageable_bytes, .host = &measured.host, .positions_max = positions_max,
        .shows_progress = true};
    if (planned)
        *planned = args.capacity;
    NB_TRY(nb_session_open(run, &args, &session));
    nb_status status = body(session, context);
    nb_session_close(&session);
    return status;
}
