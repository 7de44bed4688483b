#include "train/setup.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "train/device.h"
#include "train/fit.h"
#include "train/product_table.h"
#include "train/setup_data.h"

/* ---- model and device ---- */

const char *nb_run_precision_note(const struct nb_run *run)
{
    if (run->config->bf16 == NB_CONFIG_BF16_AUTO && run->model.activation == NB_DTYPE_F32)
        return "bf16: auto is fp32 here, because there is no bf16 arithmetic (it takes avx512_bf16 or AMX, and oneDNN)";
    if (run->config->bf16 == NB_CONFIG_BF16_TRUE && !run->profile.bf16)
        return "bf16: true, but there is no bf16 arithmetic here (it takes avx512_bf16 or AMX, and oneDNN): products "
               "run in fp32 "
               "and are rounded; bf16: false is faster";
    return NULL;
}

/* The embedding and the head. */
static nb_status choose_outer_weights(struct nb_run *run)
{
    const struct nb_config *config = run->config;
    bool on_host = config->embedding_device == NB_CONFIG_EMBEDDING_HOST;
    if (config->head_4bit && run->model.linear_format == NB_WEIGHT_BF16)
        return nb_fail(NB_USAGE, "head_4bit: true, but the model's other matrices are in 16 bits; set load_in_4bit: true, or "
                                 "remove head_4bit");
    if (on_host && nb_checkpoint_config(run->checkpoint)->tied && !config->head_4bit)
        return nb_fail(NB_USAGE,
            "embedding_device: host, but %s has one matrix for embedding and output head (tie_word_embeddings), and the head's "
            "products need it on the device; set head_4bit: true, which gives the head a copy of its own in 4 bits, or "
            "embedding_device: device",
            nb_checkpoint_path(run->checkpoint));
    run->model.head_format = config->head_4bit ? run->model.linear_format : NB_WEIGHT_BF16;
    return NB_OK;
}

static nb_status choose_weights(struct nb_run *run)
{
    const struct nb_config *config = run->config;
    const struct nb_model_config *model = nb_checkpoint_config(run->checkpoint);
    bool in_4bit = nb_config_opens_in_4bit(config, run->purpose == NB_PURPOSE_TRAIN);
    bool fp4 = config->bnb_4bit_quant_type == NB_CONFIG_QUANT_FP4;
    const char *path = nb_checkpoint_path(run->checkpoint);
    run->model.nested = config->bnb_4bit_use_double_quant;
    if (model->quantized) {
        if (!in_4bit)
            return nb_fail(NB_USAGE,
                "%s: holds 4-bit weights; set load_in_4bit: true (in train, adapter: qlora), or give the 16-bit "
                "model",
                path);
        if (nb_config_was_set(config, "bnb_4bit_quant_type") && fp4 != model->quantized_fp4)
            return nb_fail(NB_USAGE, "%s: holds %s weights, bnb_4bit_quant_type says %s; remove the key", path,
                model->quantized_fp4 ? "fp4" : "nf4", fp4 ? "fp4" : "nf4");
        fp4 = model->quantized_fp4;
        run->model.nested = model->quantized_nested;
    }
    run->model.linear_format = !in_4bit ? NB_WEIGHT_BF16 : fp4 ? NB_WEIGHT_FP4 : NB_WEIGHT_NF4;
    if (!in_4bit)
        run->model.nested = false;
    return choose_outer_weights(run);
}

/* A path with a tilde is the user's, as in a shell. */
static void choose_cache(struct nb_run *run)
{
    const char *folder = run->config->quantized_cache, *home = getenv("HOME");
    if (folder)
        run->cache_folder =
            home && strncmp(folder, "~/", 2) == 0 ? nb_path_join(home, folder + 2) : nb_format("%s", folder);
    run->model.cache_folder = run->cache_folder;
}

/* A length past the model's context is computed like any other, as in transformers; what it is worth is said where it is used. */
static void choose_length(struct nb_run *run)
{
    int context = nb_checkpoint_config(run->checkpoint)->max_positions;
    bool given = run->purpose == NB_PURPOSE_TRAIN || nb_config_was_set(run->config, "sequence_len");
    run->sequence_len = given ? (int)run->config->sequence_len : context;
    if (run->purpose == NB_PURPOSE_GENERATE && run->sequence_len > context)
        nb_warn("sequence_len: %d tokens, but %s was made for at most %d; what follows them may make no sense",
            run->sequence_len, nb_checkpoint_path(run->checkpoint), context);
}

int nb_run_slots(const struct nb_run *run)
{
    return run->layer_major ? run->micro_batches : 1;
}

/* ---- text ---- */

static nb_status keep_problem(char **problem)
{
    *problem = strdup(nb_status_message());
    return *problem ? NB_OK : nb_fail(NB_MEMORY, "no memory for a message");
}

