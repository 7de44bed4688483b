/* Weights from a checkpoint into their units, tensor by tensor in the units' order. */
#include <stdlib.h>

#include "base/progress.h"
#include "base/random.h"
#include "model/decoder.h"
#include "model/rope_table.h"
#include "model/work.h"

struct loader {
    const struct nb_model *model;
    struct nb_work work;
    void *staging; /* host memory that uploads read; not to be touched on a dry device */
    struct nb_progress *progress;
    uint64_t done_bytes;
};

static nb_status upload(const struct loader *l, nb_dptr to, const void *from, uint64_t bytes)
{
    return bytes ? l->work.device->upload(l->work.device, l->work.stream, to, from, bytes) : NB_OK;
}

static nb_status wait(const struct loader *l)
{
    return l->work.device->stream_wait(l->work.device, l->work.stream);
}

/* A matrix that the file holds in 4 bits, with the file's own maps: the same bytes in memory. */
static nb_status load_four_bits(const struct loader *l, const char *name, const struct nb_weight *weight)
{
    struct nb_quant_matrix view;
    NB_TRY(nb_checkpoint_matrix_quantized(l->model->checkpoint, name, weight->rows, weight->columns, &view));
    enum nb_quant_type type = weight->format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
    if (view.type != type || view.nested != weight->nested)
        return nb_fail(NB_FORMAT, "%s: %s is quantized in another way than the model's config.json says",
            nb_checkpoint_path(l->model->checkpoint), name);
    uint64_t count = view.rows * view.columns, blocks = nb_quant_blocks(count);
    NB_TRY(upload(l, weight->data, view.packed, nb_quant_packed_bytes(count)));
    NB_TRY(upload(l, weight->codebook, view.codebook, NB_QUANT_CODES * sizeof(float)));
    if (!view.nested) {
        NB_TRY(upload(l, weight->absmax, view.absmax, blocks * sizeof(float)));
    } else {
        NB_TRY(upload(l, weight->absmax, view.absmax_codes, blocks));
        NB_TRY(upload(l, weight->nested_absmax, view.nested_absmax, nb_quant_superblocks(blocks) * sizeof(float)));
        NB_TRY(upload(l, weight->nested_map, view.nested_map, 256 * sizeof(float)));
        NB_TRY(upload(l, weight->nested_offset, &view.nested_offset, sizeof(float)));
    }
    return wait(l);
}

/* For the progress: in the files, or as many as are made instead. */
static uint64_t bytes_to_read(const struct nb_model *model, const struct nb_tensor_spec *spec, const char *name)
{
    return model->options.random_weights ? (uint64_t)spec->rows * (uint64_t)spec->columns * sizeof(nb_bf16)
                                         : nb_checkpoint_tensor_bytes(model->checkpoint, name);
}

/* Values of deviation 0.02 or so, the same in every run. Matrices take theirs from the same ones. */
static void fill_random(nb_bf16 *values, uint64_t count)
{
    for (uint64_t i = 0; i < count; i += 4) {
        const uint32_t counter[4] = {(uint32_t)i, (uint32_t)(i >> 32), 0, 0}, key[2] = {3, 5};
        struct nb_philox number = nb_philox(counter, key);
        for (uint64_t k = 0; k < 4 && i + k < count; k++)
            values[i + k] = nb_bf16_from_float(((float)(number.word[k] >> 8) * 0x1p-23f - 1) * 0.035f);
    }
}

/* In place of reading: matrices are what fill_random left in the staging buffer. */
static nb_status make_vector(const struct loader *l, const struct nb_tensor_spec *spec, nb_dptr vector)
{
    nb_bf16 *values = l->staging;
    bool is_bias = spec->role == NB_TENSOR_Q_BIAS || spec->role == NB_TENSOR_K_BIAS || spec->role == NB_TENSOR_V_BIAS;
    for (int64_t i = 0; i < spec->columns; i++)
        values[i] = nb_bf16_from_float(is_bias ? 0.0f : 1.0f);
    NB_TRY(upload(l, vector, values, (uint64_t)spec->columns * sizeof *values));
    NB_TRY(wait(l));
    fill_random(values, (uint64_t)spec->columns);
    return NB_OK;
}

/* A tensor read as bf16, and quantized on the device where the unit holds it so. */
static nb_status load_bf16(const struct loader *l, const char *name, const struct nb_tensor_spec *spec,
    const struct nb_weight *weight, nb_dptr vector)
{
    uint64_t bytes = (uint64_t)spec->rows * (uint64_t)spec->columns * sizeof(nb_bf16);
    bool makes = l->model->options.random_weights, dry = l->work.device->dry;
    if (makes && !dry && weight->rows == 0)
        return make_vector(l, spec, vector);
    if (!makes && !dry)
        NB_TRY(nb_checkpoint_tensor_read_bf16(l->model->checkpoint, name, spec->rows, spec->columns, l->staging));
    if (weight->rows == 0 || weight->format == NB_WEIGHT_BF16) {
        NB_TRY(upload(l, weight->rows == 0 ? vector : weight->data, l->staging, bytes));
        return wait(l);
    }
    uint64_t frame = nb_arena_frame(l->work.arena);
    struct nb_quantize args = {.to = *weight};
    NB_TRY(nb_work_take(&l->work, NB_CATEGORY_SCRATCH, "matrix before it is quantized", bytes, &args.w));
    nb_status status = upload(l, args.w, l->staging, bytes);
    if (status == NB_OK)
        status = nb_work_quantize(&l->work, &args);
    if (status == NB_OK)
        status = wait(l);
    nb_arena_release_to(l->work.arena, frame);
    return status == NB_OK ? NB_OK : nb_fail_within(status, "%s: %s", nb_checkpoint_path(l->model->checkpoint), name);
}

