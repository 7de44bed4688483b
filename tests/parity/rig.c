#include "rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "adapter/peft.h"
#include "base/bfloat.h"
#include "model/decoder.h"

void rig_check(nb_status status)
{
    if (status != NB_OK)
        fail_msg("%s", nb_status_message());
}

static void open_device(struct rig *rig)
{
    struct nb_cpu_options cpu = {.threads = rig->options.threads, .deferred = rig->options.deferred, .deferred_seed = rig->options.seed};
    if (rig->options.dry) {
        struct nb_device_profile profile;
        nb_cpu_profile(&cpu, &profile);
        rig_check(nb_dry_device_create(&profile, &rig->device));
    } else {
        rig_check(nb_cpu_device_create(&cpu, &rig->device));
    }
    uint64_t bytes = rig->options.memory_bytes ? rig->options.memory_bytes : 32u << 20;
    rig_check(rig->device->stream_create(rig->device, &rig->stream));
    rig_check(rig->device->memory_take(rig->device, bytes, &rig->memory));
    rig_check(nb_arena_create("device", rig->memory.address, bytes, &rig->arena));
}

static void open_host_memory(struct rig *rig)
{
    const uint64_t bytes = rig->options.host_bytes ? rig->options.host_bytes : 1u << 20;
    for (int i = 0; i < 2; i++)
        rig_check(rig->device->host_take(rig->device, bytes, &rig->host[i]));
    rig_check(nb_arena_create("pinned", (uintptr_t)rig->host[0], bytes, &rig->pinned));
    rig_check(nb_arena_create("pageable", (uintptr_t)rig->host[1], bytes, &rig->pageable));
}

static void open_adapter(struct rig *rig)
{
    const struct rig_options *o = &rig->options;
    struct nb_peft_config *config = NULL;
    struct nb_adapter_options options = {0};
    void *staging;
    if (o->fresh_adapter) {
        options = *o->fresh_adapter;
    } else {
        rig_check(nb_peft_config_read(o->adapter, &config));
        nb_peft_config_options(config, &options);
    }
    options.activation = o->activation;
    options.trains = o->keep != NB_KEEP_NOTHING;
    options.seed = 1;
    rig_check(nb_adapter_create(nb_model_config_of(rig->model), &options, &rig->adapter));
    rig_check(nb_adapter_allocate(rig->adapter, rig->device, rig->arena, NULL));
    rig_check(rig->device->host_take(rig->device, nb_adapter_staging_bytes(rig->adapter), &staging));
    rig_check(nb_adapter_initialize(rig->adapter, rig->stream, staging));
    if (!o->dry && !o->fresh_adapter)
        rig_check(nb_peft_load(rig->adapter, rig->stream, staging, o->adapter));
    rig->device->host_give_back(rig->device, staging);
    nb_peft_config_destroy(&config);
}

/* bitsandbytes' CPU build (csrc/cpu_ops.cpp, its AVX-512 dequantizeBlockwise4bitCpu) takes the scale of row r, column c from block
 * r * (columns / 64) + c / 64 of a matrix whose columns are a multiple of 16 but not of 64. Blocks run on across rows, so that is another
 * block than the weight was quantized with, and than the CUDA build and its own scalar code read. The references were computed so. To
 * compare with them, a model gets the very weights they had. */
static void write_reference_weights(struct rig *rig, const char *name, const struct nb_weight *weight)
{
    struct nb_quant_matrix m;
    rig_check(nb_checkpoint_matrix_quantized(rig->checkpoint, name, weight->rows, weight->columns, &m));
    uint64_t count = m.rows * m.columns, blocks = nb_quant_blocks(count), blocks_a_row = m.columns / NB_QUANT_BLOCK;
    float *absmax = malloc(blocks * sizeof *absmax);
    nb_bf16 *w = malloc(count * sizeof *w);
    nb_dequantize_absmax(&m, 0, blocks, absmax);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t row = i / m.columns, column = i % m.columns;
        int code = i % 2 ? m.packed[i / 2] & 15 : m.packed[i / 2] >> 4;
        w[i] = nb_bf16_from_float(m.codebook[code] * absmax[row * blocks_a_row + column / NB_QUANT_BLOCK]);
    }
    rig_check(rig->device->upload(rig->device, rig->stream, weight->data, w, count * sizeof *w));
    rig_check(rig->device->stream_wait(rig->device, rig->stream));
    free(absmax);
    free(w);
}

