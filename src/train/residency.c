#include "train/residency.h"

#include "train/plan.h"
#include "train/recompute.h"

static int blocks_of(const struct nb_run *run)
{
    return nb_checkpoint_config(run->checkpoint)->layers;
}

void nb_residency_begin(struct nb_run *run)
{
    int64_t resident = run->config->resident_layers, blocks = blocks_of(run);
    int streamed = resident < 0 || resident >= blocks ? 0 : (int)(blocks - resident);
    run->model.streamed_blocks = streamed > NB_UNIT_BUFFERS ? streamed : 0;
}

static bool may_stream(const struct nb_run *run)
{
    bool other_memory = run->profile.kind != NB_DEVICE_CPU || run->config->memory_budget >= 0;
    return run->config->resident_layers < 0 && blocks_of(run) > NB_UNIT_BUFFERS && other_memory;
}

/* Each block beyond those that the buffers stand for saves the same. */
nb_status nb_residency_search(struct nb_run *run, nb_residency_measure *measure, void *context, bool *changed)
{
    int blocks = blocks_of(run), before = run->model.streamed_blocks;
    int saving = before > NB_UNIT_BUFFERS ? before : NB_UNIT_BUFFERS; /* from here on blocks save */
    uint64_t taken, least, available = run->available_bytes;
    *changed = false;
    if (!may_stream(run) || before == blocks)
        return NB_OK;
    NB_TRY(measure(run, context, &taken));
    if (taken <= available)
        return NB_OK;
    *changed = true;
    run->model.streamed_blocks = blocks;
    NB_TRY(measure(run, context, &least));
    if (least >= available || least >= taken)
        return NB_OK;
    uint64_t one = (taken - least) / (uint64_t)(blocks - saving), missing = taken - available;
    int streamed = saving + (int)((missing + one - 1) / one);
    for (; streamed < blocks; streamed++) {
        run->model.streamed_blocks = streamed;
        NB_TRY(measure(run, context, &taken));
        if (taken <= available)
            return NB_OK;
    }
    run->model.streamed_blocks = blocks;
    return NB_OK;
}

static nb_status measure_training(struct nb_run *run, void *context, uint64_t *bytes)
{
    struct nb_plan plan;
    (void)context;
    NB_TRY(nb_plan_make(run, &plan));
    *bytes = plan.peak_bytes;
    nb_plan_destroy(&plan);
    return NB_OK;
}

nb_status nb_residency_choose(struct nb_run *run)
{
    bool changed;
    nb_residency_begin(run);
    NB_TRY(nb_recompute_choose(run));
    NB_TRY(nb_residency_search(run, measure_training, NULL, &changed));
    return changed ? nb_recompute_choose(run) : NB_OK;
}
