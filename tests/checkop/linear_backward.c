#include "linear_reference.h"

#include <math.h>

/* One part's buffers and exact values. */
struct part {
    struct checkop_buffer *dy, *t, *da, *db;
    double *dy_values, *t_values, *dropped; /* [tokens, out], [tokens, rank], [tokens, in] */
};

struct problem {
    struct checkop *c;
    struct linear_setup s;
    struct part part[NB_LINEAR_PARTS];
    double scale; /* the output's */
};

static const double branch_scale = (double)1.7f;

static void make_part(struct problem *m, int p, struct nb_linear_part *part)
{
    struct checkop *c = m->c;
    const struct linear_case *k = &m->s.k;
    struct part *own = &m->part[p];
    int out = k->out[p], stride = part->y_stride;
    own->dy = checkop_input(c, "dy", m->s.dtype, (uint64_t)k->tokens_max * (uint64_t)stride);
    checkop_fill_value(own->dy, 0, checkop_count(own->dy), NAN);
    own->dy_values = checkop_scratch(c, (uint64_t)k->tokens * (uint64_t)out);
    for (int t = 0; t < k->tokens; t++) {
        for (int j = 0; j < out; j++) {
            checkop_set(own->dy, (uint64_t)(t * stride + j), checkop_random_normal(c));
            own->dy_values[t * out + j] = checkop_get(own->dy, (uint64_t)(t * stride + j));
        }
    }
    checkop_bind(c, &part->y, own->dy);
    if (k->rank == 0)
        return;
    own->t = checkop_input(c, "t", m->s.dtype, (uint64_t)k->tokens_max * (uint64_t)k->rank);
    checkop_fill_value(own->t, 0, checkop_count(own->t), NAN);
    own->dropped = linear_dropped(c, &m->s, p);
    own->t_values = checkop_scratch(c, (uint64_t)k->tokens * (uint64_t)k->rank);
    linear_multiply(own->dropped, m->s.part[p].a, k->tokens, k->rank, k->in, own->t_values, NULL);
    for (int i = 0; i < k->tokens * k->rank; i++) {
        checkop_set(own->t, (uint64_t)i, own->t_values[i]);
        own->t_values[i] = checkop_get(own->t, (uint64_t)i);
    }
    own->da = checkop_output(c, "da", NB_DTYPE_F32, (uint64_t)k->rank * (uint64_t)k->in);
    own->db = checkop_output(c, "db", NB_DTYPE_F32, (uint64_t)out * (uint64_t)k->rank);
    checkop_fill_normal(c, own->da, 1); /* accumulated into */
    checkop_fill_normal(c, own->db, 1);
    checkop_bind(c, &part->lora.t, own->t);
    checkop_bind(c, &part->lora.da, own->da);
    checkop_bind(c, &part->lora.db, own->db);
}

/* out [rows, columns] = left^T right, both [depth, ...]. */
static void multiply_over_rows(
    const double *left, const double *right, int rows, int columns, int depth, double *out, double *sizes)
{
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) {
            double sum = 0, size = 0;
            for (int d = 0; d < depth; d++) {
                double product = left[(int64_t)d * rows + i] * right[(int64_t)d * columns + j];
                sum += product;
                size += fabs(product);
            }
            out[(int64_t)i * columns + j] = sum;
            sizes[(int64_t)i * columns + j] = size;
        }
    }
}

/* out [rows, columns] = left [rows, depth] right [depth, columns], sizes as in linear_multiply; both added to. */
static void add_product(
    const double *left, const double *right, int rows, int columns, int depth, double *out, double *sizes)
{
    for (int i = 0; i < rows; i++) {
        for (int d = 0; d < depth; d++) {
            double l = left[(int64_t)i * depth + d];
            for (int j = 0; j < columns; j++) {
                out[(int64_t)i * columns + j] += l * right[(int64_t)d * columns + j];
                sizes[(int64_t)i * columns + j] += fabs(l * right[(int64_t)d * columns + j]);
            }
        }
    }
}

/* fp32 sums over `depth`, and a few roundings at the size of the largest. */
static struct checkop_tolerance sum_tolerance(int depth, double largest_size)
{
    return (struct checkop_tolerance){
        .ulps = 0.5, .absolute = linear_sum_error(depth, largest_size) + 0x1p-23 * largest_size};
}

