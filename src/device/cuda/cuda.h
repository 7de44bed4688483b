/* The CUDA device, as the rest of the house sees it. Three libraries define these functions: cuda/ (nvcc), the emulator of the tests
 * (the same sources, g++), and, in a build without either, no_cuda.c, where all but nb_cuda_built fail and say so. */
#ifndef NB_DEVICE_CUDA_CUDA_H
#define NB_DEVICE_CUDA_CUDA_H

#include <stdbool.h>

#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether this program has a CUDA device at all (one may still be missing from the machine). */
bool nb_cuda_built(void);

struct nb_cuda_options {
    int index;                               /* which GPU, in the runtime's order (CUDA_VISIBLE_DEVICES is the runtime's affair) */
    bool own_products;                       /* leave cuBLASLt alone even if it is there */
    const struct nb_product_table *products; /* as profile.products */
};

/* What stands in the machine: profile of the GPU, without a context of its own on it where the driver allows that. rates (tflops, GB/s)
 * come from its attributes and are upper limits. Errors, each saying what to do: NB_UNSUPPORTED (built without CUDA; no driver; no GPU;
 * a driver older than this build needs, naming both versions; no kernels for this GPU, naming its compute capability), NB_MEMORY. */
nb_status nb_cuda_probe(const struct nb_cuda_options *options, struct nb_device_profile *profile);

/* Opens the GPU: context, streams' pool, cuBLASLt if it can be loaded. base.prepare must have run before the first op that is timed or
 * the arena is taken. Destroy with nb_device_destroy. Errors: as nb_cuda_probe; NB_MEMORY when the GPU is taken by another process. */
nb_status nb_cuda_device_create(const struct nb_cuda_options *options, struct nb_device **device);

/* One line for --version and the plan: "CUDA 13.0 (driver 13.0), cuBLASLt 13.1.0" or "..., without cuBLASLt: products on nibble's own
 * kernels". Static or owned by the device. `device` may be NULL: the build's share alone. */
const char *nb_cuda_backend_description(const struct nb_device *device);

/* Device times in seconds between two points of a stream, for the benchmarks: begin records, end waits for the stream. Device work
 * only. Errors: those of the stream's work. */
nb_status nb_cuda_timer_begin(struct nb_device *device, struct nb_stream *stream);
nb_status nb_cuda_timer_end(struct nb_device *device, struct nb_stream *stream, double *seconds);

#ifdef __cplusplus
}
#endif

#endif
