/* Weights into their units: tensor by tensor from a checkpoint, in the units' order, or unit by unit from the cache. */
#include <string.h>

#include "base/progress.h"
#include "model/decoder.h"
#include "model/random_weights.h"
#include "model/unit_cache.h"
#include "model/unit_source.h"
#include "model/work.h"

/* Pieces in which units pass between file and device: large enough for any disk, and no weight beside a model's. */
static const uint64_t piece_bytes = UINT64_C(4) << 20;

struct loader {
    const struct nb_model *model;
    struct nb_work work;
    void *staging; /* host memory that uploads read; not to be touched on a dry device */
    uint64_t staging_bytes;
    bool on_host;                      /* the unit at work is written by the host, at its own addresses */
    struct nb_unit_file *cached;       /* to read from, or NULL */
    struct nb_unit_file_writer *cache; /* to write to, or NULL */
    struct nb_progress *progress;
    uint64_t done_bytes;
};

static void *host_address(nb_dptr at)
{
    return (void *)(uintptr_t)at.address;
}

static nb_status put(const struct loader *l, nb_dptr to, const void *from, uint64_t bytes)
{
    if (bytes && l->on_host)
        memcpy(host_address(to), from, bytes);
    return bytes && !l->on_host ? l->work.device->upload(l->work.device, l->work.stream, to, from, bytes) : NB_OK;
}

static nb_status wait(const struct loader *l)
{
    return l->work.device->stream_wait(l->work.device, l->work.stream);
}

static void show(struct loader *l, uint64_t bytes)
{
    l->done_bytes += bytes;
    if (l->progress)
        nb_progress_update(l->progress, l->done_bytes);
}

/* What is between the file's bytes of a tensor and the unit's. */
enum way {
    AS_IT_IS,  /* nothing: a matrix in 4 bits, with the file's own maps */
    BF16,      /* it is read as bf16, whatever the file holds, and so it is used */
    QUANTIZED, /* then it is quantized, on the device */
    QUANTIZED_ON_HOST, /* or here: the head's */
};

/* The head is far larger than any other matrix: a bf16 copy of it on the device, for a moment of loading, could be more
 * than all that training takes beside the weights. */
static enum way way_of(
    const struct nb_model *model, const struct nb_tensor_spec *spec, const char *name, const struct nb_weight *weight)
{
    if (weight->rows == 0 || weight->format == NB_WEIGHT_BF16)
        return BF16;
    bool in_four_bits = !model->options.random_weights && nb_checkpoint_tensor_is_quantized(model->checkpoint, name);
    return in_four_bits ? AS_IT_IS : spec->role == NB_TENSOR_HEAD ? QUANTIZED_ON_HOST : QUANTIZED;
}

static enum nb_quant_type quant_type(const struct nb_weight *weight)
{
    return weight->format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
}

/* A matrix that is in 4 bits on the host. Waits. */
static nb_status put_four_bits(
    const struct loader *l, const struct nb_weight *weight, const struct nb_quant_matrix *view)
{
    uint64_t count = view->rows * view->columns, blocks = nb_quant_blocks(count);
    NB_TRY(put(l, weight->data, view->packed, nb_quant_packed_bytes(count)));
    NB_TRY(put(l, weight->codebook, view->codebook, NB_QUANT_CODES * sizeof(float)));
    if (!view->nested) {
        NB_TRY(put(l, weight->absmax, view->absmax, blocks * sizeof(float)));
    } else {
        NB_TRY(put(l, weight->absmax, view->absmax_codes, blocks));
        NB_TRY(put(l, weight->nested_absmax, view->nested_absmax, nb_quant_superblocks(blocks) * sizeof(float)));
        NB_TRY(put(l, weight->nested_map, view->nested_map, 256 * sizeof(float)));
        NB_TRY(put(l, weight->nested_offset, &view->nested_offset, sizeof(float)));
    }
    return wait(l);
}