/* u as the op rounds it: [tokens, rank]. */
static double *reference_u(struct problem *m, int p)
{
    const struct linear_case *k = &m->s.k;
    uint64_t count = (uint64_t)k->tokens * (uint64_t)k->rank;
    double *u = checkop_scratch(m->c, count), *sizes = checkop_scratch(m->c, count);
    add_product(m->part[p].dy_values, m->s.part[p].b, k->tokens, k->rank, k->out[p], u, sizes);
    for (uint64_t i = 0; i < count; i++)
        u[i] = checkop_round(m->scale * branch_scale * u[i], m->s.dtype);
    return u;
}

/* An element of u that lies close to the middle of two bf16 numbers may be rounded to the other one: twice in a sum of
 * its products. */
static double u_error(const struct problem *m, double largest_u, double largest_factor)
{
    return 2 * (m->s.dtype == NB_DTYPE_BF16 ? 0x1p-8 : 0x1p-23) * largest_u * largest_factor;
}

static void expect_adapter(struct problem *m, int p)
{
    struct checkop *c = m->c;
    const struct linear_case *k = &m->s.k;
    struct part *own = &m->part[p];
    int out = k->out[p];
    uint64_t a_count = (uint64_t)k->rank * (uint64_t)k->in, b_count = (uint64_t)out * (uint64_t)k->rank;
    double *da = checkop_scratch(c, a_count), *db = checkop_scratch(c, b_count);
    double *a_sizes = checkop_scratch(c, a_count), *b_sizes = checkop_scratch(c, b_count),
           scale = m->scale * branch_scale;
    double *u = reference_u(m, p);
    multiply_over_rows(u, own->dropped, k->rank, k->in, k->tokens, da, a_sizes);
    multiply_over_rows(own->dy_values, own->t_values, out, k->rank, k->tokens, db, b_sizes);
    for (uint64_t i = 0; i < a_count; i++)
        da[i] += checkop_get(own->da, i);
    for (uint64_t i = 0; i < b_count; i++)
        db[i] = db[i] * scale + checkop_get(own->db, i);
    int depth = k->tokens > 0 ? k->tokens : 1;
    struct checkop_tolerance tolerance =
        sum_tolerance(depth, linear_largest(a_sizes, a_count) + 4); /* 4: what stood there */
    tolerance.absolute += u_error(m, linear_largest(u, (uint64_t)k->tokens * (uint64_t)k->rank),
        linear_largest(own->dropped, (uint64_t)k->tokens * (uint64_t)k->in));
    checkop_expect(c, own->da, 0, a_count, da, tolerance);
    checkop_expect(
        c, own->db, 0, b_count, db, sum_tolerance(depth, fabs(scale) * linear_largest(b_sizes, b_count) + 4));
}

/* dx before it is added to what stands there: [tokens, in]. *steps: a bound of what stands in dx before the last product, where a library
 * adds one part to the other, and all of them to the adapters' share. */
static double *reference_dx(struct problem *m, double *largest_size, double *error, double *steps)
{
    struct checkop *c = m->c;
    const struct linear_case *k = &m->s.k;
    uint64_t count = (uint64_t)k->tokens * (uint64_t)k->in;
    double *dx = checkop_scratch(c, count), *sizes = checkop_scratch(c, count), *before = checkop_scratch(c, count);
    double *product[NB_LINEAR_PARTS];
    for (int p = 0; p < k->parts; p++) {
        double *whole = product[p] = checkop_scratch(c, count), *branch = checkop_scratch(c, count);
        add_product(m->part[p].dy_values, m->s.part[p].w, k->tokens, k->in, k->out[p], whole, sizes);
        if (k->rank > 0) {
            double *u = reference_u(m, p);
            add_product(u, m->s.part[p].a, k->tokens, k->in, k->rank, branch, sizes);
            *error += u_error(m, linear_largest(u, (uint64_t)k->tokens * (uint64_t)k->rank),
                linear_largest(m->s.part[p].a, (uint64_t)k->rank * (uint64_t)k->in));
        }
        for (uint64_t i = 0; i < count; i++) {
            bool kept = k->rank > 0 && (m->s.x[i] == 0 || m->part[p].dropped[i] != 0);
            double beside = kept ? branch[i] / (1 - (double)k->dropout) : 0;
            dx[i] += m->scale * whole[i] + beside;
            before[i] += beside;
        }
    }
    *steps = linear_largest(before, count);
    for (int p = 0; p + 1 < k->parts; p++) {
        for (uint64_t i = 0; i < count; i++)
            before[i] += m->scale * product[p][i];
        *steps = fmax(*steps, linear_largest(before, count));
    }
    *largest_size = linear_largest(sizes, count);
    return dx;
}

