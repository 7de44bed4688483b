#include "checkpoint/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file formats are read in place");

/* The reference implementation's limit. */
#define HEADER_BYTES_MAX UINT64_C(100000000)
#define INDEX_BYTES_MAX  (UINT64_C(64) << 20)

static const struct {
    const char *name;
    size_t bytes;
} dtypes[NB_SAFETENSORS_DTYPES] = {
    [NB_SAFETENSORS_BOOL] = {"BOOL", 1},
    [NB_SAFETENSORS_U8] = {"U8", 1},
    [NB_SAFETENSORS_I8] = {"I8", 1},
    [NB_SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
    [NB_SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
    [NB_SAFETENSORS_U16] = {"U16", 2},
    [NB_SAFETENSORS_I16] = {"I16", 2},
    [NB_SAFETENSORS_F16] = {"F16", 2},
    [NB_SAFETENSORS_BF16] = {"BF16", 2},
    [NB_SAFETENSORS_U32] = {"U32", 4},
    [NB_SAFETENSORS_I32] = {"I32", 4},
    [NB_SAFETENSORS_F32] = {"F32", 4},
    [NB_SAFETENSORS_U64] = {"U64", 8},
    [NB_SAFETENSORS_I64] = {"I64", 8},
    [NB_SAFETENSORS_F64] = {"F64", 8},
};

const char *nb_safetensors_dtype_name(enum nb_safetensors_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t nb_safetensors_dtype_bytes(enum nb_safetensors_dtype dtype)
{
    return dtypes[dtype].bytes;
}

struct source {
    struct nb_mapped_file map; /* data is NULL when the bytes are the caller's */
    const unsigned char *data;
    uint64_t bytes;
    char *path;
    json_t *header; /* holds the tensors' names and the metadata */
};

struct nb_safetensors {
    struct source *sources;
    size_t source_count;
    struct nb_safetensors_tensor *tensors; /* by source and offset */
    size_t count;
    const struct nb_safetensors_tensor **by_name;
};

void nb_safetensors_close(struct nb_safetensors **file)
{
    struct nb_safetensors *f = *file;
    if (!f)
        return;
    for (size_t i = 0; i < f->source_count; i++) {
        nb_mapped_file_close(&f->sources[i].map);
        json_decref(f->sources[i].header);
        free(f->sources[i].path);
    }
    free(f->sources);
    free(f->tensors);
    free(f->by_name);
    free(f);
    *file = NULL;
}

static nb_status parse_shape(const json_t *shape, const struct source *source, struct nb_safetensors_tensor *tensor)
{
    if (!json_is_array(shape))
        return nb_fail(NB_FORMAT, "%s: tensor %s: the header gives no shape", source->path, tensor->name);
    if (json_array_size(shape) > NB_SAFETENSORS_RANK_MAX)
        return nb_fail(NB_FORMAT, "%s: tensor %s: %zu dimensions; at most %d are read", source->path, tensor->name,
            json_array_size(shape), NB_SAFETENSORS_RANK_MAX);
    tensor->rank = (int)json_array_size(shape);
    tensor->count = 1;
    for (int i = 0; i < tensor->rank; i++) {
        const json_t *extent = json_array_get(shape, (size_t)i);
        if (!json_is_integer(extent) || json_integer_value(extent) < 0)
            return nb_fail(NB_FORMAT, "%s: tensor %s: dimension %d is not a count", source->path, tensor->name, i);
        tensor->shape[i] = (uint64_t)json_integer_value(extent);
        if (__builtin_mul_overflow(tensor->count, tensor->shape[i], &tensor->count))
            return nb_fail(NB_FORMAT, "%s: tensor %s: the shape's product overflows", source->path, tensor->name);
    }
    if (__builtin_mul_overflow(tensor->count, dtypes[tensor->dtype].bytes, &tensor->bytes))
        return nb_fail(NB_FORMAT, "%s: tensor %s: the shape's size in bytes overflows", source->path, tensor->name);
    return NB_OK;
}

/* data_offsets count from the end of the header; `base` is there. */
static nb_status parse_offsets(
    const json_t *offsets, const struct source *source, uint64_t base, struct nb_safetensors_tensor *tensor)
{
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return nb_fail(NB_FORMAT, "%s: tensor %s: data_offsets is not a pair of numbers", source->path, tensor->name);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin)
        return nb_fail(NB_FORMAT, "%s: tensor %s: data_offsets %lld to %lld are not a range", source->path,
            tensor->name, (long long)begin, (long long)end);
    if ((uint64_t)end > source->bytes - base)
        return nb_fail(NB_FORMAT,
            "%s: tensor %s: its bytes up to offset %" PRIu64 " reach past the end of the file (%" PRIu64
            " bytes). The download may be incomplete.",
            source->path, tensor->name, base + (uint64_t)end, source->bytes);
    if ((uint64_t)(end - begin) != tensor->bytes)
        return nb_fail(NB_FORMAT,
            "%s: tensor %s at offset %" PRIu64 ": %lld bytes, but its shape and dtype %s need %" PRIu64, source->path,
            tensor->name, base + (uint64_t)begin, (long long)(end - begin), dtypes[tensor->dtype].name, tensor->bytes);
    tensor->offset = base + (uint64_t)begin;
    tensor->data = source->data + tensor->offset;
    return NB_OK;
}

static nb_status parse_tensor(const char *name, const json_t *entry, const struct source *source, uint64_t base,
    struct nb_safetensors_tensor *tensor)
{
    *tensor = (struct nb_safetensors_tensor){.name = name, .path = source->path, .dtype = NB_SAFETENSORS_DTYPES};
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype || json_object_size(entry) != 3)
        return nb_fail(
            NB_FORMAT, "%s: tensor %s: the header's entry is not dtype, shape and data_offsets", source->path, name);
    for (int i = 0; i < NB_SAFETENSORS_DTYPES; i++)
        if (strcmp(dtype, dtypes[i].name) == 0)
            tensor->dtype = (enum nb_safetensors_dtype)i;
    if (tensor->dtype == NB_SAFETENSORS_DTYPES)
        return nb_fail(NB_FORMAT, "%s: tensor %s: unknown dtype \"%.40s\"", source->path, name, dtype);
    NB_TRY(parse_shape(json_object_get(entry, "shape"), source, tensor));
    return parse_offsets(json_object_get(entry, "data_offsets"), source, base, tensor);
}

static int compare_offsets(const void *a, const void *b)
{
    const struct nb_safetensors_tensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The data must be covered exactly: a hole could hide a second file, and the reference implementation refuses it as well. */
static nb_status check_coverage(
    const struct source *source, const struct nb_safetensors_tensor *tensors, size_t count, uint64_t base)
{
    uint64_t end = base;
    const char *before = "the header";
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].offset < end)
            return nb_fail(NB_FORMAT, "%s: tensors %s and %s overlap at offset %" PRIu64, source->path, before,
                tensors[i].name, tensors[i].offset);
        if (tensors[i].offset > end)
            return nb_fail(NB_FORMAT,
                "%s: %" PRIu64 " bytes at offset %" PRIu64 ", before tensor %s, belong to no tensor", source->path,
                tensors[i].offset - end, end, tensors[i].name);
        end = tensors[i].offset + tensors[i].bytes;
        before = tensors[i].name;
    }
    if (end != source->bytes)
        return nb_fail(NB_FORMAT,
            "%s: %" PRIu64 " bytes at offset %" PRIu64 ", after the last tensor, belong to no tensor", source->path,
            source->bytes - end, end);
    return NB_OK;
}

