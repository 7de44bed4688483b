#include "checkpoint/bnb_shard.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoint/safetensors_header.h"

enum {
    HEADER_ENTRY_BYTES = 64 + 2 * 16, /* punctuation and keys, and two offsets below 10^16 */
    HEADER_EXTENT_BYTES = 14,         /* one below 2^40, and its comma */
    HEADER_FIXED_BYTES = 64,          /* the length word, "__metadata__", rounding up to 8 */
};

uint64_t nb_bnb_shard_header_bytes(const char *name, int rank)
{
    return strlen(name) + HEADER_ENTRY_BYTES + (uint64_t)rank * HEADER_EXTENT_BYTES;
}

static nb_status put(struct nb_bnb_shard *shard, const void *data, size_t bytes)
{
    if (fwrite(data, 1, bytes, shard->file) != bytes)
        return nb_fail_errno("%s: writing", shard->path);
    return NB_OK;
}

nb_status nb_bnb_shard_open(struct nb_bnb_shard *shard, const char *path, uint64_t header_bytes)
{
    *shard = (struct nb_bnb_shard){.header_bytes = (header_bytes + HEADER_FIXED_BYTES + 7) / 8 * 8};
    shard->path = nb_format("%s", path);
    shard->file = fopen(path, "wb");
    if (!shard->file) {
        nb_status status = nb_fail_errno("%s", path);
        nb_bnb_shard_abandon(shard);
        return status;
    }
    if (fseeko(shard->file, (off_t)shard->header_bytes, SEEK_SET) != 0)
        return nb_fail_errno("%s", path);
    return NB_OK;
}

static bool grow(void **array, size_t count, size_t *room, size_t size)
{
    if (count < *room)
        return true;
    size_t larger = *room ? *room * 2 : 64;
    void *grown = realloc(*array, larger * size);
    if (!grown)
        return false;
    *array = grown;
    *room = larger;
    return true;
}

static nb_status no_memory(const struct nb_bnb_shard *shard)
{
    return nb_fail(NB_MEMORY, "%s: no memory for its header", shard->path);
}

/* Takes entry->name. */
static nb_status append(struct nb_bnb_shard *shard, const struct nb_safetensors_entry *entry, const void *data)
{
    if (!grow((void **)&shard->entries, shard->count, &shard->room, sizeof *shard->entries)) {
        free((char *)entry->name);
        return no_memory(shard);
    }
    shard->entries[shard->count++] = *entry;
    return put(shard, data, nb_safetensors_entry_bytes(entry));
}

nb_status nb_bnb_shard_add(struct nb_bnb_shard *shard, const struct nb_safetensors_entry *entry, const void *data)
{
    struct nb_safetensors_entry own = *entry;
    size_t bytes = nb_safetensors_entry_bytes(entry);
    own.name = nb_format("%s", entry->name);
    if (bytes % 4 == 0)
        return append(shard, &own, data);
    unsigned char *copy = malloc(bytes);
    if (!copy || !grow((void **)&shard->waiting, shard->waiting_count, &shard->waiting_room, sizeof *shard->waiting)) {
        free(copy);
        free((char *)own.name);
        return no_memory(shard);
    }
    memcpy(copy, data, bytes);
    shard->waiting[shard->waiting_count++] = (struct nb_bnb_waiting){own, copy};
    return NB_OK;
}

/* Even lengths first, so that bf16 tensors among them stay at even offsets. */
static nb_status put_waiting(struct nb_bnb_shard *shard)
{
    for (int odd = 0; odd < 2; odd++) {
        for (size_t i = 0; i < shard->waiting_count; i++) {
            struct nb_bnb_waiting *waiting = &shard->waiting[i];
            if ((int)(nb_safetensors_entry_bytes(&waiting->entry) % 2) != odd)
                continue;
            struct nb_safetensors_entry entry = waiting->entry;
            waiting->entry = (struct nb_safetensors_entry){.name = NULL, .dtype = NB_SAFETENSORS_U8, .rank = 1};
            NB_TRY(append(shard, &entry, waiting->data));
        }
    }
    return NB_OK;
}

static nb_status put_header(struct nb_bnb_shard *shard)
{
    char *header = NULL;
    size_t bytes;
    NB_TRY(nb_safetensors_header(shard->path, shard->entries, shard->count, &header, &bytes));
    char *whole = bytes <= shard->header_bytes ? malloc(shard->header_bytes) : NULL;
    nb_status status = NB_OK;
    if (bytes > shard->header_bytes) {
        status = nb_fail(NB_UNSUPPORTED, "%s: its header outgrew the room left for it", shard->path);
    } else if (!whole) {
        status = no_memory(shard);
    } else {
        uint64_t length = shard->header_bytes - sizeof length;
        memset(whole, ' ', shard->header_bytes);
        memcpy(whole, header, bytes);
        memcpy(whole, &length, sizeof length);
        status = fseeko(shard->file, 0, SEEK_SET) == 0 ? put(shard, whole, shard->header_bytes)
                                                       : nb_fail_errno("%s", shard->path);
    }
    free(whole);
    free(header);
    return status;
}

nb_status nb_bnb_shard_finish(struct nb_bnb_shard *shard)
{
    nb_status status = put_waiting(shard);
    if (status == NB_OK)
        status = put_header(shard);
    if (status == NB_OK && (fflush(shard->file) != 0 || fsync(fileno(shard->file)) != 0))
        status = nb_fail_errno("%s: writing", shard->path);
    nb_bnb_shard_abandon(shard);
    return status;
}

void nb_bnb_shard_abandon(struct nb_bnb_shard *shard)
{
    if (shard->file)
        fclose(shard->file);
    for (size_t i = 0; i < shard->count; i++)
        free((char *)shard->entries[i].name);
    for (size_t i = 0; i < shard->waiting_count; i++) {
        free((char *)shard->waiting[i].entry.name);
        free(shard->waiting[i].data);
    }
    free(shard->entries);
    free(shard->waiting);
    free(shard->path);
    *shard = (struct nb_bnb_shard){0};
}