/* A matrix that the file holds in 4 bits, with the file's own maps: the same bytes in memory. */
static nb_status load_four_bits(const struct loader *l, const char *name, const struct nb_weight *weight)
{
    struct nb_quant_matrix view;
    NB_TRY(nb_checkpoint_fetch(l->model->checkpoint, name));
    NB_TRY(nb_checkpoint_matrix_quantized(l->model->checkpoint, name, weight->rows, weight->columns, &view));
    if (view.type != quant_type(weight) || view.nested != weight->nested)
        return nb_fail(NB_FORMAT, "%s: %s is quantized in another way than the model's config.json says",
            nb_checkpoint_path(l->model->checkpoint), name);
    return put_four_bits(l, weight, &view);
}

/* For the progress: in the files, or as many as are made instead. */
static uint64_t bytes_to_read(const struct nb_model *model, const struct nb_tensor_spec *spec, const char *name)
{
    return model->options.random_weights ? (uint64_t)spec->rows * (uint64_t)spec->columns * sizeof(nb_bf16)
                                         : nb_checkpoint_tensor_bytes(model->checkpoint, name);
}

/* In place of reading: matrices are what nb_fill_random_weights left in the staging buffer. */
static nb_status make_vector(const struct loader *l, const struct nb_tensor_spec *spec, nb_dptr vector)
{
    nb_bf16 *values = l->staging;
    bool is_bias = spec->role == NB_TENSOR_Q_BIAS || spec->role == NB_TENSOR_K_BIAS || spec->role == NB_TENSOR_V_BIAS;
    for (int64_t i = 0; i < spec->columns; i++)
        values[i] = nb_bf16_from_float(is_bias ? 0.0f : 1.0f);
    NB_TRY(put(l, vector, values, (uint64_t)spec->columns * sizeof *values));
    NB_TRY(wait(l));
    nb_fill_random_weights(values, (uint64_t)spec->columns);
    return NB_OK;
}

/* A tensor that is used in bf16. */
static nb_status load_bf16(const struct loader *l, const char *name, const struct nb_tensor_spec *spec, nb_dptr to)
{
    bool makes = l->model->options.random_weights;
    if (makes && spec->rows == 1)
        return make_vector(l, spec, to);
    void *read = l->on_host && !makes ? host_address(to) : l->staging;
    if (!makes)
        NB_TRY(nb_checkpoint_tensor_read_bf16(l->model->checkpoint, name, spec->rows, spec->columns, read));
    if (read != l->staging)
        return NB_OK;
    NB_TRY(put(l, to, l->staging, (uint64_t)spec->rows * (uint64_t)spec->columns * sizeof(nb_bf16)));
    return wait(l);
}

/* A matrix that is read as bf16 and quantized on the device. */
static nb_status load_quantized(const struct loader *l, const char *name, const struct nb_weight *weight)
{
    uint64_t bytes = (uint64_t)weight->rows * (uint64_t)weight->columns * sizeof(nb_bf16);
    if (!l->model->options.random_weights && !l->work.device->dry)
        NB_TRY(nb_checkpoint_tensor_read_bf16(l->model->checkpoint, name, weight->rows, weight->columns, l->staging));
    uint64_t frame = nb_arena_frame(l->work.arena);
    struct nb_quantize args = {.to = *weight};
    NB_TRY(nb_work_take(&l->work, NB_CATEGORY_SCRATCH, "matrix before it is quantized", bytes, &args.w));
    nb_status status = put(l, args.w, l->staging, bytes);
    if (status == NB_OK)
        status = nb_work_quantize(&l->work, &args);
    if (status == NB_OK)
        status = wait(l);
    nb_arena_release_to(l->work.arena, frame);
    return status == NB_OK ? NB_OK : nb_fail_within(status, "%s: %s", nb_checkpoint_path(l->model->checkpoint), name);
}

/* What quantizing on the host takes of the staging: the matrix in bf16, in 4 bits, and the blocks' scales. */
struct host_quantizing {
    struct nb_quant_layout layout;
    uint64_t slab, scales, bytes; /* where two of them begin, and all together */
};

static nb_status lay_out_quantizing(const struct nb_weight *weight, struct host_quantizing *q)
{
    uint64_t rows = (uint64_t)weight->rows, columns = (uint64_t)weight->columns;
    NB_TRY(nb_quant_matrix_layout(quant_type(weight), weight->nested, rows, columns, &q->layout));
    q->slab = nb_aligned(rows * columns * sizeof(nb_bf16));
    q->scales = q->slab + nb_aligned(q->layout.bytes);
    q->bytes = q->scales + nb_quant_blocks(rows * columns) * sizeof(float);
    return NB_OK;
}

