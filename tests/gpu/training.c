/* Whole training on the CUDA device, real or emulated, beside the CPU's in bf16.
 *
 *   gpu_training MODELS [--only WHAT]      MODELS: the folder of tiny models, tests/golden/models
 *
 * Losses of the two devices, step by step, lie within 5e-3: both round at the same points, but sum in another order,
 * so that a value next to a tie may round the other way; 5e-3 is a thousandth of the losses. On one device what is
 * kept and what is computed again, a matrix dequantized once, paged masters and moments, and going on from a
 * checkpoint change no bit. Exit 77 where there is no GPU. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "device/cuda/cuda.h"
#include "train/device.h"
#include "train/plan.h"
#include "train/product_table.h"
#include "train/step.h"
#include "support/deep_model.h"
#include "train/trainer.h"

enum { STEPS = 3, ROWS = 12, LONGEST = 40, SKIP = 77 };

static const double tolerance = 5e-3;

struct test {
    const char *models;
    char *folder;
    int checks, failures;
};

static void fail(struct test *t, const char *what, const char *why)
{
    printf("FAILED %s: %s\n", what, why);
    t->failures++;
}

/* A call that must succeed; otherwise the check at work has failed. */
static bool works(struct test *t, const char *what, nb_status status)
{
    if (status != NB_OK)
        fail(t, what, nb_status_message());
    return status == NB_OK;
}

/* ---- models and rows ---- */

/* Rows of many lengths below 200 ids; labels of their second halves train. */
static nb_status write_rows(const char *folder)
{
    char *path = nb_path_join(folder, "rows.jsonl");
    FILE *file = fopen(path, "w");
    if (!file)
        return nb_fail_errno("%s", path);
    for (int r = 0; r < ROWS; r++)
        for (int part = 0, length = 9 + r * 7 % (LONGEST - 8); part < 2; part++) {
            fputs(part ? "], \"labels\": [" : "{\"input_ids\": [", file);
            for (int i = 0; i < length; i++)
                fprintf(file, "%s%d", i ? ", " : "", part && i < length / 2 ? -100 : 3 + (r * 31 + i * 17) % 200);
            fputs(part ? "]}\n" : "", file);
        }
    free(path);
    return fclose(file) == 0 ? NB_OK : nb_fail_errno("the rows");
}

static nb_status write_shape(const char *folder, const char *name, const char *text)
{
    char *path = nb_path_join(folder, name);
    nb_status status = nb_file_write(path, text, strlen(text));
    free(path);
    return status;
}

static nb_status write_shapes(const char *folder)
{
    static const char block[] = /* one of SmolLM2-135M's, with a small vocabulary */
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 576,\n"
        " \"intermediate_size\": 1536, \"num_hidden_layers\": 1, \"num_attention_heads\": 9,\n"
        " \"num_key_value_heads\": 3, \"vocab_size\": 1003, \"max_position_embeddings\": 2048,\n"
        " \"rms_norm_eps\": 1e-05, \"rope_theta\": 100000, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true}\n";
    static const char deep[] = /* enough blocks for inputs that leave the device */
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64,\n"
        " \"intermediate_size\": 128, \"num_hidden_layers\": 6, \"num_attention_heads\": 4,\n"
        " \"num_key_value_heads\": 2, \"vocab_size\": 256, \"max_position_embeddings\": 128,\n"
        " \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true}\n";
    NB_TRY(write_shape(folder, "smollm2-block.json", block));
    return write_shape(folder, "deep.json", deep);
}

static char *yaml_of(const struct test *t, const char *model, const char *device, const char *out, const char *more)
{
    return nb_format("base_model: %s\n%slora_alpha: 12\n%s%s"
                     "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-3\nlr_scheduler: constant\n"
                     "sequence_len: %d\n%sbf16: true\ndevice: %s\noutput_dir: %s/%s\n%s",
        model, strstr(more, "lora_r:") ? "" : "lora_r: 8\n", strstr(more, "adapter:") ? "" : "adapter: qlora\n",
        strstr(more, "lora_target") ? "" : "lora_target_linear: true\n", t->folder, LONGEST,
        strstr(more, "micro_batch_size:") ? "" : "micro_batch_size: 2\n", device, t->folder, out, more);
}

/* ---- a run of a few steps ---- */

struct result {
    double loss[STEPS];
    float grad_norm[STEPS];
    uint64_t planned, peak, pinned_planned, pinned_peak, pageable_planned, pageable_peak;
};

