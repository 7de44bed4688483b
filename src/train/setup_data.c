#include "train/setup_data.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/random.h"
#include "text/lint.h"

enum {
    LOGITS_BYTES = 64 << 20,   /* a chunk of logits: large enough for the products to run at full speed */
    GROUP_TOKENS_MIN = 1024,   /* an evaluation's group: fewer would dequantize each matrix for too little work */
    GROUP_SEQUENCE_TOKENS = 8, /* its sequences are counted on to have so many tokens */
    GROUP_SEQUENCES_MAX = 512,
};

static nb_status within_problem(const struct nb_run *run, nb_status status)
{
    if (status == NB_USAGE && !run->tokenizer && run->tokenizer_problem) {
        char *message = strdup(nb_status_message());
        nb_fail(status, "%s (the model has no tokenizer: %s)", message ? message : "", run->tokenizer_problem);
        free(message);
    }
    return status;
}

static struct nb_dataset_options options_of(const struct nb_run *run)
{
    return (struct nb_dataset_options){
        .tokenizer = run->tokenizer,
        .chat_template = run->chat_template,
        .chat_template_problem = run->chat_template_problem,
        .sequence_len = (uint32_t)run->sequence_len,
        .vocabulary = nb_checkpoint_config(run->checkpoint)->vocab,
        .train_on_inputs = run->config->train_on_inputs,
        .threads = (int)run->config->threads,
    };
}

static nb_status read_sources(
    const struct nb_run *run, const struct nb_config_datasets *datasets, struct nb_dataset **dataset)
{
    struct nb_dataset_options options = options_of(run);
    struct nb_dataset_source *sources = calloc(datasets->count + 1, sizeof *sources);
    if (!sources)
        return nb_fail(NB_MEMORY, "no memory to read the data sets");
    for (size_t i = 0; i < datasets->count; i++) {
        const struct nb_config_dataset *d = &datasets->items[i];
        sources[i] = (struct nb_dataset_source){
            .path = d->path,
            .type = d->type,
            .field_messages = d->field_messages,
            .message_field_role = d->message_field_role,
            .message_field_content = d->message_field_content,
            .field_instruction = d->field_instruction,
            .field_input = d->field_input,
            .field_output = d->field_output,
            .field_system = d->field_system,
            .field = d->field,
        };
    }
    nb_status status = nb_dataset_read(sources, datasets->count, &options, dataset);
    free(sources);
    return within_problem(run, status);
}

static nb_status make_rows(const struct nb_run *run, struct nb_dataset **dataset)
{
    const struct nb_dataset_source source = {.path = "random rows", .type = "tokens"};
    struct nb_dataset_options options = options_of(run);
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return nb_fail_errno("random rows");
    for (int row = 0; row < run->random_rows; row++) {
        fputs("{\"input_ids\": [", out);
        for (int i = 0; i < run->random_tokens; i++)
            fprintf(out, "%s%" PRIu32, i ? "," : "",
                nb_random_below(1, NB_RANDOM_SHUFFLE, (uint64_t)row, (uint64_t)i, (uint32_t)options.vocabulary));
        fputs("]}\n", out);
    }
    nb_status status = fclose(out) == 0 ? nb_dataset_read_bytes(text, bytes, &source, &options, dataset) : nb_fail_errno("random rows");
    free(text);
    return status;
}

static nb_status all_kept_rows(const struct nb_dataset *dataset, uint32_t **rows, uint32_t *count)
{
    *count = 0;
    if (!(*rows = malloc(((size_t)dataset->row_count + 1) * sizeof **rows)))
        return nb_fail(NB_MEMORY, "no memory for a list of %u rows", dataset->row_count);
    for (uint32_t i = 0; i < dataset->row_count; i++)
        if (dataset->rows[i].count)
            (*rows)[(*count)++] = i;
    return NB_OK;
}

