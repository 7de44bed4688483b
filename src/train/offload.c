#include "train/offload.h"

#include "train/plan.h"

static int most(const struct nb_run *run)
{
    return nb_pass_offloaded_max(nb_checkpoint_config(run->checkpoint)->layers);
}

void nb_offload_begin(struct nb_run *run)
{
    run->offloaded = run->config->activation_offloading == NB_CONFIG_OFFLOADING_TRUE ? most(run) : 0;
}

static nb_status measure(struct nb_run *run, int offloaded, uint64_t *bytes)
{
    struct nb_plan plan;
    run->offloaded = offloaded;
    nb_status status = nb_plan_make(run, &plan);
    *bytes = plan.peak_bytes;
    nb_plan_destroy(&plan);
    return status;
}

/* The smallest number of blocks with which no more than `limit` bytes are taken. More blocks never take more; `high` of
 * them are enough. */
static nb_status search(struct nb_run *run, int high, uint64_t limit)
{
    int low = 0; /* are not */
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        uint64_t bytes;
        NB_TRY(measure(run, middle, &bytes));
        *(bytes <= limit ? &high : &low) = middle;
    }
    run->offloaded = high;
    return NB_OK;
}

nb_status nb_offload_choose(struct nb_run *run)
{
    bool separate = run->profile.kind != NB_DEVICE_CPU || run->config->memory_budget >= 0;
    uint64_t none, all, available = run->available_bytes;
    if (run->config->activation_offloading != NB_CONFIG_OFFLOADING_AUTO || !separate || most(run) == 0)
        return NB_OK;
    NB_TRY(measure(run, 0, &none));
    if (none <= available)
        return NB_OK;
    NB_TRY(measure(run, most(run), &all));
    if (all < none)
        return search(run, most(run), all > available ? all : available);
    run->offloaded = 0;
    return NB_OK;
}
