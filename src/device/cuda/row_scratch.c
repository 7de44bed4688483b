/* The ops on rows and elements: none needs scratch. */
#include "device/cuda/plan.h"

NB_CUDA_NO_SCRATCH(embedding)
NB_CUDA_NO_SCRATCH(gather_rows)
NB_CUDA_NO_SCRATCH(scatter_rows)
NB_CUDA_NO_SCRATCH(rmsnorm)
NB_CUDA_NO_SCRATCH(rmsnorm_backward)
NB_CUDA_NO_SCRATCH(layernorm)
NB_CUDA_NO_SCRATCH(layernorm_backward)
NB_CUDA_NO_SCRATCH(rope)
NB_CUDA_NO_SCRATCH(rope_backward)
NB_CUDA_NO_SCRATCH(kv_append)
NB_CUDA_NO_SCRATCH(swiglu)
NB_CUDA_NO_SCRATCH(swiglu_backward)
NB_CUDA_NO_SCRATCH(geglu)
NB_CUDA_NO_SCRATCH(geglu_backward)
NB_CUDA_NO_SCRATCH(add)
NB_CUDA_NO_SCRATCH(cast)
