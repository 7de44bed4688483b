#include "linear_reference.h"

#include <math.h>

/* y of one part after the run, given t as the op stored it (so that t's rounding is judged once, where t is). */
static void expect_part(
    struct checkop *c, const struct linear_setup *s, int p, struct checkop_buffer *t, struct checkop_buffer *y)
{
    const struct linear_case *k = &s->k;
    const struct linear_part *part = &s->part[p];
    int out = k->out[p], n = k->tokens, stride = linear_stride(k, out);
    double epsilon = s->dtype == NB_DTYPE_F32 ? 0x1p-24 : 0x1p-9,
           scale = k->output_scale == 0 ? 1 : (double)k->output_scale, t_rounding = 0;
    double *want = checkop_scratch(c, (uint64_t)n * (uint64_t)out),
           *sizes = checkop_scratch(c, (uint64_t)n * (uint64_t)out), *branch = NULL;
    linear_multiply(s->x, part->w, n, out, k->in, want, sizes);
    double size = linear_largest(sizes, (uint64_t)n * (uint64_t)out), error = linear_sum_error(k->in, size);
    if (k->rank > 0) {
        double *got = checkop_scratch(c, (uint64_t)n * (uint64_t)k->rank);
        branch = checkop_scratch(c, (uint64_t)n * (uint64_t)out);
        double *wanted_t = checkop_scratch(c, (uint64_t)n * (uint64_t)k->rank),
               *t_sizes = checkop_scratch(c, (uint64_t)n * (uint64_t)k->rank);
        linear_multiply(linear_dropped(c, s, p), part->a, n, k->rank, k->in, wanted_t, t_sizes);
        double t_error = linear_sum_error(k->in, linear_largest(t_sizes, (uint64_t)n * (uint64_t)k->rank));
        checkop_expect(c, t, 0, (uint64_t)n * (uint64_t)k->rank, wanted_t,
            (struct checkop_tolerance){.ulps = 0.5, .absolute = t_error});
        for (int i = 0; i < n * k->rank; i++)
            got[i] = checkop_got(t, (uint64_t)i);
        /* An element of t that lies close to the middle of two numbers may be rounded to the other one elsewhere: twice in a sum. */
        t_rounding = 2 * 2 * epsilon * linear_largest(got, (uint64_t)n * (uint64_t)k->rank) * (double)1.7f *
                     linear_largest(part->b, (uint64_t)out * (uint64_t)k->rank);
        linear_multiply(got, part->b, n, out, k->rank, branch, sizes);
        for (int i = 0; i < n * out; i++)
            want[i] += (double)1.7f * branch[i];
        double branch_size = 1.7 * linear_largest(sizes, (uint64_t)n * (uint64_t)out);
        error += linear_sum_error(k->rank, branch_size) + 2 * 0x1p-24 * (size + branch_size);
    }
    double largest = 0, before = 0;
    for (int i = 0; i < n * out; i++) {
        double beside = scale * (part->bias[i % out] + (branch ? (double)1.7f * branch[i] : 0));
        if (k->accumulate)
            beside += checkop_get(y, (uint64_t)(i / out * stride + i % out));
        before = fmax(before, fabs(beside));
        want[i] = scale * (want[i] + part->bias[i % out]);
        largest = fmax(largest, fabs(want[i]));
    }
    /* One rounding of the result; accumulating, one of the sum before it too, at the size of either. */
    struct checkop_tolerance tolerance = {
        .ulps = 0.5, .absolute = scale * error + 2 * 0x1p-24 * largest, .tested = scale * t_rounding};
    if (k->accumulate)
        tolerance.absolute += 2 * epsilon * largest;
    /* A library adds its product to the adapter's and the bias's share, which stands in y rounded (by up to 2 * epsilon of it), and writes
     * every row. */
    if (k->rank > 0 || k->bias)
        tolerance.library = 2 * epsilon * before;
    checkop_leave_open(c, y, (uint64_t)n * (uint64_t)stride, (uint64_t)(k->tokens_max - n) * (uint64_t)stride);
    for (int i = 0; i < n; i++) {
        if (k->accumulate)
            for (int j = 0; j < out; j++)
                want[i * out + j] += checkop_get(y, (uint64_t)(i * stride + j));
        checkop_expect(c, y, (uint64_t)i * (uint64_t)stride, (uint64_t)out, want + (int64_t)i * out, tolerance);
    }
}

