/* Which GPU the machine has, whether this build can run on it, and what it is capable of. */
#include "cuda/probe.cuh"

#include <stdio.h>
#include <string.h>

#include "cuda/cublaslt.cuh"
#include "device/cuda/driver_share.h"

/* The virtual architectures that the kernels were compiled for, times ten: nvcc's own list. */
static const int architecture[] = {__CUDA_ARCH_LIST__};
enum { ARCHITECTURES = sizeof architecture / sizeof *architecture, NEEDED_CAPABILITY = 80 };

static int major_of(int version)
{
    return version / 1000;
}

static int minor_of(int version)
{
    return version % 1000 / 10;
}

/* The oldest Linux driver that runs programs of a CUDA major version: a newer toolkit of the same major version needs no newer driver.
 * Source: NVIDIA, CUDA Compatibility, table "minor version compatibility". */
static const char *driver_needed(int major)
{
    return major <= 12 ? "525.60.13" : "580.65.06";
}

const char *nb_cuda_build_version(void)
{
    static const char text[] = {'C', 'U', 'D', 'A', ' ', '0' + CUDART_VERSION / 10000, '0' + CUDART_VERSION / 1000 % 10, '.',
                                '0' + CUDART_VERSION % 1000 / 10, 0};
    return text;
}

static nb_status check_driver(struct nb_cuda *cuda)
{
    NB_TRY(nb_cuda_status(cudaRuntimeGetVersion(&cuda->runtime_version), "reading the CUDA runtime's version"));
    NB_TRY(nb_cuda_status(cudaDriverGetVersion(&cuda->driver_version), "reading the NVIDIA driver's version"));
    int built = major_of(cuda->runtime_version), found = major_of(cuda->driver_version);
    if (cuda->driver_version == 0)
        return nb_fail(NB_UNSUPPORTED,
                       "no NVIDIA driver was found: this nibble was built with CUDA %d.%d and needs driver %s or newer; install it (in a "
                       "container: start it with the GPUs), or use device: cpu",
                       built, minor_of(cuda->runtime_version), driver_needed(built));
    if (found < built)
        return nb_fail(NB_UNSUPPORTED,
                       "the NVIDIA driver supports CUDA %d.%d, but this nibble was built with CUDA %d.%d and needs driver %s or newer: "
                       "update the driver, build nibble with CUDA %d, or use device: cpu",
                       found, minor_of(cuda->driver_version), built, minor_of(cuda->runtime_version), driver_needed(built), found);
    return NB_OK;
}

static nb_status check_index(struct nb_cuda *cuda)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        (void)cudaGetLastError();
        return nb_fail(NB_UNSUPPORTED,
                       "the NVIDIA driver (CUDA %d.%d) finds no GPU: see what `nvidia-smi -L` lists and whether CUDA_VISIBLE_DEVICES "
                       "hides it, or use device: cpu",
                       major_of(cuda->driver_version), minor_of(cuda->driver_version));
    }
    NB_TRY(nb_cuda_status(error, "counting the GPUs"));
    if (cuda->index < 0 || cuda->index >= count)
        return nb_fail(NB_UNSUPPORTED, "there is no GPU %d: the driver finds %d, counted from 0 (`nvidia-smi -L` lists them)", cuda->index,
                       count);
    return NB_OK;
}

/* A GPU runs the code of its own major capability up to its minor one, and, compiled by the driver, PTX of any older capability;
 * whether PTX is there, the first kernel that is loaded tells. */
static nb_status check_capability(const struct nb_device_profile *profile)
{
    char list[8 * ARCHITECTURES + 1] = "";
    bool served = false;
    for (int i = 0; i < (int)ARCHITECTURES; i++) {
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%d.%d", i ? ", " : "", architecture[i] / 100, architecture[i] / 10 % 10);
        served = served || architecture[i] / 10 <= profile->compute_capability;
    }
    if (served && profile->compute_capability >= NEEDED_CAPABILITY)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s has compute capability %d.%d; this build has kernels for %s%s", profile->name,
                   profile->compute_capability / 10, profile->compute_capability % 10, list,
                   profile->compute_capability < NEEDED_CAPABILITY
                       ? ", and nibble's kernels need 8.0 (Ampere) at least: use device: cpu"
                       : ": build it with this GPU's in the option gpu_architectures, or use device: cpu");
}

