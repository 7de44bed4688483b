/* How the LoRA kernels and the few-token product cut their work: decided here, in plain C, for the planner and the
 * kernels alike. Nothing here depends on the number of tokens of a call beyond its site's, so chunks and the whole give
 * the same bits. */
#ifndef NB_DEVICE_CUDA_LORA_PLAN_H
#define NB_DEVICE_CUDA_LORA_PLAN_H

#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    NB_LORA_ROWS = 128,     /* tokens a block of the down product */
    NB_LORA_DEPTH = 64,     /* of `in` or `out`: what a stage of a block's pipeline holds */
    NB_LORA_FEW_TOKENS = 4, /* a site of so many has kernels of its own, without partial sums */
    NB_LORA_GROUP = 16,     /* tiles of tokens whose partial sums of u and db exist at a time, at most */
};

/* The tokens that choices go by: the site's, or where a caller names none (or fewer, to ask for scratch that serves
 * all) the call's. */
int nb_lora_site_tokens(int site_tokens, int tokens_max);

/* The parts' ranks one behind the other, each from a multiple of 8 on (with dropout: of `tile`, so that a tile is one
 * part's). */
struct nb_lora_stack {
    int begin[NB_LINEAR_PARTS + 1]; /* a part without an adapter is empty */
    int tile, tiles;                /* stacked columns that a block takes: 16, 32, 48, 64, 96 or 128; and how many of them */
    bool dropout;                   /* some part drops */
};
void nb_lora_stack_of(const struct nb_linear_part *part, int parts, struct nb_lora_stack *stack);

/* t = dropout(x) A^T. `in` is cut into `splits` of `split_columns` (a multiple of NB_LORA_DEPTH), by `in` and the site
 * alone. */
struct nb_lora_down_plan {
    struct nb_lora_stack stack;
    int splits, split_columns;
    uint64_t partial_bytes; /* fp32 [splits][tokens_max][stack.tile * stack.tiles]; nothing with one split */
};
void nb_lora_down_plan_of(const struct nb_linear *args, struct nb_lora_down_plan *plan);

/* u and db. A block takes a tile of NB_TILE_TOKENS tokens, `range` outputs of a part (a multiple of NB_LORA_DEPTH, by
 * the shapes and the site alone) and `tile` of its ranks. The partial sums of a group of tiles: of part p, u fp32
 * [ranges[p]][group tokens][width[p]] from byte u[p] on, and db fp32 [group tiles][out][width[p]] from byte db[p]
 * on. */
struct nb_lora_backward_plan {
    int tile, range, group;
    /* 0 without an adapter; width: rank up to 8s. */
    int ranges[NB_LINEAR_PARTS], rank_tiles[NB_LINEAR_PARTS], width[NB_LINEAR_PARTS];
    int blocks; /* a tile of tokens, all parts */
    uint64_t u[NB_LINEAR_PARTS], db[NB_LINEAR_PARTS], partial_bytes;
};
void nb_lora_backward_plan_of(const struct nb_linear_backward *args, struct nb_lora_backward_plan *plan);

/* The few-token product for sites of 5 to NB_CUDA_FEW_TOKENS tokens: a block takes NB_FEW_ROWS rows of W and `steps`
 * times NB_FEW_DEPTH of `in`. */
enum { NB_FEW_ROWS = 128, NB_FEW_DEPTH = 256 };
struct nb_linear_few_plan {
    int row_tiles[NB_LINEAR_PARTS + 1]; /* of the parts before each; the last: of all */
    int outputs[NB_LINEAR_PARTS + 1];   /* the same in rows of W */
    int splits, steps;
    uint64_t partial_bytes; /* fp32 [splits][tokens_max][outputs of all parts]; 0 with one split */
};
void nb_linear_few_plan_of(const struct nb_linear *args, struct nb_linear_few_plan *plan);

#ifdef __cplusplus
}
#endif

#endif
