/* The CUDA device: set-up and end, memory, streams, events, copies, graphs, timers, and the table of ops. */
#include "cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cuda/cublaslt.cuh"
#include "cuda/probe.cuh"
#include "device/cuda/driver_share.h"

struct nb_event {
    cudaEvent_t event;
};

struct nb_graph {
    cudaGraphExec_t exec;
};

static void *address_of(nb_dptr pointer)
{
    return (void *)(uintptr_t)pointer.address;
}

/* ---- launching ---- */

#ifndef NB_EMULATED
enum { PLAIN_SHARED_BYTES = 48 * 1024 }; /* what every kernel may have without being loaded for more */

nb_status nb_cuda_launch_erased(const char *name, const void *kernel, struct nb_launch launch, cudaStream_t stream, void **arguments)
{
    if (launch.grid.x == 0 || launch.grid.y == 0 || launch.grid.z == 0)
        return NB_OK;
    cudaError_t error =
        cudaLaunchKernel(kernel, launch.grid, dim3((unsigned)launch.threads), arguments, (size_t)launch.shared_bytes, stream);
    if (error == cudaSuccess)
        return NB_OK;
    char doing[160];
    snprintf(doing, sizeof doing, "launching %s (%u x %u x %u blocks of %d threads, %d bytes of shared memory)", name, launch.grid.x,
             launch.grid.y, launch.grid.z, launch.threads, launch.shared_bytes);
    return nb_cuda_status(error, doing);
}

nb_status nb_cuda_load_erased(const char *name, const void *kernel, int shared_bytes)
{
    char doing[160];
    struct cudaFuncAttributes attributes;
    snprintf(doing, sizeof doing, "loading %s", name);
    NB_TRY(nb_cuda_status(cudaFuncGetAttributes(&attributes, kernel), doing));
    if (shared_bytes <= PLAIN_SHARED_BYTES)
        return NB_OK;
    snprintf(doing, sizeof doing, "loading %s with %d bytes of shared memory a block", name, shared_bytes);
    return nb_cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), doing);
}
#endif

/* ---- memory ---- */

static nb_status memory_take(struct nb_device *device, uint64_t bytes, nb_dptr *pointer)
{
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&available, &total);
        return nb_fail(NB_MEMORY,
                       "%s has %.1f of %.1f MiB free, and %.1f MiB are needed at once: end other programs that use it "
                       "(`nvidia-smi` lists them), or lower sequence_len, micro_batch_size or memory_budget",
                       device->profile.name, 0x1p-20 * (double)available, 0x1p-20 * (double)total, 0x1p-20 * (double)bytes);
    }
    NB_TRY(nb_cuda_status(error, "taking the GPU's memory"));
    pointer->address = (uintptr_t)memory;
    return NB_OK;
}

static void memory_give_back(struct nb_device *device, nb_dptr pointer)
{
    (void)device;
    (void)cudaFree(address_of(pointer));
}

/* Ahead of host memory that was given: which kind it is. */
struct host_block {
    bool pinned;
};

enum { HOST_BLOCK_BYTES = NB_ALIGNMENT };

static_assert(sizeof(struct host_block) <= HOST_BLOCK_BYTES, "host memory stays aligned behind its head");

