/* How the kernels of loss_scratch.c's ops divide their scratch: offsets in bytes from its base. */
#ifndef NB_DEVICE_CUDA_LOSS_SCRATCH_H
#define NB_DEVICE_CUDA_LOSS_SCRATCH_H

#include "device/cuda/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

struct nb_cuda_quantize_scratch {
    uint64_t absmax; /* fp32 [blocks of 64]: the scales before they are quantized */
    uint64_t sums;   /* double [superblocks]: of 256 of them */
    uint64_t bytes;  /* 0 for a matrix that is not nested */
};
void nb_cuda_quantize_scratch_of(const struct nb_weight *to, struct nb_cuda_quantize_scratch *scratch);

/* Logits of a tile of nb_sample, and values that a bf16 logit can have. */
enum { NB_CUDA_SAMPLE_TILE = 2048, NB_CUDA_SAMPLE_VALUES = 65536 };

struct nb_cuda_sample_scratch {
    uint64_t tiles;        /* how many: not an offset */
    uint64_t choice;       /* 256 bytes: what the kernels tell each other */
    uint64_t tile_best;    /* uint32_t [tiles]: value and place of the largest logit */
    uint64_t tile_sum;     /* double [tiles]: probabilities above the cut */
    uint64_t tile_ties;    /* uint32_t [tiles]: logits at the cut */
    uint64_t counts;       /* uint32_t [NB_CUDA_SAMPLE_VALUES], only where top_k or top_p cut */
    uint64_t counts_bytes; /* 0 where nothing cuts */
    uint64_t bytes;
};
void nb_cuda_sample_scratch_of(const struct nb_sample *args, struct nb_cuda_sample_scratch *scratch);

#ifdef __cplusplus
}
#endif

#endif