static void use_reference_scales(struct rig *rig)
{
    struct nb_weight_store *store = rig->model->store;
    int written = 0;
    for (int unit = 1; unit < nb_weight_store_units(store) - 1; unit++) {
        const struct nb_tensor_spec *spec;
        struct nb_unit_place place;
        int count = nb_weight_store_tensors(store, unit, &spec);
        rig_check(nb_weight_store_begin_write(store, unit, rig->stream, false, &place));
        for (int i = 0; i < count; i++) {
            char name[NB_TENSOR_NAME_BYTES];
            if (!spec[i].linear || spec[i].columns % NB_QUANT_BLOCK == 0 || spec[i].columns % 16 != 0)
                continue;
            write_reference_weights(rig, nb_tensor_name(&spec[i], unit - 1, name), &place.view.matrix[spec[i].role]);
            written++;
        }
        rig_check(nb_weight_store_end_write(store, unit, rig->stream));
    }
    assert_true(written > 0);
}

void rig_open(struct rig *rig, const struct rig_options *options)
{
    *rig = (struct rig){.options = *options};
    open_device(rig);
    rig_check(nb_checkpoint_open(options->model, &rig->checkpoint));
    struct nb_model_options model = {.linear_format = options->format, .nested = options->nested, .activation = options->activation,
        .embedding_on_host = options->embedding_on_host,
        .embedding_piece_bytes = options->embedding_piece_bytes};
    rig_check(nb_model_create(rig->device, rig->checkpoint, &model, &rig->model));
    if (options->embedding_on_host)
        open_host_memory(rig);
    struct nb_model_memory memory = {.device = rig->arena, .pinned = rig->pinned, .pageable = rig->pageable};
    rig_check(nb_model_allocate(rig->model, &memory, options->positions_max ? options->positions_max : 128));
    rig_check(nb_model_load(rig->model, rig->stream, rig->arena, NULL));
    if (options->reference_scales)
        use_reference_scales(rig);
    if (options->adapter || options->fresh_adapter)
        open_adapter(rig);
    rig_check(nb_arena_take(rig->arena, NB_CATEGORY_BATCH, "step", sizeof(struct nb_step), &rig->step.address));
    if (options->limits.tokens) {
        struct nb_pass_options pass = {.limits = options->limits, .keep = options->keep, .slots = options->slots ? options->slots : 1,
                                       .batches = options->batches, .step = rig->step, .pinned = rig->pinned};
        rig_check(nb_pass_create(rig->model, rig->adapter, &pass, rig->arena, rig->stream, &rig->pass));
    }
}

void rig_close(struct rig *rig)
{
    rig_check(rig->device->stream_wait(rig->device, rig->stream));
    nb_pass_destroy(&rig->pass);
    nb_adapter_destroy(&rig->adapter);
    nb_model_destroy(&rig->model);
    nb_checkpoint_close(&rig->checkpoint);
    nb_arena_destroy(&rig->arena);
    nb_arena_destroy(&rig->pinned);
    nb_arena_destroy(&rig->pageable);
    for (int i = 0; i < 2; i++)
        if (rig->host[i])
            rig->device->host_give_back(rig->device, rig->host[i]);
    rig->device->memory_give_back(rig->device, rig->memory);
    rig->device->stream_destroy(rig->device, &rig->stream);
    nb_device_destroy(&rig->device);
}

void rig_begin_step(struct rig *rig)
{
    rig->host_step = (struct nb_step){.step = 1, .random_step = 1, .inverse_count = 1, .finite = 1};
    rig_check(rig->device->upload(rig->device, rig->stream, rig->step, &rig->host_step, sizeof rig->host_step));
    rig_check(rig->device->stream_wait(rig->device, rig->stream));
}