static nb_status host_take(struct nb_device *device, uint64_t bytes, void **memory)
{
    size_t all = bytes + HOST_BLOCK_BYTES;
    void *block = NULL;
    cudaError_t error = cudaErrorMemoryAllocation;
    *memory = NULL;
    if (device->host_memory != NB_HOST_PAGEABLE)
        error = cudaHostAlloc(&block, all, cudaHostAllocDefault);
    if (error != cudaSuccess && error != cudaErrorMemoryAllocation)
        return nb_cuda_status(error, "pinning host memory");
    bool pinned = error == cudaSuccess;
    if (!pinned && device->host_memory != NB_HOST_PAGEABLE) {
        (void)cudaGetLastError();
        nb_fail(NB_MEMORY,
                "the machine cannot pin %.1f MiB of its memory for copies to the GPU: free some, or raise what a container or virtual "
                "machine sets",
                0x1p-20 * (double)bytes);
        if (device->host_memory == NB_HOST_PINNED)
            return NB_MEMORY;
        nb_warn("%s; pageable memory serves instead, and copies are slower", nb_status_message());
        device->host_memory = NB_HOST_PAGEABLE;
    }
    if (!pinned && posix_memalign(&block, NB_ALIGNMENT, all) != 0)
        return nb_fail(NB_MEMORY, "the machine has no %.1f MiB of memory for copies to the GPU", 0x1p-20 * (double)bytes);
    *(struct host_block *)block = {pinned};
    *memory = (char *)block + HOST_BLOCK_BYTES;
    return NB_OK;
}

static void host_give_back(struct nb_device *device, void *memory)
{
    (void)device;
    if (!memory)
        return;
    struct host_block *block = (struct host_block *)((char *)memory - HOST_BLOCK_BYTES);
    if (block->pinned)
        (void)cudaFreeHost(block);
    else
        free(block);
}

static nb_status memory_available(struct nb_device *device, uint64_t *bytes)
{
    size_t available = 0, total = 0;
    (void)device;
    NB_TRY(nb_cuda_status(cudaMemGetInfo(&available, &total), "asking for the GPU's free memory"));
    *bytes = available > NB_CUDA_KEPT_BACK_BYTES ? available - NB_CUDA_KEPT_BACK_BYTES : 0;
    return NB_OK;
}

/* ---- streams and events ---- */

/* What a kernel found since the last wait, told once. The word is the whole device's: whichever stream is waited for
 * first reports it. */
static nb_status report_fault(struct nb_cuda *cuda)
{
    struct nb_cuda_fault fault = *cuda->fault;
    if (fault.code == NB_CUDA_FAULT_NONE)
        return NB_OK;
    memset(cuda->fault, 0, sizeof *cuda->fault);
    return nb_cuda_fault_status(&fault);
}

static nb_status stream_create(struct nb_device *device, struct nb_stream **stream)
{
    (void)device;
    struct nb_stream *s = (struct nb_stream *)calloc(1, sizeof *s);
    *stream = NULL;
    if (!s)
        return nb_fail(NB_MEMORY, "no memory for a stream of the CUDA device");
    nb_status status = nb_cuda_status(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "creating a stream");
    if (status == NB_OK)
        status = nb_cuda_status(cudaEventCreateWithFlags(&s->timer, cudaEventDefault), "creating a stream's timer");
    if (status != NB_OK) {
        if (s->stream)
            (void)cudaStreamDestroy(s->stream);
        free(s);
        return status;
    }
    *stream = s;
    return NB_OK;
}

static void stream_destroy(struct nb_device *device, struct nb_stream **stream)
{
    (void)device;
    struct nb_stream *s = *stream;
    if (!s)
        return;
    (void)cudaStreamSynchronize(s->stream);
    (void)cudaEventDestroy(s->timer);
    (void)cudaStreamDestroy(s->stream);
    free(s);
    *stream = NULL;
}

static nb_status event_create(struct nb_device *device, struct nb_event **event)
{
    (void)device;
    struct nb_event *e = (struct nb_event *)calloc(1, sizeof *e);
    *event = NULL;
    if (!e)
        return nb_fail(NB_MEMORY, "no memory for an event of the CUDA device");
    nb_status status = nb_cuda_status(cudaEventCreateWithFlags(&e->event, cudaEventDisableTiming), "creating an event");
    if (status != NB_OK) {
        free(e);
        return status;
    }
    *event = e;
    return NB_OK;
}

static void event_destroy(struct nb_device *device, struct nb_event **event)
{
    (void)device;
    if (!*event)
        return;
    (void)cudaEventDestroy((*event)->event);
    free(*event);
    *event = NULL;
}

