#include <math.h>

#include "checkop.h"

struct shape {
    int rows, rows_max, row_begin, vocabulary, gap;
};

/* -log softmax(x)[label]. */
struct row {
    int vocabulary, label;
};

static double loss_of_row(void *context, const double *x)
{
    const struct row *r = context;
    double largest = -INFINITY, sum = 0;
    for (int i = 0; i < r->vocabulary; i++)
        largest = fmax(largest, x[i]);
    for (int i = 0; i < r->vocabulary; i++)
        sum += exp(x[i] - largest);
    return largest + log(sum) - x[r->label];
}

static void gradient_of_row(struct row *r, double *x, double *gradient)
{
    if (r->vocabulary <= 40) {
        for (int i = 0; i < r->vocabulary; i++)
            gradient[i] = checkop_difference(loss_of_row, r, x, (uint64_t)i);
        return;
    }
    double loss = loss_of_row(r, x);
    for (int i = 0; i < r->vocabulary; i++)
        gradient[i] = exp(x[i] - x[r->label] - loss) - (i == r->label);
}

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, double deviation, bool gradient)
{
    checkop_case(c, "%d of %d rows from %d, vocabulary %d + %d, %s %s times %g%s", s.rows, s.rows_max, s.row_begin, s.vocabulary, s.gap,
                 checkop_dtype_name(dtype), checkop_pattern_name(pattern), deviation, gradient ? ", gradient" : "");
    int stride = s.vocabulary + s.gap;
    uint64_t trained = (uint64_t)(s.row_begin + s.rows), vocabulary = (uint64_t)s.vocabulary;
    struct checkop_buffer *logits = checkop_output(c, "logits", dtype, (uint64_t)s.rows_max * (uint64_t)stride);
    struct checkop_buffer *labels = checkop_input(c, "labels", NB_DTYPE_I32, trained);
    struct checkop_buffer *loss = checkop_output(c, "loss", NB_DTYPE_F32, trained);
    checkop_fill_pattern(c, logits, pattern);
    for (uint64_t i = 0; i < checkop_count(logits); i++)
        checkop_set(logits, i, checkop_get(logits, i) * deviation);
    checkop_fill_below(c, labels, (uint32_t)s.vocabulary);
    checkop_set(labels, (uint64_t)s.row_begin, 0);
    checkop_set(labels, trained - 1, s.vocabulary - 1);
    double *want = checkop_scratch(c, (uint64_t)s.rows * vocabulary), *x = checkop_scratch(c, vocabulary);
    double *want_loss = checkop_scratch(c, (uint64_t)s.rows), largest = 0;
    for (int t = 0; t < s.rows; t++) {
        struct row r = {s.vocabulary, (int)checkop_get(labels, (uint64_t)(s.row_begin + t))};
        for (uint64_t i = 0; i < vocabulary; i++) {
            x[i] = checkop_get(logits, (uint64_t)t * (uint64_t)stride + i);
            largest = fmax(largest, fabs(x[i]));
        }
        want_loss[t] = loss_of_row(&r, x);
        gradient_of_row(&r, x, want + (uint64_t)t * vocabulary);
    }
    struct nb_cross_entropy args = {.row_begin = s.row_begin, .rows_max = s.rows_max, .vocabulary = s.vocabulary,
                                    .logits_stride = stride, .gradient = gradient, .activation = dtype};
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.labels, labels);
    checkop_bind(c, &args.loss, loss);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = 9999, .trained_rows = (uint32_t)trained}));
    checkop_run(c, CHECKOP_cross_entropy, &args);
    /* A sum of exponentials, all positive: x - maximum is rounded (its size times 2^-24, which below -104 makes no difference), exp
     * within 1 ulp, a lane of a block adds 128 terms. That is the relative error of the sum, the absolute one of the loss. */
    double of_sum = (fmin(2 * largest, 104) + 2 + 128 + 8) * 0x1p-24;
    checkop_expect(c, loss, (uint64_t)s.row_begin, (uint64_t)s.rows, want_loss,
                   (struct checkop_tolerance){.relative = 0x1p-24, .absolute = of_sum});
    for (int t = 0; gradient && t < s.rows; t++) {
        uint64_t begin = (uint64_t)t * (uint64_t)stride, label = (uint64_t)checkop_get(labels, (uint64_t)(s.row_begin + t));
        const double *row = want + (uint64_t)t * vocabulary;
        double relative = 2 * of_sum, absolute = s.vocabulary <= 40 ? 1e-9 : 1e-36; /* the differences' error */
        checkop_expect_activation(c, logits, begin, label, row, relative, absolute);
        checkop_expect_activation(c, logits, begin + label, 1, row + label, relative, relative + absolute); /* p - 1 cancels */
        checkop_expect_activation(c, logits, begin + label + 1, vocabulary - label - 1, row + label + 1, relative, absolute);
    }
    checkop_end(c);
}