static nb_status take_steps(struct nb_run *run, struct nb_session *session, struct result *result)
{
    struct nb_stepper_options options = nb_stepper_options_of(run);
    struct nb_stepper *stepper = NULL;
    int64_t per_epoch = run->length.steps_per_epoch;
    nb_status status = nb_stepper_create(session, &options, &stepper);
    for (int i = 0; status == NB_OK && i < STEPS; i++) {
        struct nb_step_rows rows;
        struct nb_step_result step;
        status = nb_batch_plan_step(run->batches, (uint64_t)(i / per_epoch), (uint32_t)(i % per_epoch), &rows);
        if (status == NB_OK)
            status = nb_stepper_run(stepper, run->data, &rows, i + 1, run->config->learning_rate, &step);
        if (status == NB_OK && !step.finite)
            status = nb_fail(NB_NUMERIC, "step %d is not finite", i + 1);
        if (status == NB_OK) {
            result->loss[i] = step.loss;
            result->grad_norm[i] = step.grad_norm;
        }
    }
    nb_stepper_destroy(&stepper);
    return status;
}

typedef void change_run(struct nb_run *run);

static nb_status train_opened(struct nb_run *run, struct result *result)
{
    struct nb_session *session = NULL;
    struct nb_plan plan;
    nb_status status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        status = nb_run_open_device(run, plan.site, plan.sites);
    struct nb_session_args args = {.capacity = plan.peak_bytes,
        .pinned_capacity = plan.pinned_bytes,
        .pageable_capacity = plan.pageable_bytes,
        .positions_max = run->sequence_len};
    if (status == NB_OK)
        status = nb_session_open(run, &args, &session);
    if (status == NB_OK)
        status = take_steps(run, session, result);
    result->planned = plan.peak_bytes;
    result->peak = session ? nb_arena_high_water(session->arena) : 0;
    result->pinned_planned = plan.pinned_bytes;
    result->pinned_peak = session ? nb_arena_high_water(session->pinned) : 0;
    result->pageable_planned = plan.pageable_bytes;
    result->pageable_peak = session ? nb_arena_high_water(session->pageable) : 0;
    nb_session_close(&session);
    nb_plan_destroy(&plan);
    return status;
}

static nb_status train(const char *yaml, change_run *change, struct result *result)
{
    struct nb_config config;
    struct nb_run *run = NULL;
    *result = (struct result){0};
    NB_TRY(nb_config_parse(yaml, strlen(yaml), "test.yml", NULL, 0, &config));
    nb_status status = nb_config_validate_train(&config);
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_TRAIN, .random_weights = true};
    if (status == NB_OK)
        status = nb_run_open(&args, &run);
    if (status == NB_OK && change)
        change(run);
    if (status == NB_OK)
        status = train_opened(run, result);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    return status;
}

/* ---- the checks ---- */

/* Both devices, the same config: losses side by side, and the plan held to the byte. */
static void compare_devices(struct test *t, const char *name, const char *model, const char *more)
{
    struct result cpu, gpu;
    char *on_cpu = yaml_of(t, model, "cpu", "out", more), *on_gpu = yaml_of(t, model, "cuda", "out", more);
    t->checks++;
    int failures = t->failures;
    double worst = 0;
    if (works(t, name, train(on_cpu, NULL, &cpu)) && works(t, name, train(on_gpu, NULL, &gpu))) {
        for (int i = 0; i < STEPS; i++) {
            double away = fabs(cpu.loss[i] - gpu.loss[i]);
            worst = away > worst ? away : worst;
            if (!(away <= tolerance)) {
                printf("step %d: loss %.6f on the CPU, %.6f on the GPU\n", i + 1, cpu.loss[i], gpu.loss[i]);
                fail(t, name, "the losses differ");
            }
        }
        if (gpu.planned != gpu.peak) {
            printf("%" PRIu64 " bytes were planned, %" PRIu64 " taken\n", gpu.planned, gpu.peak);
            fail(t, name, "the plan is not the program");
        }
    }
    free(on_cpu);
    free(on_gpu);
    if (t->failures == failures)
        printf("ok %s: losses %.4f %.4f %.4f, at most %.1e apart\n", name, gpu.loss[0], gpu.loss[1], gpu.loss[2], worst);
    fflush(stdout);
}