static nb_status check_metadata(const struct source *source, json_t *metadata)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return nb_fail(NB_FORMAT, "%s: __metadata__ is not an object", source->path);
    json_object_foreach(metadata, key, value)
        if (!json_is_string(value))
            return nb_fail(NB_FORMAT, "%s: __metadata__: the value of \"%.80s\" is not text", source->path, key);
    return NB_OK;
}

static nb_status load_header(struct source *source, uint64_t *base)
{
    uint64_t length;
    if (source->bytes < sizeof length)
        return nb_fail(
            NB_FORMAT, "%s: %" PRIu64 " bytes are too few for a safetensors file", source->path, source->bytes);
    NB_TRY(nb_mapped_file_fetch(&source->map, 0, sizeof length));
    memcpy(&length, source->data, sizeof length);
    if (length > HEADER_BYTES_MAX)
        return nb_fail(NB_FORMAT,
            "%s: a header of %" PRIu64 " bytes (offset 0) is refused; is this a safetensors file?", source->path,
            length);
    if (length > source->bytes - sizeof length)
        return nb_fail(NB_FORMAT,
            "%s: a header of %" PRIu64 " bytes reaches past the end of the file (%" PRIu64 " bytes)", source->path,
            length, source->bytes);
    NB_TRY(nb_mapped_file_fetch(&source->map, sizeof length, length));
    json_error_t error;
    source->header = json_loadb((const char *)source->data + sizeof length, length, JSON_REJECT_DUPLICATES, &error);
    if (!source->header)
        return nb_fail(NB_FORMAT, "%s: the header is not JSON at offset %zu: %s", source->path,
            sizeof length + (size_t)(error.position > 0 ? error.position : 0), error.text);
    if (!json_is_object(source->header))
        return nb_fail(NB_FORMAT, "%s: the header (offset 8) is not a JSON object", source->path);
    *base = sizeof length + length;
    return NB_OK;
}

