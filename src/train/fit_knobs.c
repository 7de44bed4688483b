#include "train/fit_knobs.h"

#include "base/file.h"

static int blocks_of(const struct nb_run *run)
{
    return nb_checkpoint_config(run->checkpoint)->layers;
}

/* ---- weights_from ---- */

static bool file_is_auto(const struct nb_config *config)
{
    return config->weights_from == NB_CONFIG_WEIGHTS_FROM_AUTO;
}

static int file_notches(const struct nb_run *run)
{
    return blocks_of(run) > NB_UNIT_BUFFERS ? 2 : 1;
}

static void set_file(struct nb_run *run, int notch)
{
    run->model.streams_from_file = notch > 0;
}

static char *say_file(const struct nb_run *run, int notch)
{
    (void)run;
    return nb_format("%s", notch ? "file" : "host");
}

static void give_file(struct nb_run *run)
{
    run->model.streams_from_file = run->config->weights_from == NB_CONFIG_WEIGHTS_FROM_FILE;
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

static char *say_streaming(const struct nb_run *run, int notch)
{
    return nb_format("%d", blocks_of(run) - streamed_blocks(notch));
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

static char *say_offloading(const struct nb_run *run, int notch)
{
    if (notch == 0 || notch == offloading_notches(run) - 1)
        return nb_format("%s", notch ? "true" : "false");
    return nb_format("auto, with the inputs of %d of %d blocks on the host", notch, blocks_of(run));
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

static char *say_everything(const struct nb_run *run, int notch)
{
    return notch ? nb_format("auto, with %d of %d blocks computed again", notch, blocks_of(run)) : nb_format("false");
}

static char *say_attention(const struct nb_run *run, int notch)
{
    if (notch == 0)
        return nb_format("attention");
    return nb_format("auto, with the attention of %d of %d blocks computed again", notch, blocks_of(run));
}

static void give_keeping(struct nb_run *run)
{
    enum nb_config_checkpointing given = run->config->gradient_checkpointing;
    int blocks = blocks_of(run);
    keep(run, given == NB_CONFIG_CHECKPOINTING_FALSE ? 0 : blocks,
        given == NB_CONFIG_CHECKPOINTING_ATTENTION ? 0 : blocks);
}

/* ---- each matrix dequantized once: to compute again and for its gradient, for all chunks, all micro-batches ---- */

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
    bool is_cut = run->mlp_chunk_tokens > 0 && run->mlp_chunk_tokens < run->limits.tokens;
    bool is_used_again = nb_run_slots(run) > 1 || is_cut;
    for (int i = 0; i < blocks_of(run); i++)
        is_used_again = is_used_again || run->keep[i] != NB_KEEP_EVERYTHING;
    run->model.dequantize_once = run->may_dequantize_once && is_used_again && notch == 0;
}

static char *say_dequantizing(const struct nb_run *run, int notch)
{
    (void)run;
    return nb_format("auto, with each matrix dequantized %s", notch ? "at each use" : "once for all its uses");
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

static uint64_t resident_bytes(const struct nb_run *run, int notch)
{
    return notch ? run->paged_bytes / OPTIMIZER_PARTS * (uint64_t)(OPTIMIZER_PARTS - notch) : run->paged_bytes;
}

static void set_residency(struct nb_run *run, int notch)
{
    run->adapter.paging.resident_bytes = resident_bytes(run, notch);
}

static char *say_residency(const struct nb_run *run, int notch)
{
    double tenths = (double)(resident_bytes(run, notch) * 10 / (1 << 20)); /* down, so that it fits */
    return tenths > 0 ? nb_format("%.1fMiB", tenths / 10) : nb_format("0");
}

static void give_residency(struct nb_run *run)
{
    int64_t bytes = run->config->resident_optimizer_bytes;
    run->adapter.paging.resident_bytes = bytes > 0 ? (uint64_t)bytes : 0;
}

/* ---- embedding_device ---- */

static bool embedding_is_auto(const struct nb_config *config)
{
    return config->embedding_device == NB_CONFIG_EMBEDDING_AUTO;
}

/* A head that is the embedding needs it on the device. */
static int embedding_notches(const struct nb_run *run)
{
    bool own_head = !nb_checkpoint_config(run->checkpoint)->tied || run->model.head_format != NB_WEIGHT_BF16;
    return own_head ? 2 : 1;
}

static void set_embedding(struct nb_run *run, int notch)
{
    run->model.embedding_on_host = notch > 0;
}

static char *say_embedding(const struct nb_run *run, int notch)
{
    (void)run;
    return nb_format("%s", notch ? "host" : "device");
}

static void give_embedding(struct nb_run *run)
{
    run->model.embedding_on_host = run->config->embedding_device == NB_CONFIG_EMBEDDING_HOST;
}

/* ---- mlp_chunk_tokens ---- */

enum { MLP_CHUNK_MAX = 64 }; /* in tiles: longer ones save next to nothing */

static bool mlp_chunk_is_auto(const struct nb_config *config)
{
    return config->mlp_chunk_tokens < 0;
}

/* The longest chunk: of powers of two of tiles the largest below the tokens. */
static int longest_chunk(const struct nb_run *run)
{
    int tiles = MLP_CHUNK_MAX;
    while (tiles > 0 && tiles * NB_TILE_TOKENS >= run->limits.tokens)
        tiles /= 2;
    return tiles;
}

static int mlp_chunk_notches(const struct nb_run *run)
{
    int notches = 1;
    for (int tiles = longest_chunk(run); tiles > 0; tiles /= 2)
        notches++;
    return notches;
}

/* Products of so many tokens run at nearly the rate of longer ones. */
static int mlp_chunk_cheap(const struct nb_run *run)
{
    enum { TILES = 2048 / NB_TILE_TOKENS };
    int notch = 0;
    for (int tiles = longest_chunk(run); tiles >= TILES; tiles /= 2)
        notch++;
    return notch;
}

static void set_mlp_chunk(struct nb_run *run, int notch)
{
    run->mlp_chunk_tokens = notch == 0 ? 0 : (longest_chunk(run) >> (notch - 1)) * NB_TILE_TOKENS;
}

static char *say_mlp_chunk(const struct nb_run *run, int notch)
{
    return nb_format("%d", notch == 0 ? 0 : (longest_chunk(run) >> (notch - 1)) * NB_TILE_TOKENS);
}

static void give_mlp_chunk(struct nb_run *run)
{
    run->mlp_chunk_tokens = run->config->mlp_chunk_tokens > 0 ? (int)run->config->mlp_chunk_tokens : 0;
}

/* ---- loss_chunk_rows ---- */

static bool loss_chunk_is_auto(const struct nb_config *config)
{
    return config->loss_chunk_rows < 0;
}

static int loss_tiles(const struct nb_run *run)
{
    return nb_run_loss_rows(run, run->limits.trained_rows) / NB_TILE_TOKENS;
}

static int loss_chunk_notches(const struct nb_run *run)
{
    int notches = 1;
    for (int tiles = loss_tiles(run); tiles > 1; tiles /= 2)
        notches++;
    return notches;
}

static void set_loss_chunk(struct nb_run *run, int notch)
{
    run->loss_rows = notch == 0 ? 0 : (loss_tiles(run) >> notch) * NB_TILE_TOKENS;
}

static char *say_loss_chunk(const struct nb_run *run, int notch)
{
    return nb_format("%d", (loss_tiles(run) >> notch) * NB_TILE_TOKENS);
}

static void give_loss_chunk(struct nb_run *run)
{
    run->loss_rows = run->config->loss_chunk_rows > 0 ? (int)run->config->loss_chunk_rows : 0;
}

/* ---- all of them ---- */

const struct nb_knob nb_knobs[NB_KNOBS] = {
    [NB_KNOB_FILE] = {"weights_from", true, true, file_is_auto, file_notches, NULL, set_file, say_file, give_file},
    [NB_KNOB_STREAMING] = {"resident_layers", true, true, streaming_is_auto, streaming_notches, NULL, set_streaming,
        say_streaming, give_streaming},
    [NB_KNOB_OFFLOADING] = {"activation_offloading", false, true, offloading_is_auto, offloading_notches, NULL,
        set_offloading, say_offloading, give_offloading},
    [NB_KNOB_DEQUANTIZING] = {"gradient_checkpointing", false, false, always_auto, dequantizing_notches, NULL,
        set_dequantizing, say_dequantizing, give_dequantizing},
    [NB_KNOB_EVERYTHING] = {"gradient_checkpointing", false, false, keeping_is_auto, keeping_notches, NULL,
        set_keeping, say_everything, give_keeping},
    [NB_KNOB_ATTENTION] = {"gradient_checkpointing", false, false, keeping_is_auto, keeping_notches, NULL,
        set_keeping, say_attention, give_keeping},
    [NB_KNOB_RESIDENCY] = {"resident_optimizer_bytes", false, true, residency_is_auto, residency_notches, NULL,
        set_residency, say_residency, give_residency},
    [NB_KNOB_EMBEDDING] = {"embedding_device", true, true, embedding_is_auto, embedding_notches, NULL,
        set_embedding, say_embedding, give_embedding},
    [NB_KNOB_MLP_CHUNK] = {"mlp_chunk_tokens", false, false, mlp_chunk_is_auto, mlp_chunk_notches, mlp_chunk_cheap,
        set_mlp_chunk, say_mlp_chunk, give_mlp_chunk},
    [NB_KNOB_LOSS_CHUNK] = {"loss_chunk_rows", false, false, loss_chunk_is_auto, loss_chunk_notches, NULL,
        set_loss_chunk, say_loss_chunk, give_loss_chunk},
};

/* On a CPU without a budget the device's memory is the host's: nothing is gained there by leaving it. */
static bool memories_differ(const struct nb_run *run)
{
    return run->profile.kind != NB_DEVICE_CPU || run->config->memory_budget >= 0;
}

bool nb_knob_applies(const struct nb_run *run, enum nb_knob_name knob)
{
    const struct nb_knob *k = &nb_knobs[knob];
    if (run->purpose != NB_PURPOSE_TRAIN && !k->everywhere)
        return false;
    return (!k->leaves || memories_differ(run)) && k->notches(run) > 1;
}

bool nb_knob_is_free(const struct nb_run *run, enum nb_knob_name knob)
{
    bool open = nb_knobs[knob].is_auto(run->config) || (run->opened_knobs >> knob & 1);
    return open && nb_knob_applies(run, knob);
}

/* From the last to the first, for whether to dequantize once makes sense depends on what blocks keep and on chunks. */
void nb_knobs_apply(struct nb_run *run)
{
    for (int k = NB_KNOBS - 1; k >= 0; k--) {
        if (nb_knob_is_free(run, (enum nb_knob_name)k))
            nb_knobs[k].set(run, run->notch[k]);
        else if (run->purpose == NB_PURPOSE_TRAIN || nb_knobs[k].everywhere)
            nb_knobs[k].give(run);
    }
    if (run->batches) /* chunks are among the limits of a batch */
        nb_run_resize(run, run->sequence_len, run->micro_batch_size, run->micro_batches);
}
