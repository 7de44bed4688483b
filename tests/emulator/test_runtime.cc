/* The CUDA device on the emulated runtime: that streams are lazy and ordered by events alone, graphs, what each error says, and the choice
 * of cuBLASLt's algorithms. */
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "cuda/cublaslt.cuh"
#include "cuda/device.cuh"

namespace {

int failures;
const char *test_name;

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            failures++;                                                                             \
            fprintf(stderr, "FAIL %s, line %d: %s (%s)\n", test_name, __LINE__, #condition, nb_status_message()); \
        }                                                                                           \
    } while (0)

enum { SEEDS = 24, WORDS = 1000 };

/* ---- kernels ---- */

__global__ void fill_kernel(uint32_t *y, int count, uint32_t value)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count)
        y[i] = value;
}

__global__ void add_kernel(uint32_t *y, const uint32_t *x, int count, uint32_t value)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count)
        y[i] = x[i] + value;
}

__global__ void fault_kernel(struct nb_cuda_fault *fault)
{
    if (threadIdx.x == 0) {
        fault->index = 1234;
        fault->columns = 100;
        fault->code = NB_CUDA_FAULT_NOT_FINITE;
    }
}

struct wide_argument {
    uint64_t word[100];
    uint32_t *y;
};

__global__ void wide_kernel(struct wide_argument a, short s, double d)
{
    if (threadIdx.x == 0)
        a.y[0] = (uint32_t)(a.word[99] + (uint64_t)s + (uint64_t)d);
}

/* ---- a device, two streams and two buffers ---- */

struct bench {
    struct nb_device *d = nullptr;
    struct nb_stream *a = nullptr, *b = nullptr;
    struct nb_event *event = nullptr, *other_event = nullptr;
    nb_dptr x = {0}, y = {0};
    uint32_t *pinned = nullptr;

    explicit bench(uint64_t seed, bool own_products = true)
    {
        struct nb_cuda_options options = {};
        options.own_products = own_products;
        nb_emulator_reset();
        nb_emulator_seed(seed);
        CHECK(nb_cuda_device_create(&options, &d) == NB_OK);
        CHECK(d->stream_create(d, &a) == NB_OK && d->stream_create(d, &b) == NB_OK);
        CHECK(d->event_create(d, &event) == NB_OK && d->event_create(d, &other_event) == NB_OK);
        CHECK(d->memory_take(d, sizeof(uint32_t) * WORDS, &x) == NB_OK && d->memory_take(d, sizeof(uint32_t) * WORDS, &y) == NB_OK);
        CHECK(d->host_take(d, sizeof(uint32_t) * WORDS, (void **)&pinned) == NB_OK);
    }
    bench(const bench &) = delete;
    bench &operator=(const bench &) = delete;
    ~bench()
    {
        d->memory_give_back(d, x);
        d->memory_give_back(d, y);
        d->host_give_back(d, pinned);
        d->event_destroy(d, &event);
        d->event_destroy(d, &other_event);
        d->stream_destroy(d, &a);
        d->stream_destroy(d, &b);
        nb_device_destroy(&d);
    }
    nb_status fill(struct nb_stream *stream, nb_dptr to, uint32_t value)
    {
        return nb_cuda_launch("fill_kernel", fill_kernel, {dim3(nb_blocks_of(WORDS, 64)), 64, 0}, stream->stream, nb_pointer<uint32_t>(to),
                              (int)WORDS, value);
    }
    /* y = x + value */
    nb_status add(struct nb_stream *stream, uint32_t value)
    {
        return nb_cuda_launch("add_kernel", add_kernel, {dim3(nb_blocks_of(WORDS, 64)), 64, 0}, stream->stream, nb_pointer<uint32_t>(y),
                              nb_pointer<const uint32_t>(x), (int)WORDS, value);
    }
    /* Enqueued; `pinned` has it after a wait for the stream. */
    void download(struct nb_stream *stream, nb_dptr from)
    {
        CHECK(d->download(d, stream, pinned, from, sizeof(uint32_t) * WORDS) == NB_OK);
    }
    uint32_t read(struct nb_stream *stream, nb_dptr from)
    {
        download(stream, from);
        CHECK(d->stream_wait(d, stream) == NB_OK);
        for (int i = 1; i < WORDS; i++)
            CHECK(pinned[i] == pinned[0]);
        return pinned[0];
    }
};

