#include "train/plan_limits.h"

#include "train/fit.h"

/* Beyond this the token counts of a micro-batch leave 32 bits. */
enum { TOKENS_MAX = 1 << 29 };

static const double mebibyte = 1024.0 * 1024.0;

static nb_status try_sizes(struct nb_run *run, int sequence_len, int micro_batch_size, struct nb_plan_limit_found *tried)
{
    struct nb_plan plan;
    nb_run_resize(run, sequence_len, micro_batch_size, run->micro_batches);
    NB_TRY(nb_fit_choose(run));
    nb_status status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        *tried = (struct nb_plan_limit_found){
            .sequence_len = sequence_len,
            .micro_batch_size = micro_batch_size,
            .peak_bytes = plan.peak_bytes,
            .pinned_bytes = plan.pinned_bytes,
            .step_flops = plan.step_flops,
            .kept_everything = plan.kept_everything,
            .kept_attention = plan.kept_attention,
            .blocks = plan.blocks,
        };
    nb_plan_destroy(&plan);
    return status;
}

/* Units of what grows: tiles of a row's tokens, or rows. */
struct search {
    struct nb_run *run;
    enum nb_plan_limit limit;
};

static nb_status try_units(const struct search *s, int64_t units, struct nb_plan_limit_found *tried)
{
    const struct nb_config *config = s->run->config;
    return s->limit == NB_PLAN_LONGEST_CONTEXT
               ? try_sizes(s->run, (int)(units * NB_TILE_TOKENS), s->run->micro_batch_size, tried)
               : try_sizes(s->run, (int)config->sequence_len, (int)units, tried);
}

static int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

nb_status nb_plan_find_limit(struct nb_run *run, enum nb_plan_limit limit, struct nb_plan_limit_found *found)
{
    const struct nb_config *config = run->config;
    const struct search search = {run, limit};
    struct nb_plan_limit_found tried;
    NB_TRY(try_sizes(run, (int)config->sequence_len, run->micro_batch_size, found));
    if (found->peak_bytes > run->available_bytes)
        return nb_fail(NB_MEMORY,
            "not even sequence_len: %d with micro_batch_size: %d fits: it needs %.0f MiB, %.0f are there; %.0f too few",
            found->sequence_len, found->micro_batch_size, (double)found->peak_bytes / mebibyte,
            (double)run->available_bytes / mebibyte, (double)(found->peak_bytes - run->available_bytes) / mebibyte);
    bool context = limit == NB_PLAN_LONGEST_CONTEXT;
    int64_t fits = context ? config->sequence_len / NB_TILE_TOKENS : run->micro_batch_size;
    int64_t top = context ? lesser(TOKENS_MAX / run->micro_batch_size, NB_CONFIG_SEQUENCE_LEN_MAX) / NB_TILE_TOKENS
                          : lesser(TOKENS_MAX / config->sequence_len, NB_CONFIG_MICRO_BATCH_MAX);
    int64_t fails = top + 1, step = 1;
    while (fails - fits > 1) {
        int64_t units = fails > top ? fits + step : fits + (fails - fits) / 2;
        units = units > top ? top : units;
        NB_TRY(try_units(&search, units, &tried));
        if (tried.peak_bytes <= run->available_bytes) {
            fits = units;
            *found = tried;
            step *= 2;
        } else {
            fails = units;
        }
        if (fits == top)
            break;
    }
    nb_run_resize(run, found->sequence_len, found->micro_batch_size, run->micro_batches);
    return nb_fit_choose(run);
}
