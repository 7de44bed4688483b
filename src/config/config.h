/* The configuration: Axolotl's YAML key names, read into one plain struct. The table in config_keys.c holds every key's name, type,
 * default, range and help line; reading, checking, writing, `--set`, `nibble help config` and the manual page all come from it. */
#ifndef NB_CONFIG_CONFIG_H
#define NB_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

/* The most that the keys sequence_len and micro_batch_size take. */
enum { NB_CONFIG_SEQUENCE_LEN_MAX = 1 << 20, NB_CONFIG_MICRO_BATCH_MAX = 1 << 16 };

enum nb_config_adapter { NB_CONFIG_ADAPTER_NONE, NB_CONFIG_ADAPTER_LORA, NB_CONFIG_ADAPTER_QLORA };
enum nb_config_quant_type { NB_CONFIG_QUANT_NF4, NB_CONFIG_QUANT_FP4 };
enum nb_config_bf16 { NB_CONFIG_BF16_AUTO, NB_CONFIG_BF16_TRUE, NB_CONFIG_BF16_FALSE };
enum nb_config_device { NB_CONFIG_DEVICE_AUTO, NB_CONFIG_DEVICE_CPU, NB_CONFIG_DEVICE_CUDA };

enum nb_config_checkpointing {
    NB_CONFIG_CHECKPOINTING_TRUE,
    NB_CONFIG_CHECKPOINTING_ATTENTION,
    NB_CONFIG_CHECKPOINTING_FALSE,
    NB_CONFIG_CHECKPOINTING_AUTO,
};

enum nb_config_accumulation { NB_CONFIG_BATCH_MAJOR, NB_CONFIG_LAYER_MAJOR, NB_CONFIG_ACCUMULATION_AUTO };
enum nb_config_embedding { NB_CONFIG_EMBEDDING_DEVICE, NB_CONFIG_EMBEDDING_HOST, NB_CONFIG_EMBEDDING_AUTO };
enum nb_config_weights_from { NB_CONFIG_WEIGHTS_FROM_HOST, NB_CONFIG_WEIGHTS_FROM_FILE, NB_CONFIG_WEIGHTS_FROM_AUTO };
enum nb_config_pinned { NB_CONFIG_PINNED_AUTO, NB_CONFIG_PINNED_TRUE, NB_CONFIG_PINNED_FALSE };
enum nb_config_offloading { NB_CONFIG_OFFLOADING_TRUE, NB_CONFIG_OFFLOADING_FALSE, NB_CONFIG_OFFLOADING_AUTO };

enum nb_config_optimizer {
    NB_CONFIG_OPTIMIZER_ADAMW_TORCH,
    NB_CONFIG_OPTIMIZER_ADAMW_TORCH_FUSED, /* the same arithmetic as adamw_torch */
    NB_CONFIG_OPTIMIZER_ADAMW_8BIT,
    NB_CONFIG_OPTIMIZER_ADAMW_BNB_8BIT, /* another name of adamw_8bit */
    NB_CONFIG_OPTIMIZER_PAGED_ADAMW_32BIT,
    NB_CONFIG_OPTIMIZER_PAGED_ADAMW_8BIT,
};

enum nb_config_scheduler {
    NB_CONFIG_SCHEDULER_CONSTANT,
    NB_CONFIG_SCHEDULER_CONSTANT_WITH_WARMUP,
    NB_CONFIG_SCHEDULER_LINEAR,
    NB_CONFIG_SCHEDULER_COSINE,
};

struct nb_config_strings {
    char **items;
    size_t count;
};

/* One entry of `datasets` or `test_datasets`; NULL where the file does not say. Owned by the config. */
struct nb_config_dataset {
    char *path; /* never NULL */
    char *type; /* "chat_template", "alpaca", "completion", "tokens", or NULL: told by the first row's fields */
    char *field_messages, *message_field_role, *message_field_content;
    char *field_instruction, *field_input, *field_output, *field_system;
    char *field;
};

struct nb_config_datasets {
    struct nb_config_dataset *items;
    size_t count;
};