int rig_trained_tokens(const struct rig_rows *rows, int first, int count)
{
    int trained = 0;
    for (int r = first; r < first + count; r++)
        for (int t = 1; t < rows->length; t++)
            trained += rows->labels[r * rows->length + t] >= 0;
    return trained;
}

void rig_set_rows(struct rig *rig, int slot, const struct rig_rows *rows, int first, int count)
{
    int tokens = count * rows->length, trained = 0;
    int32_t *positions = calloc((size_t)tokens, sizeof *positions), *starts = calloc((size_t)count + 1, sizeof *starts);
    int32_t *row = calloc((size_t)tokens, sizeof *row), *label = calloc((size_t)tokens, sizeof *label);
    for (int r = 0; r < count; r++)
        for (int t = 0; t < rows->length; t++) {
            int i = r * rows->length + t;
            positions[i] = t;
            starts[r + 1] = i + 1;
            int32_t next = t + 1 < rows->length ? rows->labels[(first + r) * rows->length + t + 1] : -100;
            if (next >= 0) {
                row[trained] = i;
                label[trained++] = next;
            }
        }
    struct nb_micro_batch batch = {
        .counts = {.tokens = (uint32_t)tokens, .sequences = (uint32_t)count, .trained_rows = (uint32_t)trained,
                   .token_offset = (uint32_t)(first * rows->length), .key_tokens = (uint32_t)tokens},
        .ids = rows->ids + first * rows->length,
        .positions = positions,
        .starts = starts,
        .trained_row = row,
        .label = label,
    };
    rig_check(nb_pass_set_batch(rig->pass, slot, &batch));
    free(positions);
    free(starts);
    free(row);
    free(label);
}

double rig_loss(struct rig *rig, int trained_tokens)
{
    rig_check(rig->device->download(rig->device, rig->stream, &rig->host_step, rig->step, sizeof rig->host_step));
    rig_check(rig->device->stream_wait(rig->device, rig->stream));
    return rig->host_step.loss_sum / trained_tokens;
}

float *rig_gradients(struct rig *rig)
{
    uint64_t bytes = nb_adapter_elements(rig->adapter) * sizeof(float);
    float *gradient = malloc(bytes);
    rig_check(rig->device->download(rig->device, rig->stream, gradient, nb_adapter_memory_of(rig->adapter)->gradient, bytes));
    rig_check(rig->device->stream_wait(rig->device, rig->stream));
    return gradient;
}

void rig_clear_gradients(struct rig *rig)
{
    uint64_t bytes = nb_adapter_elements(rig->adapter) * sizeof(float);
    rig_check(rig->device->fill_zero(rig->device, rig->stream, nb_adapter_memory_of(rig->adapter)->gradient, bytes));
}

void rig_forward_backward(struct rig *rig, int slot)
{
    int layers = nb_model_config_of(rig->model)->layers;
    rig_check(nb_pass_forward(rig->pass, slot, 0, layers + 1));
    rig_check(nb_pass_backward(rig->pass, slot, layers, 0));
}

void rig_logits(struct rig *rig, int slot, int token, float *logits)
{
    size_t vocab = (size_t)nb_model_config_of(rig->model)->vocab;
    nb_dptr row;
    nb_bf16 *half = malloc(vocab * sizeof *half);
    bool bf16 = rig->options.activation == NB_DTYPE_BF16;
    rig_check(nb_pass_logits(rig->pass, slot, token, &row));
    rig_check(rig->device->download(rig->device, rig->stream, bf16 ? (void *)half : logits, row, vocab * (bf16 ? 2 : 4)));
    rig_check(rig->device->stream_wait(rig->device, rig->stream));
    for (size_t i = 0; bf16 && i < vocab; i++)
        logits[i] = nb_bf16_to_float(half[i]);
    free(half);
}
