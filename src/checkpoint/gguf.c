#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoint/gguf_tables.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file formats are read in place");

enum {
    GGUF_VERSION_MIN = 2,
    GGUF_VERSION_MAX = 3,
    KEY_BYTES_MIN = 8 + 4 + 1,            /* an empty key's length, a type, the smallest value */
    TENSOR_BYTES_MIN = 8 + 4 + 8 + 4 + 8, /* an empty name's length, rank, one extent, type, offset */
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 1 << 20,
    METADATA_BYTES = 16 << 20,            /* more than a vocabulary's; what is longer is read where it is used */
};

/* What remains to be read. */
struct cursor {
    const struct nb_gguf *gguf;
    const unsigned char *data;
    uint64_t bytes, offset;
};

static nb_status past_end(const struct cursor *c, const char *what, uint64_t bytes)
{
    return nb_fail(NB_FORMAT,
        "%s: %s at offset %" PRIu64 ": %" PRIu64 " bytes reach past the end of the file (%" PRIu64
        " bytes). The download may be incomplete.",
        c->gguf->path, what, c->offset, bytes, c->bytes);
}

static nb_status take(struct cursor *c, const char *what, uint64_t bytes, const unsigned char **data)
{
    if (bytes > c->bytes - c->offset)
        return past_end(c, what, bytes);
    *data = c->data + c->offset;
    c->offset += bytes;
    return NB_OK;
}

static nb_status take_u32(struct cursor *c, const char *what, uint32_t *value)
{
    const unsigned char *data = NULL;
    NB_TRY(take(c, what, sizeof *value, &data));
    memcpy(value, data, sizeof *value);
    return NB_OK;
}

static nb_status take_u64(struct cursor *c, const char *what, uint64_t *value)
{
    const unsigned char *data = NULL;
    NB_TRY(take(c, what, sizeof *value, &data));
    memcpy(value, data, sizeof *value);
    return NB_OK;
}

static nb_status take_text(struct cursor *c, const char *what, struct nb_gguf_text *text)
{
    const unsigned char *data = NULL;
    uint64_t bytes;
    NB_TRY(take_u64(c, what, &bytes));
    NB_TRY(take(c, what, bytes, &data));
    *text = (struct nb_gguf_text){(const char *)data, bytes};
    return NB_OK;
}

static nb_status no_memory(const struct nb_gguf *gguf)
{
    return nb_fail(NB_MEMORY, "%s: no memory for its tables", gguf->path);
}

static nb_status take_strings(struct cursor *c, const char *what, struct nb_gguf_value *value)
{
    /* Each string takes at least its length word, so a true count cannot ask for more memory than twice the file. */
    if (value->count > (c->bytes - c->offset) / 8)
        return nb_fail(NB_FORMAT, "%s: %s at offset %" PRIu64 ": %" PRIu64 " strings do not fit in the file",
            c->gguf->path, what, c->offset, value->count);
    value->texts = malloc((value->count ? value->count : 1) * sizeof *value->texts);
    if (!value->texts)
        return no_memory(c->gguf);
    for (uint64_t i = 0; i < value->count; i++)
        NB_TRY(take_text(c, what, &value->texts[i]));
    return NB_OK;
}

static nb_status take_value(struct cursor *c, struct nb_gguf_value *value)
{
    char what[96];
    uint32_t kind;
    value->offset = c->offset;
    NB_TRY(take_text(c, "a metadata key", &value->key));
    snprintf(what, sizeof what, "key %.*s", (int)(value->key.bytes < 64 ? value->key.bytes : 64), value->key.text);
    NB_TRY(take_u32(c, what, &kind));
    value->count = 1;
    value->array = kind == NB_GGUF_KIND_ARRAY;
    if (value->array) {
        NB_TRY(take_u32(c, what, &kind));
        NB_TRY(take_u64(c, what, &value->count));
    }
    if (kind >= NB_GGUF_KINDS || kind == NB_GGUF_KIND_ARRAY)
        return nb_fail(NB_FORMAT, "%s: %s: value type %" PRIu32 "%s at offset %" PRIu64 " is not one of GGUF's",
            c->gguf->path, what, kind, value->array ? " in an array" : "", c->offset);
    value->kind = (enum nb_gguf_kind)kind;
    if (kind == NB_GGUF_KIND_STRING)
        return take_strings(c, what, value);
    uint64_t bytes;
    if (__builtin_mul_overflow(value->count, nb_gguf_kind_bytes[kind], &bytes))
        bytes = UINT64_MAX;
    return take(c, what, bytes, &value->data);
}