/* What an Axolotl file says under special_tokens, for comparison with the tokenizer's. NULL where it says nothing. */
struct nb_config_special_tokens {
    char *bos_token, *eos_token, *unk_token, *pad_token;
    struct nb_config_strings additional;
};

enum { NB_CONFIG_KEYS_MAX = 128 };

/* Every key's value under its own name. Strings are NULL when unset. "0: unset" and the like is how an unset key reads; whether the
 * user gave a key is nb_config_was_set. Owns everything in it. Never copy it by assignment. */
struct nb_config {
    /* Model */
    char *base_model;
    char *base_model_name; /* NULL: base_model */
    char *chat_template;   /* "chatml", "llama3", "smollm2", "tokenizer_default"; NULL: the checkpoint's own */
    bool load_in_4bit;     /* ask nb_config_opens_in_4bit: its default depends on the verb */
    enum nb_config_quant_type bnb_4bit_quant_type;
    bool bnb_4bit_use_double_quant;
    bool head_4bit;
    enum nb_config_bf16 bf16;

    /* Adapter */
    enum nb_config_adapter adapter;
    int64_t lora_r, lora_alpha;
    double lora_dropout;
    struct nb_config_strings lora_target_modules;
    bool lora_target_linear;
    char *lora_model_dir;
    bool peft_use_rslora;

    /* Data */
    struct nb_config_datasets datasets, test_datasets;
    double val_set_size;  /* below 1 a fraction of the rows, from 1 a number of rows; 0: no split */
    int64_t sequence_len; /* 512 when unset; outside train ask nb_config_was_set: unset means the model's context there */
    bool sample_packing, train_on_inputs, shuffle_merged_datasets;

    /* Training */
    int64_t micro_batch_size; /* -1: auto; what a run takes is in struct nb_run */
    int64_t gradient_accumulation_steps;
    enum nb_config_accumulation accumulation_order;
    double num_epochs;
    int64_t max_steps; /* 0: unset */
    enum nb_config_optimizer optimizer;
    double adam_beta1, adam_beta2, adam_epsilon;
    int64_t resident_optimizer_bytes; /* of a paged optimizer; -1: what there is room for */
    double learning_rate; /* 0: unset */
    enum nb_config_scheduler lr_scheduler;
    int64_t warmup_steps; /* -1: unset; ask nb_config_warmup_steps */
    double warmup_ratio;  /* -1: unset */
    double weight_decay, max_grad_norm; /* max_grad_norm 0: no clipping */
    enum nb_config_checkpointing gradient_checkpointing;
    enum nb_config_offloading activation_offloading;
    int64_t mlp_chunk_tokens; /* a multiple of 256; 0: all; -1: auto */
    int64_t loss_chunk_rows;  /* a multiple of 256; -1: auto */
    int64_t seed;

    /* Logging, evaluation, saving */
    int64_t logging_steps;
    double eval_steps;       /* 0: unset; below 1 a fraction of all steps: nb_config_interval_steps. Neither this nor
                                evals_per_epoch: evaluated at each epoch's end, if there is anything to evaluate on */
    int64_t evals_per_epoch; /* 0: unset */
    double save_steps;       /* as eval_steps. Neither save_steps nor saves_per_epoch: saved at each epoch's end */
    int64_t saves_per_epoch; /* 0: unset */
    int64_t save_total_limit; /* 0: keep all */
    int64_t early_stopping_patience; /* 0: unset */
    bool load_best_model_at_end;
    char *output_dir;

    /* Machine */
    enum nb_config_device device;
    int64_t threads; /* 0: all */
    int64_t memory_budget; /* bytes of the device that the run may take; -1: what it has free */
    int64_t host_memory_budget; /* the same of the host; -1: what it has free */
    enum nb_config_pinned pinned;
    enum nb_config_embedding embedding_device;
    char *quantized_cache;   /* NULL: none */
    int64_t resident_layers; /* whose weights stay on the device; -1: as many as fit */
    enum nb_config_weights_from weights_from;