static nb_status event_record(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    (void)device;
    return nb_cuda_status(cudaEventRecord(event->event, stream->stream), "recording an event");
}

static nb_status stream_wait_event(struct nb_device *device, struct nb_stream *stream, struct nb_event *event)
{
    (void)device;
    return nb_cuda_status(cudaStreamWaitEvent(stream->stream, event->event, 0), "letting a stream wait for an event");
}

static nb_status stream_wait(struct nb_device *device, struct nb_stream *stream)
{
    NB_TRY(nb_cuda_status(cudaStreamSynchronize(stream->stream), "waiting for the GPU"));
    return report_fault(nb_cuda_of(device));
}

/* ---- copies ---- */

/* From pageable memory the runtime takes a copy of its own before it returns; from pinned memory it does not. */
static nb_status upload(struct nb_device *device, struct nb_stream *stream, nb_dptr to, const void *from, uint64_t bytes)
{
    (void)device;
    return nb_cuda_status(cudaMemcpyAsync(address_of(to), from, bytes, cudaMemcpyHostToDevice, stream->stream), "copying to the GPU");
}

static nb_status download(struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    (void)device;
    return nb_cuda_status(cudaMemcpyAsync(to, address_of(from), bytes, cudaMemcpyDeviceToHost, stream->stream), "copying from the GPU");
}

static nb_status copy(struct nb_device *device, struct nb_stream *stream, nb_dptr to, nb_dptr from, uint64_t bytes)
{
    (void)device;
    return nb_cuda_status(cudaMemcpyAsync(address_of(to), address_of(from), bytes, cudaMemcpyDeviceToDevice, stream->stream),
                          "copying on the GPU");
}

static nb_status fill_zero(struct nb_device *device, struct nb_stream *stream, nb_dptr to, uint64_t bytes)
{
    (void)device;
    return nb_cuda_status(cudaMemsetAsync(address_of(to), 0, bytes, stream->stream), "zeroing memory of the GPU");
}

/* ---- graphs ---- */

/* Of this thread's calls alone: another thread may take memory meanwhile. */
static nb_status graph_begin(struct nb_device *device, struct nb_stream *stream)
{
    (void)device;
    return nb_cuda_status(cudaStreamBeginCapture(stream->stream, cudaStreamCaptureModeThreadLocal), "beginning to record a graph");
}

/* Instantiated and brought to the GPU at once, so that a launch takes no memory. */
static nb_status graph_end(struct nb_device *device, struct nb_stream *stream, struct nb_graph **graph)
{
    (void)device;
    cudaGraph_t recorded = NULL;
    *graph = NULL;
    NB_TRY(nb_cuda_status(cudaStreamEndCapture(stream->stream, &recorded), "recording a graph"));
    struct nb_graph *g = (struct nb_graph *)calloc(1, sizeof *g);
    nb_status status = g ? NB_OK : nb_fail(NB_MEMORY, "no memory for a graph of the CUDA device");
    if (status == NB_OK)
        status = nb_cuda_status(cudaGraphInstantiate(&g->exec, recorded, 0), "instantiating a graph");
    if (status == NB_OK)
        status = nb_cuda_status(cudaGraphUpload(g->exec, stream->stream), "bringing a graph to the GPU");
    (void)cudaGraphDestroy(recorded);
    if (status == NB_OK) {
        *graph = g;
        return NB_OK;
    }
    if (g && g->exec)
        (void)cudaGraphExecDestroy(g->exec);
    free(g);
    return status;
}

static nb_status graph_launch(struct nb_device *device, struct nb_stream *stream, struct nb_graph *graph)
{
    (void)device;
    return nb_cuda_status(cudaGraphLaunch(graph->exec, stream->stream), "launching a graph");
}

