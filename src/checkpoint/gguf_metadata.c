/* Looking up GGUF metadata. */
#include <string.h>

#include "checkpoint/gguf_tables.h"

const unsigned char nb_gguf_kind_bytes[NB_GGUF_KINDS] = {
    [NB_GGUF_KIND_U8] = 1,
    [NB_GGUF_KIND_I8] = 1,
    [NB_GGUF_KIND_U16] = 2,
    [NB_GGUF_KIND_I16] = 2,
    [NB_GGUF_KIND_U32] = 4,
    [NB_GGUF_KIND_I32] = 4,
    [NB_GGUF_KIND_F32] = 4,
    [NB_GGUF_KIND_BOOL] = 1,
    [NB_GGUF_KIND_U64] = 8,
    [NB_GGUF_KIND_I64] = 8,
    [NB_GGUF_KIND_F64] = 8,
};

int nb_gguf_compare_texts(const struct nb_gguf_text *a, const struct nb_gguf_text *b)
{
    int order = memcmp(a->text, b->text, a->bytes < b->bytes ? a->bytes : b->bytes);
    return order != 0 ? order : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static const struct nb_gguf_value *find(const struct nb_gguf *gguf, const char *key)
{
    struct nb_gguf_text text = {key, strlen(key)};
    size_t low = 0, high = gguf->value_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = nb_gguf_compare_texts(&text, &gguf->values[middle].key);
        if (order == 0)
            return &gguf->values[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static bool element_integer(const struct nb_gguf_value *value, uint64_t i, int64_t *result)
{
    const unsigned char *at = value->data + i * nb_gguf_kind_bytes[value->kind];
    union {
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } number;
    if (value->kind == NB_GGUF_KIND_F32 || value->kind == NB_GGUF_KIND_F64 || value->kind == NB_GGUF_KIND_BOOL ||
        value->kind == NB_GGUF_KIND_STRING)
        return false;
    memcpy(&number, at, nb_gguf_kind_bytes[value->kind]);
    switch (value->kind) {
    case NB_GGUF_KIND_U8:
        *result = *at;
        break;
    case NB_GGUF_KIND_I8:
        *result = number.i8;
        break;
    case NB_GGUF_KIND_U16:
        *result = number.u16;
        break;
    case NB_GGUF_KIND_I16:
        *result = number.i16;
        break;
    case NB_GGUF_KIND_U32:
        *result = number.u32;
        break;
    case NB_GGUF_KIND_I32:
        *result = number.i32;
        break;
    case NB_GGUF_KIND_I64:
        *result = number.i64;
        break;
    default:
        if (number.u64 > INT64_MAX)
            return false;
        *result = (int64_t)number.u64;
    }
    return true;
}

static bool element_number(const struct nb_gguf_value *value, uint64_t i, double *result)
{
    int64_t integer;
    if (value->kind == NB_GGUF_KIND_F32) {
        float number;
        memcpy(&number, value->data + i * sizeof number, sizeof number);
        *result = number;
        return true;
    }
    if (value->kind == NB_GGUF_KIND_F64) {
        memcpy(result, value->data + i * sizeof *result, sizeof *result);
        return true;
    }
    if (!element_integer(value, i, &integer))
        return false;
    *result = (double)integer;
    return true;
}

bool nb_gguf_has(const struct nb_gguf *gguf, const char *key)
{
    return find(gguf, key) != NULL;
}

bool nb_gguf_integer(const struct nb_gguf *gguf, const char *key, int64_t *value)
{
    const struct nb_gguf_value *found = find(gguf, key);
    return found && !found->array && element_integer(found, 0, value);
}

bool nb_gguf_number(const struct nb_gguf *gguf, const char *key, double *value)
{
    const struct nb_gguf_value *found = find(gguf, key);
    return found && !found->array && element_number(found, 0, value);
}

bool nb_gguf_boolean(const struct nb_gguf *gguf, const char *key, bool *value)
{
    const struct nb_gguf_value *found = find(gguf, key);
    if (!found || found->array || found->kind != NB_GGUF_KIND_BOOL)
        return false;
    *value = found->data[0] != 0;
    return true;
}

bool nb_gguf_string(const struct nb_gguf *gguf, const char *key, struct nb_gguf_text *value)
{
    const struct nb_gguf_value *found = find(gguf, key);
    if (!found || found->array || found->kind != NB_GGUF_KIND_STRING)
        return false;
    *value = found->texts[0];
    return true;
}

bool nb_gguf_string_is(const struct nb_gguf *gguf, const char *key, const char *text)
{
    struct nb_gguf_text value;
    return nb_gguf_string(gguf, key, &value) && value.bytes == strlen(text) &&
           memcmp(value.text, text, value.bytes) == 0;
}

bool nb_gguf_strings(const struct nb_gguf *gguf, const char *key, const struct nb_gguf_text **texts, size_t *count)
{
    const struct nb_gguf_value *found = find(gguf, key);
    if (!found || !found->array || found->kind != NB_GGUF_KIND_STRING)
        return false;
    *texts = found->texts;
    *count = found->count;
    return true;
}

bool nb_gguf_array_length(const struct nb_gguf *gguf, const char *key, size_t *count)
{
    const struct nb_gguf_value *found = find(gguf, key);
    if (!found || !found->array)
        return false;
    *count = found->count;
    return true;
}

bool nb_gguf_array_integer(const struct nb_gguf *gguf, const char *key, size_t i, int64_t *value)
{
    const struct nb_gguf_value *found = find(gguf, key);
    return found && found->array && i < found->count && element_integer(found, i, value);
}
