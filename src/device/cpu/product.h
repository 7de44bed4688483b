/* One matrix product of a tile, on one thread: what the linear and attention ops call inside their own parallel loops.
 *
 * Two backends of one interface, chosen at build time: oneDNN (product_onednn.c), or our own blocked loops
 * (product_own.c). Single-threaded products on fixed tiles give the same bits at any number of threads, which
 * whole-matrix calls of a library do not. */
#ifndef NB_DEVICE_CPU_PRODUCT_H
#define NB_DEVICE_CPU_PRODUCT_H

#include "device/device.h"

struct nb_products;

/* The largest tile a caller cuts its products into; longer sums over k are chained with `accumulate`. */
enum { NB_PRODUCT_ROWS = 128, NB_PRODUCT_COLUMNS = 256, NB_PRODUCT_DEPTH = 1024 };

/* c = (accumulate ? c : 0) + scale * op(a) op(b), op(a) [m, k], op(b) [k, n], summed in fp32 (bf16 products are exact
 * in it).
 *   a  stored [m, k], or [k, m] if a_transposed;  a_dtype F32 or BF16
 *   b  stored [k, n], or [n, k] if b_transposed;  b_dtype F32 or BF16
 *   c  stored [m, n];  fp32
 * Row strides in elements. A row of c depends on its row of op(a) and on b alone: the same bits whatever m is and whatever the
 * other rows hold, m being a multiple of 16. Other m, n and k are any from 1 up. No alignment is asked for. */
struct nb_product {
    enum nb_dtype a_dtype, b_dtype;
    int m, n, k;
    int a_stride, b_stride, c_stride;
    bool a_transposed, b_transposed, accumulate;
    float scale;
};

/* Whether bf16 is multiplied in hardware (avx512_bf16 or AMX, and a library that uses it). */
bool nb_products_have_bf16(void);

/* `threads`: how many may be inside nb_product_multiply at once. Errors: NB_MEMORY. */
nb_status nb_products_create(int threads, struct nb_products **products);
void nb_products_destroy(struct nb_products **products); /* takes NULL; nulls the handle */

/* Around a parallel region with products in it: keeps the library from making threads of its own. `enter` returns what
 * `leave` takes. */
int nb_products_enter(void);
void nb_products_leave(int entered);

/* Scratch for one thread, a multiple of 256 bytes, enough for `largest` and any product smaller in m, n and k. `bf16`:
 * of the profile. */
uint64_t nb_product_scratch_bytes(const struct nb_product *largest, bool bf16);

/* Multiplies. From any thread of a parallel region; `scratch` (aligned to 64 bytes) is the thread's alone. A failure
 * (no memory for a kernel at its first use) is kept and c is then undefined. */
void nb_product_multiply(struct nb_products *products, const struct nb_product *product, const void *a, const void *b,
    float *c, void *scratch);

/* The first failure since the last call, with its message; outside of parallel regions. */
nb_status nb_products_status(struct nb_products *products);

#endif
