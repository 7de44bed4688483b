#include <math.h>
#include <stdlib.h>

#include "base/random.h"
#include "checkop.h"

struct variant {
    int vocabulary, top_k;
    float temperature, top_p;
};

struct candidate {
    double logit;
    int id;
};

static int by_falling_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->logit > y->logit ? -1 : x->logit < y->logit ? 1 : x->id - y->id;
}

static int by_rising_id(const void *a, const void *b)
{
    return ((const struct candidate *)a)->id - ((const struct candidate *)b)->id;
}

/* The contract read aloud: sort, keep top_k, keep the nucleus, sort back by id, walk. */
static int reference(struct candidate *all, const struct variant *k, double uniform)
{
    int count = k->top_k > 0 && k->top_k < k->vocabulary ? k->top_k : k->vocabulary;
    double total = 0, running = 0, kept = 0;
    qsort(all, (size_t)k->vocabulary, sizeof *all, by_falling_logit);
    if (k->temperature == 0)
        return all[0].id;
    double largest = all[0].logit, temperature = (double)k->temperature;
    for (int i = 0; i < count; i++)
        total += exp((all[i].logit - largest) / temperature);
    int chosen = 0;
    while (chosen < count && (chosen == 0 || k->top_p == 1 || kept < (double)k->top_p * total))
        kept += exp((all[chosen++].logit - largest) / temperature);
    qsort(all, (size_t)chosen, sizeof *all, by_rising_id);
    for (int i = 0; i < chosen; i++)
        if ((running += exp((all[i].logit - largest) / temperature)) > uniform * kept)
            return all[i].id;
    return all[chosen - 1].id;
}

static void one(struct checkop *c, struct variant k, enum nb_dtype dtype, enum checkop_pattern pattern, uint32_t index)
{
    checkop_case(c, "vocabulary %d, top_k %d, temperature %g, top_p %g, %s %s, draw %u", k.vocabulary, k.top_k, (double)k.temperature,
                 (double)k.top_p, checkop_dtype_name(dtype), checkop_pattern_name(pattern), (unsigned)index);
    struct checkop_buffer *logits = checkop_input(c, "logits", dtype, (uint64_t)k.vocabulary);
    struct checkop_buffer *next = checkop_output(c, "next", NB_DTYPE_I32, 1);
    checkop_fill_pattern(c, logits, pattern);
    for (uint64_t i = 0; pattern == CHECKOP_ZERO && i < checkop_count(logits); i += 2)
        checkop_set(logits, i, -0.0); /* which ties with +0 */
    struct candidate *all = (struct candidate *)(void *)checkop_scratch(c, 2 * (uint64_t)k.vocabulary);
    for (int i = 0; i < k.vocabulary; i++)
        all[i] = (struct candidate){checkop_get(logits, (uint64_t)i) + 0.0, i};
    struct nb_sample args = {.vocabulary = k.vocabulary, .top_k = k.top_k, .temperature = k.temperature, .top_p = k.top_p,
                             .seed = 0x123456789abcdefu, .activation = dtype};
    double want = reference(all, &k, (double)nb_random_uniform(args.seed, NB_RANDOM_SAMPLE, 0, index));
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.next, next);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.sample_index = index}));
    checkop_bind_scratch(c, &args.scratch);
    checkop_run(c, CHECKOP_sample, &args);
    checkop_expect(c, next, 0, 1, &want, (struct checkop_tolerance){0});
    checkop_end(c);
}

/* One logit that is no number to choose by, wherever it stands. */
static void spoiled(struct checkop *c, struct variant k, enum nb_dtype dtype, double spoil, uint64_t at)
{
    checkop_case(c, "vocabulary %d, temperature %g, logit %d is %g, %s", k.vocabulary, (double)k.temperature, (int)at, spoil,
                 checkop_dtype_name(dtype));
    struct checkop_buffer *logits = checkop_input(c, "logits", dtype, (uint64_t)k.vocabulary);
    struct checkop_buffer *next = checkop_output(c, "next", NB_DTYPE_I32, 1);
    checkop_fill_normal(c, logits, 2.0);
    checkop_set(logits, at, spoil);
    struct nb_sample args = {.vocabulary = k.vocabulary, .top_k = k.top_k, .temperature = k.temperature, .top_p = k.top_p,
                             .activation = dtype};
    double want = -1;
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.next, next);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.sample_index = 1}));
    checkop_bind_scratch(c, &args.scratch);
    checkop_run(c, CHECKOP_sample, &args);
    checkop_expect(c, next, 0, 1, &want, (struct checkop_tolerance){0});
    checkop_end(c);
}

