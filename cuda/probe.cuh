/* What the machine's GPU is. Private to cuda/. */
#ifndef NB_CUDA_PROBE_CUH
#define NB_CUDA_PROBE_CUH

#include "cuda/device.cuh"

/* Fills index, versions, shared_bytes_max, l2_bytes and base.profile of *cuda, all of it without a context. Errors: nb_cuda_probe's. */
nb_status nb_cuda_examine(struct nb_cuda *cuda, const struct nb_cuda_options *options);

/* "CUDA 13.0": what this was built with. Static. */
const char *nb_cuda_build_version(void);

#endif
