/* What of a GPU's memory a run cannot have: what the driver keeps from every program, and what it takes for this one. Estimates, for plans
 * made before the GPU is opened; once it is, what is left is measured. Each is a little above every figure found (driver 550 to 610):
 *
 * kept from all, nvidia-smi's total less cudaMemGetInfo's: RTX 4090 484 MiB, RTX 3090 453, RTX 5090 501, A10 440, RTX 6000 Ada 631;
 * a context with nothing in it: RTX 3090 256 MiB on 82 multiprocessors, RTX 6000 Ada 426 on 142; with kernels and matrix library at work
 * (llama.cpp's), RTX 4090 456 on 128. It grows with the multiprocessors, whose threads' stacks it holds. */
#ifndef NB_DEVICE_CUDA_DRIVER_SHARE_H
#define NB_DEVICE_CUDA_DRIVER_SHARE_H

#include <stdint.h>

/* What the driver takes after the arena is, which a plan that fills the rest must leave: graphs, some 20 KB a kernel in them, and the
 * pages of a slab. */
enum { NB_CUDA_KEPT_BACK_BYTES = 256 << 20 };

/* Of a card whose whole memory is `memory_bytes`. */
static inline uint64_t nb_cuda_reserved_bytes(uint64_t memory_bytes)
{
    return ((uint64_t)300 << 20) + memory_bytes / 128;
}

/* Context, kernels, libraries, and what is kept back for graphs. */
static inline uint64_t nb_cuda_driver_bytes(int multiprocessors)
{
    return ((uint64_t)4 << 20) * (uint64_t)multiprocessors + NB_CUDA_KEPT_BACK_BYTES;
}

#endif