static void one(struct checkop *c, const struct linear_case *k, enum nb_dtype dtype)
{
    struct linear_setup s;
    struct nb_linear args = {.tokens_max = k->tokens_max,
        .in = k->in,
        .x_stride = linear_stride(k, k->in),
        .parts = k->parts,
        .activation = dtype,
        .rows_from = linear_rows_from(k),
        .row_begin_chunk = k->chunk_begin};
    struct checkop_buffer *t[NB_LINEAR_PARTS] = {0}, *y[NB_LINEAR_PARTS];
    linear_begin(c, k, dtype, &s, args.part);
    checkop_bind(c, &args.x, s.x_buffer);
    checkop_bind(c, &args.step, s.step_buffer);
    checkop_bind(c, &args.slot, s.slot_buffer);
    checkop_bind_scratch(c, &args.scratch);
    for (int p = 0; p < k->parts; p++) {
        y[p] = checkop_output(c, "y", dtype, (uint64_t)k->tokens_max * (uint64_t)args.part[p].y_stride);
        if (k->accumulate)
            checkop_fill_normal(c, y[p], 2);
        checkop_bind(c, &args.part[p].y, y[p]);
        args.part[p].accumulate = k->accumulate;
        if (k->bias)
            checkop_bind(c, &args.part[p].bias, s.part[p].bias_buffer);
        if (k->rank > 0) {
            t[p] = checkop_output(c, "t", dtype, (uint64_t)k->tokens_max * (uint64_t)k->rank);
            checkop_bind(c, &args.part[p].lora.t, t[p]);
        }
    }
    checkop_run(c, CHECKOP_linear, &args);
    for (int p = 0; p < k->parts; p++)
        expect_part(c, &s, p, t[p], y[p]);
    checkop_end(c);
}

static void refusals(struct checkop *c)
{
    const nb_dptr p = {4096}, q = {8192};
    const struct nb_linear good = {.x = p,
        .step = p,
        .slot = p,
        .tokens_max = 4,
        .in = 64,
        .x_stride = 64,
        .parts = 1,
        .activation = NB_DTYPE_F32,
        .part = {{.weight = {.format = NB_WEIGHT_BF16, .rows = 24, .columns = 64, .data = p},
            .out = 24,
            .y = q,
            .y_stride = 24,
            .output_scale = 1,
            .lora = {.a = p, .b = p, .t = p, .rank = 3, .scale = 1}}}};
    struct nb_linear bad = good;
    bad.in = 60;
    checkop_refuses(c, CHECKOP_linear, &bad, "in 60");
    bad = good;
    bad.part[0].weight.columns = 72;
    checkop_refuses(c, CHECKOP_linear, &bad, "columns");
    bad = good;
    bad.part[0].row_begin = 8;
    checkop_refuses(c, CHECKOP_linear, &bad, "out 24");
    bad = good;
    bad.parts = 4;
    checkop_refuses(c, CHECKOP_linear, &bad, "parts 4");
    bad = good;
    bad.part[0].lora.rank = 1025;
    checkop_refuses(c, CHECKOP_linear, &bad, "rank 1025");
    bad = good;
    bad.part[0].lora.dropout = 1;
    checkop_refuses(c, CHECKOP_linear, &bad, "dropout 1");
    bad = good;
    bad.part[0].lora.dropout = NAN;
    checkop_refuses(c, CHECKOP_linear, &bad, "dropout");
    bad = good;
    bad.part[0].y_stride = 16;
    checkop_refuses(c, CHECKOP_linear, &bad, "y_stride 16");
    bad = good;
    bad.part[0].y = p;
    checkop_refuses(c, CHECKOP_linear, &bad, "x and part[0].y");
}

