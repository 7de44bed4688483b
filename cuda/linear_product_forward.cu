/* The forward kernels of linear_kernel.cuh: y = x W^T, weights [out, in] read along the sum. */
#include "cuda/linear_kernel.cuh"

struct nb_product_kernel_choice nb_product_forward_kernel(enum nb_product_tile tile, bool packed)
{
    return packed ? nb_product_kernel_by_tile<false, true>(tile, "linear_packed")
                  : nb_product_kernel_by_tile<false, false>(tile, "linear_bf16");
}