static void expect_dx(struct problem *m, struct checkop_buffer *dx, int stride)
{
    struct checkop *c = m->c;
    const struct linear_case *k = &m->s.k;
    double size = 0, error = 0, steps = 0, *want = reference_dx(m, &size, &error, &steps),
           epsilon = m->s.dtype == NB_DTYPE_F32 ? 0x1p-24 : 0x1p-9;
    int depth = k->rank;
    for (int p = 0; p < k->parts; p++)
        depth += k->out[p];
    struct checkop_tolerance tolerance = sum_tolerance(depth, size * fmax(1, m->scale));
    tolerance.absolute += error / (1 - (double)k->dropout);
    if (k->accumulate)
        tolerance.absolute += 2 * epsilon * linear_largest(want, (uint64_t)k->tokens * (uint64_t)k->in);
    /* A library rounds after each product but the last, and what it is added to; and it writes every row. The 8: what stood in dx. */
    int roundings = (k->rank > 0) + k->parts - 1;
    tolerance.library = roundings * 2 * epsilon * (steps + (k->accumulate ? 8 : 0));
    checkop_leave_open(c, dx, (uint64_t)k->tokens * (uint64_t)stride, (uint64_t)(k->tokens_max - k->tokens) * (uint64_t)stride);
    for (int t = 0; t < k->tokens; t++) {
        if (k->accumulate)
            for (int i = 0; i < k->in; i++)
                want[t * k->in + i] += checkop_get(dx, (uint64_t)(t * stride + i));
        checkop_expect(c, dx, (uint64_t)t * (uint64_t)stride, (uint64_t)k->in, want + (int64_t)t * k->in, tolerance);
    }
}

/* ---- finite differences: sum of dy * y, by x, A or B of the part `of` ---- */

enum variable { BY_X, BY_A, BY_B };

struct difference {
    struct problem *m;
    enum variable variable;
    int of;
};

static double loss_of(void *context, const double *value)
{
    const struct difference *d = context;
    const struct linear_setup *s = &d->m->s;
    const struct linear_case *k = &s->k;
    double loss = 0;
    for (int p = 0; p < k->parts; p++) {
        const double *x = d->variable == BY_X ? value : s->x;
        const double *a = d->variable == BY_A && p == d->of ? value : s->part[p].a;
        const double *b = d->variable == BY_B && p == d->of ? value : s->part[p].b;
        for (int t = 0; t < k->tokens; t++) {
            double branch[16] = {0}; /* differences are taken at ranks up to 16 */
            for (int r = 0; r < k->rank; r++)
                for (int i = 0; i < k->in; i++)
                    branch[r] += d->m->part[p].dropped[t * k->in + i] == 0
                                     ? 0
                                     : x[t * k->in + i] / (1 - (double)k->dropout) * a[r * k->in + i];
            for (int j = 0; j < k->out[p]; j++) {
                double y = s->part[p].bias[j];
                for (int i = 0; i < k->in; i++)
                    y += x[t * k->in + i] * s->part[p].w[j * k->in + i];
                for (int r = 0; r < k->rank; r++)
                    y += branch_scale * branch[r] * b[j * k->rank + r];
                loss += d->m->scale * y * d->m->part[p].dy_values[t * k->out[p] + j];
            }
        }
    }
    return loss;
}