/* ---- streams and events ---- */

void work_runs_at_a_wait_alone()
{
    bench t(1);
    t.pinned[0] = 77;
    CHECK(t.fill(t.a, t.x, 5) == NB_OK);
    t.download(t.a, t.x);
    CHECK(t.pinned[0] == 77);
    CHECK(t.d->stream_wait(t.d, t.a) == NB_OK);
    CHECK(t.pinned[0] == 5 && t.pinned[WORDS - 1] == 5);
}

/* What the copy waits for runs before, on another stream too, and what comes behind it does not. */
void a_download_to_pageable_memory_is_done_when_it_returns()
{
    for (uint64_t seed = 1; seed <= 5; seed++) {
        bench t(seed);
        std::vector<uint32_t> pageable(WORDS, 77);
        CHECK(t.fill(t.a, t.x, 5) == NB_OK && t.d->event_record(t.d, t.a, t.event) == NB_OK);
        CHECK(t.d->stream_wait_event(t.d, t.b, t.event) == NB_OK);
        CHECK(t.d->download(t.d, t.b, pageable.data(), t.x, sizeof(uint32_t) * WORDS) == NB_OK);
        CHECK(pageable[0] == 5 && pageable[WORDS - 1] == 5);
        CHECK(t.fill(t.b, t.x, 6) == NB_OK);
        CHECK(pageable[0] == 5);
        CHECK(t.read(t.b, t.x) == 6);
    }
}

void pinned_memory_is_read_late_and_pageable_at_once()
{
    bench t(2);
    std::vector<uint32_t> pageable(WORDS, 1);
    std::fill(t.pinned, t.pinned + WORDS, 1);
    CHECK(t.d->upload(t.d, t.a, t.x, t.pinned, sizeof(uint32_t) * WORDS) == NB_OK);
    CHECK(t.d->upload(t.d, t.a, t.y, pageable.data(), sizeof(uint32_t) * WORDS) == NB_OK);
    std::fill(t.pinned, t.pinned + WORDS, 2);
    std::fill(pageable.begin(), pageable.end(), 2);
    CHECK(t.read(t.a, t.x) == 2);
    CHECK(t.read(t.a, t.y) == 1);
}

void a_forgotten_event_shows()
{
    std::set<uint32_t> without, with;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        for (int ordered = 0; ordered < 2; ordered++) {
            bench t(seed);
            CHECK(t.fill(t.a, t.x, 1) == NB_OK);
            CHECK(t.d->stream_wait(t.d, t.a) == NB_OK);
            CHECK(t.fill(t.a, t.x, 2) == NB_OK);
            CHECK(t.d->event_record(t.d, t.a, t.event) == NB_OK);
            if (ordered)
                CHECK(t.d->stream_wait_event(t.d, t.b, t.event) == NB_OK);
            CHECK(t.add(t.b, 10) == NB_OK);
            (ordered ? with : without).insert(t.read(t.b, t.y));
        }
    CHECK(without == (std::set<uint32_t>{11, 12}));
    CHECK(with == (std::set<uint32_t>{12}));
}

void an_event_means_its_last_record_before_the_wait()
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        bench t(seed);
        CHECK(t.d->stream_wait_event(t.d, t.b, t.event) == NB_OK); /* never recorded: nothing to wait for */
        CHECK(t.fill(t.b, t.y, 3) == NB_OK);
        CHECK(t.read(t.b, t.y) == 3);
        CHECK(t.fill(t.a, t.x, 1) == NB_OK);
        CHECK(t.d->event_record(t.d, t.a, t.event) == NB_OK);
        CHECK(t.fill(t.a, t.x, 2) == NB_OK);
        CHECK(t.d->event_record(t.d, t.a, t.event) == NB_OK);
        CHECK(t.d->stream_wait_event(t.d, t.b, t.event) == NB_OK);
        CHECK(t.add(t.b, 0) == NB_OK);
        CHECK(t.read(t.b, t.y) == 2);
    }
}