/* Whatever the GPU's default: every 4-bit product from scratch. The table's memory is the run's to free. */
static void multiply_from_scratch(struct nb_run *run)
{
    struct nb_plan plan;
    run->model.dequantize_once = false;
    if (nb_plan_make(run, &plan) != NB_OK || nb_product_table_record(&run->profile, plan.site, plan.sites, &run->products) != NB_OK)
        return;
    struct nb_product_choice *choice = (struct nb_product_choice *)run->products->choice;
    for (int i = 0; i < run->products->count; i++)
        choice[i].path = i % 2 ? NB_PRODUCT_OVERLAPPED : NB_PRODUCT_SCRATCH;
    run->profile.products = run->products;
    nb_plan_destroy(&plan);
}

static void dequantize_once(struct nb_run *run)
{
    multiply_from_scratch(run);
    run->model.dequantize_once = true;
}

static void offload_two(struct nb_run *run)
{
    run->offloaded = 2;
}

static void keep_this_and_that(struct nb_run *run)
{
    for (int i = 0; i < nb_checkpoint_config(run->checkpoint)->layers; i++)
        run->keep[i] = (enum nb_keep)(i % NB_KEEP_NOTHING);
}

/* A tensor a chunk: every buffer is used again and again. */
static void page_by_tensor(struct nb_run *run)
{
    run->page_bytes = 1;
}

/* All of it, though there is room. */
#define PAGED "optimizer: paged_adamw_32bit\nresident_optimizer_bytes: 0\n"

/* Ways of getting the same numbers on the GPU. */
struct way {
    const char *what, *more;
    change_run *change;
    bool first; /* those that follow give its bits */
};

static const struct way ways[] = {
    {"recompute all", "gradient_checkpointing: true\n", NULL, true},
    {"again", "gradient_checkpointing: true\n", NULL, false},
    {"keep attention", "gradient_checkpointing: attention\n", NULL, false},
    {"keep all", "gradient_checkpointing: false\n", NULL, false},
    {"paged", "gradient_checkpointing: true\n" PAGED, NULL, false},
    {"paged by tensor", "gradient_checkpointing: true\n" PAGED, page_by_tensor, false},
    {"partly paged", "gradient_checkpointing: true\noptimizer: paged_adamw_32bit\nresident_optimizer_bytes: 20kB\n",
        page_by_tensor, false},
    {"keep this and that", "gradient_checkpointing: true\n", keep_this_and_that, false},
    {"from scratch", "gradient_checkpointing: true\n", multiply_from_scratch, true},
    {"from scratch, keep all", "gradient_checkpointing: false\n", multiply_from_scratch, false},
    {"dequantize once", "gradient_checkpointing: true\n", dequantize_once, false},
    {"dequantize once, keep attention", "gradient_checkpointing: attention\n", dequantize_once, false},
};

static const struct way offloading_ways[] = {
    {"inputs stay", "gradient_checkpointing: true\nactivation_offloading: false\n", NULL, true},
    {"offload inputs", "gradient_checkpointing: true\nactivation_offloading: true\n", NULL, false},
    {"offload inputs and page", "gradient_checkpointing: true\nactivation_offloading: true\n" PAGED,
        page_by_tensor, false},
    {"offload inputs and attention", "gradient_checkpointing: attention\nactivation_offloading: true\n", NULL, false},
    {"offload some", "gradient_checkpointing: attention\nactivation_offloading: false\n", offload_two, false},
    {"inputs stay, two micro-batches",
        "gradient_checkpointing: true\nactivation_offloading: false\ngradient_accumulation_steps: 2\n", NULL, true},
    {"offload inputs, two micro-batches",
        "gradient_checkpointing: true\nactivation_offloading: true\ngradient_accumulation_steps: 2\n", NULL, false},
};

