/* What the emulated GPU is, and the names of errors. */
#include <cstdio>
#include <cstring>

#include "emulator/runtime.h"

using namespace nb_runtime;

struct nb_emulator_gpu nb_emulator_gpu_default(void)
{
    return {"emulated GPU", 1, CUDART_VERSION, 89, 4, 99 * 1024, (size_t)2 << 30, true, 0, SIZE_MAX};
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

int nb_emulator_calls(const char *call)
{
    const auto &calls = the_machine().calls;
    auto at = calls.find(call);
    return at == calls.end() ? 0 : at->second;
}

struct nb_emulator_left nb_emulator_left(void)
{
    const machine &m = the_machine();
    return {(int)m.device.size(), (int)m.pinned.size(), (int)m.streams.size(), m.events, m.graphs};
}

/* libcublasLt.so.13 is too new for the driver, and libcublasLt.so.12 not to be had, so that the search goes on after either. */
static char too_new, suitable;

void *nb_emulator_library_open(const char *name)
{
    if (!the_machine().gpu.cublaslt)
        return nullptr;
    return strcmp(name, "libcublasLt.so.13") == 0 ? &too_new : strcmp(name, "libcublasLt.so") == 0 ? &suitable : nullptr;
}

void *nb_emulator_library_symbol(void *library, const char *name)
{
    return library == &too_new || library == &suitable ? nb_emulator_cublaslt_symbol(name, library == &too_new) : nullptr;
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