void the_host_cannot_touch_device_memory()
{
    bench t(3);
    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(t.fill(t.a, t.x, 5) == NB_OK && t.d->stream_wait(t.d, t.a) == NB_OK);
    CHECK(write(ends[1], nb_pointer<void>(t.x), 4) == -1); /* the kernel of the system reads it as the host would */
    CHECK(write(ends[1], t.pinned, 4) == 4);
    close(ends[0]);
    close(ends[1]);
}

void arguments_arrive_whole()
{
    bench t(4);
    struct wide_argument a = {};
    a.word[99] = 1000;
    a.y = nb_pointer<uint32_t>(t.x);
    CHECK(nb_cuda_launch("wide_kernel", wide_kernel, {dim3(1), 32, 0}, t.a->stream, a, 200, 30) == NB_OK); /* int to short and to double */
    CHECK(t.d->download(t.d, t.a, t.pinned, t.x, 4) == NB_OK);
    CHECK(t.d->stream_wait(t.d, t.a) == NB_OK);
    CHECK(t.pinned[0] == 1230);
    CHECK(nb_cuda_launch("wide_kernel", wide_kernel, {dim3(0), 32, 0}, t.a->stream, a, 200, 30) == NB_OK); /* an empty grid */
    CHECK(nb_cuda_launch("wide_kernel", wide_kernel, {dim3(1), 2048, 0}, t.a->stream, a, 200, 30) == NB_IO);
    CHECK(nb_cuda_launch("wide_kernel", wide_kernel, {dim3(1), 32, 60000}, t.a->stream, a, 200, 30) == NB_IO); /* not loaded with as many */
    CHECK(strstr(nb_status_message(), "launching wide_kernel"));
    CHECK(nb_cuda_load("wide_kernel", wide_kernel, 60000) == NB_OK);
    CHECK(nb_cuda_launch("wide_kernel", wide_kernel, {dim3(1), 32, 60000}, t.a->stream, a, 200, 30) == NB_OK);
    CHECK(nb_cuda_load("wide_kernel", wide_kernel, 100 * 1024) == NB_IO);
    CHECK(t.d->stream_wait(t.d, t.a) == NB_OK);
}

void timers_time()
{
    bench t(5);
    double seconds = -1;
    CHECK(nb_cuda_timer_begin(t.d, t.a) == NB_OK);
    for (int i = 0; i < 20; i++)
        CHECK(t.fill(t.a, t.x, 1) == NB_OK);
    CHECK(nb_cuda_timer_end(t.d, t.a, &seconds) == NB_OK);
    CHECK(seconds > 1e-6 && seconds < 10);
}

/* ---- graphs ---- */

/* y = x + 5 by way of both streams: x = 5 on a, the sum on b between two events. */
void record_fork_and_join(bench &t, bool fork, bool join)
{
    CHECK(t.d->graph_begin(t.d, t.a) == NB_OK);
    CHECK(t.fill(t.a, t.x, 5) == NB_OK);
    CHECK(t.d->event_record(t.d, t.a, t.event) == NB_OK);
    if (fork)
        CHECK(t.d->stream_wait_event(t.d, t.b, t.event) == NB_OK);
    CHECK(t.add(t.b, 5) == NB_OK);
    CHECK(t.d->event_record(t.d, t.b, t.other_event) == NB_OK);
    if (join)
        CHECK(t.d->stream_wait_event(t.d, t.a, t.other_event) == NB_OK);
}

void a_graph_replays_what_two_streams_did()
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        bench t(seed);
        struct nb_graph *graph = nullptr;
        CHECK(t.fill(t.a, t.x, 1) == NB_OK && t.fill(t.a, t.y, 1) == NB_OK && t.d->stream_wait(t.d, t.a) == NB_OK);
        record_fork_and_join(t, true, true);
        CHECK(t.fill(t.a, t.x, 6) == NB_OK);
        CHECK(t.d->graph_end(t.d, t.a, &graph) == NB_OK);
        CHECK(t.read(t.a, t.y) == 1); /* recorded, not run */
        for (int i = 0; i < 2; i++) {
            CHECK(t.fill(t.a, t.y, 0) == NB_OK);
            CHECK(t.d->graph_launch(t.d, t.a, graph) == NB_OK);
            CHECK(t.read(t.a, t.y) == 10);
            CHECK(t.read(t.a, t.x) == 6);
        }
        CHECK(t.fill(t.b, t.y, 3) == NB_OK && t.read(t.b, t.y) == 3); /* the side stream records no more */
        t.d->graph_destroy(t.d, &graph);
        CHECK(graph == nullptr);
    }
}

