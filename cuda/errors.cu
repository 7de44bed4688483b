/* What the CUDA runtime and its driver report, as nibble's status: what was being done, what they say, and what to do about it. */
#include "cuda/device.cuh"

/* After these every later call fails as well: what was queued and what stands in the GPU's memory are lost. */
static bool is_lost(cudaError_t error)
{
    return error == cudaErrorIllegalAddress || error == cudaErrorMisalignedAddress || error == cudaErrorIllegalInstruction ||
           error == cudaErrorLaunchFailure || error == cudaErrorLaunchTimeout || error == cudaErrorECCUncorrectable;
}

static nb_status fail_lost(cudaError_t error, const char *doing, const char *name, const char *words)
{
    if (error == cudaErrorECCUncorrectable)
        return nb_fail(NB_IO, "%s: the GPU's memory has an error that cannot be corrected (%s): run again, which resumes from the last "
                              "checkpoint; if it comes back, `nvidia-smi -q -d ECC` tells more and the GPU may need a reset",
                       doing, name);
    if (error == cudaErrorLaunchTimeout)
        return nb_fail(NB_IO, "%s: the driver stopped a kernel that ran too long (%s), as it does on a GPU that also serves a display: run "
                              "without a display, or with a smaller micro_batch_size",
                       doing, name);
    return nb_fail(NB_IO, "%s: a kernel failed (%s: %s), and what the GPU held is lost: run again, which resumes from the last "
                          "checkpoint; if it comes back, it is a defect of nibble or of the GPU, which `compute-sanitizer nibble ...` "
                          "tells apart",
                   doing, name, words);
}

/* The driver and the machine's state: what stands in the way before any work can start. */
static nb_status fail_start(cudaError_t error, const char *doing, const char *name, const char *words)
{
    switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
        return nb_fail(NB_UNSUPPORTED, "%s: the NVIDIA driver is missing or older than this build needs (%s): install or update it, or use "
                                       "device: cpu",
                       doing, name);
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
        return nb_fail(NB_UNSUPPORTED, "%s: no such GPU (%s): see which ones `nvidia-smi -L` lists and what CUDA_VISIBLE_DEVICES leaves of "
                                       "them, or use device: cpu",
                       doing, name);
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
        return nb_fail(NB_UNSUPPORTED, "%s: this build has no kernels for this GPU (%s): build nibble with its compute capability in the "
                                       "option gpu_architectures%s",
                       doing, name,
                       error == cudaErrorUnsupportedPtxVersion ? ", or update the driver, which cannot compile the PTX of this build" : "");
    case cudaErrorSystemDriverMismatch:
        return nb_fail(NB_UNSUPPORTED, "%s: the driver's libraries and its kernel module differ in version (%s), as after an update: "
                                       "restart the machine, or load the module again",
                       doing, name);
    case cudaErrorCompatNotSupportedOnDevice:
        return nb_fail(NB_UNSUPPORTED, "%s: a forward-compatibility library of CUDA is in use that this GPU does not support (%s): take "
                                       "its folder out of LD_LIBRARY_PATH",
                       doing, name);
    case cudaErrorSystemNotReady:
        return nb_fail(NB_UNSUPPORTED, "%s: the machine's GPUs are not ready yet (%s): see that the fabric manager runs, then try again",
                       doing, name);
    default:
        return nb_fail(NB_IO, "%s: %s (%s)", doing, words, name);
    }
}

nb_status nb_cuda_status(cudaError_t error, const char *doing)
{
    if (error == cudaSuccess)
        return NB_OK;
    const char *name = cudaGetErrorName(error), *words = cudaGetErrorString(error);
    nb_status status;
    if (is_lost(error))
        status = fail_lost(error, doing, name, words);
    else if (error == cudaErrorMemoryAllocation)
        status = nb_fail(NB_MEMORY, "%s: the GPU's memory is full (%s): end other programs that use it (`nvidia-smi` lists them), or lower "
                                    "sequence_len, micro_batch_size or memory_budget",
                         doing, name);
    else if (error == cudaErrorDevicesUnavailable)
        status = nb_fail(NB_MEMORY, "%s: another process holds the GPU for itself (%s): wait for it or end it (`nvidia-smi` lists it), "
                                    "choose another GPU by CUDA_VISIBLE_DEVICES, or allow sharing with `nvidia-smi -c DEFAULT`",
                         doing, name);
    else
        status = fail_start(error, doing, name, words);
    /* The runtime keeps its last error for whoever asks next; it has been told now. */
    (void)cudaGetLastError();
    return status;
}

nb_status nb_cuda_refuse_f32(const char *op, enum nb_dtype activation)
{
    if (activation == NB_DTYPE_BF16)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: activations in fp32; this device computes in bf16 alone", op);
}

nb_status nb_cuda_require_scratch(const char *op, const struct nb_scratch *given, uint64_t needed)
{
    if (given->bytes >= needed)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %llu bytes of scratch were given, %llu are needed; ask %s_scratch_bytes", op,
                   (unsigned long long)given->bytes, (unsigned long long)needed, op);
}

nb_status nb_cuda_fault_status(const struct nb_cuda_fault *fault)
{
    unsigned long long index = fault->index, columns = fault->columns ? fault->columns : 1;
    return nb_fail(NB_FORMAT,
                   "the weight in row %llu, column %llu (element %llu) is not a finite number; the checkpoint is damaged or its training "
                   "diverged",
                   index / columns, index % columns, index);
}
