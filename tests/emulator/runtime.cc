/* The emulated CUDA runtime: memory, lazy streams, events, graphs.
 *
 * A stream is a queue. Nothing of it runs when it is queued, not even a copy; work runs in a call that waits (a stream's or an event's
 * synchronization, cudaFree, a stream's end), item by item, the stream drawn by the seed among those whose head may run, until what is waited
 * for has passed. So what nothing orders runs in every order, and what nothing waits for has not run. The copies from pageable memory alone
 * are taken when they are queued, as the real runtime stages them.
 *
 * A graph's nodes keep the order that streams and events gave them and no other: they run in an order drawn by the seed.
 *
 * One host thread calls, as nibble does. */
#include "emulator/cuda_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace {

using run_function = std::function<bool()>;

struct node {
    run_function run;
    std::vector<size_t> after; /* nodes of the same graph */
};

struct capture {
    CUstream_st *origin;
    std::vector<node> nodes;
    std::set<CUstream_st *> joined;
    bool invalid;
};

struct event_state {
    uint64_t recorded, passed; /* how often it was recorded, and which of these records the work has passed */
    std::chrono::steady_clock::time_point time;
    bool timed;
    std::shared_ptr<struct capture> capture; /* it was last recorded in */
    std::vector<size_t> nodes;
};

enum item_kind { ITEM_WORK, ITEM_RECORD, ITEM_WAIT };

struct item {
    item_kind kind;
    run_function run;
    std::shared_ptr<event_state> event;
    uint64_t ticket;
};

} /* namespace */

struct CUstream_st {
    std::deque<item> queue;
    std::shared_ptr<struct capture> capture;
    std::vector<size_t> last; /* of a capture: what the next node comes after */
};

struct CUevent_st {
    std::shared_ptr<event_state> state;
};

struct CUgraph_st {
    std::vector<node> nodes;
};

struct CUgraphExec_st {
    std::shared_ptr<const std::vector<node>> nodes;
};

