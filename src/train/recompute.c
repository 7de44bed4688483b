#include "train/recompute.h"

#include "train/offload.h"
#include "train/plan.h"

static void keep_all(struct nb_run *run, enum nb_keep keep)
{
    int blocks = nb_checkpoint_config(run->checkpoint)->layers;
    for (int i = 0; i < blocks; i++)
        run->keep[i] = keep;
}

/* The last blocks keep everything, those before them attention's output, the first their input alone. */
static void keep_some(struct nb_run *run, int attention, int everything)
{
    int blocks = nb_checkpoint_config(run->checkpoint)->layers;
    for (int i = 0; i < blocks; i++)
        run->keep[i] = i >= blocks - everything               ? NB_KEEP_EVERYTHING
                       : i >= blocks - everything - attention ? NB_KEEP_ATTENTION
                                                              : NB_KEEP_INPUT;
}

struct cost {
    double bytes, flops;
};

static nb_status measure(struct nb_run *run, struct cost *cost)
{
    struct nb_plan plan;
    nb_status status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        *cost = (struct cost){(double)plan.peak_bytes, plan.step_flops};
    nb_plan_destroy(&plan);
    return status;
}

/* The number of blocks of either kind that fit and save most, by the differences that one block makes. */
static void choose(int blocks, double room, const struct cost *attention, const struct cost *everything, int best[2])
{
    double saved_most = -1;
    for (int e = 0; e <= blocks && e * everything->bytes <= room; e++) {
        double left = room - e * everything->bytes;
        int a = attention->bytes > 0 && left / attention->bytes < blocks - e ? (int)(left / attention->bytes) : blocks - e;
        double saved = a * attention->flops + e * everything->flops;
        if (saved > saved_most) {
            saved_most = saved;
            best[0] = a;
            best[1] = e;
        }
    }
}

static nb_status choose_by_layer(struct nb_run *run)
{
    int blocks = nb_checkpoint_config(run->checkpoint)->layers, best[2] = {0, 0};
    double available = (double)run->available_bytes;
    struct cost all, none, attention, half;
    keep_all(run, NB_KEEP_EVERYTHING);
    NB_TRY(measure(run, &all));
    if (all.bytes <= available)
        return NB_OK;
    keep_all(run, NB_KEEP_INPUT);
    NB_TRY(measure(run, &none));
    if (none.bytes > available || blocks < 2)
        return NB_OK;
    keep_some(run, blocks - 1, 0);
    NB_TRY(measure(run, &attention));
    /* Not all blocks: while one computes again, the room for that is needed as well. */
    keep_some(run, 0, blocks - 1);
    NB_TRY(measure(run, &half));
    struct cost one_attention = {
        (attention.bytes - none.bytes) / (blocks - 1), (none.flops - attention.flops) / (blocks - 1)};
    struct cost one_everything = {(half.bytes - none.bytes) / (blocks - 1), (none.flops - half.flops) / (blocks - 1)};
    choose(blocks, available - none.bytes, &one_attention, &one_everything, best);
    /* The differences are averages: what does not fit after all gives way block by block. */
    for (;;) {
        struct cost chosen;
        keep_some(run, best[0], best[1]);
        NB_TRY(measure(run, &chosen));
        if (chosen.bytes <= available || (best[0] == 0 && best[1] == 0))
            return NB_OK;
        best[best[0] ? 0 : 1]--;
    }
}

static nb_status choose_keep(struct nb_run *run)
{
    switch (run->config->gradient_checkpointing) {
    case NB_CONFIG_CHECKPOINTING_TRUE:
        keep_all(run, NB_KEEP_INPUT);
        return NB_OK;
    case NB_CONFIG_CHECKPOINTING_ATTENTION:
        keep_all(run, NB_KEEP_ATTENTION);
        return NB_OK;
    case NB_CONFIG_CHECKPOINTING_FALSE:
        keep_all(run, NB_KEEP_EVERYTHING);
        return NB_OK;
    case NB_CONFIG_CHECKPOINTING_AUTO:
        break;
    }
    return choose_by_layer(run);
}

/* Whether every product with 4-bit weights multiplies from scratch, and so to the same bits from a matrix that was dequantized before. The
 * few-token kernel's, which the plan does not list, do not. */
static nb_status may_dequantize_once(const struct nb_run *run, bool *may)
{
    struct nb_plan plan;
    *may = run->profile.kind == NB_DEVICE_CUDA && run->model.linear_format != NB_WEIGHT_BF16;
    if (!*may)
        return NB_OK;
    nb_status status = nb_plan_make(run, &plan);
    *may = run->limits.tokens > NB_CUDA_FEW_TOKENS;
    for (int i = 0; i < plan.sites; i++)
        if (plan.site[i].format != NB_WEIGHT_BF16 && nb_product_path_of(&run->profile, &plan.site[i]) == NB_PRODUCT_FUSED)
            *may = false;
    nb_plan_destroy(&plan);
    return status;
}

static bool computes_again(const struct nb_run *run)
{
    int blocks = nb_checkpoint_config(run->checkpoint)->layers;
    for (int i = 0; i < blocks; i++)
        if (run->keep[i] != NB_KEEP_EVERYTHING)
            return true;
    return false;
}

/* For a few hundred megabytes it saves a pass over the weights, more than keeping a block's activations for as much would. */
static nb_status choose_recomputation(struct nb_run *run)
{
    bool once;
    struct cost cost;
    run->model.dequantize_once = false;
    NB_TRY(may_dequantize_once(run, &once));
    run->model.dequantize_once = once;
    NB_TRY(choose_keep(run));
    if (!once)
        return NB_OK;
    NB_TRY(measure(run, &cost));
    if (computes_again(run) && cost.bytes <= (double)run->available_bytes)
        return NB_OK;
    run->model.dequantize_once = false;
    return choose_keep(run);
}

nb_status nb_recompute_choose(struct nb_run *run)
{
    nb_offload_begin(run);
    NB_TRY(choose_recomputation(run));
    return nb_offload_choose(run);
}