/* Twelve rows of up to 40 tokens are two tiles. */
#define TWO_TILES "micro_batch_size: 12\nlora_dropout: 0.1\n"
static const struct way chunk_ways[] = {
    {"the MLP at once", TWO_TILES "gradient_checkpointing: true\n", NULL, true},
    {"the MLP in chunks", TWO_TILES "gradient_checkpointing: true\nmlp_chunk_tokens: 256\n", NULL, false},
    {"the MLP in chunks, keep all", TWO_TILES "gradient_checkpointing: false\nmlp_chunk_tokens: 256\n", NULL, false},
    {"MLP and loss in chunks, offloaded and paged",
        TWO_TILES "gradient_checkpointing: attention\nmlp_chunk_tokens: 256\nloss_chunk_rows: 256\nactivation_offloading: true\n"
                  "optimizer: paged_adamw_32bit\n",
        page_by_tensor, false},
    {"MLP in chunks, layer by layer",
        TWO_TILES "gradient_checkpointing: true\nmlp_chunk_tokens: 256\naccumulation_order: layer_major\n", NULL, false},
    {"the MLP at once, from scratch", TWO_TILES "gradient_checkpointing: true\n", multiply_from_scratch, true},
    {"the MLP in chunks, from scratch", TWO_TILES "gradient_checkpointing: true\nmlp_chunk_tokens: 256\n",
        multiply_from_scratch, false},
    {"the MLP in chunks, dequantized once", TWO_TILES "gradient_checkpointing: true\nmlp_chunk_tokens: 256\n",
        dequantize_once, false},
    {"the loss at once", TWO_TILES "lora_target_modules: [up_proj, lm_head]\nloss_chunk_rows: 512\n", NULL, true},
    {"the loss in chunks", TWO_TILES "lora_target_modules: [up_proj, lm_head]\nloss_chunk_rows: 256\n", NULL, false},
};

/* Seven layers, which differ all, and four micro-batches a step, two in the second. */
static const struct way order_ways[] = {
    {"batch-major", "gradient_accumulation_steps: 4\ngradient_checkpointing: true\nresident_layers: 7\n", NULL, true},
    {"layer-major, streamed, offloaded and paged",
        "gradient_accumulation_steps: 4\ngradient_checkpointing: attention\nresident_layers: 0\n"
        "accumulation_order: layer_major\nactivation_offloading: true\noptimizer: paged_adamw_32bit\n",
        page_by_tensor, false},
    {"batch-major, from scratch", "gradient_accumulation_steps: 4\ngradient_checkpointing: true\n",
        multiply_from_scratch, true},
    {"layer-major, dequantize once, streamed",
        "gradient_accumulation_steps: 4\ngradient_checkpointing: true\nresident_layers: 3\n"
        "accumulation_order: layer_major\n",
        dequantize_once, false},
};

static bool holds_the_plan(const struct result *result)
{
    return result->planned == result->peak && result->pinned_planned == result->pinned_peak &&
           result->pageable_planned == result->pageable_peak;
}

static void compare_ways(struct test *t, const char *name, const char *model, const struct way *way, size_t count)
{
    struct result first = {0}, result;
    int failures = t->failures;
    for (size_t i = 0; i < count; i++) {
        char *yaml = yaml_of(t, model, "cuda", "out", way[i].more);
        t->checks++;
        if (works(t, way[i].what, train(yaml, way[i].change, &result))) {
            if (way[i].first)
                first = result;
            if (!holds_the_plan(&result))
                fail(t, way[i].what, "the plan is not the program");
            if (memcmp(first.loss, result.loss, sizeof first.loss) != 0 ||
                memcmp(first.grad_norm, result.grad_norm, sizeof first.grad_norm) != 0)
                fail(t, way[i].what, "other bits than the way before that it should equal");
        }
        free(yaml);
    }
    if (t->failures == failures)
        printf("ok %s: the same bits in %zu ways\n", name, count);
    fflush(stdout);
}

/* Of a model with a head of its own. Recorded work begins behind rows that come from the host. */
static const struct way embedding_ways[] = {
    {"the table on the device", "gradient_checkpointing: true\n", NULL, true},
    {"the table on the host", "gradient_checkpointing: true\nembedding_device: host\n", NULL, false},
    {"the table on the device, three micro-batches", "gradient_accumulation_steps: 3\n", NULL, true},
    {"the table on the host, three micro-batches", "gradient_accumulation_steps: 3\nembedding_device: host\n", NULL, false},
    {"a head in 4 bits", "head_4bit: true\n", NULL, true},
    {"a head in 4 bits, the table on the host", "head_4bit: true\nembedding_device: host\n", NULL, false},
    {"a head in 4 bits, from scratch", "head_4bit: true\n", multiply_from_scratch, true},
    {"a head in 4 bits, from scratch, the table on the host", "head_4bit: true\nembedding_device: host\n", multiply_from_scratch,
        false},
    {"a head in 4 bits, the loss at once", TWO_TILES "head_4bit: true\nloss_chunk_rows: 512\n", NULL, true},
    {"a head in 4 bits, the loss in chunks", TWO_TILES "head_4bit: true\nloss_chunk_rows: 256\nembedding_device: host\n", NULL, false},
};