/* A matrix that is read as bf16 and quantized on the host. */
static nb_status load_quantized_on_host(const struct loader *l, const char *name, const struct nb_weight *weight)
{
    struct host_quantizing q;
    uint64_t rows = (uint64_t)weight->rows, columns = (uint64_t)weight->columns;
    NB_TRY(lay_out_quantizing(weight, &q));
    if (!l->model->options.random_weights)
        NB_TRY(nb_checkpoint_tensor_read_bf16(l->model->checkpoint, name, weight->rows, weight->columns, l->staging));
    char *slab = (char *)l->staging + q.slab;
    struct nb_quant_parts parts = nb_quant_matrix_parts(&q.layout, slab, (float *)((char *)l->staging + q.scales));
    NB_TRY(nb_quantize(quant_type(weight), weight->nested, l->staging, rows, columns, &parts));
    struct nb_quant_matrix view = nb_quant_matrix_view(&q.layout, slab, parts.nested_offset);
    return put_four_bits(l, weight, &view);
}

static nb_status load_tensor(
    struct loader *l, int unit, const struct nb_tensor_spec *spec, const struct nb_unit_view *view)
{
    char name[NB_TENSOR_NAME_BYTES];
    nb_tensor_name(spec, unit - 1, name);
    const struct nb_weight *weight = &view->matrix[spec->role];
    enum way way = way_of(l->model, spec, name, weight);
    if (way == QUANTIZED)
        NB_TRY(load_quantized(l, name, weight));
    if (l->work.device->dry)
        return NB_OK;
    if (way == AS_IT_IS)
        NB_TRY(load_four_bits(l, name, weight));
    else if (way == QUANTIZED_ON_HOST)
        NB_TRY(load_quantized_on_host(l, name, weight));
    else if (way == BF16)
        NB_TRY(load_bf16(l, name, spec, weight->rows == 0 ? view->vector[spec->role] : weight->data));
    nb_checkpoint_forget(l->model->checkpoint, name);
    show(l, bytes_to_read(l->model, spec, name));
    return NB_OK;
}

/* A unit that the host writes itself: it lies in host memory, and nothing of it must be quantized. */
static bool is_composed(const struct nb_model *model, int unit)
{
    const nb_dptr anywhere = {NB_UNIT_FILE_ALIGNMENT};
    const struct nb_tensor_spec *spec;
    struct nb_unit_view view;
    char name[NB_TENSOR_NAME_BYTES];
    if (!nb_weight_store_is_on_host(model->store, unit))
        return false;
    nb_weight_store_layout(model->store, unit, anywhere, &view);
    for (int i = nb_weight_store_tensors(model->store, unit, &spec) - 1; i >= 0; i--)
        if (way_of(model, &spec[i], nb_tensor_name(&spec[i], unit - 1, name), &view.matrix[spec[i].role]) == QUANTIZED)
            return false;
    return true;
}

/* ---- the cache ---- */

/* So that a cache has the same bytes whoever wrote it, also between the parts of its tensors. */
static nb_status clear(const struct loader *l, const struct nb_unit_place *place)
{
    if (!l->cache)
        return NB_OK;
    if (!place->on_host)
        return l->work.device->fill_zero(l->work.device, l->work.stream, place->base, place->bytes);
    memset(host_address(place->base), 0, place->bytes);
    return NB_OK;
}

/* Adds a unit to the cache that is being written. */
static nb_status keep(struct loader *l, const struct nb_unit_place *place)
{
    struct nb_device *device = l->work.device;
    if (l->cache && place->on_host)
        nb_unit_cache_append(&l->cache, host_address(place->base), place->bytes);
    for (uint64_t begin = 0; l->cache && !place->on_host && begin < place->bytes; begin += l->staging_bytes) {
        uint64_t rest = place->bytes - begin, bytes = rest < l->staging_bytes ? rest : l->staging_bytes;
        NB_TRY(device->download(device, l->work.stream, l->staging, nb_dptr_at(place->base, begin), bytes));
        NB_TRY(wait(l));
        nb_unit_cache_append(&l->cache, l->staging, bytes);
    }
    return NB_OK;
}