/* Appends the tensors of one file. */
static nb_status add_source(struct nb_safetensors *file, struct source *source)
{
    uint64_t base;
    NB_TRY(load_header(source, &base));
    size_t room = file->count + json_object_size(source->header);
    struct nb_safetensors_tensor *tensors = realloc(file->tensors, (room ? room : 1) * sizeof *tensors);
    if (!tensors)
        return nb_fail(NB_MEMORY, "%s: no memory for the table of tensors", source->path);
    file->tensors = tensors;
    struct nb_safetensors_tensor *first = tensors + file->count;
    size_t count = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(source->header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            NB_TRY(check_metadata(source, entry));
        else
            NB_TRY(parse_tensor(name, entry, source, base, &first[count++]));
    }
    qsort(first, count, sizeof *first, compare_offsets);
    NB_TRY(check_coverage(source, first, count, base));
    file->count += count;
    return NB_OK;
}

static int compare_names(const void *a, const void *b)
{
    const struct nb_safetensors_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static nb_status sort_names(struct nb_safetensors *file)
{
    file->by_name = malloc((file->count ? file->count : 1) * sizeof *file->by_name);
    if (!file->by_name)
        return nb_fail(NB_MEMORY, "%s: no memory for the table of tensors", file->sources[0].path);
    for (size_t i = 0; i < file->count; i++)
        file->by_name[i] = &file->tensors[i];
    qsort(file->by_name, file->count, sizeof *file->by_name, compare_names);
    for (size_t i = 1; i < file->count; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            return nb_fail(NB_FORMAT, "%s: tensor %s is in %s as well", file->by_name[i - 1]->path,
                file->by_name[i]->name, file->by_name[i]->path);
    return NB_OK;
}

static nb_status create(size_t sources, const char *path, struct nb_safetensors **file)
{
    *file = calloc(1, sizeof **file);
    if (*file)
        (*file)->sources = calloc(sources, sizeof *(*file)->sources);
    if (*file && (*file)->sources)
        return NB_OK;
    nb_safetensors_close(file);
    return nb_fail(NB_MEMORY, "%s: no memory to open it", path);
}

nb_status nb_safetensors_parse(const void *data, uint64_t bytes, const char *path, struct nb_safetensors **file)
{
    NB_TRY(create(1, path, file));
    struct source *source = &(*file)->sources[0];
    (*file)->source_count = 1;
    source->data = data;
    source->bytes = bytes;
    source->path = nb_format("%s", path);
    nb_status status = add_source(*file, source);
    if (status == NB_OK)
        status = sort_names(*file);
    if (status != NB_OK)
        nb_safetensors_close(file);
    return status;
}

static nb_status open_source(struct nb_safetensors *file, const char *path)
{
    struct source *source = &file->sources[file->source_count];
    NB_TRY(nb_mapped_file_open(path, &source->map));
    file->source_count++;
    source->data = source->map.data;
    source->bytes = source->map.bytes;
    source->path = nb_format("%s", path);
    return add_source(file, source);
}

nb_status nb_safetensors_open(const char *path, struct nb_safetensors **file)
{
    NB_TRY(create(1, path, file));
    nb_status status = open_source(*file, path);
    if (status == NB_OK)
        status = sort_names(*file);
    if (status != NB_OK)
        nb_safetensors_close(file);
    return status;
}

/* The index's file names, each once, in the order of their first use. A name with a slash could lead out of the folder. */
static nb_status shard_names(const json_t *weights, const char *path, json_t *names)
{
    const char *tensor;
    json_t *shard;
    json_object_foreach((json_t *)weights, tensor, shard)
    {
        const char *name = json_string_value(shard);
        if (!name || name[0] == '\0' || name[0] == '.' || strchr(name, '/'))
            return nb_fail(NB_FORMAT, "%s: tensor %s: not a file name beside the index", path, tensor);
        if (json_object_set_new(names, name, json_null()) != 0)
            return nb_fail(NB_MEMORY, "%s: no memory to open it", path);
    }
    if (json_object_size(names) == 0)
        return nb_fail(NB_FORMAT, "%s: weight_map names no tensors", path);
    return NB_OK;
}

static nb_status check_index(
    const struct nb_safetensors *file, const json_t *weights, const char *folder, const char *path)
{
    const char *name;
    json_t *shard;
    json_object_foreach((json_t *)weights, name, shard)
    {
        const struct nb_safetensors_tensor *tensor = nb_safetensors_find(file, name);
        if (!tensor || strcmp(tensor->path + strlen(folder) + 1, json_string_value(shard)) != 0)
            return nb_fail(
                NB_FORMAT, "%s: tensor %s is not in %s, where the index has it", path, name, json_string_value(shard));
    }
    return NB_OK;
}

static nb_status open_shards(
    const char *folder, const json_t *weights, const char *path, json_t *names, struct nb_safetensors **file)
{
    const char *name;
    json_t *unused;
    NB_TRY(shard_names(weights, path, names));
    NB_TRY(create(json_object_size(names), path, file));
    json_object_foreach(names, name, unused)
    {
        char *shard = nb_path_join(folder, name);
        nb_status status = open_source(*file, shard);
        free(shard);
        NB_TRY(status);
    }
    NB_TRY(sort_names(*file));
    return check_index(*file, weights, folder, path);
}

static nb_status open_index(const char *folder, const char *path, struct nb_safetensors **file)
{
    char *text = NULL;
    size_t bytes;
    json_error_t error;
    *file = NULL;
    NB_TRY(nb_file_read(path, INDEX_BYTES_MAX, false, &text, &bytes));
    json_t *index = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    json_t *weights = json_object_get(index, "weight_map"), *names = json_object();
    nb_status status;
    if (!index)
        status = nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", path, error.line, error.column, error.text);
    else if (!json_is_object(weights))
        status = nb_fail(NB_FORMAT, "%s: no object \"weight_map\"", path);
    else
        status = open_shards(folder, weights, path, names, file);
    json_decref(names);
    json_decref(index);
    free(text);
    if (status != NB_OK)
        nb_safetensors_close(file);
    return status;
}

nb_status nb_safetensors_open_folder(const char *folder, const char *name, struct nb_safetensors **file)
{
    char *whole = nb_format("%s/%s.safetensors", folder, name);
    char *index = nb_format("%s/%s.safetensors.index.json", folder, name);
    nb_status status;
    if (nb_path_exists(whole))
        status = nb_safetensors_open(whole, file);
    else if (nb_path_exists(index))
        status = open_index(folder, index, file);
    else
        status =
            nb_fail(NB_IO, "%s: neither %s.safetensors nor %s.safetensors.index.json is there", folder, name, name);
    free(whole);
    free(index);
    return status;
}

size_t nb_safetensors_count(const struct nb_safetensors *file)
{
    return file->count;
}

const struct nb_safetensors_tensor *nb_safetensors_at(const struct nb_safetensors *file, size_t i)
{
    return &file->tensors[i];
}

static int compare_key(const void *key, const void *element)
{
    const struct nb_safetensors_tensor *const *tensor = element;
    return strcmp(key, (*tensor)->name);
}

const struct nb_safetensors_tensor *nb_safetensors_find(const struct nb_safetensors *file, const char *name)
{
    const struct nb_safetensors_tensor **found =
        bsearch(name, file->by_name, file->count, sizeof *file->by_name, compare_key);
    return found ? *found : NULL;
}

const char *nb_safetensors_metadata(const struct nb_safetensors *file, const char *key)
{
    for (size_t i = 0; i < file->source_count; i++) {
        const json_t *value = json_object_get(json_object_get(file->sources[i].header, "__metadata__"), key);
        if (value)
            return json_string_value(value);
    }
    return NULL;
}

const struct nb_mapped_file *nb_safetensors_file_at(const struct nb_safetensors *file, size_t i)
{
    return i < file->source_count && file->sources[i].map.data ? &file->sources[i].map : NULL;
}

/* NULL where the bytes are the caller's. */
static const struct nb_mapped_file *map_of(const struct nb_safetensors *file, const struct nb_safetensors_tensor *tensor)
{
    for (size_t i = 0; i < file->source_count; i++)
        if (file->sources[i].path == tensor->path && file->sources[i].map.data)
            return &file->sources[i].map;
    return NULL;
}

nb_status nb_safetensors_fetch(const struct nb_safetensors *file, const struct nb_safetensors_tensor *tensor)
{
    const struct nb_mapped_file *map = map_of(file, tensor);
    return map ? nb_mapped_file_fetch(map, tensor->offset, tensor->bytes) : NB_OK;
}

void nb_safetensors_forget(const struct nb_safetensors *file, const struct nb_safetensors_tensor *tensor)
{
    const struct nb_mapped_file *map = map_of(file, tensor);
    if (map)
        nb_mapped_file_forget(map, tensor->offset, tensor->bytes);
}
