/* Captures and graphs of the emulated runtime. A graph's nodes keep the order that streams and events gave them and no other. */
#include <algorithm>

#include "emulator/runtime.h"

using namespace nb_runtime;

/* A graph's nodes, in an order drawn among those that their edges allow. */
static bool run_nodes(const std::vector<node> &nodes)
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
