/* Streams, events, copies and memory of the CPU device.
 *
 * Immediate mode: every call does its work before it returns, so a stream is a name and an event a flag.
 * Deferred mode (tests): work is copied into its stream's queue and done in a host wait: of a randomly chosen stream
 * whose head may run as many items as are drawn with it, from one to hundreds, so that others fall far behind. Device
 * memory has no access rights except while an item is at work, and each slab ends at a guard page. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/random.h"
#include "device/cpu/cpu.h"

/* Held by its creator and by every queued item that names it. */
struct nb_event {
    uint64_t recorded; /* how often event_record was called */
    uint64_t passed;   /* which of these records the work has passed */
    int holders;
};

/* One piece of deferred work. */
struct item {
    struct item *next;
    nb_cpu_run *run; /* NULL: pass or await `event` */
    struct nb_event *event;
    uint64_t ticket; /* of `event` */
    bool awaits;     /* else records */
    unsigned char args[] __attribute__((aligned(16)));
};

struct nb_stream {
    struct nb_stream *next; /* in the queue's list */
    struct item *first, *last;
    nb_status failed; /* of work done, not yet reported */
    char *message;
};

/* A stretch of device memory in deferred mode. */
struct slab {
    struct slab *next;
    unsigned char *map;
    uint64_t map_bytes, usable_bytes; /* the last page is the guard */
    uint64_t address;
};

struct nb_cpu_queue {
    struct nb_stream *streams;
    struct slab *slabs;
    struct nb_stream *favoured; /* goes on while it may, for so many items */
    uint32_t favoured_items;
    uint64_t seed, choices;
};

struct copy {
    void *to;
    const void *from; /* NULL: zeros */
    uint64_t bytes;
};

static nb_status no_memory(const char *what)
{
    return nb_fail(NB_MEMORY, "no memory for %s of the CPU device", what);
}

/* ---- errors of work ---- */

void nb_cpu_work_failed(struct nb_cpu *cpu, nb_status status)
{
    struct nb_stream *stream = cpu->running;
    if (stream->failed != NB_OK)
        return;
    stream->failed = status;
    stream->message = strdup(nb_status_message());
}

static nb_status report(struct nb_stream *stream)
{
    nb_status status = stream->failed;
    if (status != NB_OK)
        nb_fail(status, "%s", stream->message ? stream->message : "work on the CPU device failed");
    stream->failed = NB_OK;
    free(stream->message);
    stream->message = NULL;
    return status;
}

/* ---- memory ---- */

static nb_status immediate_memory_take(struct nb_device *device, uint64_t bytes, nb_dptr *pointer)
{
    (void)device;
    void *memory = NULL;
    if (bytes > SIZE_MAX || posix_memalign(&memory, 256, bytes ? bytes : 1) != 0)
        return nb_fail(NB_MEMORY,
            "the machine has no %llu bytes of memory left for the CPU device; lower sequence_len, "
            "micro_batch_size or memory_budget",
            (unsigned long long)bytes);
    pointer->address = (uintptr_t)memory;
    return NB_OK;
}

static void immediate_memory_give_back(struct nb_device *device, nb_dptr pointer)
{
    (void)device;
    free(nb_cpu_pointer(pointer));
}

static nb_status deferred_memory_take(struct nb_device *device, uint64_t bytes, nb_dptr *pointer)
{
    struct nb_cpu_queue *queue = ((struct nb_cpu *)device)->queue;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t usable = (bytes + page - 1) / page * page, used = nb_aligned(bytes);
    struct slab *slab = malloc(sizeof *slab);
    if (!slab)
        return no_memory("a slab");
    void *map = mmap(NULL, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        free(slab);
        return nb_fail_errno("mapping %llu bytes for the CPU device", (unsigned long long)bytes);
    }
    memset(map, 0xff, usable); /* NaN in every dtype, so that what nobody wrote shows */
    mprotect(map, usable + page, PROT_NONE);
    *slab = (struct slab){.next = queue->slabs, .map = map, .map_bytes = usable + page, .usable_bytes = usable};
    slab->address = (uintptr_t)slab->map + usable - used;
    queue->slabs = slab;
    pointer->address = slab->address;
    return NB_OK;
}

static void deferred_memory_give_back(struct nb_device *device, nb_dptr pointer)
{
    struct nb_cpu_queue *queue = ((struct nb_cpu *)device)->queue;
    for (struct slab **link = &queue->slabs; *link; link = &(*link)->next) {
        struct slab *slab = *link;
        if (slab->address == pointer.address) {
            *link = slab->next;
            munmap(slab->map, slab->map_bytes);
            free(slab);
            return;
        }
    }
}