void a_capture_refuses_what_a_graph_cannot_hold()
{
    bench t(7);
    struct nb_graph *graph = nullptr;
    uint32_t word = 1;
    record_fork_and_join(t, true, false);
    CHECK(t.d->graph_end(t.d, t.a, &graph) != NB_OK && !graph); /* b is not joined */
    CHECK(strstr(nb_status_message(), "cudaErrorStreamCaptureUnjoined"));
    CHECK(t.d->event_record(t.d, t.b, t.event) == NB_OK);
    CHECK(t.d->graph_begin(t.d, t.a) == NB_OK);
    CHECK(t.d->stream_wait_event(t.d, t.a, t.event) != NB_OK); /* recorded outside */
    CHECK(t.d->graph_end(t.d, t.a, &graph) != NB_OK && !graph);
    CHECK(t.d->graph_begin(t.d, t.a) == NB_OK);
    CHECK(t.d->stream_wait(t.d, t.b) != NB_OK);
    CHECK(t.d->graph_end(t.d, t.a, &graph) != NB_OK && !graph);
    CHECK(t.d->graph_begin(t.d, t.a) == NB_OK);
    CHECK(t.d->upload(t.d, t.a, t.x, &word, sizeof word) != NB_OK); /* pageable */
    CHECK(t.d->graph_end(t.d, t.a, &graph) != NB_OK && !graph);
    CHECK(t.d->graph_end(t.d, t.a, &graph) != NB_OK && !graph); /* without a beginning */
    CHECK(t.fill(t.a, t.x, 4) == NB_OK && t.read(t.a, t.x) == 4);
}

/* ---- errors ---- */

void what_a_kernel_found_is_told_once()
{
    bench t(8);
    CHECK(nb_cuda_launch("fault_kernel", fault_kernel, {dim3(1), 32, 0}, t.a->stream, nb_cuda_of(t.d)->fault_device) == NB_OK);
    CHECK(t.d->stream_wait(t.d, t.a) == NB_FORMAT);
    CHECK(strstr(nb_status_message(), "row 12, column 34 (element 1234)"));
    CHECK(t.d->stream_wait(t.d, t.a) == NB_OK);
}

void after_a_fault_nothing_works()
{
    {
        bench t(9);
        CHECK(nb_cuda_launch("fill_kernel", fill_kernel, {dim3(nb_blocks_of(WORDS, 64) + 1), 64, 0}, t.a->stream, nb_pointer<uint32_t>(t.x),
                             WORDS + 64, 5u) == NB_OK);
        CHECK(t.d->stream_wait(t.d, t.a) == NB_IO);
        CHECK(strstr(nb_status_message(), "fill_kernel") && strstr(nb_status_message(), "resumes from the last checkpoint"));
        CHECK(nb_emulator_fault() == NB_EMULATOR_OUT_OF_BOUNDS);
        CHECK(t.fill(t.b, t.y, 1) == NB_IO);
        CHECK(t.d->stream_wait(t.d, t.b) == NB_IO);
        uint64_t bytes = 0;
        CHECK(t.d->memory_available(t.d, &bytes) == NB_IO);
    }
    bench t(9);
    CHECK(t.fill(t.a, t.x, 5) == NB_OK && t.read(t.a, t.x) == 5);
}

void copies_stay_within_their_buffers()
{
    bench t(10);
    CHECK(t.d->copy(t.d, t.a, nb_dptr_at(t.y, 4), t.x, sizeof(uint32_t) * WORDS) == NB_OK);
    CHECK(t.d->stream_wait(t.d, t.a) == NB_IO);
    CHECK(nb_emulator_fault() == NB_EMULATOR_OUT_OF_BOUNDS);
}

