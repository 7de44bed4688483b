/* The dry device: a named target's stand-in for planning. It owns no device memory and runs nothing; it checks every
 * op's args, counts, and answers for scratch as the target does. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device/cpu/cpu.h"
#include "device/cuda/plan.h"

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
};

struct nb_stream {
    char unused;
};

struct nb_event {
    bool recorded;
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
    (void)stream;
    event->recorded = true;
    return NB_OK;
}

static nb_status stream_wait_event(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    (void)device;
    (void)stream;
    if (!event->recorded)
        return nb_fail(
            NB_UNSUPPORTED, "a stream is to wait for an event that no stream has recorded: it would wait for ever");
    return NB_OK;
}

static nb_status stream_wait(struct nb_device *device, struct nb_stream *stream)
{
    (void)device;
    (void)stream;
    return NB_OK;
}

static nb_status upload(
    struct nb_device *device, struct nb_stream *stream, nb_dptr to, const void *from, uint64_t bytes)
{
    (void)stream;
    (void)to;
    (void)from;
    dry_of(device)->counts.copied_bytes += bytes;
    return NB_OK;
}

static nb_status download(struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    (void)stream;
    (void)to;
    (void)from;
    dry_of(device)->counts.copied_bytes += bytes;
    return NB_OK;
}

static nb_status copy(struct nb_device *device, struct nb_stream *stream, nb_dptr to, nb_dptr from, uint64_t bytes)
{
    (void)stream;
    (void)to;
    (void)from;
    dry_of(device)->counts.copied_bytes += bytes;
    return NB_OK;
}

static nb_status fill_zero(struct nb_device *device, struct nb_stream *stream, nb_dptr to, uint64_t bytes)
{
    (void)device;
    (void)stream;
    (void)to;
    (void)bytes;
    return NB_OK;
}

/* ---- floating-point operations, with tokens_max valid rows: 2 a multiplication and addition ---- */

/* A part's product, and its adapter's where there is one; the sums over `out` (dx) cost what those over `in` do. */
static double part_flops(const struct nb_linear_part *part, int rows, int in)
{
    double adapter = nb_dptr_is_null(part->lora.a) ? 0 : (double)part->lora.rank * ((double)in + part->out);
    return 2.0 * rows * ((double)in * part->out + adapter);
}

static double flops_linear(const struct nb_linear *a)
{
    double flops = 0;
    for (int p = 0; p < a->parts; p++)
        flops += part_flops(&a->part[p], a->tokens_max, a->in);
    return flops;
}

static double flops_linear_backward(const struct nb_linear_backward *a)
{
    double flops = 0;
    for (int p = 0; p < a->parts; p++) {
        double whole = part_flops(&a->part[p], a->tokens_max, a->in),
               weight = 2.0 * a->tokens_max * (double)a->in * a->part[p].out;
        double adapter = whole - weight; /* u and dx's share; as much again for da and db */
        flops += nb_dptr_is_null(a->dx) ? 1.5 * adapter : weight + 2 * adapter;
    }
    return flops;
}

/* Pairs of a query and a key it sees, if the tokens are sequences of longest_max. */
static double attention_pairs(int tokens, int longest, int window)
{
    double seen = window > 0 && window < longest ? window - (double)window * window / (2.0 * longest) : longest / 2.0;
    return (double)tokens * seen;
}

static double flops_attention(const struct nb_attention *a)
{
    return 4.0 * attention_pairs(a->tokens_max, a->longest_max, a->window) * a->heads * a->head_dim;
}

static double flops_attention_backward(const struct nb_attention_backward *a)
{
    return 10.0 * attention_pairs(a->tokens_max, a->longest_max, a->window) * a->heads * a->head_dim;
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

#define FLOPS(args) \
    _Generic((args),                                                                                       \
        const struct nb_linear *: flops_linear((const void *)(args)),                                      \
        const struct nb_linear_backward *: flops_linear_backward((const void *)(args)),                    \
        const struct nb_attention *: flops_attention((const void *)(args)),                                \
        const struct nb_attention_backward *: flops_attention_backward((const void *)(args)),              \
        default: 0.0)

#define DEFINE_OP(name)                                                                                             \
    static nb_status enter_##name(struct nb_device *device, struct nb_stream *stream, const struct nb_##name *args) \
    {                                                                                                               \
        (void)stream;                                                                                               \
        NB_TRY(nb_check_##name(args));                                                                              \
        dry_of(device)->counts.ops++;                                                                               \
        dry_of(device)->counts.flops += FLOPS(args);                                                                \
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
