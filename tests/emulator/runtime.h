/* The emulated runtime from the inside: its state, and what its files share. */
#ifndef NB_TESTS_EMULATOR_RUNTIME_H
#define NB_TESTS_EMULATOR_RUNTIME_H

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "emulator/cuda_runtime.h"

namespace nb_runtime {

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

} /* namespace nb_runtime */

struct CUstream_st {
    std::deque<nb_runtime::item> queue;
    std::shared_ptr<nb_runtime::capture> capture;
    std::vector<size_t> last; /* of a capture: what the next node comes after */
};

struct CUevent_st {
    std::shared_ptr<nb_runtime::event_state> state;
};

struct CUgraph_st {
    std::vector<nb_runtime::node> nodes;
};

struct CUgraphExec_st {
    std::shared_ptr<const std::vector<nb_runtime::node>> nodes;
};

namespace nb_runtime {

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
    size_t used_bytes = 0, pinned_bytes = 0;
    int events = 0, graphs = 0;
    uint64_t draws = 0;
    cudaError_t last = cudaSuccess;
    std::string refused;
    std::map<std::string, int> calls;
    cudaError_t refused_with = cudaSuccess;
};

/* The process' one machine: the API that is emulated has no handle for it. */
machine &the_machine();

/* The next number below `below`, by the seed. */
uint64_t draw(uint64_t below);

/* Keeps an error for cudaGetLastError, and returns it. */
cudaError_t fail(cudaError_t error);

/* What every call begins with: an error that a test asked for, and the error that nothing cures. */
cudaError_t enter(const char *call);

/* The stream that captures, or one of them. */
CUstream_st *capturing_stream();

/* Runs queued work until `done`. After a fault what is queued is dropped. */
cudaError_t run_until(const std::function<bool()> &done);
cudaError_t run_all();

/* Whether the address lies in one of the allocations. */
bool is_within(const std::map<uintptr_t, allocation> &allocations, const void *memory);

/* The kernels and copies may touch device memory, the host may not. */
void set_access(bool open);

constexpr size_t PAGE = 4096;

} /* namespace nb_runtime */

#define ENTER()                                        \
    do {                                               \
        cudaError_t entered_ = enter(__func__);        \
        if (entered_ != cudaSuccess)                   \
            return entered_;                           \
    } while (0)

/* Waiting and taking memory while a stream captures: refused, and the capture is lost. */
#define ENTER_OUTSIDE_CAPTURE()                                                                  \
    do {                                                                                         \
        ENTER();                                                                                 \
        if (CUstream_st *capturing_ = capturing_stream())                                        \
            return capturing_->capture->invalid = true, fail(cudaErrorStreamCaptureUnsupported); \
    } while (0)

#endif