static int compare_values(const void *a, const void *b)
{
    const struct nb_gguf_value *x = a, *y = b;
    int order = nb_gguf_compare_texts(&x->key, &y->key);
    return order != 0 ? order : (x->offset > y->offset) - (x->offset < y->offset);
}

static nb_status take_metadata(struct cursor *c, struct nb_gguf *gguf, uint64_t count)
{
    if (count > (c->bytes - c->offset) / KEY_BYTES_MIN)
        return nb_fail(
            NB_FORMAT, "%s: %" PRIu64 " metadata keys (offset 16) do not fit in the file", gguf->path, count);
    gguf->values = calloc(count ? count : 1, sizeof *gguf->values);
    if (!gguf->values)
        return no_memory(gguf);
    for (uint64_t i = 0; i < count; i++) {
        gguf->value_count = i + 1;
        NB_TRY(take_value(c, &gguf->values[i]));
    }
    qsort(gguf->values, count, sizeof *gguf->values, compare_values);
    for (uint64_t i = 1; i < count; i++)
        if (nb_gguf_compare_texts(&gguf->values[i - 1].key, &gguf->values[i].key) == 0)
            return nb_fail(NB_FORMAT, "%s: key %.*s is given twice, again at offset %" PRIu64, gguf->path,
                (int)(gguf->values[i].key.bytes < 64 ? gguf->values[i].key.bytes : 64), gguf->values[i].key.text,
                gguf->values[i].offset);
    return NB_OK;
}

/* The extents, in the file fastest first. */
static nb_status take_shape(struct cursor *c, struct nb_gguf_tensor *tensor)
{
    uint32_t rank;
    NB_TRY(take_u32(c, tensor->name, &rank));
    if (rank < 1 || rank > NB_GGUF_RANK_MAX)
        return nb_fail(NB_FORMAT, "%s: tensor %s: rank %" PRIu32 " at offset %" PRIu64 " is not 1 to %d", c->gguf->path,
            tensor->name, rank, c->offset - 4, NB_GGUF_RANK_MAX);
    tensor->rank = (int)rank;
    tensor->count = 1;
    for (uint32_t i = 0; i < NB_GGUF_RANK_MAX; i++)
        tensor->shape[i] = 1;
    for (uint32_t i = 0; i < rank; i++) {
        uint64_t extent;
        NB_TRY(take_u64(c, tensor->name, &extent));
        tensor->shape[rank - 1 - i] = extent;
        if (extent == 0 || extent > INT64_MAX || __builtin_mul_overflow(tensor->count, extent, &tensor->count))
            return nb_fail(NB_FORMAT, "%s: tensor %s: the extents at offset %" PRIu64 " are 0 or overflow",
                c->gguf->path, tensor->name, c->offset - 8);
    }
    return NB_OK;
}

static nb_status take_tensor(struct cursor *c, struct nb_gguf_tensor *tensor, char **names)
{
    struct nb_gguf_text name;
    uint32_t type;
    NB_TRY(take_text(c, "a tensor's name", &name));
    if (name.bytes == 0 || memchr(name.text, 0, name.bytes))
        return nb_fail(NB_FORMAT, "%s: a tensor's name before offset %" PRIu64 " is empty or holds a zero",
            c->gguf->path, c->offset);
    memcpy(*names, name.text, name.bytes);
    (*names)[name.bytes] = '\0';
    tensor->name = *names;
    *names += name.bytes + 1;
    NB_TRY(take_shape(c, tensor));
    NB_TRY(take_u32(c, tensor->name, &type));
    NB_TRY(take_u64(c, tensor->name, &tensor->offset));
    uint32_t block = nb_gguf_block_weights(type);
    if (block == 0)
        return nb_fail(NB_UNSUPPORTED,
            "%s: tensor %s: GGUF type %" PRIu32 " is not supported. F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, "
            "Q8_0, Q2_K to Q6_K, IQ4_NL and IQ4_XS are.",
            c->gguf->path, tensor->name, type);
    tensor->type = (enum nb_gguf_type)type;
    if (tensor->shape[tensor->rank - 1] % block != 0)
        return nb_fail(NB_FORMAT, "%s: tensor %s: rows of %" PRIu64 " weights are not whole blocks of %s (%" PRIu32 ")",
            c->gguf->path, tensor->name, tensor->shape[tensor->rank - 1], nb_gguf_type_name(type), block);
    if (__builtin_mul_overflow(tensor->count / block, nb_gguf_block_bytes(type), &tensor->bytes))
        return nb_fail(NB_FORMAT, "%s: tensor %s: its size overflows", c->gguf->path, tensor->name);
    return NB_OK;
}