/* The words that a user reads on a machine like `gpu`, or when `call` reports `error`. */
void expect_refusal(struct nb_emulator_gpu gpu, const char *call, cudaError_t error, nb_status want, const std::vector<const char *> &words)
{
    struct nb_device *d = nullptr;
    nb_emulator_reset();
    nb_emulator_gpu_set(&gpu);
    nb_emulator_refuse(call, error);
    CHECK(nb_cuda_device_create(nullptr, &d) == want);
    CHECK(!d);
    for (const char *word : words) {
        bool found = strstr(nb_status_message(), word) != nullptr;
        if (!found)
            fprintf(stderr, "  \"%s\" is not in: %s\n", word, nb_status_message());
        CHECK(found);
    }
    nb_emulator_refuse(nullptr, cudaSuccess);
    gpu = nb_emulator_gpu_default();
    nb_emulator_gpu_set(&gpu);
    struct nb_emulator_left left = nb_emulator_left();
    CHECK(left.device + left.pinned + left.streams + left.events == 0);
}

void each_error_says_what_to_do()
{
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    gpu.driver_version = 0;
    expect_refusal(gpu, nullptr, cudaSuccess, NB_UNSUPPORTED, {"no NVIDIA driver", "CUDA 13.0", "580.65.06 or newer", "device: cpu"});
    gpu.driver_version = 12040;
    expect_refusal(gpu, nullptr, cudaSuccess, NB_UNSUPPORTED,
                   {"supports CUDA 12.4", "CUDA 13.0", "580.65.06", "build nibble with CUDA 12"});
    gpu = nb_emulator_gpu_default();
    gpu.devices = 0;
    expect_refusal(gpu, nullptr, cudaSuccess, NB_UNSUPPORTED, {"finds no GPU", "CUDA_VISIBLE_DEVICES"});
    gpu.devices = 1;
    gpu.compute_capability = 75;
    expect_refusal(gpu, nullptr, cudaSuccess, NB_UNSUPPORTED,
                   {"compute capability 7.5", "8.0, 8.6, 8.9, 9.0, 12.0", "8.0 (Ampere) at least"});
    gpu = nb_emulator_gpu_default();
    expect_refusal(gpu, "cudaSetDevice", cudaErrorDevicesUnavailable, NB_MEMORY,
                   {"another process holds the GPU", "nvidia-smi -c DEFAULT"});
    expect_refusal(gpu, "cudaSetDevice", cudaErrorMemoryAllocation, NB_MEMORY, {"memory is full", "memory_budget"});
    expect_refusal(gpu, "cudaFuncSetAttribute", cudaErrorNoKernelImageForDevice, NB_UNSUPPORTED,
                   {"no kernels for this GPU", "gpu_architectures"});
    expect_refusal(gpu, "cudaGetDeviceCount", cudaErrorSystemDriverMismatch, NB_UNSUPPORTED, {"restart the machine"});
    expect_refusal(gpu, "cudaGetDeviceProperties", cudaErrorCompatNotSupportedOnDevice, NB_UNSUPPORTED, {"LD_LIBRARY_PATH"});
    expect_refusal(gpu, "cudaDriverGetVersion", cudaErrorInsufficientDriver, NB_UNSUPPORTED, {"missing or older"});
    expect_refusal(gpu, "cudaHostAlloc", cudaErrorOperatingSystem, NB_IO, {"opening the GPU", "cudaErrorOperatingSystem"});
    struct nb_cuda_options second = {};
    struct nb_device *d = nullptr;
    second.index = 1;
    CHECK(nb_cuda_device_create(&second, &d) == NB_UNSUPPORTED);
    CHECK(strstr(nb_status_message(), "no GPU 1: the driver finds 1"));
    CHECK(nb_cuda_status(cudaErrorECCUncorrectable, "waiting") == NB_IO && strstr(nb_status_message(), "ECC"));
    CHECK(nb_cuda_status(cudaErrorLaunchTimeout, "waiting") == NB_IO && strstr(nb_status_message(), "display"));
    CHECK(nb_cuda_status(cudaErrorIllegalAddress, "waiting") == NB_IO && strstr(nb_status_message(), "compute-sanitizer"));
    CHECK(nb_cuda_status(cudaSuccess, "waiting") == NB_OK);
    CHECK(nb_cuda_refuse_f32("add", NB_DTYPE_BF16) == NB_OK);
    CHECK(nb_cuda_refuse_f32("add", NB_DTYPE_F32) == NB_UNSUPPORTED);
    CHECK(strcmp(nb_status_message(), "add: activations in fp32; this device computes in bf16 alone") == 0);
}

