/* The emulated CUDA runtime: streams, events, launches.
 *
 * A stream is a queue. Nothing of it runs when it is queued, not even a copy; work runs in a call that waits (a stream's or an event's
 * synchronization, cudaFree, a stream's end), item by item, the stream drawn by the seed among those whose head may run, until what is
 * waited for has passed. So what nothing orders runs in every order, and what nothing waits for has not run. The copies from pageable
 * memory alone are taken when they are queued, as the real runtime stages them, and a copy to it has been done when its call returns.
 *
 * One host thread calls, as nibble does. */
#include "emulator/runtime.h"

#include <algorithm>
#include <cstring>

#include "cuda/device.cuh"

namespace nb_runtime {

machine &the_machine()
{
    static machine m;
    return m;
}

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

cudaError_t enter(const char *call)
{
    machine &m = the_machine();
    m.calls[call]++;
    if (m.refused == call) {
        m.refused.clear();
        return fail(m.refused_with);
    }
    return fail(nb_emulator_fault() == NB_EMULATOR_NO_FAULT ? cudaSuccess : cudaErrorLaunchFailure);
}

CUstream_st *capturing_stream()
{
    for (CUstream_st *stream : the_machine().streams)
        if (stream->capture)
            return stream;
    return nullptr;
}

/* ---- running ---- */

static bool may_run(const CUstream_st *stream)
{
    if (stream->queue.empty())
        return false;
    const item &head = stream->queue.front();
    return head.kind != ITEM_WAIT || head.event->passed >= head.ticket;
}

static void run_head(CUstream_st *stream)
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

} /* namespace nb_runtime */

using namespace nb_runtime;

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

/* ---- kernels ---- */

enum { PLAIN_SHARED_BYTES = 48 * 1024 }; /* what a kernel may have without being loaded for more */

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