/* A model without a tokenizer can still be trained on rows of tokens, so that is a problem to keep, not yet an error. */
static nb_status open_tokenizer(struct nb_run *run, const char *path)
{
    const struct nb_gguf *gguf = nb_checkpoint_gguf(run->checkpoint);
    if (!gguf && !nb_checkpoint_folder(run->checkpoint)) {
        nb_fail(NB_IO, "%s: a config alone has none", path);
        return keep_problem(&run->tokenizer_problem);
    }
    nb_status status =
        gguf ? nb_tokenizer_open_gguf(gguf, path, &run->tokenizer) : nb_tokenizer_open(path, &run->tokenizer);
    return status == NB_IO || status == NB_UNSUPPORTED ? keep_problem(&run->tokenizer_problem) : status;
}

static nb_status open_template(struct nb_run *run)
{
    const char *name = run->config->chat_template, *own = NULL;
    char *bos_text = NULL;
    if (run->tokenizer) {
        size_t bytes = 0;
        int32_t bos = nb_tokenizer_bos(run->tokenizer);
        const char *text = bos < 0 ? NULL : nb_tokenizer_decode_token(run->tokenizer, bos, &bytes);
        own = nb_tokenizer_chat_template(run->tokenizer);
        if (text && !(bos_text = strndup(text, bytes)))
            return nb_fail(NB_MEMORY, "no memory for the bos token's text");
    }
    nb_status status = nb_chat_template_open(name, own, bos_text, &run->chat_template);
    free(bos_text);
    bool is_named = name && strcmp(name, "tokenizer_default") != 0;
    if (status == NB_OK || status == NB_MEMORY || is_named)
        return status;
    return keep_problem(&run->chat_template_problem);
}

static nb_status check_special_token(const struct nb_run *run, const char *key, const char *wanted, int32_t id)
{
    size_t bytes = 0;
    if (!wanted)
        return NB_OK;
    const char *text = id < 0 ? NULL : nb_tokenizer_decode_token(run->tokenizer, id, &bytes);
    if (text && bytes == strlen(wanted) && memcmp(text, wanted, bytes) == 0)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED,
        "special_tokens: %s: \"%s\", but the tokenizer's is \"%.*s\"; changing special tokens is not "
        "supported: remove the key",
        key, wanted, (int)bytes, text ? text : "");
}

static nb_status check_special_tokens(const struct nb_run *run)
{
    const struct nb_config_special_tokens *tokens = &run->config->special_tokens;
    if (!run->tokenizer)
        return NB_OK;
    NB_TRY(check_special_token(run, "bos_token", tokens->bos_token, nb_tokenizer_bos(run->tokenizer)));
    NB_TRY(check_special_token(run, "eos_token", tokens->eos_token, nb_tokenizer_eos(run->tokenizer)));
    NB_TRY(check_special_token(run, "unk_token", tokens->unk_token, nb_tokenizer_unk(run->tokenizer)));
    /* Nothing is padded here, so any token that exists may be named for it. */
    if (tokens->pad_token && nb_tokenizer_find(run->tokenizer, tokens->pad_token, strlen(tokens->pad_token)) < 0)
        return nb_fail(NB_UNSUPPORTED,
            "special_tokens: pad_token: \"%s\" is not in the tokenizer; new tokens are not supported",
            tokens->pad_token);
    for (size_t i = 0; i < tokens->additional.count; i++)
        if (nb_tokenizer_find(run->tokenizer, tokens->additional.items[i], strlen(tokens->additional.items[i])) < 0)
            return nb_fail(NB_UNSUPPORTED,
                "special_tokens: \"%s\" is not in the tokenizer; new tokens are not supported",
                tokens->additional.items[i]);
    return NB_OK;
}

/* ---- adapter ---- */

/* A shape that the config gives and the adapter to go on from has otherwise would be ignored: say so instead. */
static nb_status check_start(const struct nb_run *run, const struct nb_adapter_options *start)
{
    const struct nb_config *config = run->config;
    if (nb_config_was_set(config, "lora_r") && config->lora_r != start->rank)
        return nb_fail(NB_USAGE, "lora_r: %lld, but the adapter in %s has %d; remove the key",
            (long long)config->lora_r, run->start_folder, start->rank);
    if (nb_config_was_set(config, "lora_alpha") && (float)config->lora_alpha != start->alpha)
        return nb_fail(NB_USAGE, "lora_alpha: %lld, but the adapter in %s has %g; remove the key",
            (long long)config->lora_alpha, run->start_folder, (double)start->alpha);
    if (nb_config_was_set(config, "peft_use_rslora") && config->peft_use_rslora != start->rank_stabilized)
        return nb_fail(
            NB_USAGE, "peft_use_rslora: another value than the adapter's in %s; remove the key", run->start_folder);
    return NB_OK;
}

static void note_base_model(const struct nb_run *run)
{
    const char *of = nb_peft_config_base_model(run->start), *here = run->config->base_model_name;
    if (!here)
        here = nb_checkpoint_path(run->checkpoint);
    if (*of && strcmp(of, here) != 0)
        nb_log("note: the adapter in %s was made for %s; it is used on %s", run->start_folder, of, here);
}