static void bench(struct checkop *c, float temperature, float top_p)
{
    enum { VOCABULARY = 49152 };
    checkop_case(c, "vocabulary %d, temperature %g, top_p %g", VOCABULARY, (double)temperature, (double)top_p);
    struct nb_sample args = {.vocabulary = VOCABULARY, .temperature = temperature, .top_p = top_p};
    struct checkop_buffer *logits = checkop_input(c, "logits", NB_DTYPE_F32, VOCABULARY);
    checkop_fill_normal(c, logits, 2.0);
    checkop_bind(c, &args.logits, logits);
    checkop_bind(c, &args.next, checkop_output(c, "next", NB_DTYPE_I32, 1));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.sample_index = 1}));
    checkop_bind_scratch(c, &args.scratch);
    checkop_bench(c, CHECKOP_sample, &args, 4.0 * VOCABULARY, 0);
}

void checkop_sample(struct checkop *c)
{
    static const struct variant variants[] = {
        {1, 0, 1, 1},        {37, 0, 0, 1},          {37, 0, 1, 1},       {1000, 1, 1, 1},       {1000, 5, 0.7f, 1},
        {1000, 0, 1, 0.5f},  {1000, 50, 0.9f, 0.9f}, {1000, 0, 5, 0.01f}, {1000, 5000, 1, 0.3f}, {49152, 0, 0.8f, 0.95f},
    };
    /* around the 2,048 logits that a CUDA block takes: ties and sums that run on from tile to tile */
    static const struct variant tiles[] = {
        {2047, 0, 1, 0.8f}, {2048, 1999, 1, 1}, {2049, 2049, 1, 0.999f}, {2056, 0, 1, 1}, {20001, 7000, 2, 0.9f}, {20001, 0, 0.1f, 1},
        {4100, 0, 0, 1},
    };
    if (checkop_wants_bench(c)) {
        bench(c, 0, 1);
        bench(c, 0.8f, 1);
        bench(c, 0.8f, 0.95f);
        return;
    }
    struct nb_sample bad = {.logits = {4096}, .next = {4096}, .slot = {4096}, .vocabulary = 8, .temperature = -1, .top_p = 1};
    checkop_refuses(c, CHECKOP_sample, &bad, "temperature -1");
    bad.temperature = 1;
    bad.top_p = 0;
    checkop_refuses(c, CHECKOP_sample, &bad, "top_p 0");
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        for (uint32_t index = 0; index < 6; index++)
            one(c, variants[i], index & 1 ? NB_DTYPE_BF16 : NB_DTYPE_F32, CHECKOP_NORMAL, index);
    /* all tied; a few far above the rest; differences below what fp32's exp sees; +0 beside -0 */
    for (uint32_t index = 0; index < 6; index++)
        for (size_t i = 4; i < 7; i++)
            for (int dtype = NB_DTYPE_F32; dtype <= NB_DTYPE_BF16; dtype++) {
                one(c, variants[i], (enum nb_dtype)dtype, CHECKOP_CONSTANT, index);
                one(c, variants[i], (enum nb_dtype)dtype, CHECKOP_HUGE, index);
                one(c, variants[i], (enum nb_dtype)dtype, CHECKOP_SUBNORMAL, index);
                one(c, variants[i], (enum nb_dtype)dtype, CHECKOP_ZERO, index);
            }
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++)
        for (uint32_t index = 0; index < 3; index++) {
            one(c, tiles[i], NB_DTYPE_BF16, CHECKOP_NORMAL, index);
            one(c, tiles[i], NB_DTYPE_BF16, CHECKOP_CONSTANT, index);
        }
    for (size_t i = 1; i < 6; i++)
        for (int dtype = NB_DTYPE_F32; dtype <= NB_DTYPE_BF16; dtype++) {
            spoiled(c, variants[i], (enum nb_dtype)dtype, NAN, 0);
            spoiled(c, variants[i], (enum nb_dtype)dtype, NAN, (uint64_t)variants[i].vocabulary - 1);
            spoiled(c, variants[i], (enum nb_dtype)dtype, INFINITY, 17);
        }
}