static nb_status load_tensor(
    struct loader *l, int unit, const struct nb_tensor_spec *spec, const struct nb_unit_view *view)
{
    char name[NB_TENSOR_NAME_BYTES];
    nb_tensor_name(spec, unit - 1, name);
    const struct nb_weight *weight = &view->matrix[spec->role];
    bool dry = l->work.device->dry, four_bits = weight->rows > 0 && weight->format != NB_WEIGHT_BF16 &&
                                                !l->model->options.random_weights &&
                                                nb_checkpoint_tensor_is_quantized(l->model->checkpoint, name);
    if (!four_bits)
        NB_TRY(load_bf16(l, name, spec, weight, view->vector[spec->role]));
    else if (!dry)
        NB_TRY(load_four_bits(l, name, weight));
    if (dry)
        return NB_OK;
    nb_checkpoint_forget(l->model->checkpoint, name);
    l->done_bytes += bytes_to_read(l->model, spec, name);
    if (l->progress)
        nb_progress_update(l->progress, l->done_bytes);
    return NB_OK;
}

static nb_status load_unit(struct loader *l, int unit)
{
    struct nb_weight_store *store = l->model->store;
    const struct nb_tensor_spec *spec;
    int count = nb_weight_store_tensors(store, unit, &spec);
    struct nb_unit_view view;
    NB_TRY(nb_weight_store_begin_write(store, unit, l->work.stream, &view));
    for (int i = 0; i < count; i++)
        NB_TRY(load_tensor(l, unit, &spec[i], &view));
    return nb_weight_store_end_write(store, unit, l->work.stream);
}

/* The tables of one rotation, a staging buffer's worth of positions at a time. */
static nb_status load_rope(const struct loader *l, const struct nb_rope_table *table, uint64_t staging_bytes)
{
    const struct nb_model_config *config = &l->model->config;
    int half = config->head_dim / 2;
    float *inverse_frequency = malloc((size_t)half * sizeof *inverse_frequency);
    if (!inverse_frequency)
        return nb_fail(NB_MEMORY, "no memory for the rotation's tables");
    nb_rope_inverse_frequencies(&config->rope, config->head_dim, inverse_frequency);
    uint64_t row_bytes = (uint64_t)half * sizeof(float);
    int rows = (int)(staging_bytes / 2 / row_bytes);
    nb_status status = NB_OK;
    for (int begin = 0; status == NB_OK && begin < l->model->positions_max; begin += rows) {
        int count = l->model->positions_max - begin < rows ? l->model->positions_max - begin : rows;
        float *cosine = l->staging, *sine = cosine + (size_t)count * (size_t)half;
        if (!l->work.device->dry)
            nb_rope_angles(inverse_frequency, half, begin, count, cosine, sine);
        status = upload(l, nb_dptr_at(table->cosine, (uint64_t)begin * row_bytes), cosine, (uint64_t)count * row_bytes);
        if (status == NB_OK)
            status = upload(l, nb_dptr_at(table->sine, (uint64_t)begin * row_bytes), sine, (uint64_t)count * row_bytes);
        if (status == NB_OK)
            status = wait(l);
    }
    free(inverse_frequency);
    return status;
}

/* Bytes of the largest tensor in bf16, at least enough for a few rows of the rotation's tables; and of all tensors in the files. */
static void measure(const struct nb_model *model, uint64_t *largest, uint64_t *total)
{
    *largest = 64 * (uint64_t)model->config.head_dim * sizeof(float);
    *total = 0;
    for (int unit = 0; unit < nb_weight_store_units(model->store); unit++) {
        const struct nb_tensor_spec *spec;
        int count = nb_weight_store_tensors(model->store, unit, &spec);
        for (int i = 0; i < count; i++) {
            char name[NB_TENSOR_NAME_BYTES];
            uint64_t bytes = (uint64_t)spec[i].rows * (uint64_t)spec[i].columns * sizeof(nb_bf16);
            *largest = bytes > *largest ? bytes : *largest;
            *total += bytes_to_read(model, &spec[i], nb_tensor_name(&spec[i], unit - 1, name));
        }
    }
}

nb_status nb_model_load(
    struct nb_model *model, struct nb_stream *stream, struct nb_arena *arena, struct nb_progress *progress)
{
    struct loader l = {.model = model, .work = {model->device, stream, arena}, .progress = progress};
    uint64_t staging_bytes, total;
    measure(model, &staging_bytes, &total);
    NB_TRY(model->device->host_take(model->device, staging_bytes, &l.staging));
    bool quantizes = model->options.linear_format != NB_WEIGHT_BF16 && !model->config.quantized;
    if (progress)
        nb_progress_start(progress, quantizes ? "quantizing" : "loading", NULL, total);
    nb_status status = NB_OK;
    for (int i = 0; status == NB_OK && i < NB_ROPE_TABLES; i++)
        status = load_rope(&l, &model->rope[i], staging_bytes);
    if (model->options.random_weights && !model->device->dry)
        fill_random(l.staging, staging_bytes / sizeof(nb_bf16));
    for (int unit = 0; status == NB_OK && unit < nb_weight_store_units(model->store); unit++)
        status = load_unit(&l, unit);
    if (progress && status == NB_OK)
        nb_progress_finish(progress);
    else if (progress)
        nb_progress_abandon(progress);
    nb_status waited = wait(&l);
    model->device->host_give_back(model->device, l.staging);
    if (status == NB_OK && waited == NB_OK)
        nb_weight_store_settle(model->store);
    return status != NB_OK ? status : waited;
}
