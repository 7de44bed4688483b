/* What more than one key decides. */
#include <math.h>
#include <string.h>

#include "config/config.h"
#include "config/config_keys.h"

/* "FILE: " before a message about the whole config, or nothing without a file. */
static nb_status fail(const struct nb_config *config, const char *message)
{
    return nb_fail(NB_USAGE, "%s%s%s", config->source ? config->source : "", config->source ? ": " : "", message);
}

static void mark_set(struct nb_config *config, const char *key)
{
    config->set[nb_key_find(key) - nb_keys] = 1;
}

bool nb_config_opens_in_4bit(const struct nb_config *config, bool training)
{
    if (nb_config_was_set(config, "load_in_4bit"))
        return config->load_in_4bit;
    return !training || config->adapter == NB_CONFIG_ADAPTER_QLORA;
}

bool nb_config_moments_8bit(const struct nb_config *config)
{
    return config->optimizer == NB_CONFIG_OPTIMIZER_ADAMW_8BIT ||
           config->optimizer == NB_CONFIG_OPTIMIZER_ADAMW_BNB_8BIT ||
           config->optimizer == NB_CONFIG_OPTIMIZER_PAGED_ADAMW_8BIT;
}

bool nb_config_pages_optimizer(const struct nb_config *config)
{
    return config->optimizer == NB_CONFIG_OPTIMIZER_PAGED_ADAMW_8BIT ||
           config->optimizer == NB_CONFIG_OPTIMIZER_PAGED_ADAMW_32BIT;
}

/* Whether anything asks for evaluation during training. */
static bool has_evaluation(const struct nb_config *config)
{
    return config->test_datasets.count > 0 || config->val_set_size > 0;
}

int64_t nb_config_warmup_steps(const struct nb_config *config, int64_t total_steps)
{
    const double axolotl_ratio = 0.03, axolotl_most = 100;
    if (config->lr_scheduler == NB_CONFIG_SCHEDULER_CONSTANT)
        return 0;
    if (config->warmup_steps > 0)
        return config->warmup_steps;
    if (config->warmup_ratio >= 0)
        return (int64_t)ceil(config->warmup_ratio * (double)total_steps);
    if (config->warmup_steps == 0)
        return 0;
    return (int64_t)fmin(floor(axolotl_ratio * (double)total_steps), axolotl_most);
}

int64_t nb_config_interval_steps(double value, int64_t total_steps)
{
    double steps = value < 1 ? ceil(value * (double)total_steps) : value;
    return steps < 1 ? 1 : (int64_t)steps;
}

static nb_status check_needed(const struct nb_config *config)
{
    if (!config->base_model)
        return fail(config, "base_model is missing: name a Hugging Face folder or a .gguf file");
    if (config->adapter == NB_CONFIG_ADAPTER_NONE)
        return fail(config, "adapter is missing: set adapter: qlora (4-bit weights) or adapter: lora (bf16 weights)");
    if (config->datasets.count == 0)
        return fail(config, "datasets is missing: name the files to train on, such as datasets: [{path: rows.jsonl}]");
    if (config->learning_rate <= 0)
        return fail(config, "learning_rate is missing: 0.0002 is usual for qlora");
    return NB_OK;
}

static nb_status check_adapter(const struct nb_config *config)
{
    if (config->adapter == NB_CONFIG_ADAPTER_QLORA && nb_config_was_set(config, "load_in_4bit") && !config->load_in_4bit)
        return fail(config, "adapter: qlora trains on 4-bit weights, so load_in_4bit cannot be false; for bf16 weights set "
            "adapter: lora");
    for (size_t i = 0; i < config->lora_target_modules.count; i++)
        if (strcmp(config->lora_target_modules.items[i], "all-linear") == 0)
            return fail(config, "lora_target_modules: all-linear is spelled lora_target_linear: true");
    if (config->lora_target_modules.count == 0 && !config->lora_target_linear && !config->lora_model_dir)
        return fail(config, "nothing would be trained: set lora_target_linear: true, or list lora_target_modules, or name an adapter "
            "in lora_model_dir");
    return NB_OK;
}

/* Two keys that say the same thing in two ways, both given. */
static nb_status check_conflicts(const struct nb_config *config)
{
    if (config->eval_steps > 0 && config->evals_per_epoch > 0)
        return fail(config, "eval_steps and evals_per_epoch exclude each other: remove one");
    if (config->save_steps > 0 && config->saves_per_epoch > 0)
        return fail(config, "save_steps and saves_per_epoch exclude each other: remove one");
    if (config->warmup_steps > 0 && config->warmup_ratio > 0)
        return fail(config, "warmup_steps and warmup_ratio exclude each other: remove one");
    if (config->test_datasets.count > 0 && config->val_set_size > 0)
        return fail(config, "test_datasets and val_set_size exclude each other: remove one");
    if (config->resident_optimizer_bytes >= 0 && !nb_config_pages_optimizer(config))
        return fail(config, "resident_optimizer_bytes needs optimizer: paged_adamw_8bit or paged_adamw_32bit: with the others all of "
            "it stays on the device");
    return NB_OK;
}

static nb_status check_chunks(const struct nb_config *config)
{
    if (config->mlp_chunk_tokens > 0 && config->mlp_chunk_tokens % 256 != 0)
        return fail(config, "mlp_chunk_tokens is a multiple of 256, the tile in which sums over tokens are made, or 0");
    if (config->loss_chunk_rows > 0 && config->loss_chunk_rows % 256 != 0)
        return fail(config, "loss_chunk_rows is a multiple of 256, the tile in which losses are added");
    return NB_OK;
}

/* A number without its unit is in bytes, which nobody means by 24. */
static nb_status check_budgets(const struct nb_config *config)
{
    const int64_t fewest = 1000;
    if (config->memory_budget >= 0 && config->memory_budget < fewest)
        return fail(config, "memory_budget is that many bytes: give the unit, as in 24GB or 24GiB");
    if (config->host_memory_budget >= 0 && config->host_memory_budget < fewest)
        return fail(config, "host_memory_budget is that many bytes: give the unit, as in 64GB or 64GiB");
    return NB_OK;
}

static nb_status check_evaluation(const struct nb_config *config)
{
    if (has_evaluation(config))
        return NB_OK;
    if (config->load_best_model_at_end)
        return fail(config, "load_best_model_at_end needs an evaluation: set test_datasets or val_set_size");
    if (config->early_stopping_patience > 0)
        return fail(config, "early_stopping_patience needs an evaluation: set test_datasets or val_set_size");
    if (config->eval_steps > 0)
        return fail(config, "eval_steps needs something to evaluate on: set test_datasets or val_set_size");
    return NB_OK;
}

nb_status nb_config_validate_train(struct nb_config *config)
{
    NB_TRY(check_needed(config));
    NB_TRY(check_adapter(config));
    NB_TRY(check_conflicts(config));
    NB_TRY(check_chunks(config));
    NB_TRY(check_budgets(config));
    NB_TRY(check_evaluation(config));
    config->load_in_4bit = nb_config_opens_in_4bit(config, true);
    mark_set(config, "load_in_4bit");
    mark_set(config, "sequence_len");
    return NB_OK;
}