/* Says once where rows are longer than the model's context. */
static void compare_with_context(const struct nb_run *run, const struct nb_dataset *data)
{
    uint32_t context = (uint32_t)nb_checkpoint_config(run->checkpoint)->max_positions, longer = 0, longest = 0;
    for (uint32_t i = 0; i < data->row_count; i++) {
        longer += data->rows[i].count > context;
        longest = data->rows[i].count > longest ? data->rows[i].count : longest;
    }
    if (longer)
        nb_warn("%s: %" PRIu32 " of %" PRIu32 " rows have more than the %" PRIu32
                " tokens that %s was made for, up to %" PRIu32 "; sequence_len: %" PRIu32 " leaves them out",
            data->sources[0].path, longer, data->row_count, context, nb_checkpoint_path(run->checkpoint), longest,
            context);
}

static nb_status read_data(struct nb_run *run)
{
    const struct nb_config *config = run->config;
    if (run->random_rows) {
        NB_TRY(make_rows(run, &run->data));
        NB_TRY(all_kept_rows(run->data, &run->train_rows, &run->train_count));
        if (config->test_datasets.count == 0 && config->val_set_size <= 0)
            return NB_OK;
        run->eval_data = run->data;
        return all_kept_rows(run->data, &run->eval_rows, &run->eval_count);
    }
    NB_TRY(read_sources(run, &config->datasets, &run->data));
    NB_TRY(nb_lint(run->data, run->tokenizer, run->chat_template));
    compare_with_context(run, run->data);
    if (config->test_datasets.count > 0) {
        NB_TRY(read_sources(run, &config->test_datasets, &run->test_data));
        NB_TRY(nb_lint(run->test_data, run->tokenizer, run->chat_template));
        NB_TRY(all_kept_rows(run->data, &run->train_rows, &run->train_count));
        run->eval_data = run->test_data;
        return all_kept_rows(run->test_data, &run->eval_rows, &run->eval_count);
    }
    run->eval_data = run->data;
    struct nb_row_list train, held;
    nb_status status = nb_dataset_split(run->data, config->val_set_size, (uint64_t)config->seed, &train, &held);
    run->train_rows = train.rows;
    run->train_count = train.count;
    run->eval_rows = held.rows;
    run->eval_count = held.count;
    return status;
}

/* Whole tiles of rows whose logits take about LOGITS_BYTES, and no more than the batch has. */
int nb_run_loss_rows(const struct nb_run *run, int trained_rows)
{
    uint64_t row = (uint64_t)nb_checkpoint_config(run->checkpoint)->vocab * nb_dtype_bytes(run->model.activation);
    int64_t tiles = (int64_t)(LOGITS_BYTES / row / NB_TILE_TOKENS),
            needed = (trained_rows + NB_TILE_TOKENS - 1) / NB_TILE_TOKENS;
    if (tiles > needed)
        tiles = needed;
    return (int)(tiles < 1 ? 1 : tiles) * NB_TILE_TOKENS;
}

static struct nb_batch_limits limits_of(const struct nb_run *run, int tokens, int sequences, int longest)
{
    return (struct nb_batch_limits){.tokens = tokens,
        .sequences = sequences,
        .longest = longest,
        .trained_rows = tokens,
        .loss_rows = run->loss_rows ? run->loss_rows : nb_run_loss_rows(run, tokens),
        .mlp_chunk_tokens = run->mlp_chunk_tokens};
}

static int group_sequences(int tokens)
{
    int sequences = tokens / GROUP_SEQUENCE_TOKENS;
    return sequences < 1 ? 1 : sequences > GROUP_SEQUENCES_MAX ? GROUP_SEQUENCES_MAX : sequences;
}

static nb_status measure_steps(struct nb_run *run)
{
    const struct nb_config *config = run->config;
    struct nb_run_length *length = &run->length;
    length->steps_per_epoch = nb_batch_plan_steps(run->batches);
    double steps =
        config->max_steps > 0 ? (double)config->max_steps : ceil(config->num_epochs * (double)length->steps_per_epoch);
    if (!(steps >= 1 && steps <= (double)INT32_MAX))
        return nb_fail(NB_USAGE, "num_epochs: %g epochs of %" PRId64 " steps; a run has 1 to %d steps",
            config->num_epochs, length->steps_per_epoch, INT32_MAX);
    length->steps = (int64_t)steps;
    length->warmup_steps = nb_config_warmup_steps(config, length->steps);
    length->eval_every = length->save_every = 0;
    if (config->eval_steps > 0)
        length->eval_every = nb_config_interval_steps(config->eval_steps, length->steps);
    else if (config->evals_per_epoch > 0)
        length->eval_every = (length->steps_per_epoch + config->evals_per_epoch - 1) / config->evals_per_epoch;
    if (config->save_steps > 0)
        length->save_every = nb_config_interval_steps(config->save_steps, length->steps);
    else if (config->saves_per_epoch > 0)
        length->save_every = (length->steps_per_epoch + config->saves_per_epoch - 1) / config->saves_per_epoch;
    return NB_OK;
}

