#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_header.h"

struct nb_safetensors_writer {
    struct nb_writer *file;
    char *path;
    uint64_t expected, written; /* bytes of data */
};

uint64_t nb_safetensors_entry_bytes(const struct nb_safetensors_entry *entry)
{
    uint64_t bytes = nb_safetensors_dtype_bytes(entry->dtype);
    for (int i = 0; i < entry->rank; i++)
        bytes *= entry->shape[i];
    return bytes;
}

static json_t *entry_json(const struct nb_safetensors_entry *entry, uint64_t begin, uint64_t end)
{
    json_t *shape = json_array();
    for (int i = 0; i < entry->rank; i++)
        json_array_append_new(shape, json_integer((json_int_t)entry->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", nb_safetensors_dtype_name(entry->dtype), "shape", shape,
        "data_offsets", (json_int_t)begin, (json_int_t)end);
}

nb_status nb_safetensors_header(
    const char *path, const struct nb_safetensors_entry *entries, size_t count, char **header, size_t *bytes)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    uint64_t offset = 0;
    nb_status status = root ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory for the header", path);
    for (size_t i = 0; status == NB_OK && i < count; i++) {
        uint64_t end = offset + nb_safetensors_entry_bytes(&entries[i]);
        if (json_object_get(root, entries[i].name))
            status = nb_fail(NB_USAGE, "%s: tensor %s is given twice", path, entries[i].name);
        else if (json_object_set_new(root, entries[i].name, entry_json(&entries[i], offset, end)) != 0)
            status = nb_fail(
                NB_MEMORY, "%s: tensor %s: no memory for the header, or its name is not UTF-8", path, entries[i].name);
        offset = end;
    }
    char *text = status == NB_OK ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (status != NB_OK)
        return status;
    if (!text)
        return nb_fail(NB_MEMORY, "%s: no memory for the header", path);
    uint64_t length = (strlen(text) + 7) / 8 * 8;
    *bytes = 8 + length;
    *header = malloc(*bytes);
    if (*header) {
        memset(*header, ' ', *bytes);
        memcpy(*header, &length, 8);
        memcpy(*header + 8, text, strlen(text));
    }
    free(text);
    return *header ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory for the header", path);
}

nb_status nb_safetensors_writer_open(
    const char *path, const struct nb_safetensors_entry *entries, size_t count, struct nb_safetensors_writer **writer)
{
    char *header = NULL;
    size_t bytes;
    *writer = NULL;
    NB_TRY(nb_safetensors_header(path, entries, count, &header, &bytes));
    struct nb_safetensors_writer *w = calloc(1, sizeof *w);
    nb_status status = w ? nb_writer_open(path, &w->file) : nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    if (status == NB_OK)
        status = nb_writer_write(w->file, header, bytes);
    free(header);
    if (status != NB_OK) {
        if (w)
            nb_writer_abandon(&w->file);
        free(w);
        return status;
    }
    w->path = nb_format("%s", path);
    for (size_t i = 0; i < count; i++)
        w->expected += nb_safetensors_entry_bytes(&entries[i]);
    *writer = w;
    return NB_OK;
}

nb_status nb_safetensors_writer_write(struct nb_safetensors_writer *writer, const void *data, size_t bytes)
{
    writer->written += bytes;
    return nb_writer_write(writer->file, data, bytes);
}

nb_status nb_safetensors_writer_finish(struct nb_safetensors_writer **writer, uint32_t *crc32)
{
    struct nb_safetensors_writer *w = *writer;
    nb_status status = NB_OK;
    if (w->written != w->expected)
        status = nb_fail(NB_USAGE, "%s: %" PRIu64 " bytes of tensors were written, the header says %" PRIu64, w->path,
            w->written, w->expected);
    if (crc32)
        *crc32 = nb_writer_crc32(w->file);
    if (status == NB_OK)
        status = nb_writer_finish(&w->file);
    nb_safetensors_writer_abandon(writer);
    return status;
}

void nb_safetensors_writer_abandon(struct nb_safetensors_writer **writer)
{
    if (!*writer)
        return;
    nb_writer_abandon(&(*writer)->file);
    free((*writer)->path);
    free(*writer);
    *writer = NULL;
}