    /* Beside the table */
    struct nb_config_special_tokens special_tokens;
    struct nb_config_strings ignored; /* names of accepted keys that mean nothing here, in the order of the file */
    char *source;                     /* the file's name, for messages; NULL without a file */
    uint8_t set[NB_CONFIG_KEYS_MAX];  /* by the key's place in the table; see nb_config_was_set */
};

/* Fills in the defaults. `config` may be uninitialized. Destroy it afterwards, as after every function that fills one. */
nb_status nb_config_defaults(struct nb_config *config);

/* Reads a YAML file, then applies the overrides, each "key=value" as after `--set`, later ones winning; a value is parsed as YAML.
 * Errors: NB_IO; NB_USAGE "FILE:LINE:COLUMN: ..." (bad YAML, unknown or duplicate key, wrong type, out of range, not supported),
 * and "--set key=value: ..." for an override; NB_MEMORY. On an error the config is destroyed (all zero). */
nb_status nb_config_read(const char *path, const char *const *overrides, size_t override_count, struct nb_config *config);

/* The same for text in memory, called `name` in messages. The fuzz target calls this one. */
nb_status nb_config_parse(const char *text, size_t bytes, const char *name, const char *const *overrides, size_t override_count,
    struct nb_config *config);

/* Defaults and overrides, for verbs without a file. Only keys that apply outside train are allowed; others are NB_USAGE. */
nb_status nb_config_from_overrides(const char *const *overrides, size_t override_count, struct nb_config *config);

/* Frees what the struct owns and zeroes it. Takes a zeroed one. */
void nb_config_destroy(struct nb_config *config);

/* Whether the file or an override gave the key a value (null is none). False for a name that is no key. */
bool nb_config_was_set(const struct nb_config *config, const char *key);

/* Everything that needs more than one key, and what train cannot do without (base_model, datasets, adapter, learning_rate).
 * Then makes explicit what follows: load_in_4bit from adapter, and sequence_len. So the written config no longer depends on the
 * defaults. Errors: NB_USAGE, NB_UNSUPPORTED, naming the keys. */
nb_status nb_config_validate_train(struct nb_config *config);

/* Whether the base model is opened in 4 bits: in train as adapter and load_in_4bit say, elsewhere unless load_in_4bit is false. */
bool nb_config_opens_in_4bit(const struct nb_config *config, bool training);

/* What the optimizer's name says: moments in 8 bits; masters and moments in host memory. */
bool nb_config_moments_8bit(const struct nb_config *config);
bool nb_config_pages_optimizer(const struct nb_config *config);

/* Warm-up steps of a run of total_steps: warmup_steps; else, as in transformers, ceil(warmup_ratio * total); else, as in Axolotl, the
 * smaller of 100 and floor(0.03 * total). The constant schedule has none. */
int64_t nb_config_warmup_steps(const struct nb_config *config, int64_t total_steps);

/* eval_steps or save_steps as a number of steps: below 1, ceil(value * total_steps) as in transformers. At least 1. */
int64_t nb_config_interval_steps(double value, int64_t total_steps);

/* The name of an enum key's value: nb_config_choice_name(config, "optimizer") -> "adamw_8bit". NULL for a key that is no enum. */
const char *nb_config_choice_name(const struct nb_config *config, const char *key);

/* The resolved config as YAML that reads back equal: every key but those that are unset and have no default or take it from the
 * adapter in lora_model_dir. The caller frees *text. Errors: NB_MEMORY. */
nb_status nb_config_format(const struct nb_config *config, char **text, size_t *bytes);

/* The first key in which two configs differ, or NULL. */
const char *nb_config_first_difference(const struct nb_config *a, const struct nb_config *b);

/* The same among the keys with which a run that goes on must agree: those that change data or arithmetic. */
const char *nb_config_first_lasting_difference(const struct nb_config *a, const struct nb_config *b);

/* The table for `nibble help config`, as text and as a section of the manual page in roff. */
void nb_config_help_text(FILE *stream);
void nb_config_man(FILE *stream);

/* One key's paragraph; NB_USAGE for an unknown key, with the nearest known one. */
nb_status nb_config_help_key(FILE *stream, const char *key);

#endif