struct whole {
    const char *out, *optimizer;
    int steps;
    bool resume;
};

/* Rank 32: some moments in 8 bits, some in 32. */
/* Of seven layers, which differ all, so many are resident. */
static const struct way streaming_ways[] = {
    {"all resident", "gradient_checkpointing: true\nresident_layers: 7\n", NULL, true},
    {"all streamed", "gradient_checkpointing: true\nresident_layers: 0\n", NULL, false},
    {"four streamed", "gradient_checkpointing: attention\nresident_layers: 3\n", NULL, false},
    {"all streamed, keep this and that", "gradient_checkpointing: true\nresident_layers: 0\n", keep_this_and_that, false},
    {"all streamed, offloaded and paged",
        "gradient_checkpointing: true\nresident_layers: 0\nactivation_offloading: true\n" PAGED,
        page_by_tensor, false},
    {"all streamed, offloaded and paged, the embedding on the host",
        "gradient_checkpointing: true\nresident_layers: 0\nactivation_offloading: true\noptimizer: paged_adamw_32bit\n"
        "embedding_device: host\n",
        page_by_tensor, false},
    {"all resident, from scratch", "gradient_checkpointing: true\nresident_layers: 7\n", multiply_from_scratch, true},
    {"all streamed, from scratch", "gradient_checkpointing: true\nresident_layers: 0\n", multiply_from_scratch, false},
};

static void compare_deep(struct test *t, const char *name, const char *shape, const struct way *way, size_t count)
{
    char *deep = nb_path_join(t->folder, name);
    if (works(t, "a model of seven layers", nb_test_write_deep_model(shape, 7, deep)))
        compare_ways(t, name, deep, way, count);
    free(deep);
}

/* Quantized on the device, kept in a file, and read from it: in between, at the next start, and at each use. */
static void compare_files(struct test *t, const char *shape)
{
    char *cache = nb_format("gradient_checkpointing: true\nquantized_cache: %s/cache\nresident_layers: ", t->folder);
    char *host = nb_format("%s3\nweights_from: host\n", cache), *file = nb_format("%s2\nweights_from: file\n", cache);
    const struct way file_ways[] = {
        {"quantized", "gradient_checkpointing: true\nresident_layers: 7\n", NULL, true},
        {"from a file, first start", file, NULL, false},
        {"from a file, second start", file, NULL, false},
        {"from host memory, second start", host, NULL, false},
    };
    compare_deep(t, "files", shape, file_ways, sizeof file_ways / sizeof *file_ways);
    free(host);
    free(file);
    free(cache);
}

static nb_status train_whole(struct test *t, const char *model, const struct whole *whole)
{
    struct nb_train_options options = {.resume = whole->resume};
    struct nb_config config;
    char *more = nb_format("max_steps: %d\nsave_steps: 2\nlora_r: 32\nlora_dropout: 0.1\noptimizer: %s\n", whole->steps,
        whole->optimizer);
    char *yaml = yaml_of(t, model, "cuda", whole->out, more);
    nb_status status = nb_config_parse(yaml, strlen(yaml), "test.yml", NULL, 0, &config);
    free(yaml);
    free(more);
    if (status == NB_OK)
        status = nb_config_validate_train(&config);
    if (status == NB_OK)
        status = nb_train(&config, &options);
    nb_config_destroy(&config);
    return status;
}

static bool same_file(const struct test *t, const char *a, const char *b, const char *name)
{
    char *path[2] = {nb_format("%s/%s/%s", t->folder, a, name), nb_format("%s/%s/%s", t->folder, b, name)};
    struct nb_mapped_file file[2] = {0};
    bool same = nb_mapped_file_open(path[0], &file[0]) == NB_OK && nb_mapped_file_open(path[1], &file[1]) == NB_OK &&
                file[0].bytes == file[1].bytes && memcmp(file[0].data, file[1].data, file[0].bytes) == 0;
    for (int i = 0; i < 2; i++) {
        nb_mapped_file_close(&file[i]);
        free(path[i]);
    }
    return same;
}

