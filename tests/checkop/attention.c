#include "attention_reference.h"

#include <math.h>

static void bind_inputs(struct checkop *c, const struct attention_setup *s, struct nb_attention *args)
{
    const struct attention_case *k = &s->k;
    *args = (struct nb_attention){.tokens_max = s->tokens_max,
        .key_tokens_max = s->key_tokens_max,
        .sequences_max = s->sequences,
        .longest_max = s->longest,
        .heads = k->heads,
        .kv_heads = k->kv_heads,
        .head_dim = k->head_dim,
        .q_stride = attention_stride(k, k->heads),
        .k_stride = attention_stride(k, k->kv_heads),
        .v_stride = attention_stride(k, k->kv_heads),
        .o_stride = attention_stride(k, k->heads),
        .window = k->window,
        .scale = s->scale,
        .soft_cap = k->soft_cap,
        .activation = s->dtype};
    checkop_bind(c, &args->q, s->q_buffer);
    checkop_bind(c, &args->k, s->k_buffer);
    checkop_bind(c, &args->v, s->v_buffer);
    checkop_bind(c, &args->query_starts, s->query_starts_buffer);
    checkop_bind(c, &args->key_starts, s->key_starts_buffer);
    checkop_bind(c, &args->slot, s->slot_buffer);
    checkop_bind_scratch(c, &args->scratch);
}

static void one(struct checkop *c, const struct attention_case *k, enum nb_dtype dtype)
{
    struct attention_setup s;
    struct nb_attention args;
    attention_begin(c, k, dtype, &s);
    bind_inputs(c, &s, &args);
    int width = k->heads * k->head_dim;
    struct checkop_buffer *o = checkop_output(c, "o", dtype, (uint64_t)s.tokens_max * (uint64_t)args.o_stride);
    struct checkop_buffer *lse = checkop_output(c, "lse", NB_DTYPE_F32, (uint64_t)k->heads * (uint64_t)s.tokens_max);
    checkop_bind(c, &args.o, o);
    checkop_bind(c, &args.lse, lse);
    double *want = checkop_scratch(c, (uint64_t)s.tokens * (uint64_t)width),
           *want_lse = checkop_scratch(c, (uint64_t)k->heads * (uint64_t)s.tokens);
    attention_forward(&s, s.q, s.k_values, s.v, want, want_lse);
    checkop_run(c, CHECKOP_attention, &args);
    /* A score is a sum of head_dim products, off by about 2^-24 * its size, which moves a weight by as much relative to
     * itself; o is a mean of values up to 4. In bf16 each weight is rounded (2^-9 of itself, random signs) before it
     * multiplies. */
    double size = 4 * (k->magnitude == 0 ? 1 : k->magnitude),
           score_error = (k->head_dim / 16.0 + 20) * 0x1p-24 * size * 4;
    double error = 4 * (score_error + (s.longest / 16.0 + 20) * 0x1p-24);
    if (dtype == NB_DTYPE_BF16)
        error += 4 * 0x1p-9;
    for (int t = 0; t < s.tokens; t++)
        checkop_expect(c, o, (uint64_t)(t * args.o_stride), (uint64_t)width, want + (int64_t)t * width,
            (struct checkop_tolerance){.ulps = 0.5, .absolute = error});
    for (int head = 0; head < k->heads; head++)
        checkop_expect(c, lse, (uint64_t)(head * s.tokens_max), (uint64_t)s.tokens, want_lse + (int64_t)head * s.tokens,
            (struct checkop_tolerance){.ulps = 2, .absolute = score_error + 0x1p-20});
    attention_expect_repeats(c, &s, o, 0, args.o_stride, width);
    for (int head = 0; head < k->heads; head++)
        attention_expect_repeats(c, &s, lse, (uint64_t)(head * s.tokens_max), 1, 1);
    checkop_end(c);
}

