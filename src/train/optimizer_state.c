#include "train/optimizer_state.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoint/safetensors.h"

enum { PARTS_MAX = 5 };

/* One tensor of the file: a trainable's master, a moment, or a moment's scales. */
struct part {
    struct nb_safetensors_entry entry; /* its name is owned */
    nb_dptr at;                        /* of a resident tensor */
    unsigned char *page;               /* of a paged one, else NULL */
};

static void name_part(struct part *part, const char *name, const char *suffix, enum nb_safetensors_dtype dtype)
{
    part->entry.name = nb_format("%s%s", name, suffix);
    part->entry.dtype = dtype;
}

static void place_parts(const struct nb_adapter *adapter, int trainable, int count, struct part parts[PARTS_MAX])
{
    unsigned char *page = nb_adapter_page(adapter, trainable);
    struct nb_adapter_record record = nb_adapter_record_of(adapter, trainable);
    uint64_t offset[PARTS_MAX] = {record.master, record.m, record.v, record.m_absmax, record.v_absmax};
    struct nb_adamw bound = {0};
    nb_adapter_bind_adamw(adapter, trainable, &bound);
    nb_dptr at[PARTS_MAX] = {bound.master, bound.m, bound.v, bound.m_absmax, bound.v_absmax};
    for (int i = 0; i < count; i++) {
        parts[i].at = at[i];
        parts[i].page = page ? page + offset[i] : NULL;
    }
}

/* The parts of a trainable in the order of the file; returns how many. */
static int parts_of(const struct nb_adapter *adapter, int trainable, struct part out[PARTS_MAX])
{
    const struct nb_trainable *t = nb_adapter_trainable(adapter, trainable);
    enum nb_safetensors_dtype moments = t->moments_8bit ? NB_SAFETENSORS_U8 : NB_SAFETENSORS_F32;
    int count = 0;
    memset(out, 0, PARTS_MAX * sizeof *out);
    name_part(&out[count++], t->name, "", NB_SAFETENSORS_F32);
    name_part(&out[count++], t->name, ".m", moments);
    name_part(&out[count++], t->name, ".v", moments);
    if (t->moments_8bit) {
        name_part(&out[count++], t->name, ".m_absmax", NB_SAFETENSORS_F32);
        name_part(&out[count++], t->name, ".v_absmax", NB_SAFETENSORS_F32);
    }
    place_parts(adapter, trainable, count, out);
    for (int i = 0; i < count; i++) {
        struct nb_safetensors_entry *entry = &out[i].entry;
        entry->rank = i < 3 ? 2 : 1;
        entry->shape[0] = i < 3 ? (uint64_t)t->rows : (t->count + NB_TILE_ELEMENTS - 1) / NB_TILE_ELEMENTS;
        entry->shape[1] = i < 3 ? (uint64_t)t->columns : 1;
    }
    return count;
}

static nb_status collect_parts(const struct nb_adapter *adapter, struct part **parts, size_t *count)
{
    int trainables = nb_adapter_trainable_count(adapter);
    *count = 0;
    if (!(*parts = calloc((size_t)trainables * PARTS_MAX, sizeof **parts)))
        return nb_fail(NB_MEMORY, "no memory for the optimizer's state");
    for (int i = 0; i < trainables; i++)
        *count += (size_t)parts_of(adapter, i, *parts + *count);
    return NB_OK;
}

static void free_parts(struct part *parts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free((char *)parts[i].entry.name);
    free(parts);
}

static nb_status write_parts(
    struct nb_session *session, const struct part *parts, size_t count, struct nb_safetensors_writer *writer)
{
    struct nb_device *device = session->device;
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = nb_safetensors_entry_bytes(&parts[i].entry);
        const void *values = parts[i].page ? parts[i].page : session->staging;
        if (!parts[i].page)
            NB_TRY(device->download(device, session->stream, session->staging, parts[i].at, bytes));
        NB_TRY(device->stream_wait(device, session->stream)); /* which the write-backs have joined */
        NB_TRY(nb_safetensors_writer_write(writer, values, bytes));
    }
    return NB_OK;
}

nb_status nb_optimizer_state_save(struct nb_session *session, const char *path)
{
    struct nb_safetensors_writer *writer = NULL;
    struct part *parts = NULL;
    size_t count = 0;
    NB_TRY(collect_parts(session->adapter, &parts, &count));
    struct nb_safetensors_entry *entries = calloc(count, sizeof *entries);
    nb_status status = entries ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    for (size_t i = 0; status == NB_OK && i < count; i++)
        entries[i] = parts[i].entry;
    if (status == NB_OK)
        status = nb_safetensors_writer_open(path, entries, count, &writer);
    if (status == NB_OK)
        status = write_parts(session, parts, count, writer);
    if (status == NB_OK)
        status = nb_safetensors_writer_finish(&writer, NULL);
    nb_safetensors_writer_abandon(&writer);
    free(entries);
    free_parts(parts, count);
    return status;
}

static nb_status check_part(const struct nb_safetensors *file, const char *path, const struct part *part,
    const struct nb_safetensors_tensor **tensor)
{
    *tensor = nb_safetensors_find(file, part->entry.name);
    if (!*tensor)
        return nb_fail(NB_USAGE, "%s: tensor %s is missing: the checkpoint belongs to another adapter or optimizer",
            path, part->entry.name);
    if ((*tensor)->dtype != part->entry.dtype || (*tensor)->bytes != nb_safetensors_entry_bytes(&part->entry))
        return nb_fail(NB_USAGE,
            "%s: tensor %s has another type or size: the checkpoint belongs to another adapter or optimizer", path,
            part->entry.name);
    return NB_OK;
}

static nb_status read_trainable(
    struct nb_session *session, const struct nb_safetensors *file, const char *path, int trainable)
{
    struct nb_device *device = session->device;
    const struct nb_safetensors_tensor *tensor;
    struct part parts[PARTS_MAX];
    int count = parts_of(session->adapter, trainable, parts);
    nb_status status = NB_OK;
    for (int i = count - 1; status == NB_OK && i >= 0;
         i--) { /* the master last: it stays in the staging for its copy */
        status = check_part(file, path, &parts[i], &tensor);
        if (status == NB_OK)
            status = nb_safetensors_fetch(file, tensor);
        if (status == NB_OK)
            memcpy(i > 0 && parts[i].page ? (void *)parts[i].page : session->staging, tensor->data, tensor->bytes);
        if (status == NB_OK && i > 0 && !parts[i].page)
            status = device->upload(device, session->stream, parts[i].at, session->staging, tensor->bytes);
        if (status == NB_OK)
            status = device->stream_wait(device, session->stream);
    }
    for (int i = 0; i < count; i++)
        free((char *)parts[i].entry.name);
    return status == NB_OK ? nb_adapter_put(session->adapter, session->stream, session->staging, trainable) : status;
}

nb_status nb_optimizer_state_load(struct nb_session *session, const char *path)
{
    struct nb_safetensors *file = NULL;
    NB_TRY(nb_safetensors_open(path, &file));
    nb_status status = NB_OK;
    for (int i = 0; status == NB_OK && i < nb_adapter_trainable_count(session->adapter); i++)
        status = read_trainable(session, file, path, i);
    nb_safetensors_close(&file);
    return status;
}
