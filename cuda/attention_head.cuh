/* The attention kernels of one head size: attention_64.cu and its like each define one of these, so that they compile
 * side by side. */
#ifndef NB_CUDA_ATTENTION_HEAD_CUH
#define NB_CUDA_ATTENTION_HEAD_CUH

#include "cuda/attention_tile.cuh"

/* `shared_kib`: what shared memory a multiprocessor has. Head size 128 takes larger tiles where two blocks of them fit:
 * a choice of the device, never of the data. */
struct nb_attention_kernels {
    int head_dim; /* up to which they serve */
    nb_status (*forward)(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream);
    nb_status (*backward)(
        const struct nb_attention_view &view, int shared_kib, cudaStream_t stream); /* stats are there */
    nb_status (*load_forward)(void);
    nb_status (*load_backward)(void);
};
extern const struct nb_attention_kernels nb_attention_kernels_64, nb_attention_kernels_80, nb_attention_kernels_96,
    nb_attention_kernels_128, nb_attention_kernels_256;

static const struct nb_attention_kernels *const nb_attention_heads[] = {&nb_attention_kernels_64,
    &nb_attention_kernels_80, &nb_attention_kernels_96, &nb_attention_kernels_128, &nb_attention_kernels_256};
enum { NB_ATTENTION_HEADS = sizeof nb_attention_heads / sizeof *nb_attention_heads };

static inline const struct nb_attention_kernels *nb_attention_kernels_of(int head_dim)
{
    int i = 0;
    while (nb_attention_heads[i]->head_dim < head_dim)
        i++;
    return nb_attention_heads[i];
}

/* NVIDIA, CUDA C++ Programming Guide, table of technical specifications by compute capability. */
static inline int nb_attention_shared_kib(const struct nb_device *device)
{
    int capability = device->profile.compute_capability;
    return capability == 90 ? 228 : capability == 80 ? 164 : 100;
}

#endif