static void bench(struct checkop *c, const struct linear_case *k, enum nb_dtype dtype)
{
    struct linear_setup s;
    struct nb_linear args = {
        .tokens_max = k->tokens_max, .in = k->in, .x_stride = k->in, .parts = k->parts, .activation = dtype};
    linear_begin(c, k, dtype, &s, args.part);
    checkop_bind(c, &args.x, s.x_buffer);
    checkop_bind(c, &args.step, s.step_buffer);
    checkop_bind(c, &args.slot, s.slot_buffer);
    checkop_bind_scratch(c, &args.scratch);
    double flops = 0;
    for (int p = 0; p < k->parts; p++) {
        checkop_bind(c, &args.part[p].y,
            checkop_output(c, "y", dtype, (uint64_t)k->tokens_max * (uint64_t)args.part[p].y_stride));
        checkop_bind(
            c, &args.part[p].lora.t, checkop_output(c, "t", dtype, (uint64_t)k->tokens_max * (uint64_t)k->rank));
        flops += 2.0 * k->tokens * ((double)k->in * k->out[p] + (double)k->rank * (k->in + k->out[p]));
    }
    checkop_bench(
        c, CHECKOP_linear, &args, (double)k->tokens * (double)nb_dtype_bytes(dtype) * (k->in + k->out[0]), flops);
}

