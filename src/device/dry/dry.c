/* The dry device: a named target's stand-in for planning. It owns no device memory and runs nothing; it checks every
 * op's args, counts, and answers for scratch as the target does.
 *
 * It also keeps time. A stream has a clock, an event holds the one of the stream that recorded it, and each of the
 * target's engines (arithmetic with the device's memory, copies to the device, copies from it) does one thing at a
 * time, in the order in which it is enqueued: work begins when its stream, its engine and the host are there, and takes
 *   an op      prepared bytes / memory rate + max(operations / arithmetic rate, bytes / memory rate)
 *   a copy     bytes / link rate, or twice the bytes / memory rate within the device
 * (Williams et al. 2009, the roofline model). So what overlaps and what waits is what the schedule itself makes of it.
 * The rates are the profile's, which nothing reaches, and launches cost nothing: the seconds are a lower bound. Where a
 * rate is 0 it is unknown, and no time passes. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device/cpu/cpu.h"
#include "device/cuda/plan.h"
#include "device/dry/work.h"

/* Memory is only an address and its size. */
struct slab {
    struct slab *next;
    uint64_t address, bytes;
};

struct dry {
    struct nb_device base; /* first: a struct nb_device * is cast to this */
    struct nb_dry_counts counts;
    struct slab *device_slabs, *host_slabs;
    uint64_t next_address;
    struct nb_product_site *site; /* [sites], of a CUDA target */
    int sites, sites_capacity;
    int times;                      /* that what is enqueued counts */
    double free_at[NB_DRY_ENGINES]; /* when an engine has done what is enqueued, in seconds */
};

struct nb_stream {
    double now; /* when it has done what is enqueued */
};

struct nb_event {
    bool recorded;
    double at;
};

static struct dry *dry_of(struct nb_device *device)
{
    return (struct dry *)device;
}

/* ---- memory ---- */

static nb_status enter_slab(struct slab **list, uint64_t *counted, uint64_t bytes, uint64_t address)
{
    struct slab *slab = malloc(sizeof *slab);
    if (!slab)
        return nb_fail(NB_MEMORY, "no memory for the dry device's list of slabs");
    *slab = (struct slab){.next = *list, .address = address, .bytes = bytes};
    *list = slab;
    *counted += bytes;
    return NB_OK;
}

/* The slab's bytes. */
static uint64_t leave_slab(struct slab **list, uint64_t *counted, uint64_t address)
{
    struct slab **link = list;
    while ((*link)->address != address)
        link = &(*link)->next;
    struct slab *slab = *link;
    uint64_t bytes = slab->bytes;
    *link = slab->next;
    *counted -= bytes;
    free(slab);
    return bytes;
}

static nb_status memory_take(struct nb_device *device, uint64_t bytes, nb_dptr *pointer)
{
    struct dry *dry = dry_of(device);
    pointer->address = dry->next_address;
    dry->next_address += bytes / 256 * 256 + 512; /* 256-byte aligned, never adjacent */
    return enter_slab(&dry->device_slabs, &dry->counts.memory_bytes, bytes, pointer->address);
}

static void memory_give_back(struct nb_device *device, nb_dptr pointer)
{
    struct dry *dry = dry_of(device);
    if (!nb_dptr_is_null(pointer))
        leave_slab(&dry->device_slabs, &dry->counts.memory_bytes, pointer.address);
}

/* Host memory is real, for the host writes batches into it, but costs only the pages that are touched. */
static nb_status host_take(struct nb_device *device, uint64_t bytes, void **memory)
{
    struct dry *dry = dry_of(device);
    void *map =
        mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return nb_fail(
            NB_MEMORY, "the machine has no room to plan with %llu bytes of host memory", (unsigned long long)bytes);
    nb_status status = enter_slab(&dry->host_slabs, &dry->counts.host_bytes, bytes, (uintptr_t)map);
    if (status != NB_OK)
        munmap(map, bytes ? bytes : 1);
    if (dry->counts.host_bytes > dry->counts.host_bytes_max)
        dry->counts.host_bytes_max = dry->counts.host_bytes;
    *memory = map;
    return status;
}

static void host_give_back(struct nb_device *device, void *memory)
{
    struct dry *dry = dry_of(device);
    if (!memory)
        return;
    uint64_t bytes = leave_slab(&dry->host_slabs, &dry->counts.host_bytes, (uintptr_t)memory);
    munmap(memory, bytes ? bytes : 1);
}

/* ---- time ---- */

static double seconds_for(double amount, double rate)
{
    return rate > 0 ? amount / rate : 0;
}

