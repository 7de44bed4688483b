#include <math.h>

#include "checkop.h"

struct shape {
    int tokens, tokens_max, heads, head_dim, x_gap, dy_gap, dx_gap;
};

enum { POSITIONS = 64 };

/* One head of the forward pass without its roundings, times dy. */
struct head {
    int head_dim;
    bool norm;
    double epsilon;
    double w[256], dy[256], cosine[128], sine[128];
};

static double loss_of_head(void *context, const double *x)
{
    const struct head *r = context;
    int half = r->head_dim / 2;
    double normal[256], sum = 0, loss = 0;
    for (int i = 0; i < r->head_dim; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < r->head_dim; i++)
        normal[i] = r->norm ? r->w[i] * x[i] / sqrt(sum / r->head_dim + r->epsilon) : x[i];
    for (int i = 0; i < half; i++) {
        loss += r->dy[i] * (normal[i] * r->cosine[i] - normal[i + half] * r->sine[i]);
        loss += r->dy[i + half] * (normal[i + half] * r->cosine[i] + normal[i] * r->sine[i]);
    }
    return loss;
}

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, bool norm, bool in_place)
{
    checkop_case(c, "%d of %d tokens, %d heads of %d, %s%s%s, differences", s.tokens, s.tokens_max, s.heads, s.head_dim,
                 checkop_dtype_name(dtype), norm ? ", norm" : "", in_place ? ", dx over dy" : "");
    int half = s.head_dim / 2, row = s.heads * s.head_dim, x_stride = row + s.x_gap, dy_stride = row + s.dy_gap;
    int dx_stride = in_place ? dy_stride : row + s.dx_gap;
    struct checkop_buffer *dx = checkop_output(c, "dx", dtype, (uint64_t)s.tokens_max * (uint64_t)dx_stride);
    struct checkop_buffer *dy = in_place ? dx : checkop_input(c, "dy", dtype, (uint64_t)s.tokens_max * (uint64_t)dy_stride);
    struct checkop_buffer *x = checkop_input(c, "x", dtype, (uint64_t)s.tokens_max * (uint64_t)x_stride);
    struct checkop_buffer *w = checkop_input(c, "w", NB_DTYPE_BF16, (uint64_t)s.head_dim);
    struct checkop_buffer *rms = checkop_input(c, "rms", NB_DTYPE_F32, (uint64_t)(s.tokens_max * s.heads));
    struct checkop_buffer *positions = checkop_input(c, "positions", NB_DTYPE_I32, (uint64_t)s.tokens_max);
    struct checkop_buffer *cosine = checkop_input(c, "cosine", NB_DTYPE_F32, (uint64_t)(POSITIONS * half));
    struct checkop_buffer *sine = checkop_input(c, "sine", NB_DTYPE_F32, (uint64_t)(POSITIONS * half));
    checkop_fill_normal(c, dy, 1.0);
    checkop_fill_normal(c, x, 1.0);
    checkop_fill_uniform(c, w, -0.5, 2.0);
    checkop_fill_below(c, positions, POSITIONS);
    for (int i = 0; i < POSITIONS * half; i++) {
        double angle = i / half * pow(10000.0, -(double)(i % half) / half);
        checkop_set(cosine, (uint64_t)i, cos(angle));
        checkop_set(sine, (uint64_t)i, sin(angle));
    }
    double *want = checkop_scratch(c, (uint64_t)(s.tokens * row)), *head_x = checkop_scratch(c, (uint64_t)s.head_dim);
    double *tolerance = checkop_scratch(c, (uint64_t)(s.tokens * s.heads));
    struct head r = {.head_dim = s.head_dim, .norm = norm, .epsilon = 1e-6};
    for (int t = 0; t < s.tokens; t++)
        for (int h = 0; h < s.heads; h++) {
            uint64_t angles = (uint64_t)checkop_get(positions, (uint64_t)t) * (uint64_t)half;
            double sum = 0, largest = 0;
            for (int i = 0; i < s.head_dim; i++) {
                head_x[i] = checkop_get(x, (uint64_t)(t * x_stride + h * s.head_dim + i));
                r.dy[i] = checkop_get(dy, (uint64_t)(t * dy_stride + h * s.head_dim + i));
                r.w[i] = checkop_get(w, (uint64_t)i);
                r.cosine[i % half] = checkop_get(cosine, angles + (uint64_t)(i % half));
                r.sine[i % half] = checkop_get(sine, angles + (uint64_t)(i % half));
                sum += head_x[i] * head_x[i];
                largest = fmax(largest, fabs(r.dy[i]));
            }
            double scale = 1 / sqrt(sum / s.head_dim + r.epsilon);
            checkop_set(rms, (uint64_t)(t * s.heads + h), scale);
            for (int i = 0; i < s.head_dim; i++)
                want[t * row + h * s.head_dim + i] = checkop_difference(loss_of_head, &r, head_x, (uint64_t)i);
            /* rotation: sqrt(2) of the largest, three roundings. Norm: d below 3 times that, n below sqrt(head_dim), and the sum */
            double factor = norm ? scale * 3 * (1 + sqrt((double)s.head_dim)) * ((double)s.head_dim / 16 + 8) : 4;
            tolerance[t * s.heads + h] = largest * factor * 0x1p-24 + 1e-9; /* and the differences' own error */
        }
    struct nb_rope_backward args = {.tokens_max = s.tokens_max, .heads = s.heads, .head_dim = s.head_dim, .x_stride = x_stride,
                                    .dy_stride = dy_stride, .dx_stride = dx_stride, .activation = dtype};
    if (norm) { /* without: null, x is not needed */
        checkop_bind(c, &args.x, x);
        checkop_bind(c, &args.w, w);
        checkop_bind(c, &args.rms, rms);
    }
    checkop_bind(c, &args.dy, dy);
    checkop_bind(c, &args.dx, dx);
    checkop_bind(c, &args.positions, positions);
    checkop_bind(c, &args.cosine, cosine);
    checkop_bind(c, &args.sine, sine);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = (uint32_t)s.tokens}));
    checkop_run(c, CHECKOP_rope_backward, &args);
    for (int i = 0; i < s.tokens * s.heads; i++)
        checkop_expect_activation(c, dx, (uint64_t)(i / s.heads * dx_stride + i % s.heads * s.head_dim), (uint64_t)s.head_dim,
                                  want + i * s.head_dim, 0x1p-23, tolerance[i]);
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, HEADS = 9, DIM = 64, COUNT = TOKENS * HEADS * DIM };
    checkop_case(c, "%d tokens, %d heads of %d, %s", TOKENS, HEADS, DIM, checkop_dtype_name(dtype));
    struct nb_rope_backward args = {.tokens_max = TOKENS, .heads = HEADS, .head_dim = DIM, .dy_stride = HEADS * DIM,
                                    .dx_stride = HEADS * DIM, .activation = dtype};
    struct checkop_buffer *positions = checkop_input(c, "positions", NB_DTYPE_I32, TOKENS);
    for (uint64_t t = 0; t < TOKENS; t++)
        checkop_set(positions, t, (double)t);
    checkop_bind(c, &args.dy, checkop_input(c, "dy", dtype, COUNT));
    checkop_bind(c, &args.dx, checkop_output(c, "dx", dtype, COUNT));
    checkop_bind(c, &args.positions, positions);
    checkop_bind(c, &args.cosine, checkop_input(c, "cosine", NB_DTYPE_F32, TOKENS * DIM / 2));
    checkop_bind(c, &args.sine, checkop_input(c, "sine", NB_DTYPE_F32, TOKENS * DIM / 2));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_rope_backward, &args, 2.0 * COUNT * (double)nb_dtype_bytes(dtype) + 4.0 * TOKENS * DIM, 0);
}

void checkop_rope_backward(struct checkop *c)
{
    static const struct shape shapes[] = {
        {1, 1, 1, 8, 0, 0, 0}, {3, 5, 3, 24, 16, 8, 24}, {7, 7, 9, 64, 0, 0, 0}, {2, 3, 1, 256, 8, 24, 0}, {40, 40, 7, 72, 0, 8, 0},
        {3, 3, 40, 128, 0, 0, 0}, {5, 6, 5, 80, 8, 0, 8}, {2, 2, 3, 248, 0, 8, 0},
    };
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_rope_backward bad = {.w = q, .rms = q, .dy = p, .dx = p, .positions = q, .cosine = q, .sine = q, .slot = q,
                                   .tokens_max = 1, .heads = 1, .head_dim = 8, .x_stride = 8, .dy_stride = 8, .dx_stride = 8};
    checkop_refuses(c, CHECKOP_rope_backward, &bad, "x is null");
    bad.dx_stride = 16;
    checkop_refuses(c, CHECKOP_rope_backward, &bad, "dx_stride 16");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int k = 0; k < 8; k++)
            one(c, shapes[i], k & 1 ? NB_DTYPE_BF16 : NB_DTYPE_F32, k & 2, k & 4);
}