/* One half of the staging is filled from the disk while the device reads the other. */
static nb_status pass_through_staging(struct loader *l, int unit, const struct nb_unit_place *place, uint32_t *crc)
{
    const uint64_t half = l->staging_bytes / 2;
    for (uint64_t begin = 0, i = 0; begin < place->bytes; begin += half, i++) {
        char *to = (char *)l->staging + i % 2 * half;
        uint64_t rest = place->bytes - begin, bytes = rest < half ? rest : half;
        NB_TRY(nb_unit_file_read(l->cached, unit, begin, to, bytes, crc));
        NB_TRY(wait(l));
        NB_TRY(put(l, nb_dptr_at(place->base, begin), to, bytes));
        show(l, bytes);
    }
    return wait(l);
}

static nb_status read_unit(struct loader *l, int unit)
{
    struct nb_weight_store *store = l->model->store;
    struct nb_unit_place place;
    uint32_t crc = 0;
    NB_TRY(nb_weight_store_begin_write(store, unit, l->work.stream, true, &place));
    l->on_host = place.on_host;
    if (place.on_host) {
        NB_TRY(nb_unit_file_read(l->cached, unit, 0, host_address(place.base), place.bytes, &crc));
        show(l, place.bytes);
    } else {
        NB_TRY(pass_through_staging(l, unit, &place, &crc));
    }
    NB_TRY(nb_weight_store_end_write(store, unit, l->work.stream));
    return nb_unit_file_verify(l->cached, unit, crc);
}

/* What quantizing would have taken of the arena is in the plan: the file may be gone when it comes to loading. Taken
 * here as well, the plan stays true to the byte. */
static nb_status take_as_planned(struct loader *l, int unit)
{
    const nb_dptr anywhere = {NB_UNIT_FILE_ALIGNMENT};
    struct nb_device *device = l->work.device;
    const struct nb_tensor_spec *spec;
    struct nb_unit_view view;
    char name[NB_TENSOR_NAME_BYTES];
    nb_weight_store_layout(l->model->store, unit, anywhere, &view);
    for (int i = nb_weight_store_tensors(l->model->store, unit, &spec) - 1; i >= 0; i--) {
        const struct nb_quantize args = {.to = view.matrix[spec[i].role]};
        uint64_t frame = nb_arena_frame(l->work.arena), count = (uint64_t)args.to.rows * (uint64_t)args.to.columns;
        nb_dptr unused;
        if (way_of(l->model, &spec[i], nb_tensor_name(&spec[i], unit - 1, name), &args.to) != QUANTIZED)
            continue;
        NB_TRY(nb_work_take(
            &l->work, NB_CATEGORY_SCRATCH, "matrix before it is quantized", count * sizeof(nb_bf16), &unused));
        NB_TRY(nb_work_take(&l->work, NB_CATEGORY_SCRATCH, "scratch of quantize",
            device->quantize_scratch_bytes(&device->profile, &args), &unused));
        nb_arena_release_to(l->work.arena, frame);
    }
    return NB_OK;
}

/* All units but those that stay there. */
static nb_status load_from_cache(struct loader *l)
{
    for (int unit = 0; unit < nb_weight_store_units(l->model->store); unit++) {
        NB_TRY(take_as_planned(l, unit));
        if (!nb_weight_store_is_in_file(l->model->store, unit))
            NB_TRY(read_unit(l, unit));
    }
    return NB_OK;
}

/* ---- the checkpoint ---- */

/* A plan of a shape without weights need not name each tensor of each block to know that they take what the first's
 * do: that would be a fifth of a dry run. */
static bool is_like_the_first_block(const struct nb_model *model, int unit)
{
    return model->device->dry && !nb_checkpoint_has_weights(model->checkpoint) && unit > 1 &&
           unit < nb_weight_store_units(model->store) - 1;
}

/* With a cache to write, also a unit that will come from there: it passes through a buffer on the device. */
static nb_status load_unit(struct loader *l, int unit)
{
    struct nb_weight_store *store = l->model->store;
    const struct nb_tensor_spec *spec;
    int count = nb_weight_store_tensors(store, unit, &spec);
    struct nb_unit_place place;
    NB_TRY(nb_weight_store_begin_write(store, unit, l->work.stream, is_composed(l->model, unit), &place));
    l->on_host = place.on_host;
    NB_TRY(clear(l, &place));
    for (int i = 0; i < count && !is_like_the_first_block(l->model, unit); i++)
        NB_TRY(load_tensor(l, unit, &spec[i], &place.view));
    NB_TRY(keep(l, &place));
    return nb_weight_store_end_write(store, unit, l->work.stream);
}