static void bench(struct checkop *c, const struct attention_case *k, enum nb_dtype dtype)
{
    struct attention_setup s;
    struct nb_attention args;
    attention_begin(c, k, dtype, &s);
    bind_inputs(c, &s, &args);
    checkop_bind(c, &args.o, checkop_output(c, "o", dtype, (uint64_t)s.tokens_max * (uint64_t)args.o_stride));
    checkop_bind(c, &args.lse, checkop_output(c, "lse", NB_DTYPE_F32, (uint64_t)k->heads * (uint64_t)s.tokens_max));
    double pairs = 0;
    for (int i = 0; i < s.sequences; i++) {
        double n = k->queries[i], m = k->keys[i] ? k->keys[i] : n;
        pairs += n * (m - (n - 1) / 2);
    }
    checkop_bench(c, CHECKOP_attention, &args,
        (double)(s.tokens * 2 + s.key_tokens * 2) * k->head_dim * (double)nb_dtype_bytes(dtype),
        4 * pairs * k->heads * k->head_dim);
}

static void refusals(struct checkop *c)
{
    const nb_dptr p = {4096}, q = {8192};
    const struct nb_attention good = {.q = p,
        .k = p,
        .v = p,
        .o = q,
        .query_starts = p,
        .key_starts = p,
        .slot = p,
        .tokens_max = 8,
        .key_tokens_max = 8,
        .sequences_max = 1,
        .longest_max = 8,
        .heads = 6,
        .kv_heads = 2,
        .head_dim = 16,
        .q_stride = 96,
        .k_stride = 32,
        .v_stride = 32,
        .o_stride = 96,
        .scale = 1};
    struct nb_attention bad = good;
    bad.kv_heads = 4;
    bad.k_stride = bad.v_stride = 64;
    checkop_refuses(c, CHECKOP_attention, &bad, "kv_heads");
    bad = good;
    bad.head_dim = 264;
    checkop_refuses(c, CHECKOP_attention, &bad, "264");
    bad = good;
    bad.q_stride = 88;
    checkop_refuses(c, CHECKOP_attention, &bad, "q_stride 88");
    bad = good;
    bad.o = p;
    checkop_refuses(c, CHECKOP_attention, &bad, "q and o");
    bad = good;
    bad.soft_cap = -1;
    checkop_refuses(c, CHECKOP_attention, &bad, "soft_cap");
    bad = good;
    bad.scale = INFINITY;
    checkop_refuses(c, CHECKOP_attention, &bad, "scale");
    bad = good;
    bad.window = -1;
    checkop_refuses(c, CHECKOP_attention, &bad, "window -1");
}