void checkop_linear(struct checkop *c)
{
    static const struct linear_case benches[] = {
        {.tokens = 1024, .tokens_max = 1024, .in = 576, .out = {576, 192, 192}, .parts = 3, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true},
        {.tokens = 1024, .tokens_max = 1024, .in = 576, .out = {1536, 1536}, .parts = 2, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true},
        {.tokens = 1024, .tokens_max = 1024, .in = 1536, .out = {576}, .parts = 1, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true},
        {.tokens = 1, .tokens_max = 1, .in = 1536, .out = {576}, .parts = 1, .rank = 16, .format = NB_WEIGHT_NF4,
         .nested = true},
    };
    static const struct linear_case cases[] = {
        /* One row, the smallest widths: the way of few rows, where a block of 4-bit weights straddles matrix rows. */
        {.tokens = 1, .tokens_max = 1, .in = 8, .out = {8}, .parts = 1, .format = NB_WEIGHT_BF16},
        {.tokens = 3, .tokens_max = 5, .in = 72, .out = {24, 8, 1}, .parts = 3, .rank = 3, .format = NB_WEIGHT_NF4,
         .nested = true, .bias = true,
         .rows_around = 2, .stride_extra = 8},
        {.tokens = 8, .tokens_max = 9, .in = 576, .out = {192}, .parts = 1, .rank = 16, .format = NB_WEIGHT_FP4,
         .accumulate = true,
         .output_scale = 0.25f},
        /* The tiled way at the edges of its tiles: 9 is the first, 128 and 256 are the tiles. */
        {.tokens = 9, .tokens_max = 9, .in = 64, .out = {64}, .parts = 1, .rank = 1, .format = NB_WEIGHT_NF4,
         .accumulate = true, .bias = true},
        {.tokens = 127, .tokens_max = 300, .in = 72, .out = {259}, .parts = 1, .rank = 4, .format = NB_WEIGHT_BF16,
         .stride_extra = 16},
        {.tokens = 129, .tokens_max = 129, .in = 64, .out = {72, 8, 40}, .parts = 3, .rank = 16,
         .format = NB_WEIGHT_NF4, .nested = true,
         .bias = true, .output_scale = 1.5f},
        {.tokens = 257, .tokens_max = 260, .in = 1096, .out = {24}, .parts = 1, .rank = 3, .format = NB_WEIGHT_FP4,
         .nested = true},
        /* A rank of more than one tile. */
        {.tokens = 17, .tokens_max = 32, .in = 64, .out = {16}, .parts = 1, .rank = 300, .format = NB_WEIGHT_BF16},
        /* Dropout, in both ways' sizes: it always takes the tiled one. */
        {.tokens = 3, .tokens_max = 3, .in = 72, .out = {8, 16}, .parts = 2, .rank = 4, .format = NB_WEIGHT_NF4,
         .dropout = 0.5f},
        {.tokens = 130, .tokens_max = 131, .in = 72, .out = {24}, .parts = 1, .rank = 8, .format = NB_WEIGHT_NF4,
         .dropout = 0.1f},
        /* A chunk of the trained rows, the head's outputs: no multiple of 8. */
        {.tokens = 20, .tokens_max = 64, .in = 64, .out = {259}, .parts = 1, .format = NB_WEIGHT_BF16,
         .chunk_begin = 256},
        {.tokens = 5, .tokens_max = 64, .in = 64, .out = {259}, .parts = 1, .format = NB_WEIGHT_BF16,
         .chunk_begin = 256},
        /* A head in 4 bits: the same, with whole blocks in a row and without, many rows of logits and one. */
        {.tokens = 20, .tokens_max = 64, .in = 64, .out = {259}, .parts = 1, .format = NB_WEIGHT_NF4, .nested = true,
         .chunk_begin = 256},
        {.tokens = 150, .tokens_max = 256, .in = 72, .out = {1003}, .parts = 1, .rank = 4, .format = NB_WEIGHT_FP4,
         .chunk_begin = 512},
        {.tokens = 77, .tokens_max = 256, .in = 128, .out = {517}, .parts = 1, .format = NB_WEIGHT_NF4, .nested = true,
         .chunk_begin = 256},
        {.tokens = 1, .tokens_max = 1, .in = 64, .out = {259}, .parts = 1, .format = NB_WEIGHT_NF4, .nested = true},
        {.tokens = 1, .tokens_max = 1, .in = 72, .out = {1003}, .parts = 1, .format = NB_WEIGHT_FP4},
        {.tokens = 0, .tokens_max = 8, .in = 64, .out = {8}, .parts = 1, .rank = 4, .format = NB_WEIGHT_BF16},
        /* Slices of matrices in scratch, where whole blocks begin; several chunks of rows, straddling blocks and not. */
        {.tokens = 70, .tokens_max = 96, .in = 192, .out = {40, 24, 7}, .parts = 3, .rank = 5, .format = NB_WEIGHT_FP4,
         .nested = true, .output_scale = 0.75f, .rows_around = 3, .bias = true, .accumulate = true},
        {.tokens = 3, .tokens_max = 4, .in = 1096, .out = {801}, .parts = 1, .rank = 9, .format = NB_WEIGHT_NF4, .nested = true,
         .dropout = 0.2f, .rows_around = 1},
        {.tokens = 5, .tokens_max = 8, .in = 1088, .out = {600, 481}, .parts = 2, .rank = 16, .format = NB_WEIGHT_NF4,
         .nested = true, .dropout = 0.2f, .accumulate = true},
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
        {.tokens = 515, .tokens_max = 520, .in = 192, .out = {72, 140}, .parts = 2, .rank = 17, .format = NB_WEIGHT_NF4,
         .nested = true},
        /* SmolLM2's feed-forward part, a little of it. */
        {.tokens = 40, .tokens_max = 40, .in = 576, .out = {1536}, .parts = 1, .rank = 16, .format = NB_WEIGHT_NF4,
         .nested = true},
    };
    if (checkop_wants_bench(c)) {
        CHECKOP_EACH(c, benches, bench);
        return;
    }
    refusals(c);
    CHECKOP_EACH(c, cases, one);
}
