#include "support/golden.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    const char *name;
    struct nb_golden_tensor tensor;
};

struct nb_golden {
    char *path;
    json_t *header; /* owns the names and dtypes */
    size_t count;
    struct entry *entries;
    void **copies; /* one a tensor, each aligned */
};

static _Noreturn void give_up(const char *path, const char *what, const char *name)
{
    fprintf(stderr, "golden file %s: %s%s\n", path, what, name);
    exit(1);
}

static void *allocate(const char *path, uint64_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory)
        give_up(path, "out of memory", "");
    return memory;
}

static void read_exactly(FILE *file, const char *path, void *data, uint64_t bytes)
{
    if (fread(data, 1, bytes, file) != bytes)
        give_up(path, "truncated", "");
}

static struct nb_golden_tensor describe(const char *path, const char *name, json_t *value, uint64_t *begin)
{
    struct nb_golden_tensor tensor = {.dtype = json_string_value(json_object_get(value, "dtype")), .count = 1};
    json_t *shape = json_object_get(value, "shape"), *offsets = json_object_get(value, "data_offsets");
    if (!tensor.dtype || json_array_size(offsets) != 2 || json_array_size(shape) > sizeof tensor.shape / sizeof *tensor.shape)
        give_up(path, "a strange header entry: ", name);
    tensor.ndim = (int)json_array_size(shape);
    for (int i = 0; i < tensor.ndim; i++) {
        tensor.shape[i] = (uint64_t)json_integer_value(json_array_get(shape, (size_t)i));
        tensor.count *= tensor.shape[i];
    }
    *begin = (uint64_t)json_integer_value(json_array_get(offsets, 0));
    tensor.bytes = (uint64_t)json_integer_value(json_array_get(offsets, 1)) - *begin;
    return tensor;
}

struct nb_golden *nb_golden_open(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        give_up(path, "cannot be opened (tests run in the source root)", "");
    uint8_t length[8];
    uint64_t bytes = 0;
    read_exactly(file, path, length, sizeof length);
    for (int i = 0; i < 8; i++)
        bytes |= (uint64_t)length[i] << 8 * i;
    char *text = allocate(path, bytes);
    read_exactly(file, path, text, bytes);

    struct nb_golden *golden = allocate(path, sizeof *golden);
    *golden = (struct nb_golden){.path = strdup(path), .header = json_loadb(text, bytes, 0, NULL)};
    free(text);
    if (!golden->header || !golden->path)
        give_up(path, "its header is not JSON", "");
    json_object_del(golden->header, "__metadata__");
    golden->entries = allocate(path, json_object_size(golden->header) * sizeof *golden->entries);
    golden->copies = allocate(path, json_object_size(golden->header) * sizeof *golden->copies);
    const char *name;
    json_t *value;
    json_object_foreach(golden->header, name, value) {
        uint64_t begin;
        struct nb_golden_tensor tensor = describe(path, name, value, &begin);
        void *copy = allocate(path, tensor.bytes);
        if (fseek(file, (long)(8 + bytes + begin), SEEK_SET))
            give_up(path, "truncated at ", name);
        read_exactly(file, path, copy, tensor.bytes);
        tensor.data = copy;
        golden->copies[golden->count] = copy;
        golden->entries[golden->count++] = (struct entry){name, tensor};
    }
    fclose(file);
    return golden;
}

void nb_golden_close(struct nb_golden **handle)
{
    struct nb_golden *golden = *handle;
    *handle = NULL;
    if (!golden)
        return;
    for (size_t i = 0; i < golden->count; i++)
        free(golden->copies[i]);
    free(golden->copies);
    free(golden->entries);
    json_decref(golden->header);
    free(golden->path);
    free(golden);
}

static const struct entry *find(const struct nb_golden *golden, const char *name)
{
    for (size_t i = 0; i < golden->count; i++)
        if (strcmp(golden->entries[i].name, name) == 0)
            return &golden->entries[i];
    return NULL;
}

bool nb_golden_has(const struct nb_golden *golden, const char *name)
{
    return find(golden, name) != NULL;
}

struct nb_golden_tensor nb_golden_tensor(const struct nb_golden *golden, const char *name)
{
    const struct entry *entry = find(golden, name);
    if (!entry)
        give_up(golden->path, "no tensor ", name);
    return entry->tensor;
}

const char *nb_golden_name(const struct nb_golden *golden, size_t index)
{
    return index < golden->count ? golden->entries[index].name : NULL;
}

static const void *typed(const struct nb_golden *golden, const char *dtype, const char *format, va_list arguments)
{
    char name[256];
    vsnprintf(name, sizeof name, format, arguments);
    struct nb_golden_tensor tensor = nb_golden_tensor(golden, name);
    if (strcmp(tensor.dtype, dtype) != 0)
        give_up(golden->path, "another dtype than expected: ", name);
    return tensor.data;
}

const float *nb_golden_f32(const struct nb_golden *golden, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const void *data = typed(golden, "F32", format, arguments);
    va_end(arguments);
    return data;
}

const uint8_t *nb_golden_u8(const struct nb_golden *golden, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const void *data = typed(golden, "U8", format, arguments);
    va_end(arguments);
    return data;
}

const uint16_t *nb_golden_bf16(const struct nb_golden *golden, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const void *data = typed(golden, "BF16", format, arguments);
    va_end(arguments);
    return data;
}