static nb_status choose_adapter(struct nb_run *run, const char *folder)
{
    const struct nb_config *config = run->config;
    bool trains = run->purpose == NB_PURPOSE_TRAIN;
    run->has_adapter = trains || folder;
    run->adapter = (struct nb_adapter_options){
        .target_modules = (const char *const *)config->lora_target_modules.items,
        .target_module_count = (int)config->lora_target_modules.count,
        .target_linear = config->lora_target_linear,
        .rank = (int)config->lora_r,
        .alpha = (float)config->lora_alpha,
        .dropout = (float)config->lora_dropout,
        .rank_stabilized = config->peft_use_rslora,
        .moments_8bit = nb_config_moments_8bit(config),
        .activation = run->model.activation,
        .trains = trains,
        .paging = {.on = nb_config_pages_optimizer(config),
            .resident_bytes = config->resident_optimizer_bytes > 0 ? (uint64_t)config->resident_optimizer_bytes : 0},
        .seed = (uint64_t)config->seed,
    };
    if (!folder)
        return NB_OK;
    if (!(run->start_folder = strdup(folder)))
        return nb_fail(NB_MEMORY, "no memory for a path");
    NB_TRY(nb_peft_config_read(folder, &run->start));
    nb_peft_config_options(run->start, &run->adapter);
    if (trains) {
        NB_TRY(check_start(run, &run->adapter));
        if (nb_config_was_set(config, "lora_dropout"))
            run->adapter.dropout = (float)config->lora_dropout;
    }
    note_base_model(run);
    return NB_OK;
}

/* The registry is built once here for its errors alone: an unknown target must not wait for the data to be read. */
static nb_status check_adapter(const struct nb_run *run)
{
    struct nb_adapter *adapter = NULL;
    if (!run->has_adapter)
        return NB_OK;
    nb_status status = nb_adapter_create(nb_checkpoint_config(run->checkpoint), &run->adapter, &adapter);
    nb_adapter_destroy(&adapter);
    return status;
}

/* ---- the whole ---- */

static nb_status open_run(struct nb_run *run, const struct nb_run_args *args)
{
    const struct nb_config *config = args->config;
    bool trains = args->purpose == NB_PURPOSE_TRAIN;
    const char *path = args->model ? args->model : config->base_model;
    if (!path)
        return nb_fail(NB_USAGE, "base_model: no model is given");
    NB_TRY(nb_checkpoint_open(path, &run->checkpoint));
    run->model.random_weights = args->random_weights && !nb_checkpoint_has_weights(run->checkpoint);
    NB_TRY(args->profile ? nb_run_assume_device(run, args->profile) : nb_run_choose_device(run));
    NB_TRY(choose_weights(run));
    choose_cache(run);
    run->layer_major = trains && config->accumulation_order == NB_CONFIG_LAYER_MAJOR;
    choose_length(run);
    NB_TRY(choose_adapter(run, trains ? config->lora_model_dir : args->adapter));
    NB_TRY(check_adapter(run));
    NB_TRY(open_tokenizer(run, path));
    NB_TRY(check_special_tokens(run));
    NB_TRY(open_template(run));
    if (trains) {
        if (!(run->keep = calloc((size_t)nb_checkpoint_config(run->checkpoint)->layers, sizeof *run->keep)))
            return nb_fail(NB_MEMORY, "no memory to set up a run");
        NB_TRY(nb_setup_training_data(run));
        return nb_fit_choose(run);
    }
    nb_fit_begin(run);
    return args->purpose == NB_PURPOSE_EVALUATE ? nb_setup_evaluation_data(run, args->data) : NB_OK;
}

nb_status nb_run_open(const struct nb_run_args *args, struct nb_run **run)
{
    struct nb_run *r = calloc(1, sizeof *r);
    *run = NULL;
    if (!r)
        return nb_fail(NB_MEMORY, "no memory to set up a run");
    r->config = args->config;
    r->purpose = args->purpose;
    r->random_rows = args->random_rows;
    r->random_tokens = args->random_tokens;
    r->micro_batch_size = args->micro_batch_size;
    nb_status status = open_run(r, args);
    if (status != NB_OK)
        nb_run_destroy(&r);
    *run = r;
    return status;
}

void nb_run_destroy(struct nb_run **run)
{
    struct nb_run *r = *run;
    if (!r)
        return;
    nb_batch_plan_destroy(&r->batches);
    free(r->train_rows);
    free(r->eval_rows);
    nb_dataset_destroy(&r->data);
    nb_dataset_destroy(&r->test_data);
    nb_peft_config_destroy(&r->start);
    free(r->start_folder);
    nb_chat_template_destroy(&r->chat_template);
    nb_tokenizer_destroy(&r->tokenizer);
    free(r->tokenizer_problem);
    free(r->chat_template_problem);
    nb_checkpoint_close(&r->checkpoint);
    nb_device_destroy(&r->device);
    nb_product_table_destroy(&r->products);
    nb_product_table_destroy(&r->recorded);
    free(r->device_note);
    free(r->cache_folder);
    free(r->keep);
    free(r);
    *run = NULL;
}
