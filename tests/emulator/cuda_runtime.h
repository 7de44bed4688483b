/* The part of the CUDA runtime API that cuda/ uses, under its own names and signatures, met by runtime.cc. Values of enums are the real
 * ones (NVIDIA, CUDA Runtime API 13.0, driver_types.h).
 *
 * Stricter than a GPU where that shows mistakes: work runs only at a call that waits for it, and then in an order among streams that the
 * seed draws; device memory cannot be touched by the host; the default stream is refused; a capture takes pinned memory alone. */
#ifndef NB_TESTS_EMULATOR_CUDA_RUNTIME_H
#define NB_TESTS_EMULATOR_CUDA_RUNTIME_H

#include <cstddef>
#include <cstdint>
#include <functional>

#include "base/status.h"
#include "emulator/cuda_language.h"
#include "emulator/emulator.h"

#define CUDART_VERSION 13000
#define __CUDA_ARCH_LIST__ 800, 860, 890, 900, 1200

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorStubLibrary = 34,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorOperatingSystem = 304,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchTimeout = 702,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,
    cudaErrorSystemNotReady = 802,
    cudaErrorSystemDriverMismatch = 803,
    cudaErrorCompatNotSupportedOnDevice = 804,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureMerge = 902,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorCapturedEvent = 907,
};
typedef enum cudaError cudaError_t;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum { cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0, cudaHostAllocMapped = 2 };

enum cudaDeviceAttr {
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
};

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error); /* with the emulator's words after a fault */
cudaError_t cudaGetLastError(void);

cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize(void);

cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* ---- for tests: the machine that is emulated ---- */

struct nb_emulator_gpu {
    const char *name;           /* static */
    int devices;                /* how many there are, all alike */
    int driver_version;         /* cudaDriverGetVersion's; 0: no driver */
    int compute_capability;     /* major * 10 + minor */
    int multiprocessors;
    int shared_bytes_max;       /* dynamic, of a block */
    size_t memory_bytes;
    bool cublaslt;              /* whether the library can be opened */
    size_t others_bytes;        /* of memory_bytes that other processes have taken */
    size_t pinned_bytes;        /* of host memory that may be pinned in all */
};
/* "emulated GPU", one, driver 13.0, capability 8.9, 4 multiprocessors (so few that persistent loops go round), 99 KiB, 2 GiB, with
 * cuBLASLt, no other process on it, and any memory may be pinned. */
struct nb_emulator_gpu nb_emulator_gpu_default(void);
/* Counts from the next call on; memory that is taken stays. */
void nb_emulator_gpu_set(const struct nb_emulator_gpu *gpu);

/* The next call of the runtime function named so returns `error` and does nothing else. `call`: static, NULL: none. */
void nb_emulator_refuse(const char *call, cudaError_t error);

/* How often the runtime function of this name has been called. */
int nb_emulator_calls(const char *call);

/* Device allocations, pinned ones, streams and events that nobody gave back. */
struct nb_emulator_left {
    int device, pinned, streams, events, graphs;
};
struct nb_emulator_left nb_emulator_left(void);

/* ---- for cublaslt.cu and its reference ---- */

void *nb_emulator_library_open(const char *name); /* NULL: no such library */
void *nb_emulator_library_symbol(void *library, const char *name);
/* cublaslt_reference.cc's, NULL for another name. too_new: those of a library for a newer driver than the emulated one. */
void *nb_emulator_cublaslt_symbol(const char *name, bool too_new);
/* Queues a host function as a kernel would be. It returns false after a fault. */
cudaError_t nb_emulator_enqueue(cudaStream_t stream, std::function<bool()> run);

/* ---- launching, as device.cuh asks for it ---- */

/* Each file has its own of this: two may have structs of one name, whose copying the linker would take for the same function. */
namespace {

/* The kernel's arguments, one behind the other: trivially copyable, so that runtime.cc, which is not instrumented, can put them on the
 * fiber's stack, where the kernel may read. */
template <typename... P> struct nb_emulator_arguments;
template <> struct nb_emulator_arguments<> {
    static nb_emulator_arguments of(void) { return {}; }
    template <typename... Q> void call(void (*kernel)(Q...), Q... values) const { kernel(values...); }
};
template <typename F, typename... R> struct nb_emulator_arguments<F, R...> {
    F first;
    nb_emulator_arguments<R...> rest;
    static nb_emulator_arguments of(F first, R... rest) { return {first, nb_emulator_arguments<R...>::of(rest...)}; }
    /* `values`: the arguments before these. */
    template <typename... Q, typename... V> void call(void (*kernel)(Q...), V... values) const
    {
        rest.template call<Q...>(kernel, values..., first);
    }
};

} // namespace

/* arguments: at a nb_emulator_arguments<P...>. */
template <typename... P> static void nb_emulator_call(const void *kernel, const void *arguments)
{
    static_cast<const nb_emulator_arguments<P...> *>(arguments)->template call<P...>((void (*)(P...))kernel);
}

struct nb_emulator_kernel {
    const char *name;
    const void *kernel;
    void (*call)(const void *kernel, const void *arguments);
    dim3 grid;
    int threads, shared_bytes;
};
nb_status nb_emulator_launch_erased(const struct nb_emulator_kernel *kernel, const void *arguments, size_t bytes, cudaStream_t stream);
nb_status nb_emulator_load(const char *name, const void *kernel, int shared_bytes);

template <typename... P, typename... A>
static nb_status nb_emulator_launch(
    const char *name, void (*kernel)(P...), dim3 grid, int threads, int shared_bytes, cudaStream_t stream, A... arguments)
{
    struct nb_emulator_kernel launched = {name, (const void *)kernel, nb_emulator_call<P...>, grid, threads, shared_bytes};
    nb_emulator_arguments<P...> packed = nb_emulator_arguments<P...>::of(static_cast<P>(arguments)...);
    return nb_emulator_launch_erased(&launched, &packed, sizeof packed, stream);
}

#endif