static void spend(struct dry *dry, struct nb_stream *stream, enum nb_dry_engine engine, double seconds)
{
    double begin = stream->now > dry->counts.seconds ? stream->now : dry->counts.seconds;
    if (dry->free_at[engine] > begin)
        begin = dry->free_at[engine];
    stream->now = dry->free_at[engine] = begin + dry->times * seconds;
    dry->counts.busy[engine] += dry->times * seconds;
}

static void repeat(struct nb_device *device, int times)
{
    dry_of(device)->times = times;
}

static double memory_rate(const struct dry *dry)
{
    return 1e9 * (double)dry->base.profile.memory_gb_per_s;
}

static double link_rate(const struct dry *dry)
{
    return 1e9 * (double)dry->base.profile.link_gb_per_s;
}

static void compute(struct dry *dry, struct nb_stream *stream, struct nb_dry_work work)
{
    double arithmetic = seconds_for(work.flops, 1e12 * (double)dry->base.profile.bf16_tflops);
    double memory = seconds_for(work.bytes, memory_rate(dry));
    double prepared = seconds_for(work.prepared_bytes, memory_rate(dry));
    spend(dry, stream, NB_DRY_COMPUTE, prepared + (arithmetic > memory ? arithmetic : memory));
    dry->counts.flops += dry->times * work.flops;
}

/* ---- streams, events, copies ---- */

static nb_status stream_create(struct nb_device *device, struct nb_stream **stream)
{
    (void)device;
    *stream = calloc(1, sizeof **stream);
    return *stream ? NB_OK : nb_fail(NB_MEMORY, "no memory for a stream");
}

static void stream_destroy(struct nb_device *device, struct nb_stream **stream)
{
    (void)device;
    free(*stream);
    *stream = NULL;
}

static nb_status event_create(struct nb_device *device, struct nb_event **event)
{
    (void)device;
    *event = calloc(1, sizeof **event);
    return *event ? NB_OK : nb_fail(NB_MEMORY, "no memory for an event");
}

static void event_destroy(struct nb_device *device, struct nb_event **event)
{
    (void)device;
    free(*event);
    *event = NULL;
}

static nb_status event_record(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    (void)device;
    event->recorded = true;
    event->at = stream->now;
    return NB_OK;
}

static nb_status stream_wait_event(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    (void)device;
    if (!event->recorded)
        return nb_fail(
            NB_UNSUPPORTED, "a stream is to wait for an event that no stream has recorded: it would wait for ever");
    if (event->at > stream->now)
        stream->now = event->at;
    return NB_OK;
}

static nb_status stream_wait(struct nb_device *device, struct nb_stream *stream)
{
    struct dry *dry = dry_of(device);
    if (stream->now > dry->counts.seconds)
        dry->counts.seconds = stream->now;
    return NB_OK;
}

static nb_status upload(
    struct nb_device *device, struct nb_stream *stream, nb_dptr to, const void *from, uint64_t bytes)
{
    struct dry *dry = dry_of(device);
    (void)to;
    (void)from;
    dry->counts.uploaded_bytes += (uint64_t)dry->times * bytes;
    spend(dry, stream, NB_DRY_UPLOAD, seconds_for((double)bytes, link_rate(dry)));
    return NB_OK;
}

static nb_status download(struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    struct dry *dry = dry_of(device);
    (void)to;
    (void)from;
    dry->counts.downloaded_bytes += (uint64_t)dry->times * bytes;
    spend(dry, stream, NB_DRY_DOWNLOAD, seconds_for((double)bytes, link_rate(dry)));
    return NB_OK;
}

static nb_status copy(struct nb_device *device, struct nb_stream *stream, nb_dptr to, nb_dptr from, uint64_t bytes)
{
    struct dry *dry = dry_of(device);
    (void)to;
    (void)from;
    spend(dry, stream, NB_DRY_COMPUTE, seconds_for(2 * (double)bytes, memory_rate(dry)));
    return NB_OK;
}

static nb_status fill_zero(struct nb_device *device, struct nb_stream *stream, nb_dptr to, uint64_t bytes)
{
    struct dry *dry = dry_of(device);
    (void)to;
    spend(dry, stream, NB_DRY_COMPUTE, seconds_for((double)bytes, memory_rate(dry)));
    return NB_OK;
}

/* ---- the products of a CUDA target ---- */

