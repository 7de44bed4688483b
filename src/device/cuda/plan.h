/* What the planner must know of the CUDA device without having one: the scratch of each op, and which way each matrix product takes.
 * Plain C, no CUDA header; cuda/ follows what is decided here and decides nothing itself. */
#ifndef NB_DEVICE_CUDA_PLAN_H
#define NB_DEVICE_CUDA_PLAN_H

#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the ways to multiply by a 4-bit matrix ---- */

enum nb_product_path {
    NB_PRODUCT_FUSED,     /* dequantized inside the product's kernel: no scratch for the weights */
    NB_PRODUCT_SCRATCH,   /* a chunk of the matrix dequantized into bf16 scratch, then a bf16 product (cuBLASLt, or nibble's own kernel) */
    NB_PRODUCT_OVERLAPPED /* the same with two chunks: one is dequantized on a side stream while the other multiplies */
};

/* "fused", "scratch", "overlapped". Static. */
const char *nb_product_path_name(enum nb_product_path path);
/* The reverse. False for another word. */
bool nb_product_path_parse(const char *name, enum nb_product_path *path);

/* Where a product stands. A path holds for a site: every call of it, at every number of tokens, takes the same. */
struct nb_product_site {
    int out, in;       /* of the matrix: N and K */
    int tokens;        /* the site's planned tokens, before any chunking */
    bool backward;     /* dX = dY W */
    enum nb_weight_format format;
    int part_out[NB_LINEAR_PARTS]; /* backward: the parts' rows, of which `out` is the sum. The path does not go by them */
};

/* One measured line: at up to `tokens` tokens (and above the line before it) this path is the fastest for such a matrix. */
struct nb_product_choice {
    int out, in, tokens;
    bool backward;
    enum nb_product_path path;
};

/* What `bench matmul --write` measured on a machine, or what a checkpoint recorded. Lines in any order; of those that fit a site's out, in
 * and direction, the one with the least tokens >= the site's counts, else the one with the most; sites without a line get the default.
 * A table counts only for the GPU and library version it names. */
struct nb_product_table {
    char device[64];      /* profile.name */
    int cublaslt_version; /* profile.cublaslt_version */
    int count;
    const struct nb_product_choice *choice; /* [count], owned by whoever made the table */
};

/* The path of a site. Depends on the profile (compute capability, library, table) and the site alone. A matrix whose `in` is not a
 * multiple of 64 (its blocks straddle rows) is never NB_PRODUCT_FUSED. The defaults without a table follow the crossover estimated from
 * the profile's rates: dequantizing costs 2 * bytes / bandwidth once, fusing costs a share of the product. Without cuBLASLt the bf16
 * product is nibble's own. */
enum nb_product_path nb_product_path_of(const struct nb_device_profile *profile, const struct nb_product_site *site);

/* Rows of W (forward) or columns (backward) that one chunk of scratch holds: chunks cut the output side of a product, never its sum, and
 * are the same at every number of tokens. */
int nb_product_chunk(const struct nb_device_profile *profile, const struct nb_product_site *site);

/* The site of a part of a forward call. Its path and chunk are the part's own. */
struct nb_product_site nb_linear_site(const struct nb_linear *args, int part);
/* The one site of a backward call: dx sums over the parts, so their rows count as one matrix's. 4-bit where a part is. */
struct nb_product_site nb_linear_backward_site(const struct nb_linear_backward *args);

/* The tile of nibble's own kernel for `rows` tokens of `columns` results: what fills this GPU best. A row's bits do not depend on it. */
enum nb_product_tile { NB_PRODUCT_TILE_64, NB_PRODUCT_TILE_128, NB_PRODUCT_TILE_256 }; /* rows; columns 64, 128, 128 */
enum nb_product_tile nb_product_tile_of(const struct nb_device_profile *profile, int rows, int64_t columns);

/* Whether the few-token kernel takes a forward call: its site has no more tokens than that, and no part has dropout. */
bool nb_linear_is_few(const struct nb_linear *args);

/* ---- scratch ---- */

/* nb_cuda_rmsnorm_scratch_bytes, ...: each op's scratch_bytes on a CUDA device. */
#define NB_CUDA_SCRATCH(name) \
    uint64_t nb_cuda_##name##_scratch_bytes(const struct nb_device_profile *profile, const struct nb_##name *args);
NB_OPS(NB_CUDA_SCRATCH)
#undef NB_CUDA_SCRATCH

/* For the file of an op that needs no scratch. */
#define NB_CUDA_NO_SCRATCH(name)                                                                                  \
    uint64_t nb_cuda_##name##_scratch_bytes(const struct nb_device_profile *profile, const struct nb_##name *args) \
    {                                                                                                             \
        (void)profile;                                                                                            \
        (void)args;                                                                                               \
        return 0;                                                                                                 \
    }

/* ---- what the LoRA kernels and the products share (src/device/cuda/linear_plan.c lays it out, cuda/linear*.cu follow) ---- */

/* Where each piece of a linear op's scratch begins, in bytes from its base; `bytes` is the whole. Pieces that a call does not need are
 * empty. Forward: `weights` (chunks of bf16). Backward: also u, and the LoRA kernels' partial sums. */
struct nb_linear_scratch {
    uint64_t weights, weights_bytes;     /* bf16 chunk(s) */
    uint64_t u[NB_LINEAR_PARTS];         /* [tokens_max, rank] bf16: round(output_scale * scale * dy B), stride rank */
    uint64_t partials, partials_bytes;   /* the LoRA kernels' own: nb_cuda_lora_partial_bytes */
    uint64_t bytes;
};
void nb_linear_scratch_of(const struct nb_device_profile *profile, const struct nb_linear *args, struct nb_linear_scratch *scratch);
void nb_linear_backward_scratch_of(
    const struct nb_device_profile *profile, const struct nb_linear_backward *args, struct nb_linear_scratch *scratch);

/* Scratch for the sums of the LoRA kernels (src/device/cuda/lora_plan.c): of t in the forward pass, of u, da, db in the backward. */
uint64_t nb_cuda_lora_partial_bytes(const struct nb_device_profile *profile, const struct nb_linear *args);
uint64_t nb_cuda_lora_backward_partial_bytes(const struct nb_device_profile *profile, const struct nb_linear_backward *args);

/* The few-token kernel (generation) serves a forward call with tokens_max up to this, 4-bit or bf16, without dropout. */
enum { NB_CUDA_FEW_TOKENS = 64 };

#ifdef __cplusplus
}
#endif

#endif
