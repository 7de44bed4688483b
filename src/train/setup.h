/* Everything that a configuration opens on the host: checkpoint, tokenizer, chat template, data, and the sizes and options that
 * follow from them. One path serves train, plan, evaluate and generate; no device memory is touched here. */
#ifndef NB_TRAIN_SETUP_H
#define NB_TRAIN_SETUP_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "adapter/peft.h"
#include "base/host_memory.h"
#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "config/config.h"
#include "model/model.h"
#include "text/chat_template.h"
#include "text/dataset.h"
#include "text/pack.h"
#include "text/tokenizer.h"

enum nb_purpose {
    NB_PURPOSE_TRAIN,    /* data of the config, an adapter that trains; also for plan */
    NB_PURPOSE_EVALUATE, /* one data file, no gradients */
    NB_PURPOSE_GENERATE, /* no data */
};

/* What to open. Strings are only read during the call, but the config must outlive the run. */
struct nb_run_args {
    const struct nb_config *config; /* NB_PURPOSE_TRAIN: validated (nb_config_validate_train) */
    enum nb_purpose purpose;
    const char *model;   /* NULL: the config's base_model */
    const char *adapter; /* outside train: an adapter folder, or NULL. In train the config's lora_model_dir counts */
    const char *data;    /* NB_PURPOSE_EVALUATE: the data file */
    const struct nb_device_profile *profile; /* to plan for a device that is not here; NULL: the config's. Copied */
    int random_rows, random_tokens; /* in place of the config's data: so many rows of so many random tokens; 0: that data */
    int micro_batch_size; /* with micro_batch_size: auto, what to take instead of choosing, as a resumed run does; 0: choose */
    bool random_weights; /* for benchmarks: a checkpoint without weights gets random ones */
};

/* What may be chosen for a run, from what costs the most time to what costs the least (fit.h). */
enum nb_knob_name {
    NB_KNOB_FILE,         /* whether they come from their file, where host memory is short */
    NB_KNOB_STREAMING,    /* how many blocks' weights stream in */
    NB_KNOB_OFFLOADING,   /* how many blocks' inputs leave the device */
    NB_KNOB_DEQUANTIZING, /* model.dequantize_once */
    NB_KNOB_EVERYTHING,   /* how many blocks, the first ones, do not keep everything */
    NB_KNOB_ATTENTION,    /* and how many of them not even attention's output */
    NB_KNOB_RESIDENCY,    /* how much of a paged optimizer is on the device */
    NB_KNOB_EMBEDDING,    /* whether it is on the host */
    NB_KNOB_MLP_CHUNK,    /* how many tokens go through an MLP at a time */
    NB_KNOB_LOSS_CHUNK,   /* how many rows of logits there are at a time */
    NB_KNOBS
};

/* Tokens of a micro-batch. */
enum { NB_RUN_TOKENS_MAX = 1 << 30 };

/* How long a training run is. */
struct nb_run_length {
    int64_t steps_per_epoch, steps, warmup_steps;
    int64_t eval_every, save_every; /* in steps; 0: at each epoch's end */
};

struct nb_run {
    const struct nb_config *config;
    enum nb_purpose purpose;
    struct nb_checkpoint *checkpoint;
    struct nb_tokenizer *tokenizer; /* NULL where the model has none: rows of tokens need none */
    char *tokenizer_problem;        /* then: why, for messages */
    struct nb_chat_template *chat_template; /* NULL where there is none */
    char *chat_template_problem;