/* The loss is linear in each variable, so differences are exact but for rounding in double. */
static void compare_differences(struct problem *m, struct checkop_buffer *dx, int stride)
{
    struct checkop *c = m->c;
    const struct linear_case *k = &m->s.k;
    struct difference by_x = {m, BY_X, 0};
    for (int i = 0; i < k->tokens * k->in; i += 7) {
        double want = checkop_difference(loss_of, &by_x, m->s.x, (uint64_t)i);
        double got = checkop_got(dx, (uint64_t)(i / k->in * stride + i % k->in));
        checkop_true(
            c, fabs(got - want) < 1e-4 * (1 + fabs(want)), "dx[%d] is %g, the difference says %g", i, got, want);
    }
    for (int p = 0; p < k->parts; p++) {
        struct difference by_a = {m, BY_A, p}, by_b = {m, BY_B, p};
        for (int i = 0; i < k->rank * k->in; i += 5) {
            double want = checkop_difference(loss_of, &by_a, m->s.part[p].a, (uint64_t)i) +
                          checkop_get(m->part[p].da, (uint64_t)i);
            double got = checkop_got(m->part[p].da, (uint64_t)i);
            checkop_true(
                c, fabs(got - want) < 1e-4 * (1 + fabs(want)), "da[%d] is %g, the difference says %g", i, got, want);
        }
        for (int i = 0; i < k->out[p] * k->rank; i += 5) {
            double want = checkop_difference(loss_of, &by_b, m->s.part[p].b, (uint64_t)i) +
                          checkop_get(m->part[p].db, (uint64_t)i);
            double got = checkop_got(m->part[p].db, (uint64_t)i);
            checkop_true(
                c, fabs(got - want) < 1e-4 * (1 + fabs(want)), "db[%d] is %g, the difference says %g", i, got, want);
        }
    }
}

static void one(struct checkop *c, const struct linear_case *k, enum nb_dtype dtype)
{
    struct problem m = {.c = c, .scale = k->output_scale == 0 ? 1 : (double)k->output_scale};
    int stride = linear_stride(k, k->in);
    struct nb_linear_backward args = {.tokens_max = k->tokens_max,
        .in = k->in,
        .x_stride = stride,
        .dx_stride = stride,
        .parts = k->parts,
        .activation = dtype,
        .accumulate_dx = k->accumulate,
        .rows_from = linear_rows_from(k),
        .row_begin_chunk = k->chunk_begin};
    linear_begin(c, k, dtype, &m.s, args.part);
    checkop_bind(c, &args.x, m.s.x_buffer);
    checkop_bind(c, &args.step, m.s.step_buffer);
    checkop_bind(c, &args.slot, m.s.slot_buffer);
    checkop_bind_scratch(c, &args.scratch);
    for (int p = 0; p < k->parts; p++)
        make_part(&m, p, &args.part[p]);
    struct checkop_buffer *dx = NULL;
    if (!k->no_dx) {
        dx = checkop_output(c, "dx", dtype, (uint64_t)k->tokens_max * (uint64_t)stride);
        if (k->accumulate)
            checkop_fill_normal(c, dx, 2);
        checkop_bind(c, &args.dx, dx);
    }
    checkop_run(c, CHECKOP_linear_backward, &args);
    if (dx)
        expect_dx(&m, dx, stride);
    for (int p = 0; p < k->parts && k->rank > 0; p++)
        expect_adapter(&m, p);
    if (k->differences && dtype == NB_DTYPE_F32)
        compare_differences(&m, dx, stride);
    checkop_end(c);
}

static void refusals(struct checkop *c)
{
    const nb_dptr p = {4096}, q = {8192}, r = {12288};
    const struct nb_linear_backward good = {.x = p,
        .dx = r,
        .step = p,
        .slot = p,
        .tokens_max = 4,
        .in = 64,
        .x_stride = 64,
        .dx_stride = 64,
        .parts = 1,
        .activation = NB_DTYPE_F32,
        .part = {{.weight = {.format = NB_WEIGHT_BF16, .rows = 24, .columns = 64, .data = p},
            .out = 24,
            .y = q,
            .y_stride = 24,
            .output_scale = 1,
            .lora = {.a = p, .b = p, .t = p, .da = p, .db = p, .rank = 3, .scale = 1}}}};
    struct nb_linear_backward bad = good;
    bad.dx = p;
    checkop_refuses(c, CHECKOP_linear_backward, &bad, "x and dx");
    bad = good;
    bad.dx = q;
    checkop_refuses(c, CHECKOP_linear_backward, &bad, "dx");
    bad = good;
    bad.dx_stride = 56;
    checkop_refuses(c, CHECKOP_linear_backward, &bad, "dx_stride 56");
    bad = good;
    bad.part[0].lora.da.address = 0;
    checkop_refuses(c, CHECKOP_linear_backward, &bad, "da is null");
    bad = good;
    bad.tokens_max = 0;
    checkop_refuses(c, CHECKOP_linear_backward, &bad, "tokens_max 0");
}