static nb_status add_site(struct dry *dry, const struct nb_product_site *new)
{
    for (int i = 0; i < dry->sites; i++) {
        const struct nb_product_site *s = &dry->site[i];
        if (s->out == new->out && s->in == new->in && s->tokens == new->tokens && s->backward == new->backward &&
            s->format == new->format && memcmp(s->part_out, new->part_out, sizeof s->part_out) == 0)
            return NB_OK;
    }
    if (dry->sites == dry->sites_capacity) {
        int capacity = dry->sites_capacity ? 2 * dry->sites_capacity : 16;
        struct nb_product_site *site = realloc(dry->site, (size_t)capacity * sizeof *site);
        if (!site)
            return nb_fail(NB_MEMORY, "no memory for the dry device's list of products");
        dry->site = site;
        dry->sites_capacity = capacity;
    }
    dry->site[dry->sites++] = *new;
    return NB_OK;
}

/* What the few-token kernel takes has no choice of ways. */
static nb_status sites_linear(struct dry *dry, const struct nb_linear *a)
{
    for (int p = 0; dry->base.profile.kind == NB_DEVICE_CUDA && !nb_linear_is_few(a) && p < a->parts; p++) {
        struct nb_product_site site = nb_linear_site(a, p);
        NB_TRY(add_site(dry, &site));
    }
    return NB_OK;
}

/* dX is one product with all parts' matrices. */
static nb_status sites_linear_backward(struct dry *dry, const struct nb_linear_backward *a)
{
    if (dry->base.profile.kind != NB_DEVICE_CUDA || nb_dptr_is_null(a->dx))
        return NB_OK;
    struct nb_product_site site = nb_linear_backward_site(a);
    return add_site(dry, &site);
}

#define SITES(dry, args)                                                                                     \
    _Generic((args),                                                                                         \
        const struct nb_linear *: sites_linear(dry, (const void *)(args)),                                   \
        const struct nb_linear_backward *: sites_linear_backward(dry, (const void *)(args)),                 \
        default: NB_OK)

#define DEFINE_OP(name)                                                                                             \
    static nb_status enter_##name(struct nb_device *device, struct nb_stream *stream, const struct nb_##name *args) \
    {                                                                                                               \
        NB_TRY(nb_check_##name(args));                                                                              \
        dry_of(device)->counts.ops += (uint64_t)dry_of(device)->times;                                              \
        compute(dry_of(device), stream, nb_dry_work_of_##name(&device->profile, args));                             \
        return SITES(dry_of(device), args);                                                                         \
    }
NB_OPS(DEFINE_OP)

/* ---- life ---- */

static void destroy(struct nb_device *device)
{
    struct dry *dry = dry_of(device);
    while (dry->device_slabs)
        leave_slab(&dry->device_slabs, &dry->counts.memory_bytes, dry->device_slabs->address);
    while (dry->host_slabs)
        host_give_back(device, (void *)(uintptr_t)dry->host_slabs->address);
    free(dry->site);
    free(dry);
}

nb_status nb_dry_device_create(const struct nb_device_profile *target, struct nb_device **device)
{
    struct dry *dry = calloc(1, sizeof *dry);
    if (!dry)
        return nb_fail(NB_MEMORY, "no memory for the dry device");
    dry->next_address = 1 << 20;
    dry->times = 1;
    dry->base = (struct nb_device){
        .profile = *target,
        .dry = true,
        .memory_take = memory_take,
        .memory_give_back = memory_give_back,
        .host_take = host_take,
        .host_give_back = host_give_back,
        .stream_create = stream_create,
        .stream_destroy = stream_destroy,
        .event_create = event_create,
        .event_destroy = event_destroy,
        .event_record = event_record,
        .stream_wait_event = stream_wait_event,
        .stream_wait = stream_wait,
        .upload = upload,
        .download = download,
        .copy = copy,
        .fill_zero = fill_zero,
        .repeat = repeat,
        .destroy = destroy,
    };
#define ENTER_OP(name)             \
    dry->base.name = enter_##name; \
    dry->base.name##_scratch_bytes =  \
        target->kind == NB_DEVICE_CUDA ? nb_cuda_##name##_scratch_bytes : nb_cpu_##name##_scratch_bytes;
    NB_OPS(ENTER_OP)
    *device = &dry->base;
    return NB_OK;
}

const struct nb_product_site *nb_dry_device_sites(const struct nb_device *device, int *count)
{
    const struct dry *dry = (const struct dry *)device;
    *count = dry->sites;
    return dry->site;
}

const struct nb_dry_counts *nb_dry_device_counts(const struct nb_device *device)
{
    return &((const struct dry *)device)->counts;
}