void full_memory_is_told_with_its_numbers()
{
    bench t(11);
    nb_dptr slab = {0};
    uint64_t before = 0, after = 0;
    CHECK(t.d->memory_available(t.d, &before) == NB_OK);
    CHECK(t.d->memory_take(t.d, (uint64_t)3 << 30, &slab) == NB_MEMORY);
    CHECK(strstr(nb_status_message(), "emulated GPU has 20") && strstr(nb_status_message(), "3072.0 MiB are needed"));
    CHECK(t.d->memory_take(t.d, 1 << 20, &slab) == NB_OK && slab.address % NB_ALIGNMENT == 0);
    CHECK(t.d->memory_available(t.d, &after) == NB_OK && before - after == 1 << 20);
    t.d->memory_give_back(t.d, slab);
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    gpu.others_bytes = (size_t)1 << 30;
    nb_emulator_gpu_set(&gpu);
    CHECK(t.d->memory_available(t.d, &after) == NB_OK && before - after == 1 << 30);
    CHECK(t.d->memory_take(t.d, (uint64_t)1 << 30, &slab) == NB_MEMORY);
    gpu = nb_emulator_gpu_default();
    gpu.pinned_bytes = 4 << 20;
    nb_emulator_gpu_set(&gpu);
    void *host = nullptr, *less = nullptr;
    CHECK(t.d->host_take(t.d, 5 << 20, &host) == NB_MEMORY);
    CHECK(strstr(nb_status_message(), "cannot pin 5.0 MiB") && strstr(nb_status_message(), "container"));
    CHECK(t.d->host_take(t.d, 3 << 20, &host) == NB_OK && t.d->host_take(t.d, 2 << 20, &less) == NB_MEMORY);
    t.d->host_give_back(t.d, host);
    CHECK(t.d->host_take(t.d, 2 << 20, &less) == NB_OK);
    t.d->host_give_back(t.d, less);
    gpu = nb_emulator_gpu_default();
    nb_emulator_gpu_set(&gpu);
}

void a_probe_reads_the_profile()
{
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    struct nb_device_profile profile;
    struct nb_cuda_options options = {};
    CHECK(nb_cuda_built());
    CHECK(nb_cuda_probe(&options, &profile) == NB_OK);
    CHECK(strcmp(profile.name, "emulated GPU") == 0 && profile.kind == NB_DEVICE_CUDA && profile.compute_capability == 89);
    CHECK(profile.multiprocessors == 4 && profile.memory_bytes == gpu.memory_bytes && profile.bf16 && profile.cublaslt_version == 130000);
    /* 4 multiprocessors of 512 multiply-adds at 1 GHz; 256 bits at 1 GHz, twice a clock */
    CHECK(fabsf(profile.bf16_tflops - 4.096f) < 1e-3f && fabsf(profile.memory_gb_per_s - 64) < 1e-3f);
    gpu.compute_capability = 120;
    gpu.name = "NVIDIA GeForce RTX of a name that is longer than the sixty-three characters there is room for";
    nb_emulator_gpu_set(&gpu);
    options.own_products = true;
    CHECK(nb_cuda_probe(&options, &profile) == NB_OK);
    CHECK(profile.compute_capability == 120 && profile.cublaslt_version == 0 && strlen(profile.name) == sizeof profile.name - 1);
    CHECK(fabsf(profile.bf16_tflops - 2.048f) < 1e-3f);
    gpu = nb_emulator_gpu_default();
    gpu.cublaslt = false;
    nb_emulator_gpu_set(&gpu);
    {
        bench t(12, false);
        CHECK(!nb_cuda_of(t.d)->blaslt && t.d->profile.cublaslt_version == 0);
        CHECK(strcmp(nb_cuda_backend_description(t.d), "CUDA 13.0 (driver 13.0), without cuBLASLt: products on nibble's own kernels") == 0);
    }
    gpu.cublaslt = true;
    nb_emulator_gpu_set(&gpu);
    bench t(12, false);
    CHECK(strcmp(nb_cuda_backend_description(t.d), "CUDA 13.0 (driver 13.0), cuBLASLt 13.0.0") == 0);
    CHECK(strcmp(nb_cuda_backend_description(nullptr), "CUDA 13.0") == 0);
}

