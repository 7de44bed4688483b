/* The backward kernels of linear_kernel.cuh: dx = dy W, weights [out, in] read across the sum. */
#include "cuda/linear_kernel.cuh"

struct nb_product_kernel_choice nb_product_backward_kernel(enum nb_product_tile tile, bool packed)
{
    return packed ? nb_product_kernel_by_tile<true, true>(tile, "linear_backward_packed")
                  : nb_product_kernel_by_tile<true, false>(tile, "linear_backward_bf16");
}