/* Multiply-adds of dense bf16 products with fp32 sums that a multiprocessor does in a clock. The consumer cards' tensor units run those
 * at half the rate of the workstation and server cards with the same chip. Source: NVIDIA's architecture white papers, tables of peak
 * rates. */
static int tensor_rate(int compute_capability, const char *name)
{
    bool halved = strstr(name, "GeForce") || strstr(name, "TITAN") || strstr(name, "A10G");
    if (compute_capability == 80)
        return 1024;
    if (compute_capability >= 90 && compute_capability < 120)
        return compute_capability < 100 ? 2048 : 4096;
    return halved ? 256 : 512;
}

struct attributes {
    int major, minor, multiprocessors, clock_khz, memory_clock_khz, memory_bits, l2_bytes, shared_bytes;
};

static nb_status read_attributes(int index, struct attributes *a)
{
    const struct {
        enum cudaDeviceAttr attribute;
        int *value;
    } wanted[] = {
        {cudaDevAttrComputeCapabilityMajor, &a->major},
        {cudaDevAttrComputeCapabilityMinor, &a->minor},
        {cudaDevAttrMultiProcessorCount, &a->multiprocessors},
        {cudaDevAttrClockRate, &a->clock_khz},
        {cudaDevAttrMemoryClockRate, &a->memory_clock_khz},
        {cudaDevAttrGlobalMemoryBusWidth, &a->memory_bits},
        {cudaDevAttrL2CacheSize, &a->l2_bytes},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, &a->shared_bytes},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        NB_TRY(nb_cuda_status(cudaDeviceGetAttribute(wanted[i].value, wanted[i].attribute, index), "reading the GPU's attributes"));
    return NB_OK;
}

nb_status nb_cuda_examine(struct nb_cuda *cuda, const struct nb_cuda_options *options)
{
    struct nb_device_profile *profile = &cuda->base.profile;
    struct cudaDeviceProp properties;
    struct attributes a;
    cuda->index = options ? options->index : 0;
    NB_TRY(check_driver(cuda));
    NB_TRY(check_index(cuda));
    NB_TRY(nb_cuda_status(cudaGetDeviceProperties(&properties, cuda->index), "reading the GPU's properties"));
    NB_TRY(read_attributes(cuda->index, &a));
    cuda->shared_bytes_max = a.shared_bytes;
    cuda->l2_bytes = (uint64_t)a.l2_bytes;
    memset(profile, 0, sizeof *profile);
    snprintf(profile->name, sizeof profile->name, "%.*s", (int)sizeof profile->name - 1, properties.name);
    profile->kind = NB_DEVICE_CUDA;
    profile->memory_bytes = properties.totalGlobalMem; /* without what the driver keeps from all */
    profile->driver_bytes = nb_cuda_driver_bytes(a.multiprocessors);
    profile->compute_capability = a.major * 10 + a.minor;
    profile->multiprocessors = a.multiprocessors;
    profile->bf16 = profile->compute_capability >= 80;
    /* Two operations a multiply-add, two transfers a clock of the memory. */
    profile->bf16_tflops =
        2e-9f * (float)a.clock_khz * (float)a.multiprocessors * (float)tensor_rate(profile->compute_capability, profile->name);
    profile->memory_gb_per_s = 2e-6f * (float)a.memory_clock_khz * (float)a.memory_bits / 8;
    /* No attribute tells: 16 lanes of PCI Express, version 5 since Hopper and 4 before, at four fifths of their rate. */
    profile->link_gb_per_s = profile->compute_capability >= 90 ? 50 : 25;
    profile->products = options ? options->products : NULL;
    return check_capability(profile);
}

bool nb_cuda_built(void)
{
    return true;
}

nb_status nb_cuda_probe(const struct nb_cuda_options *options, struct nb_device_profile *profile)
{
    struct nb_cuda cuda;
    memset(&cuda, 0, sizeof cuda);
    NB_TRY(nb_cuda_examine(&cuda, options));
    *profile = cuda.base.profile;
    profile->cublaslt_version = options && options->own_products ? 0 : nb_blaslt_probe(cuda.driver_version);
    return NB_OK;
}