    struct nb_peft_config *start; /* the adapter folder's configuration, or NULL */
    char *start_folder;
    bool has_adapter;
    struct nb_adapter_options adapter; /* its target list points into config or start */
    uint64_t page_bytes;               /* of a chunk of paged masters and moments; 0: as the pager chooses. Tests force small ones */
    struct nb_model_options model;
    char *cache_folder; /* quantized_cache, ~/ being HOME; NULL: none */
    struct nb_cpu_options cpu;
    struct nb_device_profile profile;
    char *device_note;                  /* why `device: auto` is not a GPU here, or NULL */
    struct nb_product_table *products;  /* a GPU's measured or recorded table; NULL: the defaults */
    struct nb_product_table *recorded;  /* what a training run's products take, for its checkpoints; NULL before it is planned */
    struct nb_device *device;           /* opened by nb_run_open_device; NULL before. Sessions borrow it */
    uint64_t available_bytes;           /* of the device, for the arena: estimated until it is opened, then measured */
    uint64_t driver_bytes;              /* beside it: the driver's own share of what the run may take */
    uint64_t free_bytes;                /* of the device when it was opened, whatever memory_budget allows; 0 on a CPU */
    /* Of the host, for what is kept off the device (on a CPU for the arena as well): host_memory_budget, or what the
     * process may take where that is less. UINT64_MAX: the device is of another machine, whose memory is unknown. */
    uint64_t host_available_bytes;
    enum nb_host_limit host_limit;      /* which limit that is; NB_HOST_LIMIT_NONE: host_memory_budget, or none */
    enum nb_keep *keep;                 /* [blocks]: what each keeps in training; NULL outside of it */
    int offloaded;                      /* so many blocks, the first ones, have their inputs in pinned host memory */
    bool layer_major;                   /* all micro-batches of a step go through a layer before the next */
    int mlp_chunk_tokens, loss_rows;    /* as in struct nb_batch_limits; loss_rows 0: as many as the memory of logits makes sensible */
    int notch[NB_KNOBS];                /* what was chosen, 0 the fastest; of knobs that the config leaves open (fit_knobs.h) */
    unsigned opened_knobs;              /* a bit a knob: may be chosen though the config gives it; to find what would fit */
    bool chooses_micro_batch;           /* micro_batch_size too */
    bool may_dequantize_once;           /* it would change no bit */
    uint64_t paged_bytes;               /* masters and moments of a paged optimizer */
    int sequence_len;
    int micro_batch_size, micro_batches; /* rows (bins with sample_packing) of a micro-batch; micro-batches of a step */

    int random_rows, random_tokens; /* as in the args */
    struct nb_dataset *data;      /* what trains, or what is evaluated; NULL for NB_PURPOSE_GENERATE */
    struct nb_dataset *test_data; /* of test_datasets, or NULL */
    uint32_t *train_rows, *eval_rows; /* of data; of eval_data */
    uint32_t train_count, eval_count; /* eval_count 0: nothing is evaluated during training */
    const struct nb_dataset *eval_data; /* data or test_data */
    struct nb_batch_plan *batches;      /* NB_PURPOSE_TRAIN */
    struct nb_batch_limits limits;      /* of a micro-batch: micro_batch_size x sequence_len, every position trained */
    struct nb_batch_limits eval_limits; /* of an evaluation's: as many tokens, but more and shorter rows */
    struct nb_run_length length;
};

/* Opens, reads, checks and splits. Warnings go to nb_warn. Errors: NB_USAGE, NB_UNSUPPORTED, NB_FORMAT, NB_IO, NB_MEMORY, each with
 * file, place and remedy; then *run is NULL. */
nb_status nb_run_open(const struct nb_run_args *args, struct nb_run **run);

/* Takes NULL; nulls the handle. */
void nb_run_destroy(struct nb_run **run);

/* Sizes a training run as if the config had said so: the data stays as it was read, so that no row may be longer. Also takes over
 * run->mlp_chunk_tokens and loss_rows. */
void nb_run_resize(struct nb_run *run, int sequence_len, int micro_batch_size, int micro_batches);

/* Micro-batches of a training run that are between their forward and backward passes at a time. */
int nb_run_slots(const struct nb_run *run);

/* The rows of logits that run->loss_rows: 0 stands for, of so many rows that train. */
int nb_run_loss_rows(const struct nb_run *run, int trained_rows);

/* Why a run of this config computes in the dtype it does, where the user may wonder ("bf16: auto is fp32 here ..."); NULL if not. */
const char *nb_run_precision_note(const struct nb_run *run);

/* Trained positions of the kept rows of a list; *tokens receives all positions. */
uint64_t nb_run_trained_tokens(const struct nb_dataset *dataset, const uint32_t *rows, uint32_t count, uint64_t *tokens);

#endif