void nb_run_resize(struct nb_run *run, int sequence_len, int micro_batch_size, int micro_batches)
{
    int tokens = sequence_len * micro_batch_size;
    run->sequence_len = sequence_len;
    run->micro_batch_size = micro_batch_size;
    run->micro_batches = micro_batches;
    run->limits = limits_of(run, tokens, micro_batch_size * (int)nb_batch_plan_bin_rows_max(run->batches), sequence_len);
    run->eval_limits = limits_of(run, tokens, group_sequences(tokens), sequence_len);
}

nb_status nb_setup_training_data(struct nb_run *run)
{
    const struct nb_config *config = run->config;
    NB_TRY(read_data(run));
    bool is_auto = config->micro_batch_size < 0;
    int64_t rows = !is_auto ? config->micro_batch_size : run->micro_batch_size > 0 ? run->micro_batch_size : 1;
    int64_t bins = (is_auto ? 1 : rows) * config->gradient_accumulation_steps, tokens = rows * run->sequence_len;
    run->chooses_micro_batch = is_auto && run->micro_batch_size == 0;
    if (bins % rows != 0)
        return nb_fail(NB_FORMAT, "a micro-batch of %" PRId64 " rows does not divide the %" PRId64 " of a step", rows, bins);
    if (tokens > NB_RUN_TOKENS_MAX || bins > NB_RUN_TOKENS_MAX)
        return nb_fail(NB_USAGE, "micro_batch_size: %" PRId64 " rows of %d tokens are more than a micro-batch can hold",
            rows, run->sequence_len);
    struct nb_batch_plan_options options = {
        .seed = (uint64_t)config->seed,
        .sequence_len = (uint32_t)run->sequence_len,
        .bins_per_step = (uint32_t)bins,
        .sample_packing = config->sample_packing,
        .shuffle = config->shuffle_merged_datasets,
    };
    NB_TRY(nb_batch_plan_open(run->data, run->train_rows, run->train_count, &options, &run->batches));
    nb_run_resize(run, run->sequence_len, (int)rows, (int)(bins / rows));
    return measure_steps(run);
}

nb_status nb_setup_evaluation_data(struct nb_run *run, const char *path)
{
    struct nb_config_dataset entry = {.path = (char *)path};
    struct nb_config_datasets one = {.items = &entry, .count = 1};
    NB_TRY(read_sources(run, &one, &run->data));
    /* What the linter refuses to train on can still be measured, as long as there is something to measure. */
    nb_status status = nb_lint(run->data, run->tokenizer, run->chat_template);
    if (status != NB_OK && run->data->kept_count == 0)
        return status;
    if (status != NB_OK)
        nb_warn("%s", nb_status_message());
    compare_with_context(run, run->data);
    int longest = 1, total = 0;
    for (uint32_t i = 0; i < run->data->row_count; i++) {
        int count = (int)run->data->rows[i].count;
        longest = count > longest ? count : longest;
        total = total > GROUP_TOKENS_MIN ? total : total + count;
    }
    int tokens = total < GROUP_TOKENS_MIN ? total : GROUP_TOKENS_MIN;
    tokens = tokens < longest ? longest : tokens;
    run->eval_limits = run->limits = limits_of(run, tokens, group_sequences(tokens), longest);
    return NB_OK;
}

uint64_t nb_run_trained_tokens(const struct nb_dataset *dataset, const uint32_t *rows, uint32_t count, uint64_t *tokens)
{
    uint64_t trained = 0;
    *tokens = 0;
    for (uint32_t i = 0; i < count; i++) {
        trained += dataset->rows[rows[i]].trained_count;
        *tokens += dataset->rows[rows[i]].count;
    }
    return trained;
}
