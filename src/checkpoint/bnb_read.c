#include "checkpoint/bnb_read.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NAME_BYTES = 320 };

static const struct nb_safetensors_tensor *part(const struct nb_safetensors *file, const char *name, const char *suffix)
{
    char whole[NAME_BYTES];
    int length = snprintf(whole, sizeof whole, "%s.%s", name, suffix);
    return length < NAME_BYTES ? nb_safetensors_find(file, whole) : NULL;
}

bool nb_bnb_find(const struct nb_safetensors *file, const char *name, struct nb_bnb_parts *parts)
{
    *parts = (struct nb_bnb_parts){.packed = nb_safetensors_find(file, name)};
    parts->state = part(file, name, "quant_state.bitsandbytes__nf4");
    parts->type = NB_QUANT_NF4;
    if (!parts->state) {
        parts->state = part(file, name, "quant_state.bitsandbytes__fp4");
        parts->type = NB_QUANT_FP4;
    }
    parts->absmax = part(file, name, "absmax");
    parts->quant_map = part(file, name, "quant_map");
    parts->nested_absmax = part(file, name, "nested_absmax");
    parts->nested_quant_map = part(file, name, "nested_quant_map");
    return parts->packed && parts->state;
}

static nb_status damaged(const struct nb_safetensors_tensor *tensor, const char *what)
{
    return nb_fail(
        NB_FORMAT, "%s: tensor %s at offset %" PRIu64 ": %s", tensor->path, tensor->name, tensor->offset, what);
}

static bool is_integer(const json_t *state, const char *key, json_int_t want)
{
    const json_t *value = json_object_get(state, key);
    return json_is_integer(value) && json_integer_value(value) == want;
}

static bool is_text(const json_t *state, const char *key, const char *want)
{
    const char *value = json_string_value(json_object_get(state, key));
    return value && strcmp(value, want) == 0;
}

/* The dtype in the state is that of the weights before they were quantized; dequantizing always gives bf16 here. */
static nb_status check_state(
    const struct nb_bnb_parts *parts, const json_t *state, int64_t rows, int64_t columns, struct nb_quant_matrix *view)
{
    const json_t *shape = json_object_get(state, "shape");
    const json_t *offset = json_object_get(state, "nested_offset");
    if (!is_text(state, "quant_type", nb_quant_type_name(parts->type)))
        return damaged(parts->state, "its quant_type is not the one in its name");
    if (!is_integer(state, "blocksize", NB_QUANT_BLOCK))
        return damaged(parts->state, "a blocksize other than 64 is not supported");
    if (json_array_size(shape) != 2 || json_integer_value(json_array_get(shape, 0)) != rows ||
        json_integer_value(json_array_get(shape, 1)) != columns)
        return nb_fail(NB_FORMAT,
            "%s: tensor %s: its quant_state has another shape than the config's [%" PRId64 ", %" PRId64 "]",
            parts->state->path, parts->packed->name, rows, columns);
    view->nested = offset != NULL;
    if (!offset)
        return NB_OK;
    view->nested_offset = (float)json_number_value(offset);
    if (!is_integer(state, "nested_blocksize", NB_QUANT_SUPERBLOCK) || !is_text(state, "nested_dtype", "float32"))
        return damaged(
            parts->state, "a nested_blocksize other than 256 or a nested_dtype other than float32 is not supported");
    if (!json_is_number(offset) || !isfinite(view->nested_offset))
        return damaged(parts->state, "nested_offset is not a finite number");
    return NB_OK;
}

static nb_status check_part(const struct nb_bnb_parts *parts, const struct nb_safetensors_tensor *tensor,
    const char *suffix, enum nb_safetensors_dtype dtype, uint64_t count)
{
    if (!tensor)
        return nb_fail(NB_FORMAT, "%s: tensor %s.%s is missing", parts->packed->path, parts->packed->name, suffix);
    if (tensor->dtype != dtype || tensor->count != count)
        return nb_fail(NB_FORMAT,
            "%s: tensor %s at offset %" PRIu64 ": %s [%" PRIu64 "], not %s [%" PRIu64 "] as its matrix needs",
            tensor->path, tensor->name, tensor->offset, nb_safetensors_dtype_name(tensor->dtype), tensor->count,
            nb_safetensors_dtype_name(dtype), count);
    for (uint64_t i = 0; dtype == NB_SAFETENSORS_F32 && i < count; i++) {
        float value;
        memcpy(&value, tensor->data + i * sizeof value, sizeof value);
        if (!isfinite(value))
            return nb_fail(NB_FORMAT, "%s: tensor %s: value %" PRIu64 " is not finite", tensor->path, tensor->name, i);
    }
    return NB_OK;
}

static nb_status check_parts(const struct nb_bnb_parts *parts, const struct nb_quant_matrix *view)
{
    uint64_t count = view->rows * view->columns, blocks = nb_quant_blocks(count);
    if (parts->packed->bytes != nb_quant_packed_bytes(count))
        return nb_fail(NB_FORMAT,
            "%s: tensor %s at offset %" PRIu64 ": %" PRIu64 " bytes, but %" PRIu64 " x %" PRIu64
            " weights pack into %" PRIu64,
            parts->packed->path, parts->packed->name, parts->packed->offset, parts->packed->bytes, view->rows,
            view->columns, nb_quant_packed_bytes(count));
    NB_TRY(check_part(parts, parts->quant_map, "quant_map", NB_SAFETENSORS_F32, NB_QUANT_CODES));
    if (!view->nested)
        return check_part(parts, parts->absmax, "absmax", NB_SAFETENSORS_F32, blocks);
    NB_TRY(check_part(parts, parts->absmax, "absmax", NB_SAFETENSORS_U8, blocks));
    NB_TRY(check_part(parts, parts->nested_absmax, "nested_absmax", NB_SAFETENSORS_F32, nb_quant_superblocks(blocks)));
    return check_part(parts, parts->nested_quant_map, "nested_quant_map", NB_SAFETENSORS_F32, 256);
}

nb_status nb_bnb_view(const struct nb_bnb_parts *parts, int64_t rows, int64_t columns, nb_bnb_aligned *aligned, void *context,
    struct nb_quant_matrix *view)
{
    *view = (struct nb_quant_matrix){.type = parts->type, .rows = (uint64_t)rows, .columns = (uint64_t)columns};
    json_t *state = json_loadb((const char *)parts->state->data, parts->state->bytes, JSON_REJECT_DUPLICATES, NULL);
    nb_status status = json_is_object(state) ? check_state(parts, state, rows, columns, view)
                                             : damaged(parts->state, "not a JSON object");
    json_decref(state);
    NB_TRY(status);
    NB_TRY(check_parts(parts, view));
    view->packed = parts->packed->data;
    view->codebook = aligned(context, parts->quant_map);
    bool complete = view->codebook != NULL;
    if (view->nested) {
        view->absmax_codes = parts->absmax->data;
        view->nested_absmax = aligned(context, parts->nested_absmax);
        view->nested_map = aligned(context, parts->nested_quant_map);
        complete &= view->nested_absmax && view->nested_map;
    } else {
        view->absmax = aligned(context, parts->absmax);
        complete &= view->absmax != NULL;
    }
    return complete ? NB_OK
                    : nb_fail(NB_MEMORY, "%s: tensor %s: no memory for its scales", parts->packed->path,
                          parts->packed->name);
}
