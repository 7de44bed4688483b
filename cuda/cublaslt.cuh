/* bf16 products by cuBLASLt, loaded with dlopen: nibble neither links nor ships it. */
#ifndef NB_CUDA_CUBLASLT_CUH
#define NB_CUDA_CUBLASLT_CUH

#include "cuda/device.cuh"

/* All row-major, bf16 in memory, fp32 in the sums: c = scale * a op(b) + (accumulate ? c : 0), rounded once.
 *   a [m, k];  b [n, k] if b_transposed (forward: weights [out, in]), else [k, n];  c [m, n].  Strides in elements, multiples of 8. */
struct nb_blaslt_product {
    nb_dptr a, b, c;
    int m, n, k, a_stride, b_stride, c_stride;
    bool b_transposed, accumulate;
    float scale;
};

/* Opens the library (libcublasLt.so.13, .so.12, .so) and makes a handle. *blaslt is NULL, and the result NB_OK, where there is none, or
 * none that is new enough for nibble and old enough for the driver. */
nb_status nb_blaslt_create(struct nb_cuda *cuda, struct nb_blaslt **blaslt);
void nb_blaslt_destroy(struct nb_blaslt **blaslt); /* takes NULL; nulls */
/* cublasLtGetVersion's number; 0 for NULL. */
int nb_blaslt_version(const struct nb_blaslt *blaslt);
/* The same of the library that create would open beside this driver (cudaDriverGetVersion's number), without a GPU; 0: none. */
int nb_blaslt_probe(int driver_version);

/* Chooses the algorithm of (n, k, b_transposed) for m up to `m_planned` and runs it once on memory of its own, released before return. The
 * same algorithm serves at every m, so that no row's bits depend on how many others came with it; algorithms that split k, or that ask
 * for workspace, are passed over. Chosen again, it keeps the first choice. Errors: NB_UNSUPPORTED when there is no such algorithm. */
nb_status nb_blaslt_prepare(struct nb_cuda *cuda, int n, int k, bool b_transposed, int m_planned);

/* Enqueues one product. (n, k, b_transposed) that was not prepared is chosen at first use, by the same rule with m as planned. */
nb_status nb_blaslt_multiply(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_blaslt_product *product);

#endif