/* Four steps at once, and two and two, the latter two with masters and moments paged. */
static void compare_resumed(struct test *t, const char *name, const char *model)
{
    static const struct whole runs[] = {
        {"whole", "adamw_8bit", 4, false},
        {"halves", "adamw_8bit", 2, false},
        {"halves", "paged_adamw_8bit\nresident_optimizer_bytes: 0", 4, true},
    };
    t->checks++;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        if (!works(t, name, train_whole(t, model, &runs[i])))
            return;
    if (!same_file(t, "whole", "halves", "adapter_model.safetensors") ||
        !same_file(t, "whole/checkpoint-4", "halves/checkpoint-4", "optimizer.safetensors"))
        fail(t, name, "a resumed run leaves other bytes");
    else
        printf("ok %s: a resumed run leaves the same bytes\n", name);
    fflush(stdout);
}

static void run_checks(struct test *t, const char *only)
{
    static const char *const families[] = {
        "llama", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen3", "llama_straddling"};
    static const char *const variants[] = {
        "gradient_checkpointing: true\n",
        "gradient_checkpointing: attention\nlora_dropout: 0.1\nsample_packing: true\n",
        "gradient_accumulation_steps: 2\noptimizer: adamw_8bit\nbnb_4bit_quant_type: fp4\nbnb_4bit_use_double_quant: false\n",
        "adapter: lora\nload_in_4bit: false\nlora_target_modules: [q_proj, down_proj]\n",
    };
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        char *model = nb_path_join(t->models, families[f]);
        if (!only || strcmp(only, families[f]) == 0)
            compare_devices(t, families[f], model, variants[f % 4]);
        free(model);
    }
    char *block = nb_path_join(t->folder, "smollm2-block.json"), *llama = nb_path_join(t->models, "llama"),
         *tied = nb_path_join(t->models, "llama_tied");
    char *deep = nb_path_join(t->folder, "deep.json");
    if (!only || strcmp(only, "smollm2") == 0)
        compare_devices(t, "smollm2's block", block, "gradient_checkpointing: true\n");
    if (!only || strcmp(only, "ways") == 0)
        compare_ways(t, "llama", llama, ways, sizeof ways / sizeof *ways);
    if (!only || strcmp(only, "offloading") == 0)
        compare_ways(t, "six blocks", deep, offloading_ways, sizeof offloading_ways / sizeof *offloading_ways);
    if (!only || strcmp(only, "chunks") == 0)
        compare_ways(t, "chunks", llama, chunk_ways, sizeof chunk_ways / sizeof *chunk_ways);
    if (!only || strcmp(only, "streaming") == 0)
        compare_deep(t, "streaming", llama, streaming_ways, sizeof streaming_ways / sizeof *streaming_ways);
    if (!only || strcmp(only, "files") == 0)
        compare_files(t, llama);
    if (!only || strcmp(only, "order") == 0)
        compare_deep(t, "order", llama, order_ways, sizeof order_ways / sizeof *order_ways);
    if (!only || strcmp(only, "resume") == 0)
        compare_resumed(t, "llama", llama);
    if (!only || strcmp(only, "embedding") == 0) {
        compare_ways(t, "embedding", llama, embedding_ways, sizeof embedding_ways / sizeof *embedding_ways);
        compare_devices(t, "a head in 4 bits", llama, "head_4bit: true\nlora_target_modules: [lm_head, q_proj]\n");
        compare_devices(t, "a tied head in 4 bits", tied, "head_4bit: true\nembedding_device: host\n");
    }
    free(block);
    free(tied);
    free(llama);
    free(deep);
}

int main(int argc, char **argv)
{
    struct nb_device_profile profile;
    const char *base = getenv("TMPDIR"), *only = argc == 4 && strcmp(argv[2], "--only") == 0 ? argv[3] : NULL;
    if (argc != 2 && !only) {
        fprintf(stderr, "usage: %s MODELS [--only FAMILY|smollm2|ways|offloading|chunks|streaming|files|order|resume|embedding]\n",
            argv[0]);
        return 2;
    }
    if (nb_cuda_probe(&(struct nb_cuda_options){0}, &profile) != NB_OK) {
        printf("skipped: %s\n", nb_status_message());
        return SKIP;
    }
    struct test t = {.models = argv[1], .folder = nb_format("%s/nibble-test-XXXXXX", base ? base : "/tmp")};
    if (!mkdtemp(t.folder) || write_rows(t.folder) != NB_OK || write_shapes(t.folder) != NB_OK) {
        fprintf(stderr, "%s: cannot be used\n", t.folder);
        return 1;
    }
    printf("training on %s\n", profile.name);
    run_checks(&t, only);
    nb_remove_folder(t.folder);
    free(t.folder);
    printf("%d checks, %d failures\n", t.checks, t.failures);
    return t.failures || t.checks == 0;
}
