#include "checkop.h"

static void one(struct checkop *c, int tokens, int tokens_max, int width, int vocabulary, float scale, enum nb_dtype dtype)
{
    checkop_case(c, "%d of %d x %d, vocabulary %d, scale %g, %s", tokens, tokens_max, width, vocabulary, (double)scale,
                 checkop_dtype_name(dtype));
    struct checkop_buffer *table = checkop_input(c, "table", NB_DTYPE_BF16, (uint64_t)vocabulary * (uint64_t)width);
    struct checkop_buffer *ids = checkop_input(c, "ids", NB_DTYPE_I32, (uint64_t)tokens_max);
    struct checkop_buffer *x = checkop_output(c, "x", dtype, (uint64_t)tokens_max * (uint64_t)width);
    checkop_fill_pattern(c, table, CHECKOP_MIXED);
    checkop_fill_below(c, ids, (uint32_t)vocabulary);
    checkop_set(ids, 0, vocabulary - 1);
    for (int t = tokens; t < tokens_max; t++)
        checkop_set(ids, (uint64_t)t, -1); /* beyond the batch: not to be read */
    double *want = checkop_scratch(c, (uint64_t)tokens * (uint64_t)width);
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < width; i++) {
            double element = checkop_get(table, (uint64_t)checkop_get(ids, (uint64_t)t) * (uint64_t)width + (uint64_t)i);
            want[t * width + i] = checkop_round(checkop_round(element * (double)scale, NB_DTYPE_F32), dtype);
        }
    struct nb_embedding args = {
        .tokens_max = tokens_max, .width = width, .vocabulary = vocabulary, .scale = scale, .activation = dtype};
    checkop_bind(c, &args.table, table);
    checkop_bind(c, &args.ids, ids);
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = (uint32_t)tokens}));
    checkop_run(c, CHECKOP_embedding, &args);
    checkop_expect(c, x, 0, (uint64_t)tokens * (uint64_t)width, want, (struct checkop_tolerance){0});
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, WIDTH = 576, VOCABULARY = 49152, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d of %d, %s", TOKENS, WIDTH, VOCABULARY, checkop_dtype_name(dtype));
    struct nb_embedding args = {.tokens_max = TOKENS, .width = WIDTH, .vocabulary = VOCABULARY, .scale = 1, .activation = dtype};
    struct checkop_buffer *ids = checkop_input(c, "ids", NB_DTYPE_I32, TOKENS);
    checkop_fill_below(c, ids, VOCABULARY);
    checkop_bind(c, &args.table, checkop_input(c, "table", NB_DTYPE_BF16, (uint64_t)VOCABULARY * WIDTH));
    checkop_bind(c, &args.ids, ids);
    checkop_bind(c, &args.x, checkop_output(c, "x", dtype, COUNT));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_embedding, &args, COUNT * (2.0 + (double)nb_dtype_bytes(dtype)), 0);
}

void checkop_embedding(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    const nb_dptr p = {4096};
    struct nb_embedding bad = {.table = p, .ids = p, .x = p, .slot = p, .tokens_max = 1, .width = 8, .scale = 1};
    checkop_refuses(c, CHECKOP_embedding, &bad, "vocabulary 0");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        one(c, 1, 1, 8, 1, 1, dtype); /* the least there is */
        one(c, 7, 9, 24, 13, 1, dtype);
        one(c, 33, 33, 576, 50, 24.0f, dtype); /* several threads; a scale that keeps bf16 exact in fp32 alone */
        one(c, 5, 6, 40, 9, 11.3137f, dtype);
        one(c, 2, 2, 8200, 3, 1, dtype); /* more than a GPU's block copies at a time */
    }
}