/* All but those that stay in the checkpoint's files. */
static bool is_loaded(const struct nb_model *model, int unit)
{
    return !nb_weight_store_is_in_file(model->store, unit) || model->options.cache_folder;
}

static nb_status load_from_checkpoint(struct loader *l)
{
    const struct nb_model *model = l->model;
    if (model->options.random_weights && !model->device->dry)
        nb_fill_random_weights(l->staging, l->staging_bytes / sizeof(nb_bf16));
    for (int unit = 0; unit < nb_weight_store_units(model->store); unit++)
        if (is_loaded(model, unit))
            NB_TRY(load_unit(l, unit));
    return NB_OK;
}

/* ---- the whole ---- */

/* What a tensor takes of the staging. `composed`: the host writes its unit at the unit's own place. */
static nb_status staging_of(const struct nb_tensor_spec *spec, const struct nb_weight *weight, enum way way,
    bool composed, uint64_t *bytes)
{
    struct host_quantizing q;
    *bytes = 0;
    if (way == QUANTIZED_ON_HOST) {
        NB_TRY(lay_out_quantizing(weight, &q));
        *bytes = q.bytes;
    } else if (way != AS_IT_IS && !composed) {
        *bytes = (uint64_t)spec->rows * (uint64_t)spec->columns * sizeof(nb_bf16);
    }
    return NB_OK;
}

/* What the tensor takes that takes most of the staging; with a cache to write at least a piece. And the bytes of all
 * these tensors in their files. */
static nb_status measure(const struct nb_model *model, bool keeps, uint64_t *staging, uint64_t *total)
{
    const nb_dptr anywhere = {NB_UNIT_FILE_ALIGNMENT};
    *staging = keeps ? piece_bytes : 0;
    *total = 0;
    for (int unit = 0; unit < nb_weight_store_units(model->store); unit++) {
        if (is_like_the_first_block(model, unit)) /* a plan does not ask for the total */
            continue;
        bool composed = !model->options.random_weights && is_composed(model, unit);
        const struct nb_tensor_spec *spec;
        struct nb_unit_view view;
        int count = is_loaded(model, unit) ? nb_weight_store_tensors(model->store, unit, &spec) : 0;
        nb_weight_store_layout(model->store, unit, anywhere, &view);
        for (int i = 0; i < count; i++) {
            char name[NB_TENSOR_NAME_BYTES];
            nb_tensor_name(&spec[i], unit - 1, name);
            const struct nb_weight *weight = &view.matrix[spec[i].role];
            uint64_t bytes;
            NB_TRY(staging_of(&spec[i], weight, way_of(model, &spec[i], name, weight), composed, &bytes));
            *staging = bytes > *staging ? bytes : *staging;
            *total += bytes_to_read(model, &spec[i], name);
        }
    }
    return NB_OK;
}

static nb_status with_staging(struct loader *l, uint64_t bytes, nb_status (*body)(struct loader *))
{
    struct nb_device *device = l->work.device;
    l->staging = NULL;
    l->staging_bytes = bytes;
    l->on_host = false;
    if (bytes)
        NB_TRY(device->host_take(device, bytes, &l->staging));
    nb_status status = body(l), waited = wait(l);
    if (l->staging)
        device->host_give_back(device, l->staging);
    return status != NB_OK ? status : waited;
}

static nb_status run(
    struct loader *l, const char *label, uint64_t total, uint64_t staging, nb_status (*body)(struct loader *))
{
    l->done_bytes = 0;
    if (l->progress)
        nb_progress_start(l->progress, label, NULL, total);
    nb_status status = with_staging(l, staging, body);
    if (l->progress && status == NB_OK)
        nb_progress_finish(l->progress);
    else if (l->progress)
        nb_progress_abandon(l->progress);
    return status;
}