static void graph_destroy(struct nb_device *device, struct nb_graph **graph)
{
    (void)device;
    if (!*graph)
        return;
    (void)cudaGraphExecDestroy((*graph)->exec);
    free(*graph);
    *graph = NULL;
}

/* ---- timers ---- */

nb_status nb_cuda_timer_begin(struct nb_device *device, struct nb_stream *stream)
{
    (void)device;
    return nb_cuda_status(cudaEventRecord(stream->timer, stream->stream), "starting a timer");
}

nb_status nb_cuda_timer_end(struct nb_device *device, struct nb_stream *stream, double *seconds)
{
    cudaEvent_t end = NULL;
    float milliseconds = 0;
    *seconds = 0;
    NB_TRY(nb_cuda_status(cudaEventCreateWithFlags(&end, cudaEventDefault), "creating a timer"));
    nb_status status = nb_cuda_status(cudaEventRecord(end, stream->stream), "stopping a timer");
    if (status == NB_OK)
        status = stream_wait(device, stream);
    if (status == NB_OK)
        status = nb_cuda_status(cudaEventElapsedTime(&milliseconds, stream->timer, end), "reading a timer");
    (void)cudaEventDestroy(end);
    *seconds = 1e-3 * (double)milliseconds;
    return status;
}

/* ---- set-up ---- */

/* Sums over `sum`, in chunks of the output side, the last of which may be smaller; a bf16 matrix, that no scratch
 * holds, as a whole. */
static nb_status prepare_sum(struct nb_cuda *cuda, const struct nb_product_site *site, int sum)
{
    int width = site->backward ? site->in : site->out;
    int chunk = site->format == NB_WEIGHT_BF16 ? width : nb_product_chunk(&cuda->base.profile, site);
    if (width >= chunk)
        NB_TRY(nb_blaslt_prepare(cuda, chunk, sum, !site->backward, site->tokens));
    if (width % chunk)
        NB_TRY(nb_blaslt_prepare(cuda, width % chunk, sum, !site->backward, site->tokens));
    return NB_OK;
}

/* Backward the parts are multiplied together where their dy lie side by side, else each for itself: who calls
 * decides that later. */
static nb_status prepare_site(struct nb_cuda *cuda, const struct nb_product_site *site)
{
    if (site->format != NB_WEIGHT_BF16 && nb_product_path_of(&cuda->base.profile, site) == NB_PRODUCT_FUSED)
        return NB_OK;
    NB_TRY(prepare_sum(cuda, site, site->backward ? site->out : site->in));
    for (int p = 0; p < NB_LINEAR_PARTS && site->backward; p++)
        if (site->part_out[p] > 0)
            NB_TRY(prepare_sum(cuda, site, site->part_out[p]));
    return NB_OK;
}

static nb_status prepare(struct nb_device *device, const struct nb_product_site *sites, int count)
{
    struct nb_cuda *cuda = nb_cuda_of(device);
#define PREPARE(name) NB_TRY(nb_cuda_prepare_##name(cuda));
    NB_OPS(PREPARE)
#undef PREPARE
    for (int i = 0; cuda->blaslt && i < count; i++)
        NB_TRY(prepare_site(cuda, &sites[i]));
    return NB_OK;
}

