/* What the checks of linear and linear_backward share: one description of a case, weights in every format, the formulas
 * in double. */
#ifndef NB_TESTS_CHECKOP_LINEAR_REFERENCE_H
#define NB_TESTS_CHECKOP_LINEAR_REFERENCE_H

#include "checkop.h"

struct linear_case {
    int tokens, tokens_max, in, out[NB_LINEAR_PARTS], parts;
    int rank; /* 0: no adapter */
    enum nb_weight_format format;
    bool nested, bias, accumulate;
    float dropout, output_scale; /* 0: 1 */
    int rows_around;             /* rows of the weight before the part's slice, and after */
    int stride_extra;            /* elements between rows */
    int chunk_begin;             /* > 0: rows are trained rows from here on, or */
    bool chunk_of_tokens;        /* tokens from there on */
    bool differences;            /* backward: also compare with finite differences */
    bool no_dx;
};

/* A case's buffers and the exact values behind them, [rows, columns] contiguous, as doubles. */
struct linear_part {
    double *w, *a, *b, *bias;
    struct checkop_buffer *a_buffer, *b_buffer, *bias_buffer;
    uint64_t module;
};
struct linear_setup {
    struct linear_case k;
    enum nb_dtype dtype;
    struct nb_step step;
    struct nb_slot slot;
    double *x; /* [tokens, in] */
    struct checkop_buffer *x_buffer, *step_buffer, *slot_buffer;
    struct linear_part part[NB_LINEAR_PARTS];
};

/* Begins the case, makes and fills what the forward pass reads, and binds it into `part` (the args' array). */
void linear_begin(struct checkop *c, const struct linear_case *k, enum nb_dtype dtype, struct linear_setup *s,
    struct nb_linear_part *part);

/* What the rows of a case are. */
enum nb_row_count linear_rows_from(const struct linear_case *k);

/* dropout(x) of one part: [tokens, in]. */
double *linear_dropped(struct checkop *c, const struct linear_setup *s, int part);

/* out [rows, columns] = left [rows, depth] right^T, right [columns, depth]; `sizes` (or NULL) gets the sums of absolute
 * products. */
void linear_multiply(
    const double *left, const double *right, int rows, int columns, int depth, double *out, double *sizes);

double linear_largest(const double *values, uint64_t count);

/* What fp32 sums of `depth` products may be off by, given the largest sum of absolute products: chains of depth / 16
 * additions in vectors of 16 lanes (a few more for combining them), each rounding by 2^-24 of what it holds. */
double linear_sum_error(int depth, double largest_size);

/* A stride for rows of `width`. */
int linear_stride(const struct linear_case *k, int width);

#endif