static void set_access(const struct nb_cpu_queue *queue, int rights)
{
    for (const struct slab *slab = queue->slabs; slab; slab = slab->next)
        if (slab->usable_bytes)
            mprotect(slab->map, slab->usable_bytes, rights);
}

static nb_status host_take(struct nb_device *device, uint64_t bytes, void **memory)
{
    (void)device;
    if (bytes > SIZE_MAX || posix_memalign(memory, 256, bytes ? bytes : 1) != 0)
        return nb_fail(NB_MEMORY, "the machine has no %llu bytes of memory left", (unsigned long long)bytes);
    return NB_OK;
}

static void host_give_back(struct nb_device *device, void *memory)
{
    (void)device;
    free(memory);
}

/* ---- the queues ---- */

static void event_let_go(struct nb_event *event)
{
    if (event && --event->holders == 0)
        free(event);
}

static bool may_run(const struct nb_stream *stream)
{
    const struct item *item = stream->first;
    return item && !(item->awaits && item->event->passed < item->ticket);
}

/* Does the first item of `stream`. */
static void run_first(struct nb_cpu *cpu, struct nb_stream *stream)
{
    struct item *item = stream->first;
    stream->first = item->next;
    if (!stream->first)
        stream->last = NULL;
    if (item->run) {
        cpu->running = stream;
        set_access(cpu->queue, PROT_READ | PROT_WRITE);
        item->run(cpu, item->args);
        set_access(cpu->queue, PROT_NONE);
    } else if (!item->awaits) {
        item->event->passed = item->ticket;
    }
    event_let_go(item->event);
    free(item);
}

enum { BURSTS = 10 }; /* lengths, powers of two */

/* The stream whose first item comes next; there is one that may run. */
static struct nb_stream *choose(struct nb_cpu_queue *queue)
{
    uint32_t runnable = 0;
    if (queue->favoured && queue->favoured_items > 0 && may_run(queue->favoured)) {
        queue->favoured_items--;
        return queue->favoured;
    }
    for (const struct nb_stream *s = queue->streams; s; s = s->next)
        runnable += may_run(s);
    uint32_t chosen = nb_random_below(queue->seed, NB_RANDOM_SHUFFLE, 0, queue->choices++, runnable);
    uint32_t burst = nb_random_below(queue->seed, NB_RANDOM_SHUFFLE, 0, queue->choices++, BURSTS);
    struct nb_stream *s = queue->streams;
    while (!may_run(s) || chosen-- > 0)
        s = s->next;
    queue->favoured = s;
    queue->favoured_items = (1u << burst) - 1;
    return s;
}

/* Runs items of randomly chosen streams until `stream` has none left. The oldest item of all can always run: an await
 * names a record that was enqueued before it. */
static void run_until_empty(struct nb_cpu *cpu, const struct nb_stream *stream)
{
    struct nb_cpu_queue *queue = cpu->queue;
    while (stream->first)
        run_first(cpu, choose(queue));
}

/* Appends an item with room for `bytes` of args. NULL when memory is out. */
static struct item *append(struct nb_stream *stream, uint64_t bytes)
{
    struct item *item = calloc(1, sizeof *item + bytes);
    if (!item)
        return NULL;
    if (stream->last)
        stream->last->next = item;
    else
        stream->first = item;
    stream->last = item;
    return item;
}

nb_status nb_cpu_enqueue(
    struct nb_cpu *cpu, struct nb_stream *stream, nb_cpu_run *run, const void *args, uint64_t bytes)
{
    if (!cpu->queue) {
        cpu->running = stream;
        run(cpu, args);
        return NB_OK;
    }
    struct item *item = append(stream, bytes);
    if (!item)
        return no_memory("a queued op");
    item->run = run;
    memcpy(item->args, args, bytes);
    return NB_OK;
}

/* ---- streams and events ---- */

static nb_status stream_create(struct nb_device *device, struct nb_stream **stream)
{
    struct nb_cpu_queue *queue = ((struct nb_cpu *)device)->queue;
    *stream = calloc(1, sizeof **stream);
    if (!*stream)
        return no_memory("a stream");
    if (queue) {
        (*stream)->next = queue->streams;
        queue->streams = *stream;
    }
    return NB_OK;
}

static void stream_destroy(struct nb_device *device, struct nb_stream **stream)
{
    struct nb_cpu *cpu = (struct nb_cpu *)device;
    if (!*stream)
        return;
    if (cpu->queue) {
        run_until_empty(cpu, *stream);
        if (cpu->queue->favoured == *stream)
            cpu->queue->favoured = NULL;
        struct nb_stream **link = &cpu->queue->streams;
        while (*link != *stream)
            link = &(*link)->next;
        *link = (*stream)->next;
    }
    free((*stream)->message);
    free(*stream);
    *stream = NULL;
}