static void describe(struct nb_cuda *cuda)
{
    int version = nb_blaslt_version(cuda->blaslt), driver = cuda->driver_version;
    size_t bytes = sizeof cuda->description;
    int used = snprintf(cuda->description, bytes, "%s (driver %d.%d), ", nb_cuda_build_version(), driver / 1000, driver % 1000 / 10);
    if (version)
        snprintf(cuda->description + used, bytes - (size_t)used, "cuBLASLt %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    else
        snprintf(cuda->description + used, bytes - (size_t)used, "without cuBLASLt: products on nibble's own kernels");
}

const char *nb_cuda_backend_description(const struct nb_device *device)
{
    return device ? ((const struct nb_cuda *)(const void *)device)->description : nb_cuda_build_version();
}

static void destroy(struct nb_device *device)
{
    struct nb_cuda *cuda = nb_cuda_of(device);
    nb_blaslt_destroy(&cuda->blaslt);
    for (int i = 0; i < 2; i++)
        if (cuda->join[i])
            (void)cudaEventDestroy(cuda->join[i]);
    if (cuda->fork)
        (void)cudaEventDestroy(cuda->fork);
    if (cuda->side)
        (void)cudaStreamDestroy(cuda->side);
    if (cuda->fault)
        (void)cudaFreeHost(cuda->fault);
    free(cuda);
}

static void fill_table(struct nb_device *d)
{
    d->memory_take = memory_take;
    d->memory_give_back = memory_give_back;
    d->host_take = host_take;
    d->host_give_back = host_give_back;
    d->stream_create = stream_create;
    d->stream_destroy = stream_destroy;
    d->event_create = event_create;
    d->event_destroy = event_destroy;
    d->event_record = event_record;
    d->stream_wait_event = stream_wait_event;
    d->stream_wait = stream_wait;
    d->upload = upload;
    d->download = download;
    d->copy = copy;
    d->fill_zero = fill_zero;
    d->prepare = prepare;
    d->memory_available = memory_available;
    d->graph_begin = graph_begin;
    d->graph_end = graph_end;
    d->graph_launch = graph_launch;
    d->graph_destroy = graph_destroy;
    d->destroy = destroy;
#define ENTER(name)                \
    d->name = nb_cuda_##name;      \
    d->name##_scratch_bytes = nb_cuda_##name##_scratch_bytes;
    NB_OPS(ENTER)
#undef ENTER
}

/* The context and what every op shares. The first kernel is loaded here, so that a GPU without kernels in this build
 * shows at once. */
static nb_status open_gpu(struct nb_cuda *cuda, bool own_products)
{
    NB_TRY(nb_cuda_status(cudaSetDevice(cuda->index), "opening the GPU"));
    NB_TRY(nb_cuda_status(cudaHostAlloc((void **)&cuda->fault, sizeof *cuda->fault, cudaHostAllocMapped), "opening the GPU"));
    memset(cuda->fault, 0, sizeof *cuda->fault);
    NB_TRY(nb_cuda_status(cudaHostGetDevicePointer((void **)&cuda->fault_device, cuda->fault, 0), "opening the GPU"));
    NB_TRY(nb_cuda_status(cudaStreamCreateWithFlags(&cuda->side, cudaStreamNonBlocking), "creating the side stream"));
    NB_TRY(nb_cuda_status(cudaEventCreateWithFlags(&cuda->fork, cudaEventDisableTiming), "creating an event"));
    for (int i = 0; i < 2; i++)
        NB_TRY(nb_cuda_status(cudaEventCreateWithFlags(&cuda->join[i], cudaEventDisableTiming), "creating an event"));
    NB_TRY(nb_cuda_prepare_add(cuda));
    if (!own_products)
        NB_TRY(nb_blaslt_create(cuda, &cuda->blaslt));
    cuda->base.profile.cublaslt_version = nb_blaslt_version(cuda->blaslt);
    return NB_OK;
}

nb_status nb_cuda_device_create(const struct nb_cuda_options *options, struct nb_device **device)
{
    *device = NULL;
    struct nb_cuda *cuda = (struct nb_cuda *)calloc(1, sizeof *cuda);
    if (!cuda)
        return nb_fail(NB_MEMORY, "no memory for the CUDA device");
    nb_status status = nb_cuda_examine(cuda, options);
    if (status == NB_OK)
        status = open_gpu(cuda, options && options->own_products);
    if (status != NB_OK) {
        destroy(&cuda->base);
        return status;
    }
    describe(cuda);
    fill_table(&cuda->base);
    *device = &cuda->base;
    return NB_OK;
}