/* *done: it is loaded. Not so without a cache, nor with one that turns out to be damaged, which is gone then. */
static nb_status try_cache(struct loader *l, const struct nb_unit_cache *cache, bool *done)
{
    uint64_t total = 0;
    *done = false;
    if (!(l->cached = nb_unit_cache_open(cache)))
        return NB_OK;
    for (int unit = 0; unit < cache->shape.units; unit++)
        total += nb_weight_store_is_in_file(l->model->store, unit) ? 0 : cache->bytes[unit];
    nb_status status = run(l, "loading", total, 2 * piece_bytes, load_from_cache);
    *done = status == NB_OK;
    if (status != NB_FORMAT && status != NB_IO)
        return status;
    nb_unit_cache_reject(&l->cached);
    return NB_OK;
}

static bool streams_from_file(const struct nb_model *model)
{
    return model->options.streams_from_file && model->options.streamed_blocks > 0;
}

/* Where there is no cache to stream from, the checkpoint must do. */
static nb_status check_source(const struct loader *l, const struct nb_unit_cache *cache)
{
    if (!streams_from_file(l->model) || l->cached || l->cache || l->work.device->dry)
        return NB_OK;
    nb_status status = nb_unit_source_check(l->model->checkpoint, l->model->store);
    if (status == NB_OK || !cache)
        return status;
    return nb_fail(NB_IO,
        "weights_from: file: %s, from which layers were to stream, could not be made: see the warning", cache->path);
}

/* From the checkpoint, and into the cache, if there is to be one (else NULL). */
static nb_status load_weights(struct loader *l, const struct nb_unit_cache *cache)
{
    const struct nb_model *model = l->model;
    uint64_t staging, total;
    bool quantizes = model->options.linear_format != NB_WEIGHT_BF16 && !model->config.quantized;
    l->cache = cache ? nb_unit_cache_create(cache) : NULL;
    NB_TRY(check_source(l, cache));
    nb_status status = measure(model, l->cache != NULL, &staging, &total);
    if (status == NB_OK)
        status = run(l, quantizes ? "quantizing" : "loading", total, staging, load_from_checkpoint);
    if (status == NB_OK)
        nb_unit_cache_finish(&l->cache);
    nb_unit_file_abandon(&l->cache);
    return status;
}

/* Whence the units come that are in a file: the cache, or the checkpoint itself. */
static nb_status set_source(struct loader *l, const struct nb_unit_cache *cache)
{
    struct nb_weight_store *store = l->model->store;
    struct nb_unit_source *source = NULL;
    if (cache && !l->cached)
        l->cached = nb_unit_cache_open(cache);
    NB_TRY(check_source(l, cache));
    NB_TRY(l->cached ? nb_unit_source_of_file(&l->cached, store, &source)
                     : nb_unit_source_of_checkpoint(l->model->checkpoint, store, &source));
    nb_weight_store_set_source(store, &source);
    return NB_OK;
}

static nb_status load(struct loader *l, const struct nb_unit_cache *cache)
{
    bool done = false;
    NB_TRY(nb_model_load_ropes(l->model, &l->work));
    if (cache)
        NB_TRY(try_cache(l, cache, &done));
    if (!done)
        NB_TRY(load_weights(l, cache));
    return streams_from_file(l->model) && !l->work.device->dry ? set_source(l, cache) : NB_OK;
}

nb_status nb_model_load(
    struct nb_model *model, struct nb_stream *stream, struct nb_arena *arena, struct nb_progress *progress)
{
    const struct nb_model_options *options = &model->options;
    struct loader l = {.model = model, .work = {model->device, stream, arena}, .progress = progress};
    bool has_weights = nb_checkpoint_has_weights(model->checkpoint) && !options->random_weights;
    bool caches = options->cache_folder && has_weights && !model->device->dry;
    struct nb_unit_cache cache = {0};
    if (streams_from_file(model) && !options->cache_folder && has_weights)
        NB_TRY(nb_unit_source_check(model->checkpoint, model->store));
    nb_status status = caches ? nb_unit_cache_describe(model, &cache) : NB_OK;
    if (status == NB_OK)
        status = load(&l, caches ? &cache : NULL);
    nb_unit_file_close(&l.cached);
    nb_unit_cache_free(&cache);
    if (status == NB_OK)
        nb_weight_store_settle(model->store);
    return status;
}
