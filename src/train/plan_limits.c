#include "train/plan_limits.h"

#include "train/fit.h"

/* Beyond this the token counts of a micro-batch leave 32 bits. */
enum { TOKENS_MAX = 1 << 29 };

static const double mebibyte = 1024.0 * 1024.0;

/* What a run of the sizes that it has takes. */
static nb_status plan_sizes(
    struct nb_run *run, struct nb_plan_limit_found *found, struct nb_measure *measured, bool *fits)
{
    int blocks = nb_checkpoint_config(run->checkpoint)->layers;
    NB_TRY(nb_fit_choose(run));
    NB_TRY(nb_plan_measure(run, measured));
    *fits = nb_fit_holds(run, measured);
    *found = (struct nb_plan_limit_found){
        .sequence_len = run->sequence_len,
        .micro_batch_size = run->micro_batch_size,
        .peak_bytes = measured->peak_bytes,
        .pinned_bytes = measured->pinned_bytes,
        .pageable_bytes = measured->pageable_bytes,
        .step_seconds = measured->seconds,
        .blocks = blocks,
    };
    for (int i = 0; i < blocks; i++) {
        found->kept_everything += run->keep[i] == NB_KEEP_EVERYTHING;
        found->kept_attention += run->keep[i] == NB_KEEP_ATTENTION;
    }
    return NB_OK;
}

/* Units of what grows: tiles of a row's tokens, or rows. */
struct search {
    struct nb_run *run;
    enum nb_plan_limit limit;
};

static void resize(const struct search *s, int64_t units)
{
    struct nb_run *run = s->run;
    if (s->limit == NB_PLAN_LONGEST_CONTEXT)
        nb_run_resize(run, (int)(units * NB_TILE_TOKENS), run->micro_batch_size, run->micro_batches);
    else
        nb_run_resize(run, run->sequence_len, (int)units, run->micro_batches);
}

static nb_status fail_smallest(
    const struct nb_run *run, const struct nb_plan_limit_found *found, const struct nb_measure *measured)
{
    double taken = (double)found->peak_bytes, there = (double)run->available_bytes;
    if (taken > there)
        return nb_fail(NB_MEMORY,
            "not even sequence_len: %d with micro_batch_size: %d fits: it needs %.0f MiB, %.0f are there; %.0f too few",
            found->sequence_len, found->micro_batch_size, taken / mebibyte, there / mebibyte,
            (taken - there) / mebibyte);
    nb_status status = nb_host_need_check(run, &measured->host, measured->peak_bytes);
    return status == NB_OK ? NB_OK
                           : nb_fail_within(status, "not even sequence_len: %d with micro_batch_size: %d fits",
                                 found->sequence_len, found->micro_batch_size);
}

/* In units: the fewest that hold the data's rows. */
static int64_t least_units(const struct search *s)
{
    const struct nb_run *run = s->run;
    uint32_t longest = 1;
    if (s->limit == NB_PLAN_LARGEST_BATCH)
        return 1;
    for (uint32_t i = 0; i < run->train_count; i++) {
        uint32_t tokens = (uint32_t)run->data->rows[run->train_rows[i]].count;
        longest = tokens > longest ? tokens : longest;
    }
    return (longest + NB_TILE_TOKENS - 1) / NB_TILE_TOKENS;
}

static int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

nb_status nb_plan_find_limit(struct nb_run *run, enum nb_plan_limit limit, struct nb_plan_limit_found *found)
{
    const struct search search = {run, limit};
    struct nb_measure measured;
    bool can, context = limit == NB_PLAN_LONGEST_CONTEXT;
    run->chooses_micro_batch = false;
    NB_TRY(plan_sizes(run, found, &measured, &can));
    int64_t fits = context ? run->sequence_len / NB_TILE_TOKENS : run->micro_batch_size;
    int64_t top = context ? lesser(TOKENS_MAX / run->micro_batch_size, NB_CONFIG_SEQUENCE_LEN_MAX) / NB_TILE_TOKENS
                          : lesser(TOKENS_MAX / run->sequence_len, NB_CONFIG_MICRO_BATCH_MAX);
    int64_t fails = top + 1, step = 1, first = fits;
    if (!can) { /* then less than the config asks for, if anything */
        fails = fits;
        fits = lesser(least_units(&search), fails);
        resize(&search, fits);
        if (fits < fails)
            NB_TRY(plan_sizes(run, found, &measured, &can));
        if (!can)
            return fail_smallest(run, found, &measured);
    }
    while (fails - fits > 1 && fits < top) {
        int64_t units = fails > top ? fits + step : fits + (fails - fits) / 2;
        units = units > top ? top : units;
        resize(&search, units);
        NB_TRY(nb_fit_can(run, &can));
        *(can ? &fits : &fails) = units;
        step *= 2;
    }
    if (fits == first) /* a length that is no whole number of tiles stays as it is */
        nb_run_resize(run, found->sequence_len, found->micro_batch_size, run->micro_batches);
    else
        resize(&search, fits);
    return plan_sizes(run, found, &measured, &can);
}
