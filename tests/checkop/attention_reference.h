/* Attention in double, naively, for one case of packed sequences; and its gradient, checked by differences in
 * attention_backward.c. */
#ifndef NB_TESTS_CHECKOP_ATTENTION_REFERENCE_H
#define NB_TESTS_CHECKOP_ATTENTION_REFERENCE_H

#include "checkop.h"

enum { ATTENTION_SEQUENCES = 72 };

struct attention_case {
    int queries[ATTENTION_SEQUENCES],
        keys[ATTENTION_SEQUENCES]; /* lengths, ended by 0 queries; keys 0: as many as queries */
    int heads, kv_heads, head_dim, window;
    float soft_cap;
    int stride_extra, rows_extra; /* elements between rows; rows of the buffers behind the valid ones */
    double magnitude;             /* of q; 0: 1 */
    float scale;                  /* 0: 1 / sqrt(head_dim) */
    bool differences;
    bool repeats; /* sequences of one length are the same ones, and so their results to the bit; without `keys` */
};

struct attention_setup {
    struct attention_case k;
    int sequences, tokens, key_tokens, tokens_max, key_tokens_max, longest;
    int32_t query_starts[ATTENTION_SEQUENCES + 1], key_starts[ATTENTION_SEQUENCES + 1];
    float scale;
    enum nb_dtype dtype;
    double *q, *k_values, *v; /* [tokens, heads, head_dim], [key tokens, kv_heads, head_dim] */
    struct checkop_buffer *q_buffer, *k_buffer, *v_buffer, *query_starts_buffer, *key_starts_buffer, *slot_buffer;
};

/* Begins the case, makes and fills what the forward pass reads. */
void attention_begin(struct checkop *c, const struct attention_case *k, enum nb_dtype dtype, struct attention_setup *s);

/* Row strides of buffers with as many heads. */
int attention_stride(const struct attention_case *k, int heads);

/* A buffer [rows_max, heads, head_dim] whose first `rows` rows are normal numbers, the rest NaN; their values
 * contiguous. */
struct checkop_buffer *attention_matrix(struct checkop *c, const struct attention_setup *s, const char *name, int rows,
    int rows_max, int heads, double deviation, double **values);

/* The repeated sequences' rows of an output are the same to the bit. `stride`: elements between rows; `width` of them
 * count. */
void attention_expect_repeats(struct checkop *c, const struct attention_setup *s, struct checkop_buffer *b,
    uint64_t begin, int stride, int width);

/* o [tokens, heads, head_dim] and lse [heads, tokens] from the values; lse may be NULL. */
void attention_forward(
    const struct attention_setup *s, const double *q, const double *k, const double *v, double *o, double *lse);

/* dq, dk, dv, set to 0 before, from d_o. */
void attention_gradient(const struct attention_setup *s, const double *d_o, double *dq, double *dk, double *dv);

#endif