namespace {

/* A mapping with a page without rights on either side. */
struct allocation {
    unsigned char *map;
    size_t map_bytes, bytes;
};

struct machine {
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    std::map<uintptr_t, allocation> device, pinned;
    std::vector<CUstream_st *> streams;
    std::map<const void *, int> shared_bytes; /* of the kernels that were loaded with more than 48 KiB */
    size_t used_bytes = 0;
    int events = 0, graphs = 0;
    uint64_t draws = 0;
    cudaError_t last = cudaSuccess;
    std::string refused;
    cudaError_t refused_with = cudaSuccess;
};

/* The process' one machine: the API that is emulated has no handle for it. */
machine &the_machine()
{
    static machine m;
    return m;
}

constexpr size_t PAGE = 4096, GAP = 512, PLAIN_SHARED_BYTES = 48 * 1024;

uint64_t draw(uint64_t below)
{
    uint64_t x = nb_emulator_seed_value() * 0x9e3779b97f4a7c15u + ++the_machine().draws * 0xbf58476d1ce4e5b9u;
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9u, x ^= x >> 27, x *= 0x94d049bb133111ebu, x ^= x >> 31;
    return x % below;
}

cudaError_t fail(cudaError_t error)
{
    if (error != cudaSuccess)
        the_machine().last = error;
    return error;
}

/* What every call begins with: an error that a test asked for, and the error that nothing cures. */
cudaError_t enter(const char *call)
{
    machine &m = the_machine();
    if (m.refused == call) {
        m.refused.clear();
        return fail(m.refused_with);
    }
    return fail(nb_emulator_fault() == NB_EMULATOR_NO_FAULT ? cudaSuccess : cudaErrorLaunchFailure);
}

#define ENTER()                                        \
    do {                                               \
        cudaError_t entered_ = enter(__func__);        \
        if (entered_ != cudaSuccess)                   \
            return entered_;                           \
    } while (0)

CUstream_st *capturing_stream()
{
    for (CUstream_st *stream : the_machine().streams)
        if (stream->capture)
            return stream;
    return nullptr;
}

/* Waiting and taking memory while a stream captures: refused, and the capture is lost. */
#define ENTER_OUTSIDE_CAPTURE()                                                                  \
    do {                                                                                         \
        ENTER();                                                                                 \
        if (CUstream_st *capturing_ = capturing_stream())                                        \
            return capturing_->capture->invalid = true, fail(cudaErrorStreamCaptureUnsupported); \
    } while (0)

/* ---- running ---- */

void set_access(bool open)
{
    for (auto &[address, a] : the_machine().device)
        mprotect(a.map + PAGE, a.map_bytes - 2 * PAGE, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

bool may_run(const CUstream_st *stream)
{
    if (stream->queue.empty())
        return false;
    const item &head = stream->queue.front();
    return head.kind != ITEM_WAIT || head.event->passed >= head.ticket;
}

void run_head(CUstream_st *stream)
{
    item head = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (head.kind == ITEM_WORK && !head.run() && nb_emulator_fault() == NB_EMULATOR_NO_FAULT)
        nb_emulator_fail(NB_EMULATOR_BAD_LAUNCH, "queued work failed without a reason");
    if (head.kind == ITEM_RECORD) {
        head.event->passed = std::max(head.event->passed, head.ticket);
        head.event->time = std::chrono::steady_clock::now();
    }
}

/* Runs queued work until `done`. After a fault what is queued is dropped. */
cudaError_t run_until(const std::function<bool()> &done)
{
    machine &m = the_machine();
    if (done())
        return cudaSuccess;
    set_access(true);
    while (nb_emulator_fault() == NB_EMULATOR_NO_FAULT && !done()) {
        std::vector<CUstream_st *> ready;
        std::copy_if(m.streams.begin(), m.streams.end(), std::back_inserter(ready), may_run);
        if (ready.empty())
            nb_emulator_fail(NB_EMULATOR_DEADLOCK, "streams wait for each other's events");
        else
            run_head(ready[draw(ready.size())]);
    }
    set_access(false);
    if (nb_emulator_fault() == NB_EMULATOR_NO_FAULT)
        return cudaSuccess;
    for (CUstream_st *stream : m.streams)
        stream->queue.clear();
    return fail(cudaErrorLaunchFailure);
}

cudaError_t run_all()
{
    return run_until([] {
        const auto &streams = the_machine().streams;
        return std::all_of(streams.begin(), streams.end(), [](const CUstream_st *s) { return s->queue.empty(); });
    });
}

/* A graph's nodes, in an order drawn among those that their edges allow. */
bool run_nodes(const std::vector<node> &nodes)
{
    std::vector<bool> has_run(nodes.size());
    for (size_t left = nodes.size(); left > 0; left--) {
        std::vector<size_t> ready;
        for (size_t i = 0; i < nodes.size(); i++)
            if (!has_run[i] && std::all_of(nodes[i].after.begin(), nodes[i].after.end(), [&](size_t k) { return has_run[k]; }))
                ready.push_back(i);
        size_t chosen = ready[draw(ready.size())];
        if (!nodes[chosen].run())
            return false;
        has_run[chosen] = true;
    }
    return true;
}

} /* namespace */

cudaError_t nb_emulator_enqueue(cudaStream_t stream, run_function run)
{
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (stream->capture) {
        if (stream->capture->invalid)
            return fail(cudaErrorStreamCaptureInvalidated);
        stream->capture->nodes.push_back({std::move(run), stream->last});
        stream->last = {stream->capture->nodes.size() - 1};
    } else {
        stream->queue.push_back({ITEM_WORK, std::move(run), nullptr, 0});
    }
    return cudaSuccess;
}

/* ---- the machine ---- */

struct nb_emulator_gpu nb_emulator_gpu_default(void)
{
    return {"emulated GPU", 1, CUDART_VERSION, 89, 4, 99 * 1024, (size_t)2 << 30, true};
}

void nb_emulator_gpu_set(const struct nb_emulator_gpu *gpu)
{
    the_machine().gpu = *gpu;
}

void nb_emulator_refuse(const char *call, cudaError_t error)
{
    the_machine().refused = call ? call : "";
    the_machine().refused_with = error;
}

struct nb_emulator_left nb_emulator_left(void)
{
    const machine &m = the_machine();
    return {(int)m.device.size(), (int)m.pinned.size(), (int)m.streams.size(), m.events, m.graphs};
}

/* Only libcublasLt.so.12 is to be had, so that the search goes on after a name that is not. */
void *nb_emulator_library_open(const char *name)
{
    return the_machine().gpu.cublaslt && strcmp(name, "libcublasLt.so.12") == 0 ? &the_machine() : nullptr;
}

void *nb_emulator_library_symbol(void *library, const char *name)
{
    return library == &the_machine() ? nb_emulator_cublaslt_symbol(name) : nullptr;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t last = the_machine().last;
    the_machine().last = nb_emulator_fault() == NB_EMULATOR_NO_FAULT ? cudaSuccess : cudaErrorLaunchFailure;
    return last;
}

const char *cudaGetErrorName(cudaError_t error)
{
    static const std::map<cudaError_t, const char *> names = {
#define NAMED(error) {error, #error}
        NAMED(cudaSuccess), NAMED(cudaErrorInvalidValue), NAMED(cudaErrorMemoryAllocation), NAMED(cudaErrorInitializationError),
        NAMED(cudaErrorStubLibrary), NAMED(cudaErrorInsufficientDriver), NAMED(cudaErrorDevicesUnavailable), NAMED(cudaErrorNoDevice),
        NAMED(cudaErrorInvalidDevice), NAMED(cudaErrorNoKernelImageForDevice), NAMED(cudaErrorECCUncorrectable),
        NAMED(cudaErrorUnsupportedPtxVersion), NAMED(cudaErrorOperatingSystem), NAMED(cudaErrorInvalidResourceHandle),
        NAMED(cudaErrorNotReady), NAMED(cudaErrorIllegalAddress), NAMED(cudaErrorLaunchOutOfResources), NAMED(cudaErrorLaunchTimeout),
        NAMED(cudaErrorIllegalInstruction), NAMED(cudaErrorMisalignedAddress), NAMED(cudaErrorLaunchFailure),
        NAMED(cudaErrorSystemNotReady), NAMED(cudaErrorSystemDriverMismatch), NAMED(cudaErrorCompatNotSupportedOnDevice),
        NAMED(cudaErrorStreamCaptureUnsupported), NAMED(cudaErrorStreamCaptureInvalidated), NAMED(cudaErrorStreamCaptureMerge),
        NAMED(cudaErrorStreamCaptureUnmatched), NAMED(cudaErrorStreamCaptureUnjoined), NAMED(cudaErrorStreamCaptureIsolation),
        NAMED(cudaErrorCapturedEvent),
#undef NAMED
    };
    auto found = names.find(error);
    return found == names.end() ? "unrecognized error code" : found->second;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorLaunchFailure && nb_emulator_fault() ? nb_emulator_fault_message() : cudaGetErrorName(error);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    if (cudaError_t error = enter(__func__))
        return error;
    *version = the_machine().gpu.driver_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER();
    *count = the_machine().gpu.devices;
    return *count ? cudaSuccess : fail(cudaErrorNoDevice);
}

static bool is_device(int device)
{
    return device >= 0 && device < the_machine().gpu.devices;
}

cudaError_t cudaSetDevice(int device)
{
    ENTER();
    return is_device(device) ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    ENTER();
    if (!is_device(device))
        return fail(cudaErrorInvalidDevice);
    snprintf(properties->name, sizeof properties->name, "%s", the_machine().gpu.name);
    properties->totalGlobalMem = the_machine().gpu.memory_bytes;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    ENTER();
    const struct nb_emulator_gpu &gpu = the_machine().gpu;
    const std::map<cudaDeviceAttr, int> values = {
        {cudaDevAttrClockRate, 1000000}, /* kHz */
        {cudaDevAttrMultiProcessorCount, gpu.multiprocessors},
        {cudaDevAttrMemoryClockRate, 1000000},
        {cudaDevAttrGlobalMemoryBusWidth, 256},
        {cudaDevAttrL2CacheSize, 4 << 20},
        {cudaDevAttrComputeCapabilityMajor, gpu.compute_capability / 10},
        {cudaDevAttrComputeCapabilityMinor, gpu.compute_capability % 10},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu.shared_bytes_max},
    };
    auto found = values.find(attribute);
    if (!is_device(device) || found == values.end())
        return fail(is_device(device) ? cudaErrorInvalidValue : cudaErrorInvalidDevice);
    *value = found->second;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    ENTER_OUTSIDE_CAPTURE();
    return run_all();
}

/* ---- memory ---- */

/* Aligned to 256 bytes and, on the device, to no more, so that nobody counts on more. */
static bool map_memory(size_t bytes, bool device, allocation *a, uintptr_t *address)
{
    size_t shift = device ? 256 * (1 + 2 * draw(8)) : 0;
    a->bytes = bytes;
    a->map_bytes = (bytes + shift + GAP + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
    void *map = mmap(nullptr, a->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return false;
    a->map = (unsigned char *)map;
    *address = (uintptr_t)map + PAGE + shift;
    mprotect(a->map + PAGE, a->map_bytes - 2 * PAGE, PROT_READ | PROT_WRITE);
    if (device)
        memset((void *)*address, 0xff, bytes); /* NaN in every dtype */
    nb_emulator_memory_add((void *)*address, bytes, device);
    if (device)
        mprotect(a->map + PAGE, a->map_bytes - 2 * PAGE, PROT_NONE);
    return true;
}

static void unmap_memory(std::map<uintptr_t, allocation> &from, std::map<uintptr_t, allocation>::iterator at)
{
    mprotect(at->second.map + PAGE, at->second.map_bytes - 2 * PAGE, PROT_READ | PROT_WRITE);
    nb_emulator_memory_remove((void *)at->first);
    munmap(at->second.map, at->second.map_bytes);
    from.erase(at);
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    ENTER_OUTSIDE_CAPTURE();
    machine &m = the_machine();
    allocation a;
    uintptr_t address;
    *memory = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    if (bytes > m.gpu.memory_bytes - std::min(m.used_bytes, m.gpu.memory_bytes) || !map_memory(bytes, true, &a, &address))
        return fail(cudaErrorMemoryAllocation);
    m.device[address] = a;
    m.used_bytes += bytes;
    *memory = (void *)address;
    return cudaSuccess;
}

/* Gives the memory back even after a fault, when nothing else works. */
cudaError_t cudaFree(void *memory)
{
    machine &m = the_machine();
    if (!memory)
        return cudaSuccess;
    cudaError_t error = enter(__func__);
    if (error == cudaSuccess)
        error = run_all(); /* the real one waits for the device, too */
    auto at = m.device.find((uintptr_t)memory);
    if (at == m.device.end())
        return fail(cudaErrorInvalidValue);
    m.used_bytes -= at->second.bytes;
    unmap_memory(m.device, at);
    return error;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
    ENTER_OUTSIDE_CAPTURE();
    allocation a;
    uintptr_t address;
    *memory = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    if (!map_memory(bytes, false, &a, &address))
        return fail(cudaErrorMemoryAllocation);
    the_machine().pinned[address] = a;
    *memory = (void *)address;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    machine &m = the_machine();
    if (!memory)
        return cudaSuccess;
    cudaError_t error = enter(__func__);
    if (error == cudaSuccess)
        error = run_all();
    auto at = m.pinned.find((uintptr_t)memory);
    if (at == m.pinned.end())
        return fail(cudaErrorInvalidValue);
    unmap_memory(m.pinned, at);
    return error;
}

static bool is_within(const std::map<uintptr_t, allocation> &allocations, const void *memory)
{
    auto after = allocations.upper_bound((uintptr_t)memory);
    if (after == allocations.begin())
        return false;
    --after;
    return (uintptr_t)memory < after->first + after->second.bytes;
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    ENTER();
    *device = host;
    return is_within(the_machine().pinned, host) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    ENTER();
    const machine &m = the_machine();
    *total = m.gpu.memory_bytes;
    *available = m.gpu.memory_bytes - std::min(m.used_bytes, m.gpu.memory_bytes);
    return cudaSuccess;
}

static cudaError_t enqueue_upload(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    bool pinned = is_within(the_machine().pinned, from);
    if (!pinned && stream->capture)
        return stream->capture->invalid = true, fail(cudaErrorStreamCaptureUnsupported);
    std::shared_ptr<std::vector<unsigned char>> staged;
    if (!pinned)
        staged = std::make_shared<std::vector<unsigned char>>((const unsigned char *)from, (const unsigned char *)from + bytes);
    return nb_emulator_enqueue(stream, [=] {
        if ((pinned && !nb_emulator_memory_touch(from, bytes, false)) || !nb_emulator_memory_touch(to, bytes, true))
            return false;
        memcpy(to, pinned ? from : staged->data(), bytes);
        return true;
    });
}

static cudaError_t enqueue_download(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    bool pinned = is_within(the_machine().pinned, to);
    if (!pinned && stream->capture)
        return stream->capture->invalid = true, fail(cudaErrorStreamCaptureUnsupported);
    return nb_emulator_enqueue(stream, [=] {
        if (!nb_emulator_memory_touch(from, bytes, false) || (pinned && !nb_emulator_memory_touch(to, bytes, true)))
            return false;
        memcpy(to, from, bytes);
        return true;
    });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER();
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (bytes == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyHostToDevice)
        return enqueue_upload(to, from, bytes, stream);
    if (kind == cudaMemcpyDeviceToHost)
        return enqueue_download(to, from, bytes, stream);
    return nb_emulator_enqueue(stream, [=] {
        if (!nb_emulator_memory_copied(to, from, bytes))
            return false;
        memmove(to, from, bytes);
        return true;
    });
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    ENTER();
    if (bytes == 0)
        return cudaSuccess;
    return nb_emulator_enqueue(stream, [=] {
        if (!nb_emulator_memory_touch(to, bytes, true))
            return false;
        memset(to, value, bytes);
        return true;
    });
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    ENTER();
    if (flags != cudaStreamNonBlocking)
        return fail(cudaErrorInvalidValue);
    *stream = new CUstream_st();
    the_machine().streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    machine &m = the_machine();
    auto at = std::find(m.streams.begin(), m.streams.end(), stream);
    if (at == m.streams.end())
        return fail(cudaErrorInvalidResourceHandle);
    cudaError_t error = enter(__func__);
    if (error == cudaSuccess)
        error = run_until([=] { return stream->queue.empty(); });
    m.streams.erase(at);
    delete stream;
    return error;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ENTER_OUTSIDE_CAPTURE();
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    return run_until([=] { return stream->queue.empty(); });
}

/* The stream waits for a point within a capture: it joins it. */
static cudaError_t join_capture(cudaStream_t stream, const event_state &event)
{
    if (stream->capture && stream->capture != event.capture)
        return stream->capture->invalid = true, fail(cudaErrorStreamCaptureMerge);
    if (!stream->capture) {
        if (!event.capture->origin->capture)
            return fail(cudaErrorCapturedEvent);
        stream->capture = event.capture;
        stream->last.clear();
        event.capture->joined.insert(stream);
    }
    std::set<size_t> last(stream->last.begin(), stream->last.end());
    last.insert(event.nodes.begin(), event.nodes.end());
    stream->last.assign(last.begin(), last.end());
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    ENTER();
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (event->state->capture)
        return join_capture(stream, *event->state);
    if (stream->capture && event->state->recorded)
        return stream->capture->invalid = true, fail(cudaErrorStreamCaptureIsolation);
    if (event->state->recorded)
        stream->queue.push_back({ITEM_WAIT, nullptr, event->state, event->state->recorded});
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    ENTER();
    *event = new CUevent_st{std::make_shared<event_state>()};
    (*event)->state->timed = !(flags & cudaEventDisableTiming);
    the_machine().events++;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    the_machine().events--;
    delete event;
    return enter(__func__);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    ENTER();
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    event->state->capture = stream->capture;
    event->state->nodes = stream->last;
    if (!stream->capture)
        stream->queue.push_back({ITEM_RECORD, nullptr, event->state, ++event->state->recorded});
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER_OUTSIDE_CAPTURE();
    if (event->state->capture)
        return fail(cudaErrorCapturedEvent);
    uint64_t ticket = event->state->recorded;
    return run_until([=] { return event->state->passed >= ticket; });
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    ENTER_OUTSIDE_CAPTURE();
    const event_state &from = *begin->state, &to = *end->state;
    if (!from.timed || !to.timed || !from.recorded || !to.recorded || from.capture || to.capture)
        return fail(cudaErrorInvalidResourceHandle);
    if (from.passed < from.recorded || to.passed < to.recorded)
        return fail(cudaErrorNotReady);
    *milliseconds = std::chrono::duration<float, std::milli>(to.time - from.time).count();
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode)
{
    ENTER();
    if (!stream || stream->capture)
        return fail(stream ? cudaErrorStreamCaptureUnmatched : cudaErrorStreamCaptureUnsupported);
    stream->capture = std::make_shared<capture>();
    stream->capture->origin = stream;
    stream->capture->joined = {stream};
    stream->last.clear();
    return cudaSuccess;
}

/* Whether everything that the joined streams did comes before the point where the origin stands. */
static bool is_joined(const capture &c)
{
    std::vector<bool> before(c.nodes.size());
    for (size_t i : c.origin->last)
        before[i] = true;
    for (size_t i = c.nodes.size(); i-- > 0;) /* edges lead to earlier nodes alone */
        if (before[i])
            for (size_t k : c.nodes[i].after)
                before[k] = true;
    return std::all_of(before.begin(), before.end(), [](bool b) { return b; });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = nullptr;
    if (!stream || !stream->capture || stream->capture->origin != stream)
        return fail(cudaErrorStreamCaptureUnmatched);
    std::shared_ptr<capture> c = stream->capture;
    bool joined = is_joined(*c);
    for (CUstream_st *each : c->joined)
        each->capture = nullptr, each->last.clear();
    if (cudaError_t error = enter(__func__))
        return error;
    if (c->invalid || !joined)
        return fail(c->invalid ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
    *graph = new CUgraph_st{std::move(c->nodes)};
    the_machine().graphs++;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    ENTER_OUTSIDE_CAPTURE();
    *exec = new CUgraphExec_st{std::make_shared<const std::vector<node>>(graph->nodes)};
    the_machine().graphs++;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    ENTER_OUTSIDE_CAPTURE();
    return exec && stream ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    ENTER();
    return nb_emulator_enqueue(stream, [nodes = exec->nodes] { return run_nodes(*nodes); });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    the_machine().graphs--;
    delete graph;
    return enter(__func__);
}

/* As on a device, launches that are queued keep what they need. */
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    the_machine().graphs--;
    delete exec;
    return enter(__func__);
}

/* ---- kernels ---- */

static cudaError_t check_launch(const struct nb_emulator_kernel &k, size_t bytes)
{
    const machine &m = the_machine();
    auto loaded = m.shared_bytes.find(k.kernel);
    int shared_bytes = loaded == m.shared_bytes.end() ? (int)PLAIN_SHARED_BYTES : std::max((int)PLAIN_SHARED_BYTES, loaded->second);
    if (k.threads <= 0 || k.threads > 1024 || k.grid.x > 0x7fffffffu || k.grid.y > 65535 || k.grid.z > 65535)
        return cudaErrorInvalidValue; /* the runtime says cudaErrorInvalidConfiguration; either is the launcher's mistake */
    return k.shared_bytes < 0 || k.shared_bytes > shared_bytes || bytes > 4096 ? cudaErrorInvalidValue : cudaSuccess;
}

nb_status nb_emulator_launch_erased(const struct nb_emulator_kernel *kernel, const void *arguments, size_t bytes, cudaStream_t stream)
{
    struct nb_emulator_kernel k = *kernel;
    std::string doing = std::string("launching ") + k.name;
    if (k.grid.x == 0 || k.grid.y == 0 || k.grid.z == 0)
        return NB_OK;
    cudaError_t error = enter("cudaLaunchKernel");
    if (error == cudaSuccess)
        error = fail(check_launch(k, bytes));
    if (error != cudaSuccess)
        return nb_cuda_status(error, doing.c_str());
    std::vector<unsigned char> kept((const unsigned char *)arguments, (const unsigned char *)arguments + bytes);
    auto body = [k, kept] {
        void *own = __builtin_alloca_with_align(kept.size(), 16 * 8);
        memcpy(own, kept.data(), kept.size());
        k.call(k.kernel, own);
    };
    struct nb_emulator_grid grid = {k.name, {k.grid.x, k.grid.y, k.grid.z}, k.threads, k.shared_bytes, body};
    return nb_cuda_status(nb_emulator_enqueue(stream, [grid] { return nb_emulator_run(grid); }), doing.c_str());
}

nb_status nb_emulator_load(const char *name, const void *kernel, int shared_bytes)
{
    machine &m = the_machine();
    std::string doing = std::string("loading ") + name;
    cudaError_t error = enter("cudaFuncSetAttribute");
    if (error == cudaSuccess && shared_bytes > m.gpu.shared_bytes_max)
        error = fail(cudaErrorInvalidValue);
    if (error == cudaSuccess)
        m.shared_bytes[kernel] = std::max(m.shared_bytes[kernel], shared_bytes);
    return nb_cuda_status(error, doing.c_str());
}
