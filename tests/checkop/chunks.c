/* An op's rows in chunks: the args for some of them, as the model makes them for its own. */
#include "harness.h"

static nb_dptr move(nb_dptr base, int rows, int stride, uint64_t element)
{
    return nb_dptr_is_null(base) ? base : nb_dptr_at(base, (uint64_t)rows * (uint64_t)stride * element);
}

/* From row `begin` on, at most `rows` rows. */
struct range {
    int begin, rows;
};

static int rows_of(struct range range, int tokens_max)
{
    return tokens_max - range.begin < range.rows ? tokens_max - range.begin : range.rows;
}

static void cut_parts(struct nb_linear_part *part, int parts, struct range range, uint64_t element)
{
    for (int p = 0; p < parts; p++) {
        part[p].y = move(part[p].y, range.begin, part[p].y_stride, element);
        part[p].lora.t = move(part[p].lora.t, range.begin, part[p].lora.rank, element);
    }
}

static void cut_linear(struct nb_linear *a, struct range range)
{
    uint64_t element = nb_dtype_bytes(a->activation);
    a->x = move(a->x, range.begin, a->x_stride, element);
    a->site_tokens = a->site_tokens ? a->site_tokens : a->tokens_max;
    a->row_begin_chunk += range.begin;
    a->tokens_max = rows_of(range, a->tokens_max);
    cut_parts(a->part, a->parts, range, element);
}

static void cut_linear_backward(struct nb_linear_backward *a, struct range range)
{
    uint64_t element = nb_dtype_bytes(a->activation);
    a->x = move(a->x, range.begin, a->x_stride, element);
    a->dx = move(a->dx, range.begin, a->dx_stride, element);
    a->site_tokens = a->site_tokens ? a->site_tokens : a->tokens_max;
    a->row_begin_chunk += range.begin;
    a->tokens_max = rows_of(range, a->tokens_max);
    cut_parts(a->part, a->parts, range, element);
}

/* `each` is MEMBER(name, elements a row, bytes an element) for every buffer with rows. */
#define CUT(name, each)                                          \
    case CHECKOP_##name: {                                       \
        struct nb_##name *a = &cut->name;                        \
        uint64_t element = nb_dtype_bytes(a->activation);        \
        *a = *(const struct nb_##name *)args;                    \
        each a->row_begin += begin;                              \
        a->tokens_max = rows_of(range, a->tokens_max);           \
        return true;                                             \
    }
#define MEMBER(member, columns, bytes) a->member = move(a->member, begin, columns, bytes);
#define WIDE(member) MEMBER(member, a->width, element)

bool checkop_cut(enum checkop_op op, const void *args, int begin, int rows, union checkop_cut *cut)
{
    const struct range range = {begin, rows};
    switch (op) {
        CUT(rmsnorm, WIDE(x) WIDE(y) MEMBER(rms, 1, sizeof(float)))
        CUT(rmsnorm_backward, WIDE(x) WIDE(dy) WIDE(dx) MEMBER(rms, 1, sizeof(float)))
        CUT(layernorm, WIDE(x) WIDE(y) MEMBER(moments, 2, sizeof(float)))
        CUT(layernorm_backward, WIDE(x) WIDE(dy) WIDE(dx) MEMBER(moments, 2, sizeof(float)))
        CUT(swiglu, WIDE(gate) WIDE(up) WIDE(y))
        CUT(geglu, WIDE(gate) WIDE(up) WIDE(y))
        CUT(swiglu_backward, WIDE(gate) WIDE(up) WIDE(dy) WIDE(d_gate) WIDE(d_up))
        CUT(geglu_backward, WIDE(gate) WIDE(up) WIDE(dy) WIDE(d_gate) WIDE(d_up))
        CUT(add, WIDE(a) WIDE(b) WIDE(y))
    case CHECKOP_linear:
        cut->linear = *(const struct nb_linear *)args;
        cut_linear(&cut->linear, range);
        return true;
    case CHECKOP_linear_backward:
        cut->linear_backward = *(const struct nb_linear_backward *)args;
        cut_linear_backward(&cut->linear_backward, range);
        return true;
    default:
        return false;
    }
}

int checkop_rows_max(enum checkop_op op, const void *args)
{
    switch (op) {
#define ROWS(name)       \
    case CHECKOP_##name: \
        return ((const struct nb_##name *)args)->tokens_max;
        ROWS(rmsnorm)
        ROWS(rmsnorm_backward)
        ROWS(layernorm)
        ROWS(layernorm_backward)
        ROWS(swiglu)
        ROWS(geglu)
        ROWS(swiglu_backward)
        ROWS(geglu_backward)
        ROWS(add)
        ROWS(linear)
        ROWS(linear_backward)
#undef ROWS
    default:
        return 0;
    }
}
