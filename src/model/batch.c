/* Micro-batches on their way to the device. */
#include <string.h>

#include "model/pass.h"

static uint64_t place_array(struct nb_batch_layout *layout, uint64_t bytes)
{
    uint64_t begin = layout->bytes;
    layout->bytes += nb_aligned(bytes);
    return begin;
}

void nb_batch_lay_out(const struct nb_batch_limits *limits, struct nb_batch_layout *layout)
{
    uint64_t tokens = (uint64_t)limits->tokens * 4, rows = (uint64_t)limits->trained_rows * 4;
    uint64_t starts = ((uint64_t)limits->sequences + 1) * 4;
    *layout = (struct nb_batch_layout){0};
    layout->slot = place_array(layout, sizeof(struct nb_slot));
    layout->ids = place_array(layout, tokens);
    layout->positions = place_array(layout, tokens);
    layout->starts = place_array(layout, starts);
    layout->key_starts = place_array(layout, starts);
    layout->trained_row = place_array(layout, rows);
    layout->label = place_array(layout, rows);
}

static nb_status check_counts(const struct nb_pass *pass, const struct nb_slot *counts)
{
    const struct nb_batch_limits *limits = &pass->options.limits;
    if (counts->tokens < 1 || counts->tokens > (uint32_t)limits->tokens || counts->sequences < 1 ||
        counts->sequences > (uint32_t)limits->sequences || counts->trained_rows > (uint32_t)limits->trained_rows)
        return nb_fail(NB_USAGE,
            "a micro-batch of %u tokens in %u sequences with %u trained tokens exceeds the limits %d, %d, %d",
            counts->tokens, counts->sequences, counts->trained_rows, limits->tokens, limits->sequences,
            limits->trained_rows);
    uint64_t cached = (uint64_t)counts->cache_tokens + counts->tokens;
    if (pass->cache ? cached > (uint64_t)pass->options.cache_tokens || counts->key_tokens != cached
                    : counts->cache_tokens != 0 || counts->key_tokens != counts->tokens)
        return nb_fail(NB_USAGE, "a micro-batch sees %u keys, %u of them from a cache of %d: that does not fit",
            counts->key_tokens, counts->cache_tokens, pass->options.cache_tokens);
    return NB_OK;
}

static nb_status check_arrays(const struct nb_pass *pass, const struct nb_micro_batch *batch)
{
    int vocab = pass->model->config.vocab, tokens = (int)batch->counts.tokens;
    for (int i = 0; i < tokens; i++) {
        if (batch->ids[i] < 0 || batch->ids[i] >= vocab)
            return nb_fail(NB_USAGE, "token %d of a micro-batch is %d; the vocabulary has %d", i, batch->ids[i], vocab);
        if (batch->positions[i] < 0 || batch->positions[i] >= pass->model->positions_max)
            return nb_fail(NB_USAGE, "token %d of a micro-batch stands at position %d; the tables have %d", i,
                batch->positions[i], pass->model->positions_max);
    }
    int last = -1;
    for (uint32_t i = 0; i < batch->counts.trained_rows; i++) {
        if (batch->trained_row[i] <= last || batch->trained_row[i] >= tokens || batch->label[i] < 0 ||
            batch->label[i] >= vocab)
            return nb_fail(NB_USAGE, "trained row %u of a micro-batch is token %d of %d with label %d", i,
                batch->trained_row[i], tokens, batch->label[i]);
        last = batch->trained_row[i];
    }
    for (uint32_t i = 0; i < batch->counts.sequences; i++) {
        int length = batch->starts[i + 1] - batch->starts[i];
        if (length < 0 || length > pass->options.limits.longest)
            return nb_fail(NB_USAGE, "sequence %u of a micro-batch has %d tokens, more than %d", i, length,
                pass->options.limits.longest);
    }
    if (batch->starts[0] != 0 || batch->starts[batch->counts.sequences] != tokens)
        return nb_fail(NB_USAGE, "the sequences of a micro-batch do not cover its %d tokens", tokens);
    return NB_OK;
}

static void stage(const struct nb_pass *pass, const struct nb_micro_batch *batch, char *staging)
{
    const struct nb_batch_layout *l = &pass->layout;
    const struct nb_slot *counts = &batch->counts;
    const int32_t key_starts[2] = {0, (int32_t)counts->key_tokens};
    memcpy(staging + l->slot, counts, sizeof *counts);
    memcpy(staging + l->ids, batch->ids, (size_t)counts->tokens * 4);
    memcpy(staging + l->positions, batch->positions, (size_t)counts->tokens * 4);
    memcpy(staging + l->starts, batch->starts, ((size_t)counts->sequences + 1) * 4);
    if (pass->cache)
        memcpy(staging + l->key_starts, key_starts, sizeof key_starts);
    if (counts->trained_rows) {
        memcpy(staging + l->trained_row, batch->trained_row, (size_t)counts->trained_rows * 4);
        memcpy(staging + l->label, batch->label, (size_t)counts->trained_rows * 4);
    }
}

/* Ops of a device that multiplies whole buffers are spared the empty tiles of a short micro-batch; planning sees the longest. */
static int tokens_max_of(const struct nb_pass *pass, int tokens)
{
    int limit = pass->options.limits.tokens, tiles = (tokens + NB_TILE_TOKENS - 1) / NB_TILE_TOKENS;
    return pass->work.device->dry || tiles * NB_TILE_TOKENS > limit ? limit : tiles * NB_TILE_TOKENS;
}

nb_status nb_pass_set_batch(struct nb_pass *pass, int slot, const struct nb_micro_batch *batch)
{
    struct nb_device *device = pass->work.device;
    struct nb_pass_slot *s = &pass->slot[slot];
    char *staging = pass->staging + pass->layout.bytes * (uint64_t)pass->next_batch;
    NB_TRY(check_counts(pass, &batch->counts));
    if (!device->dry) {
        NB_TRY(check_arrays(pass, batch));
        stage(pass, batch, staging);
    }
    pass->next_batch = (pass->next_batch + 1) % pass->options.batches;
    s->ids = (const int32_t *)(const void *)(staging + pass->layout.ids);
    s->trained_rows = batch->counts.trained_rows;
    s->tokens_max = pass->cache && batch->counts.tokens == 1 ? 1 : tokens_max_of(pass, (int)batch->counts.tokens);
    s->tokens = device->dry ? (uint32_t)s->tokens_max : batch->counts.tokens; /* so that what leaves is counted in full */
    return device->upload(device, pass->work.stream, s->batch, staging, pass->layout.bytes);
}