static int compare_tensor_names(const void *a, const void *b)
{
    const struct nb_gguf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_tensor_offsets(const void *a, const void *b)
{
    const struct nb_gguf_tensor *const *x = a, *const *y = b;
    return ((*x)->offset > (*y)->offset) - ((*x)->offset < (*y)->offset);
}

static nb_status sort_tensors(struct nb_gguf *gguf)
{
    size_t count = gguf->tensor_count;
    gguf->by_name = malloc((count ? count : 1) * sizeof *gguf->by_name);
    gguf->by_offset = malloc((count ? count : 1) * sizeof *gguf->by_offset);
    if (!gguf->by_name || !gguf->by_offset)
        return no_memory(gguf);
    for (size_t i = 0; i < count; i++)
        gguf->by_name[i] = gguf->by_offset[i] = &gguf->tensors[i];
    qsort(gguf->by_name, count, sizeof *gguf->by_name, compare_tensor_names);
    qsort(gguf->by_offset, count, sizeof *gguf->by_offset, compare_tensor_offsets);
    for (size_t i = 1; i < count; i++) {
        const struct nb_gguf_tensor *a = gguf->by_offset[i - 1], *b = gguf->by_offset[i];
        if (strcmp(gguf->by_name[i - 1]->name, gguf->by_name[i]->name) == 0)
            return nb_fail(NB_FORMAT, "%s: tensor %s is given twice", gguf->path, gguf->by_name[i]->name);
        if (b->offset - a->offset < a->bytes)
            return nb_fail(
                NB_FORMAT, "%s: tensors %s and %s overlap at offset %" PRIu64, gguf->path, a->name, b->name, b->offset);
    }
    return NB_OK;
}

/* Tensor offsets count from the end of the tables, rounded up to the alignment. */
static nb_status place_tensors(const struct cursor *c, struct nb_gguf *gguf)
{
    int64_t alignment = ALIGNMENT_DEFAULT;
    if (nb_gguf_has(gguf, "general.alignment") && !nb_gguf_integer(gguf, "general.alignment", &alignment))
        alignment = 0;
    if (alignment < 1 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0)
        return nb_fail(NB_FORMAT, "%s: general.alignment is not a power of two up to %d", gguf->path, ALIGNMENT_MAX);
    uint64_t base = (c->offset + (uint64_t)alignment - 1) / (uint64_t)alignment * (uint64_t)alignment;
    for (size_t i = 0; i < gguf->tensor_count; i++) {
        struct nb_gguf_tensor *tensor = &gguf->tensors[i];
        if (tensor->offset % (uint64_t)alignment != 0)
            return nb_fail(NB_FORMAT, "%s: tensor %s: offset %" PRIu64 " is not a multiple of the alignment, %" PRId64,
                gguf->path, tensor->name, tensor->offset, alignment);
        if (base > c->bytes || tensor->offset > c->bytes - base || tensor->bytes > c->bytes - base - tensor->offset)
            return nb_fail(NB_FORMAT,
                "%s: tensor %s: %" PRIu64 " bytes at offset %" PRIu64 " + %" PRIu64
                " reach past the end of the file (%" PRIu64 " bytes). The download may be incomplete.",
                gguf->path, tensor->name, tensor->bytes, base, tensor->offset, c->bytes);
        tensor->offset += base;
        tensor->data = c->data + tensor->offset;
    }
    return NB_OK;
}

static nb_status take_tensors(struct cursor *c, struct nb_gguf *gguf, uint64_t count)
{
    uint64_t remaining = c->bytes - c->offset;
    if (count > remaining / TENSOR_BYTES_MIN)
        return nb_fail(NB_FORMAT, "%s: %" PRIu64 " tensors (offset 8) do not fit in the file", gguf->path, count);
    /* Names with their zeros: each takes one byte more than in the file but has an 8-byte length there. One pass over the table
     * finds its end, so that the names' room is not the whole file's size. */
    gguf->tensors = calloc(count ? count : 1, sizeof *gguf->tensors);
    struct cursor ahead = *c;
    uint64_t names_bytes = 1;
    for (uint64_t i = 0; i < count; i++) {
        struct nb_gguf_text name;
        const unsigned char *rest;
        uint32_t rank;
        NB_TRY(take_text(&ahead, "a tensor's name", &name));
        NB_TRY(take_u32(&ahead, "a tensor's rank", &rank));
        NB_TRY(take(&ahead, "a tensor's shape", (uint64_t)rank * 8 + 12, &rest));
        names_bytes += name.bytes + 1;
    }
    gguf->names = malloc(names_bytes);
    if (!gguf->tensors || !gguf->names)
        return no_memory(gguf);
    char *names = gguf->names;
    gguf->tensor_count = count;
    for (uint64_t i = 0; i < count; i++)
        NB_TRY(take_tensor(c, &gguf->tensors[i], &names));
    NB_TRY(place_tensors(c, gguf));
    return sort_tensors(gguf);
}

static nb_status parse(const void *data, uint64_t bytes, struct nb_gguf *gguf)
{
    struct cursor c = {gguf, data, bytes, 0};
    const unsigned char *magic = NULL;
    uint32_t version;
    uint64_t tensors, keys;
    NB_TRY(take(&c, "the magic", 4, &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return nb_fail(NB_FORMAT, "%s: does not begin with \"GGUF\"; is this a GGUF file?", gguf->path);
    NB_TRY(take_u32(&c, "the version", &version));
    if (version != 0 && (version & 0xffff) == 0)
        return nb_fail(
            NB_UNSUPPORTED, "%s: a big-endian GGUF file; convert it with gguf-py's gguf_convert_endian", gguf->path);
    if (version < GGUF_VERSION_MIN || version > GGUF_VERSION_MAX)
        return nb_fail(NB_UNSUPPORTED, "%s: GGUF version %" PRIu32 "; versions %d and %d are read", gguf->path, version,
            GGUF_VERSION_MIN, GGUF_VERSION_MAX);
    NB_TRY(take_u64(&c, "the tensor count", &tensors));
    NB_TRY(take_u64(&c, "the key count", &keys));
    NB_TRY(take_metadata(&c, gguf, keys));
    return take_tensors(&c, gguf, tensors);
}

nb_status nb_gguf_parse(const void *data, uint64_t bytes, const char *path, struct nb_gguf **gguf)
{
    *gguf = calloc(1, sizeof **gguf);
    if (!*gguf)
        return nb_fail(NB_MEMORY, "%s: no memory to open it", path);
    (*gguf)->path = nb_format("%s", path);
    nb_status status = parse(data, bytes, *gguf);
    if (status != NB_OK)
        nb_gguf_close(gguf);
    return status;
}

nb_status nb_gguf_open(const char *path, struct nb_gguf **gguf)
{
    struct nb_mapped_file map;
    *gguf = NULL;
    NB_TRY(nb_mapped_file_open(path, &map));
    /* How long the metadata is shows while it is read; a vocabulary's takes a few megabytes. */
    nb_status status = nb_mapped_file_fetch(&map, 0, METADATA_BYTES);
    if (status == NB_OK)
        status = nb_gguf_parse(map.data, map.bytes, path, gguf);
    if (status == NB_OK)
        (*gguf)->map = map;
    else
        nb_mapped_file_close(&map);
    return status;
}

void nb_gguf_close(struct nb_gguf **gguf)
{
    struct nb_gguf *g = *gguf;
    if (!g)
        return;
    for (size_t i = 0; i < g->value_count; i++)
        free(g->values[i].texts);
    free(g->values);
    free(g->tensors);
    free(g->by_name);
    free(g->by_offset);
    free(g->names);
    free(g->path);
    nb_mapped_file_close(&g->map);
    free(g);
    *gguf = NULL;
}

const struct nb_mapped_file *nb_gguf_file(const struct nb_gguf *gguf)
{
    return gguf->map.data ? &gguf->map : NULL;
}

const char *nb_gguf_path(const struct nb_gguf *gguf)
{
    return gguf->path;
}

size_t nb_gguf_tensor_count(const struct nb_gguf *gguf)
{
    return gguf->tensor_count;
}

const struct nb_gguf_tensor *nb_gguf_tensor_at(const struct nb_gguf *gguf, size_t i)
{
    return &gguf->tensors[i];
}

static int compare_key(const void *key, const void *element)
{
    const struct nb_gguf_tensor *const *tensor = element;
    return strcmp(key, (*tensor)->name);
}

const struct nb_gguf_tensor *nb_gguf_tensor_find(const struct nb_gguf *gguf, const char *name)
{
    const struct nb_gguf_tensor **found =
        bsearch(name, gguf->by_name, gguf->tensor_count, sizeof *gguf->by_name, compare_key);
    return found ? *found : NULL;
}

nb_status nb_gguf_fetch(const struct nb_gguf *gguf, const struct nb_gguf_tensor *tensor)
{
    return gguf->map.data ? nb_mapped_file_fetch(&gguf->map, tensor->offset, tensor->bytes) : NB_OK;
}

void nb_gguf_forget(const struct nb_gguf *gguf, const struct nb_gguf_tensor *tensor)
{
    if (gguf->map.data)
        nb_mapped_file_forget(&gguf->map, tensor->offset, tensor->bytes);
}