void checkop_attention(struct checkop *c)
{
    static const struct attention_case benches[] = {
        {.queries = {150, 150, 150, 150}, .heads = 9, .kv_heads = 3, .head_dim = 64},
        {.queries = {256, 256, 256, 256}, .heads = 9, .kv_heads = 3, .head_dim = 64},
        {.queries = {4096}, .heads = 9, .kv_heads = 3, .head_dim = 64},
        {.queries = {1}, .keys = {500}, .heads = 9, .kv_heads = 3, .head_dim = 64},
    };
    static const struct attention_case cases[] = {
        {.queries = {1}, .heads = 1, .kv_heads = 1, .head_dim = 8},
        /* Packed sequences, lengths of 1 among them; grouped heads; gaps between rows. */
        {.queries = {1, 5, 1, 17, 64}, .heads = 6, .kv_heads = 2, .head_dim = 16, .stride_extra = 8, .rows_extra = 3},
        /* The edges of the tiles: 64 queries, 128 keys. */
        {.queries = {65, 127}, .heads = 2, .kv_heads = 1, .head_dim = 24},
        {.queries = {129, 257}, .heads = 2, .kv_heads = 2, .head_dim = 64},
        /* Windows: of one key, within a tile, over several; the soft cap. */
        {.queries = {40, 3}, .heads = 2, .kv_heads = 1, .head_dim = 16, .window = 1},
        {.queries = {200}, .heads = 2, .kv_heads = 1, .head_dim = 16, .window = 7},
        {.queries = {300}, .heads = 1, .kv_heads = 1, .head_dim = 16, .window = 130},
        {.queries = {70, 70}, .heads = 2, .kv_heads = 1, .head_dim = 32, .soft_cap = 2},
        /* More keys than queries: generation, and a prompt behind a cache. */
        {.queries = {1}, .keys = {300}, .heads = 9, .kv_heads = 3, .head_dim = 64},
        {.queries = {4, 5}, .keys = {130, 20}, .heads = 2, .kv_heads = 1, .head_dim = 40, .window = 30},
        {.queries = {66}, .keys = {200}, .heads = 2, .kv_heads = 1, .head_dim = 256, .rows_extra = 1},
        /* Scores of several hundreds: the running maximum has to work. */
        {.queries = {150}, .heads = 1, .kv_heads = 1, .head_dim = 64, .magnitude = 100},
        /* The GPU's tiles: 128 queries, 32, 48 or 64 keys; kernels for 64, 80, 96, 128 and 256 columns, and sizes
           between them. */
        {.queries = {63, 64, 65}, .heads = 2, .kv_heads = 1, .head_dim = 80},
        {.queries = {127, 128, 129}, .heads = 2, .kv_heads = 1, .head_dim = 96, .stride_extra = 16},
        {.queries = {31, 33, 47, 49, 95, 97}, .heads = 2, .kv_heads = 1, .head_dim = 128},
        {.queries = {191, 1, 193}, .heads = 2, .kv_heads = 2, .head_dim = 104, .window = 48},
        {.queries = {130}, .heads = 8, .kv_heads = 1, .head_dim = 72, .window = 64, .soft_cap = 3},
        {.queries = {140}, .heads = 2, .kv_heads = 1, .head_dim = 160, .window = 65},
        {.queries = {129}, .keys = {180}, .heads = 2, .kv_heads = 1, .head_dim = 128, .window = 100, .soft_cap = 30},
        {.queries = {100}, .heads = 1, .kv_heads = 1, .head_dim = 64, .scale = -0.25f},
        /* Queries that see nothing. */
        {.queries = {5, 150, 2}, .keys = {2, 20, 9}, .heads = 2, .kv_heads = 1, .head_dim = 64},
        /* More sequences than a warp looks at in one go; each is the same wherever it stands. */
        {.queries = {3, 1, 2, 1, 1, 3, 2, 2, 1, 4, 1, 1, 2, 3, 1, 1, 1, 2, 1, 3, 1, 1, 2, 5, 1, 1, 3, 1, 2, 1, 1, 1, 2,
             1, 3, 1, 1, 2, 70, 1, 1, 1, 2, 3, 1, 1, 2, 1, 1, 1, 1, 3, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 3, 1, 2},
            .heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .repeats = true},
        {.queries = {150, 7, 150, 64, 150},
            .heads = 2,
            .kv_heads = 1,
            .head_dim = 64,
            .stride_extra = 8,
            .rows_extra = 5,
            .repeats = true},
        {.queries = {1, 130, 130, 63, 130}, .heads = 2, .kv_heads = 1, .head_dim = 128, .window = 40, .repeats = true},
        /* A few queries against a cache, which a GPU shares out among blocks: pieces of 128 keys, and longer ones. */
        {.queries = {1}, .keys = {1000}, .heads = 8, .kv_heads = 1, .head_dim = 128},
        {.queries = {2, 3, 1},
            .keys = {200, 700, 129},
            .heads = 6,
            .kv_heads = 3,
            .head_dim = 80,
            .window = 150,
            .rows_extra = 2},
        {.queries = {16}, .keys = {400}, .heads = 8, .kv_heads = 2, .head_dim = 96, .soft_cap = 5},
        {.queries = {3, 2}, .keys = {2, 300}, .heads = 2, .kv_heads = 1, .head_dim = 200},
        {.queries = {1}, .keys = {9000}, .heads = 2, .kv_heads = 1, .head_dim = 64},
        {.queries = {15}, .keys = {150}, .heads = 3, .kv_heads = 3, .head_dim = 8, .window = 1},
    };
    if (checkop_wants_bench(c)) {
        CHECKOP_EACH(c, benches, bench);
        return;
    }
    refusals(c);
    CHECKOP_EACH(c, cases, one);
}