static void bench(struct checkop *c, const struct linear_case *k, enum nb_dtype dtype)
{
    struct linear_setup s;
    struct nb_linear_backward args = {.tokens_max = k->tokens_max,
        .in = k->in,
        .x_stride = k->in,
        .dx_stride = k->in,
        .parts = k->parts,
        .activation = dtype};
    linear_begin(c, k, dtype, &s, args.part);
    checkop_bind(c, &args.x, s.x_buffer);
    checkop_bind(c, &args.step, s.step_buffer);
    checkop_bind(c, &args.slot, s.slot_buffer);
    checkop_bind_scratch(c, &args.scratch);
    checkop_bind(c, &args.dx, checkop_output(c, "dx", dtype, (uint64_t)k->tokens_max * (uint64_t)k->in));
    double flops = 0;
    for (int p = 0; p < k->parts; p++) {
        uint64_t out = (uint64_t)k->out[p], rank = (uint64_t)k->rank, in = (uint64_t)k->in,
                 tokens = (uint64_t)k->tokens_max;
        checkop_bind(c, &args.part[p].y, checkop_input(c, "dy", dtype, tokens * out));
        checkop_bind(c, &args.part[p].lora.t, checkop_input(c, "t", dtype, tokens * rank));
        checkop_bind(c, &args.part[p].lora.da, checkop_output(c, "da", NB_DTYPE_F32, rank * in));
        checkop_bind(c, &args.part[p].lora.db, checkop_output(c, "db", NB_DTYPE_F32, out * rank));
        flops += 2.0 * k->tokens * ((double)k->in * k->out[p] + 2.0 * k->rank * (k->in + k->out[p]));
    }
    checkop_bench(c, CHECKOP_linear_backward, &args,
        (double)k->tokens * (double)nb_dtype_bytes(dtype) * (k->in + k->out[0]), flops);
}