/* ---- cuBLASLt ---- */

enum { K = 200, N = 72, ROWS = 130, STRIDE_A = 208, STRIDE_C = 80 };

/* Of many magnitudes, so that no sum of products is exact in fp32. */
float value_at(uint32_t i)
{
    float x = (float)((i * 2654435761u >> 8) % 2001) / 1000.0f - 1.0f;
    return x * x * x;
}

struct operands {
    std::vector<nb_bf16> a, b, c;
};

operands make_operands(bool transposed)
{
    operands o;
    o.a.resize(ROWS * STRIDE_A);
    o.b.resize(transposed ? N * STRIDE_A : K * STRIDE_C);
    o.c.resize(ROWS * STRIDE_C);
    uint32_t i = 0;
    for (std::vector<nb_bf16> *v : {&o.a, &o.b, &o.c})
        for (nb_bf16 &x : *v)
            x = nb_bf16_from_float(value_at(i++));
    return o;
}

/* c after one product of the first m rows. */
std::vector<nb_bf16> multiply(uint64_t seed, const operands &o, bool transposed, bool accumulate, int m, bool prepare)
{
    bench t(seed, false);
    struct nb_cuda *cuda = nb_cuda_of(t.d);
    nb_dptr at[3];
    const std::vector<nb_bf16> *host[3] = {&o.a, &o.b, &o.c};
    std::vector<nb_bf16> result(o.c.size());
    CHECK(cuda->blaslt);
    if (prepare)
        CHECK(nb_blaslt_prepare(cuda, N, K, transposed, ROWS) == NB_OK && nb_blaslt_prepare(cuda, N, K, transposed, 7) == NB_OK);
    for (int i = 0; i < 3; i++) {
        CHECK(t.d->memory_take(t.d, host[i]->size() * sizeof(nb_bf16), &at[i]) == NB_OK);
        CHECK(t.d->upload(t.d, t.a, at[i], host[i]->data(), host[i]->size() * sizeof(nb_bf16)) == NB_OK);
    }
    struct nb_blaslt_product p = {};
    p.a = at[0], p.b = at[1], p.c = at[2];
    p.m = m, p.n = N, p.k = K;
    p.a_stride = STRIDE_A, p.b_stride = transposed ? STRIDE_A : STRIDE_C, p.c_stride = STRIDE_C;
    p.b_transposed = transposed, p.accumulate = accumulate, p.scale = 0.5f;
    CHECK(nb_blaslt_multiply(cuda, t.a->stream, &p) == NB_OK);
    CHECK(t.d->download(t.d, t.a, result.data(), at[2], result.size() * sizeof(nb_bf16)) == NB_OK);
    CHECK(t.d->stream_wait(t.d, t.a) == NB_OK);
    for (int i = 0; i < 3; i++)
        t.d->memory_give_back(t.d, at[i]);
    return result;
}

/* Against a sum in double: k products of values below 1 in fp32, and one rounding to bf16. */
void library_products_are_right()
{
    for (int variant = 0; variant < 4; variant++) {
        bool transposed = variant & 1, accumulate = variant & 2;
        operands o = make_operands(transposed);
        std::vector<nb_bf16> c = multiply(13, o, transposed, accumulate, ROWS - 1, true);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < STRIDE_C; j++) {
                double want = 0, before = nb_bf16_to_float(o.c[i * STRIDE_C + j]), got = nb_bf16_to_float(c[i * STRIDE_C + j]);
                for (int k = 0; k < K && j < N; k++)
                    want += (double)nb_bf16_to_float(o.a[i * STRIDE_A + k]) *
                            nb_bf16_to_float(o.b[transposed ? j * STRIDE_A + k : k * STRIDE_C + j]);
                want = 0.5 * want + (accumulate ? before : 0);
                if (i >= ROWS - 1 || j >= N)
                    want = before; /* beyond the product: untouched */
                CHECK(fabs(got - want) <= 0x1p-8 * fabs(want) + K * 0x1p-24);
            }
    }
}