static nb_status event_create(struct nb_device *device, struct nb_event **event)
{
    (void)device;
    *event = calloc(1, sizeof **event);
    if (!*event)
        return no_memory("an event");
    (*event)->holders = 1;
    return NB_OK;
}

static void event_destroy(struct nb_device *device, struct nb_event **event)
{
    (void)device;
    event_let_go(*event);
    *event = NULL;
}

/* Queues the passing or the awaiting of the event's latest record. */
static nb_status append_event(struct nb_stream *stream, struct nb_event *event, bool awaits)
{
    struct item *item = append(stream, 0);
    if (!item)
        return no_memory("a queued event");
    item->event = event;
    item->ticket = event->recorded;
    item->awaits = awaits;
    event->holders++;
    return NB_OK;
}

static nb_status event_record(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    event->recorded++;
    if (((struct nb_cpu *)device)->queue)
        return append_event(stream, event, false);
    event->passed = event->recorded;
    return NB_OK;
}

static nb_status stream_wait_event(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    if (event->recorded == 0)
        return nb_fail(
            NB_UNSUPPORTED, "a stream is to wait for an event that no stream has recorded: it would wait for ever");
    return ((struct nb_cpu *)device)->queue ? append_event(stream, event, true) : NB_OK;
}

static nb_status stream_wait(struct nb_device *device, struct nb_stream *stream)
{
    struct nb_cpu *cpu = (struct nb_cpu *)device;
    if (cpu->queue)
        run_until_empty(cpu, stream);
    return report(stream);
}

/* ---- copies ---- */

static void run_copy(struct nb_cpu *cpu, const void *args)
{
    const struct copy *copy = args;
    (void)cpu;
    if (!copy->from)
        memset(copy->to, 0, copy->bytes);
    else
        memcpy(copy->to, copy->from, copy->bytes);
}

static nb_status enqueue_copy(
    struct nb_device *device, struct nb_stream *stream, void *to, const void *from, uint64_t bytes)
{
    struct copy copy = {to, from, bytes};
    return bytes ? nb_cpu_enqueue((struct nb_cpu *)device, stream, run_copy, &copy, sizeof copy) : NB_OK;
}

static nb_status upload(
    struct nb_device *device, struct nb_stream *stream, nb_dptr to, const void *from, uint64_t bytes)
{
    return enqueue_copy(device, stream, nb_cpu_pointer(to), from, bytes);
}

static nb_status download(struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    return enqueue_copy(device, stream, to, nb_cpu_pointer(from), bytes);
}

static nb_status copy(struct nb_device *device, struct nb_stream *stream, nb_dptr to, nb_dptr from, uint64_t bytes)
{
    return enqueue_copy(device, stream, nb_cpu_pointer(to), nb_cpu_pointer(from), bytes);
}

static nb_status fill_zero(struct nb_device *device, struct nb_stream *stream, nb_dptr to, uint64_t bytes)
{
    return enqueue_copy(device, stream, nb_cpu_pointer(to), NULL, bytes);
}

/* ---- life ---- */

nb_status nb_cpu_queue_install(struct nb_cpu *cpu, const struct nb_cpu_options *options)
{
    struct nb_device *base = &cpu->base;
    if (options->deferred) {
        cpu->queue = calloc(1, sizeof *cpu->queue);
        if (!cpu->queue)
            return no_memory("the queues");
        cpu->queue->seed = options->deferred_seed;
    }
    base->memory_take = options->deferred ? deferred_memory_take : immediate_memory_take;
    base->memory_give_back = options->deferred ? deferred_memory_give_back : immediate_memory_give_back;
    base->host_take = host_take;
    base->host_give_back = host_give_back;
    base->stream_create = stream_create;
    base->stream_destroy = stream_destroy;
    base->event_create = event_create;
    base->event_destroy = event_destroy;
    base->event_record = event_record;
    base->stream_wait_event = stream_wait_event;
    base->stream_wait = stream_wait;
    base->upload = upload;
    base->download = download;
    base->copy = copy;
    base->fill_zero = fill_zero;
    return NB_OK;
}

void nb_cpu_queue_destroy(struct nb_cpu *cpu)
{
    if (!cpu->queue)
        return;
    while (cpu->queue->streams) {
        struct nb_stream *stream = cpu->queue->streams;
        stream_destroy(&cpu->base, &stream);
    }
    while (cpu->queue->slabs)
        deferred_memory_give_back(&cpu->base, (nb_dptr){cpu->queue->slabs->address});
    free(cpu->queue);
    cpu->queue = NULL;
}
