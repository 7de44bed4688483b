#include "train/fit_knobs.h"

static int blocks_of(const struct nb_run *run)
{
    return nb_checkpoint_config(run->checkpoint)->layers;
}

/* ---- resident_layers ---- */

static bool streaming_is_auto(const struct nb_config *config)
{
    return config->resident_layers < 0;
}

/* As many streamed blocks as there are buffers, or fewer, save nothing. */
static int streamed_blocks(int notch)
{
    return notch == 0 ? 0 : NB_UNIT_BUFFERS + notch;
}

static int streaming_notches(const struct nb_run *run)
{
    int blocks = blocks_of(run);
    return blocks > NB_UNIT_BUFFERS ? 1 + blocks - NB_UNIT_BUFFERS : 1;
}

static void set_streaming(struct nb_run *run, int notch)
{
    run->model.streamed_blocks = streamed_blocks(notch);
}

static void give_streaming(struct nb_run *run)
{
    int64_t resident = run->config->resident_layers, blocks = blocks_of(run);
    int streamed = resident < 0 || resident >= blocks ? 0 : (int)(blocks - resident);
    run->model.streamed_blocks = streamed > NB_UNIT_BUFFERS ? streamed : 0;
}

/* ---- activation_offloading ---- */

static bool offloading_is_auto(const struct nb_config *config)
{
    return config->activation_offloading == NB_CONFIG_OFFLOADING_AUTO;
}

static int offloading_notches(const struct nb_run *run)
{
    return 1 + nb_pass_offloaded_max(blocks_of(run), nb_run_slots(run));
}

static void set_offloading(struct nb_run *run, int notch)
{
    run->offloaded = notch;
}

static void give_offloading(struct nb_run *run)
{
    bool on = run->config->activation_offloading == NB_CONFIG_OFFLOADING_TRUE;
    run->offloaded = on ? nb_pass_offloaded_max(blocks_of(run), nb_run_slots(run)) : 0;
}

/* ---- gradient_checkpointing ---- */

static bool keeping_is_auto(const struct nb_config *config)
{
    return config->gradient_checkpointing == NB_CONFIG_CHECKPOINTING_AUTO;
}

static int keeping_notches(const struct nb_run *run)
{
    return 1 + blocks_of(run);
}

/* The last blocks keep everything, those before them attention's output, the first their input alone. */
static void keep(struct nb_run *run, int not_everything, int not_attention)
{
    for (int i = 0; i < blocks_of(run); i++)
        run->keep[i] = i >= not_everything  ? NB_KEEP_EVERYTHING
                       : i >= not_attention ? NB_KEEP_ATTENTION
                                            : NB_KEEP_INPUT;
}

static void set_keeping(struct nb_run *run, int notch)
{
    (void)notch;
    keep(run, run->notch[NB_KNOB_EVERYTHING], run->notch[NB_KNOB_ATTENTION]);
}

static void give_keeping(struct nb_run *run)
{
    enum nb_config_checkpointing given = run->config->gradient_checkpointing;
    int blocks = blocks_of(run);
    keep(run, given == NB_CONFIG_CHECKPOINTING_FALSE ? 0 : blocks,
        given == NB_CONFIG_CHECKPOINTING_ATTENTION ? 0 : blocks);
}

/* ---- each matrix dequantized once, for computing again and for its gradient, or for all micro-batches ---- */

static bool always_auto(const struct nb_config *config)
{
    (void)config;
    return true;
}

static int dequantizing_notches(const struct nb_run *run)
{
    return run->may_dequantize_once ? 2 : 1;
}

static void set_dequantizing(struct nb_run *run, int notch)
{
    bool is_used_again = nb_run_slots(run) > 1;
    for (int i = 0; i < blocks_of(run); i++)
        is_used_again = is_used_again || run->keep[i] != NB_KEEP_EVERYTHING;
    run->model.dequantize_once = run->may_dequantize_once && is_used_again && notch == 0;
}

static void give_dequantizing(struct nb_run *run)
{
    run->model.dequantize_once = false;
}

/* ---- resident_optimizer_bytes ---- */

enum { OPTIMIZER_PARTS = 64 };

static bool residency_is_auto(const struct nb_config *config)
{
    return config->resident_optimizer_bytes < 0;
}

static int residency_notches(const struct nb_run *run)
{
    return run->adapter.paging.on ? 1 + OPTIMIZER_PARTS : 1;
}

static void set_residency(struct nb_run *run, int notch)
{
    run->adapter.paging.resident_bytes = run->paged_bytes / OPTIMIZER_PARTS * (uint64_t)(OPTIMIZER_PARTS - notch);
    if (notch == 0)
        run->adapter.paging.resident_bytes = run->paged_bytes;
}

static void give_residency(struct nb_run *run)
{
    int64_t bytes = run->config->resident_optimizer_bytes;
    run->adapter.paging.resident_bytes = bytes > 0 ? (uint64_t)bytes : 0;
}

/* ---- all of them ---- */

const struct nb_knob nb_knobs[NB_KNOBS] = {
    [NB_KNOB_STREAMING] = {"resident_layers", true, true, streaming_is_auto, streaming_notches, set_streaming, give_streaming},
    [NB_KNOB_OFFLOADING] = {"activation_offloading", false, true, offloading_is_auto, offloading_notches, set_offloading,
        give_offloading},
    [NB_KNOB_DEQUANTIZING] = {"gradient_checkpointing", false, false, always_auto, dequantizing_notches, set_dequantizing,
        give_dequantizing},
    [NB_KNOB_EVERYTHING] = {"gradient_checkpointing", false, false, keeping_is_auto, keeping_notches, set_keeping,
        give_keeping},
    [NB_KNOB_ATTENTION] = {"gradient_checkpointing", false, false, keeping_is_auto, keeping_notches, set_keeping,
        give_keeping},
    [NB_KNOB_RESIDENCY] = {"resident_optimizer_bytes", false, true, residency_is_auto, residency_notches, set_residency,
        give_residency},
};

/* On a CPU without a budget the device's memory is the host's: nothing is gained there by leaving it. */
static bool memories_differ(const struct nb_run *run)
{
    return run->profile.kind != NB_DEVICE_CPU || run->config->memory_budget >= 0;
}

bool nb_knob_is_free(const struct nb_run *run, enum nb_knob_name knob)
{
    const struct nb_knob *k = &nb_knobs[knob];
    if (run->purpose != NB_PURPOSE_TRAIN && !k->everywhere)
        return false;
    return k->is_auto(run->config) && (!k->leaves || memories_differ(run)) && k->notches(run) > 1;
}

/* From the last to the first, for what blocks keep decides whether to dequantize once makes sense. */
void nb_knobs_apply(struct nb_run *run)
{
    for (int k = NB_KNOBS - 1; k >= 0; k--) {
        if (nb_knob_is_free(run, (enum nb_knob_name)k))
            nb_knobs[k].set(run, run->notch[k]);
        else if (run->purpose == NB_PURPOSE_TRAIN || nb_knobs[k].everywhere)
            nb_knobs[k].give(run);
    }
}