/* The heuristic's first choices would fail this: what they add in which order depends on m. */
void a_rows_bits_depend_on_no_other_row()
{
    for (int transposed = 0; transposed < 2; transposed++) {
        operands o = make_operands(transposed);
        std::vector<nb_bf16> all = multiply(14, o, transposed, false, ROWS, true);
        for (int m : {1, 3, 64, 100}) {
            std::vector<nb_bf16> some = multiply(14, o, transposed, false, m, false);
            for (int i = 0; i < m; i++)
                CHECK(memcmp(&some[i * STRIDE_C], &all[i * STRIDE_C], N * sizeof(nb_bf16)) == 0);
        }
        int different = 0; /* the reference's sums follow the seed, so that tolerances are tried */
        for (uint64_t seed = 15; seed < 23; seed++) {
            std::vector<nb_bf16> other = multiply(seed, o, transposed, false, ROWS, true);
            for (size_t i = 0; i < all.size(); i++)
                different += all[i] != other[i];
        }
        CHECK(different > 0);
    }
}

void a_library_product_is_kept_within_its_buffers()
{
    bench t(16, false);
    struct nb_cuda *cuda = nb_cuda_of(t.d);
    struct nb_blaslt_product p = {};
    p.a = p.b = t.x, p.c = t.y;
    p.m = 16, p.n = 64, p.k = 64, p.a_stride = p.b_stride = p.c_stride = 64, p.scale = 1;
    CHECK(nb_blaslt_multiply(cuda, t.a->stream, &p) == NB_OK); /* b has 64 rows: 8,192 bytes of 4,000 */
    CHECK(t.d->stream_wait(t.d, t.a) == NB_IO);
    CHECK(nb_emulator_fault() == NB_EMULATOR_OUT_OF_BOUNDS);
}

void a_site_is_prepared_by_its_chunks()
{
    bench t(17, false);
    const struct nb_product_site site = {100, 64, 128, false, NB_WEIGHT_BF16};
    uint64_t before = 0, after = 0;
    CHECK(t.d->memory_available(t.d, &before) == NB_OK);
    CHECK(t.d->prepare(t.d, &site, 1) == NB_OK);
    CHECK(t.d->memory_available(t.d, &after) == NB_OK && before == after);
}

} /* namespace */

int main()
{
    static const struct {
        const char *name;
        void (*run)();
    } tests[] = {
#define TEST(name) {#name, name}
        TEST(work_runs_at_a_wait_alone), TEST(pinned_memory_is_read_late_and_pageable_at_once),
        TEST(a_download_to_pageable_memory_is_done_when_it_returns), TEST(a_forgotten_event_shows),
        TEST(an_event_means_its_last_record_before_the_wait), TEST(the_host_cannot_touch_device_memory), TEST(arguments_arrive_whole),
        TEST(timers_time), TEST(a_graph_replays_what_two_streams_did), TEST(a_capture_refuses_what_a_graph_cannot_hold),
        TEST(what_a_kernel_found_is_told_once), TEST(after_a_fault_nothing_works), TEST(copies_stay_within_their_buffers),
        TEST(each_error_says_what_to_do), TEST(full_memory_is_told_with_its_numbers), TEST(a_probe_reads_the_profile),
        TEST(library_products_are_right), TEST(a_rows_bits_depend_on_no_other_row), TEST(a_library_product_is_kept_within_its_buffers),
        TEST(a_site_is_prepared_by_its_chunks),
#undef TEST
    };
    for (const auto &test : tests) {
        int before = failures;
        test_name = test.name;
        test.run();
        struct nb_emulator_left left = nb_emulator_left();
        CHECK(left.device == 0 && left.pinned == 0 && left.streams == 0 && left.events == 0 && left.graphs == 0);
        printf("%-50s %s\n", test.name, failures == before ? "ok" : "FAILED");
    }
    return failures != 0;
}