/* Logits of -inf, as a masked vocabulary has them, among finite ones; the first whole block is masked. */
static void masked(struct checkop *c, enum nb_dtype dtype)
{
    enum { VOCABULARY = 5000, OPEN = 4500 };
    checkop_case(c, "-inf below %d of %d, %s", OPEN, VOCABULARY, checkop_dtype_name(dtype));
    struct checkop_buffer *logits = checkop_output(c, "logits", dtype, VOCABULARY), *loss = checkop_output(c, "loss", NB_DTYPE_F32, 1);
    struct checkop_buffer *labels = checkop_input(c, "labels", NB_DTYPE_I32, 1);
    checkop_fill_value(logits, 0, OPEN, -INFINITY);
    checkop_fill_value(logits, OPEN, VOCABULARY - OPEN, 1.0);
    checkop_set(labels, 0, OPEN);
    double *want = checkop_scratch(c, VOCABULARY), want_loss = log(VOCABULARY - OPEN);
    for (int i = OPEN; i < VOCABULARY; i++)
        want[i] = 1.0 / (VOCABULARY - OPEN) - (i == OPEN);
    struct nb_cross_entropy args = {.rows_max = 1, .vocabulary = VOCABULARY, .logits_stride = VOCABULARY, .gradient = true,
                                    .activation = dtype};
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.labels, labels);
    checkop_bind(c, &args.loss, loss);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.trained_rows = 1}));
    checkop_run(c, CHECKOP_cross_entropy, &args);
    checkop_expect(c, loss, 0, 1, &want_loss, (struct checkop_tolerance){.relative = 0x1p-22});
    checkop_expect_activation(c, logits, 0, VOCABULARY, want, 0x1p-22, 0);
    checkop_end(c);
}

/* A NaN or +inf among the logits makes the loss not finite, which is how the step notices. */
static void poisoned(struct checkop *c, enum nb_dtype dtype, double poison, int at)
{
    enum { VOCABULARY = 100, STRIDE = 104 };
    checkop_case(c, "a logit of %g at %d, %s", poison, at, checkop_dtype_name(dtype));
    struct checkop_buffer *logits = checkop_output(c, "logits", dtype, STRIDE);
    struct checkop_buffer *labels = checkop_input(c, "labels", NB_DTYPE_I32, 1), *loss = checkop_output(c, "loss", NB_DTYPE_F32, 1);
    checkop_fill_normal(c, logits, 1.0);
    checkop_set(logits, (uint64_t)at, poison);
    struct nb_cross_entropy args = {.rows_max = 1, .vocabulary = VOCABULARY, .logits_stride = STRIDE, .activation = dtype};
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.labels, labels);
    checkop_bind(c, &args.loss, loss);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.trained_rows = 1}));
    checkop_run(c, CHECKOP_cross_entropy, &args);
    checkop_true(c, !isfinite(checkop_got(loss, 0)), "the loss is %g", checkop_got(loss, 0));
    checkop_claim(loss, 0, 1);
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype, bool gradient)
{
    enum { ROWS = 512, VOCABULARY = 49152 };
    checkop_case(c, "%d x %d %s%s", ROWS, VOCABULARY, checkop_dtype_name(dtype), gradient ? ", gradient" : "");
    struct nb_cross_entropy args = {.rows_max = ROWS, .vocabulary = VOCABULARY, .logits_stride = VOCABULARY, .gradient = gradient,
                                    .activation = dtype};
    struct checkop_buffer *logits = checkop_output(c, "logits", dtype, (uint64_t)ROWS * VOCABULARY);
    checkop_fill_uniform(c, logits, -8, 8);
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.labels, checkop_input(c, "labels", NB_DTYPE_I32, ROWS));
    checkop_bind(c, &args.loss, checkop_output(c, "loss", NB_DTYPE_F32, ROWS));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.trained_rows = ROWS}));
    checkop_bench(c, CHECKOP_cross_entropy, &args, (gradient ? 2.0 : 1.0) * ROWS * VOCABULARY * (double)nb_dtype_bytes(dtype), 0);
}

void checkop_cross_entropy(struct checkop *c)
{
    /* one class; odd vocabularies, differences; more than one block, and a bit; a real one, where several threads share the rows */
    static const struct shape shapes[] = {
        {1, 1, 0, 1, 7}, {3, 5, 4, 37, 3}, {2, 2, 0, 24, 0}, {5, 8, 256, 2051, 5}, {3, 3, 0, 49152, 0},
    };
    /* Around what the 1,024 threads of a CUDA block take in a step of eight logits each, and in four steps; one over and one short. */
    static const struct shape bf16_shapes[] = {
        {2, 3, 0, 8191, 1}, {1, 1, 3, 8192, 0}, {1, 1, 0, 8193, 7}, {1, 2, 0, 32768, 8}, {1, 1, 0, 32775, 1}, {2, 2, 0, 40961, 7},
    };
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32, true);
        bench(c, NB_DTYPE_F32, false);
        bench(c, NB_DTYPE_BF16, true);
        return;
    }
    const nb_dptr p = {4096};
    struct nb_cross_entropy bad = {.logits = p, .labels = p, .loss = p, .slot = p, .rows_max = 1, .vocabulary = 9, .logits_stride = 8};
    checkop_refuses(c, CHECKOP_cross_entropy, &bad, "logits_stride 8");
    bad.logits_stride = 12;
    checkop_refuses(c, CHECKOP_cross_entropy, &bad, "logits_stride 12");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int gradient = 0; gradient < 2; gradient++)
                one(c, shapes[i], dtype, CHECKOP_NORMAL, 3.0, gradient);
        one(c, shapes[3], dtype, CHECKOP_NORMAL, 60.0, true); /* most exponentials underflow */
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            one(c, shapes[3], dtype, (enum checkop_pattern)pattern, 1.0, true);
        one(c, shapes[3], dtype, CHECKOP_CONSTANT, 1000.0, true); /* a maximum far below zero */
        masked(c, dtype);
    }
    for (size_t i = 0; i < sizeof bf16_shapes / sizeof *bf16_shapes; i++)
        one(c, bf16_shapes[i], NB_DTYPE_BF16, CHECKOP_NORMAL, 3.0, true);
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        poisoned(c, dtype, NAN, 37);
        poisoned(c, dtype, INFINITY, 37);
        poisoned(c, dtype, NAN, 99);
    }
}