void checkop_linear_backward(struct checkop *c)
{
    static const struct linear_case benches[] = {
        {.tokens = 1024, .tokens_max = 1024, .in = 576, .out = {576, 192, 192}, .parts = 3, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true},
        {.tokens = 1024, .tokens_max = 1024, .in = 576, .out = {1536, 1536}, .parts = 2, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true},
        {.tokens = 1024, .tokens_max = 1024, .in = 1536, .out = {576}, .parts = 1, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true},
    };
    static const struct linear_case cases[] = {
        /* Small enough for differences: one part; three that share x, with dropout and an output scale. */
        {.tokens = 3, .tokens_max = 4, .in = 8, .out = {8}, .parts = 1, .rank = 2, .format = NB_WEIGHT_BF16,
         .differences = true},
        {.tokens = 5, .tokens_max = 5, .in = 24, .out = {16, 8, 1}, .parts = 3, .rank = 3, .format = NB_WEIGHT_NF4,
         .nested = true,
         .dropout = 0.25f, .output_scale = 0.5f, .rows_around = 1, .stride_extra = 8, .differences = true},
        {.tokens = 1, .tokens_max = 1, .in = 72, .out = {24}, .parts = 1, .rank = 1, .format = NB_WEIGHT_FP4},
        /* The edges of the tiles: 128 rows, 256 tokens of a sum, and no adapter. */
        {.tokens = 127, .tokens_max = 300, .in = 72, .out = {259}, .parts = 1, .rank = 4, .format = NB_WEIGHT_BF16,
         .stride_extra = 16},
        {.tokens = 129, .tokens_max = 129, .in = 64, .out = {72, 8, 40}, .parts = 3, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true,
         .accumulate = true},
        {.tokens = 257, .tokens_max = 260, .in = 24, .out = {1100}, .parts = 1, .rank = 3, .format = NB_WEIGHT_FP4,
         .nested = true},
        {.tokens = 513, .tokens_max = 513, .in = 264, .out = {136}, .parts = 1, .rank = 8, .format = NB_WEIGHT_NF4,
         .dropout = 0.1f,
         .accumulate = true},
        {.tokens = 17, .tokens_max = 32, .in = 64, .out = {16}, .parts = 1, .rank = 300, .format = NB_WEIGHT_BF16},
        {.tokens = 40, .tokens_max = 48, .in = 64, .out = {24}, .parts = 1, .format = NB_WEIGHT_NF4},
        /* The head's chunk of trained rows; the first block, which needs no dx. */
        {.tokens = 20, .tokens_max = 64, .in = 64, .out = {259}, .parts = 1, .format = NB_WEIGHT_BF16,
         .chunk_begin = 256},
        {.tokens = 33, .tokens_max = 40, .in = 64, .out = {24, 8}, .parts = 2, .rank = 4, .format = NB_WEIGHT_NF4,
         .no_dx = true},
        /* A head in 4 bits, with whole blocks in a row and without. */
        {.tokens = 20, .tokens_max = 64, .in = 64, .out = {259}, .parts = 1, .format = NB_WEIGHT_NF4, .nested = true,
         .chunk_begin = 256},
        {.tokens = 77, .tokens_max = 256, .in = 128, .out = {517}, .parts = 1, .format = NB_WEIGHT_NF4, .nested = true,
         .chunk_begin = 256},
        {.tokens = 150, .tokens_max = 256, .in = 72, .out = {1003}, .parts = 1, .rank = 4, .format = NB_WEIGHT_FP4,
         .chunk_begin = 512},
        {.tokens = 0, .tokens_max = 8, .in = 64, .out = {8}, .parts = 1, .rank = 4, .format = NB_WEIGHT_BF16},
        /* Slices of matrices in scratch, where whole blocks begin; several chunks of columns; every part under its own dropout. */
        {.tokens = 9, .tokens_max = 16, .in = 192, .out = {40, 24, 7}, .parts = 3, .rank = 5, .format = NB_WEIGHT_FP4,
         .nested = true, .dropout = 0.3f, .output_scale = 0.75f, .rows_around = 3, .accumulate = true},
        {.tokens = 3, .tokens_max = 4, .in = 840, .out = {1001}, .parts = 1, .rank = 9, .format = NB_WEIGHT_NF4, .nested = true,
         .rows_around = 1},
        {.tokens = 5, .tokens_max = 8, .in = 832, .out = {520, 481}, .parts = 2, .rank = 16, .format = NB_WEIGHT_NF4,
         .nested = true, .accumulate = true},
        /* Chunks of the tokens: fewer rows than the chunk holds, none, and dropout's numbers of the rows behind the chunk's first. */
        {.tokens = 20, .tokens_max = 64, .in = 72, .out = {24, 8}, .parts = 2, .rank = 4, .format = NB_WEIGHT_NF4,
         .chunk_begin = 256, .chunk_of_tokens = true},
        {.tokens = 0, .tokens_max = 32, .in = 64, .out = {8}, .parts = 1, .rank = 4, .format = NB_WEIGHT_BF16,
         .chunk_begin = 512, .chunk_of_tokens = true},
        {.tokens = 130, .tokens_max = 140, .in = 64, .out = {40, 24}, .parts = 2, .rank = 8, .format = NB_WEIGHT_NF4, .nested = true,
         .dropout = 0.3f, .chunk_begin = 768, .chunk_of_tokens = true},
        {.tokens = 770, .tokens_max = 774, .in = 64, .out = {16, 24}, .parts = 2, .rank = 5, .format = NB_WEIGHT_NF4,
         .dropout = 0.2f, .accumulate = true},
        /* More rows than the tallest tile, and edges of all tiles. */
        {.tokens = 515, .tokens_max = 520, .in = 192, .out = {72, 40}, .parts = 2, .rank = 17, .format = NB_WEIGHT_NF4, .nested = true},
    };
    if (checkop_wants_bench(c)) {
        CHECKOP_EACH(c, benches, bench);
        return;
    }
    refusals(c);
    CHECKOP_EACH(c, cases, one);
}
