#include "model/unit_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32.h"
#include "base/file.h"
#include "base/file_reader.h"

/* Little-endian, as all files here. units * 8 bytes of sizes follow, then the key, then zeros. */
struct header {
    char magic[8];
    uint32_t version, units;
    uint64_t file_bytes, key_bytes;
};

_Static_assert(sizeof(struct header) == 32, "the header has no padding");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are written as they lie in memory");

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + NB_UNIT_FILE_ALIGNMENT - 1) / NB_UNIT_FILE_ALIGNMENT * NB_UNIT_FILE_ALIGNMENT;
}

/* Where everything is, and the header's bytes. */
struct layout {
    int units;
    uint64_t *offset, *bytes; /* [units] */
    uint64_t tail, file_bytes, header_bytes;
    unsigned char *header;
};

static void free_layout(struct layout *layout)
{
    free(layout->offset);
    free(layout->bytes);
    free(layout->header);
}

static nb_status make_layout(const char *path, const struct nb_unit_file_shape *shape, struct layout *layout)
{
    const size_t units = (size_t)shape->units, key_bytes = strlen(shape->key);
    struct header header = {
        .magic = "NBUNITS", .version = NB_UNIT_FILE_VERSION, .units = (uint32_t)shape->units, .key_bytes = key_bytes};
    *layout = (struct layout){
        .units = shape->units, .header_bytes = rounded(sizeof header + units * sizeof(uint64_t) + key_bytes)};
    layout->offset = malloc(units * sizeof *layout->offset);
    layout->bytes = malloc(units * sizeof *layout->bytes);
    layout->header = calloc(1, layout->header_bytes);
    if (!layout->offset || !layout->bytes || !layout->header) {
        free_layout(layout);
        return nb_fail(NB_MEMORY, "%s: no memory for its header", path);
    }
    layout->tail = layout->header_bytes;
    for (size_t i = 0; i < units; i++) {
        layout->offset[i] = layout->tail;
        layout->bytes[i] = shape->bytes[i];
        layout->tail = rounded(layout->tail + shape->bytes[i]);
    }
    header.file_bytes = layout->file_bytes = layout->tail + (units + 1) * sizeof(uint32_t);
    memcpy(layout->header, &header, sizeof header);
    memcpy(layout->header + sizeof header, shape->bytes, units * sizeof *shape->bytes);
    memcpy(layout->header + sizeof header + units * sizeof *shape->bytes, shape->key, key_bytes);
    return NB_OK;
}

/* ---- writing ---- */

struct nb_unit_file_writer {
    struct nb_writer *writer;
    struct layout layout;
    int unit;      /* at work */
    uint64_t done; /* of its bytes */
    uint32_t crc[];
};

void nb_unit_file_abandon(struct nb_unit_file_writer **writer)
{
    struct nb_unit_file_writer *w = *writer;
    *writer = NULL;
    if (!w)
        return;
    nb_writer_abandon(&w->writer);
    free_layout(&w->layout);
    free(w);
}

nb_status nb_unit_file_create(
    const char *path, const struct nb_unit_file_shape *shape, struct nb_unit_file_writer **writer)
{
    struct layout layout;
    *writer = NULL;
    NB_TRY(make_layout(path, shape, &layout));
    struct nb_unit_file_writer *w = calloc(1, sizeof *w + ((size_t)shape->units + 1) * sizeof w->crc[0]);
    if (!w) {
        free_layout(&layout);
        return nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    }
    w->layout = layout;
    nb_status status = nb_writer_open_locked(path, &w->writer);
    if (status == NB_OK)
        status = nb_writer_write(w->writer, layout.header, layout.header_bytes);
    if (status != NB_OK)
        nb_unit_file_abandon(&w);
    *writer = w;
    return status;
}

nb_status nb_unit_file_append(struct nb_unit_file_writer *writer, const void *data, uint64_t bytes)
{
    static const unsigned char zeros[NB_UNIT_FILE_ALIGNMENT];
    struct nb_unit_file_writer *w = writer;
    w->crc[w->unit] = nb_crc32(w->crc[w->unit], data, bytes);
    NB_TRY(nb_writer_write(w->writer, data, bytes));
    w->done += bytes;
    if (w->done < w->layout.bytes[w->unit])
        return NB_OK;
    w->unit++;
    w->done = 0;
    uint64_t end = nb_writer_bytes(w->writer);
    return nb_writer_write(w->writer, zeros, rounded(end) - end);
}

nb_status nb_unit_file_finish(struct nb_unit_file_writer **writer)
{
    struct nb_unit_file_writer *w = *writer;
    size_t bytes = (size_t)w->layout.units * sizeof w->crc[0];
    w->crc[w->layout.units] = nb_crc32(0, w->crc, bytes);
    nb_status status = nb_writer_write(w->writer, w->crc, bytes + sizeof w->crc[0]);
    if (status == NB_OK)
        status = nb_writer_finish(&w->writer);
    nb_unit_file_abandon(writer);
    return status;
}

/* ---- reading ---- */

struct nb_unit_file {
    struct nb_file_reader *reader;
    struct layout layout;
    uint32_t crc[];
};

void nb_unit_file_close(struct nb_unit_file **file)
{
    struct nb_unit_file *f = *file;
    *file = NULL;
    if (!f)
        return;
    nb_file_reader_close(&f->reader);
    free_layout(&f->layout);
    free(f);
}

static nb_status check_header(const struct nb_unit_file *file)
{
    const struct layout *l = &file->layout;
    const char *path = nb_unit_file_path(file);
    uint64_t bytes = nb_file_reader_stamp(file->reader)->bytes;
    if (bytes != l->file_bytes)
        return nb_fail(NB_FORMAT, "%s: ends at offset %" PRIu64 ", not at %" PRIu64 " as this model's units do", path,
            bytes, l->file_bytes);
    unsigned char *found = malloc(l->header_bytes);
    if (!found)
        return nb_fail(NB_MEMORY, "%s: no memory for its header", path);
    uint64_t same = 0;
    nb_status status = nb_file_reader_read(file->reader, 0, found, l->header_bytes);
    while (status == NB_OK && same < l->header_bytes && found[same] == l->header[same])
        same++;
    if (status == NB_OK && same < l->header_bytes)
        status = nb_fail(
            NB_FORMAT, "%s: its header is not that of this model's units, from offset %" PRIu64 " on", path, same);
    free(found);
    return status;
}

static nb_status read_tail(struct nb_unit_file *file)
{
    const struct layout *l = &file->layout;
    size_t bytes = (size_t)l->units * sizeof file->crc[0];
    NB_TRY(nb_file_reader_read(file->reader, l->tail, file->crc, bytes + sizeof file->crc[0]));
    if (nb_crc32(0, file->crc, bytes) == file->crc[l->units])
        return NB_OK;
    return nb_fail(NB_FORMAT, "%s: the checksums at offset %" PRIu64 " are damaged", nb_unit_file_path(file), l->tail);
}

nb_status nb_unit_file_open(const char *path, const struct nb_unit_file_shape *shape, struct nb_unit_file **file)
{
    struct layout layout;
    *file = NULL;
    NB_TRY(make_layout(path, shape, &layout));
    struct nb_unit_file *f = calloc(1, sizeof *f + ((size_t)shape->units + 1) * sizeof f->crc[0]);
    if (!f) {
        free_layout(&layout);
        return nb_fail(NB_MEMORY, "%s: no memory to read it", path);
    }
    f->layout = layout;
    nb_status status = nb_file_reader_open(path, &f->reader);
    if (status == NB_OK)
        status = check_header(f);
    if (status == NB_OK)
        status = read_tail(f);
    if (status != NB_OK)
        nb_unit_file_close(&f);
    *file = f;
    return status;
}

const char *nb_unit_file_path(const struct nb_unit_file *file)
{
    return nb_file_reader_path(file->reader);
}

nb_status nb_unit_file_read(
    const struct nb_unit_file *file, int unit, uint64_t begin, void *to, uint64_t bytes, uint32_t *crc)
{
    NB_TRY(nb_file_reader_read(file->reader, file->layout.offset[unit] + begin, to, bytes));
    if (crc)
        *crc = nb_crc32(*crc, to, bytes);
    return NB_OK;
}

nb_status nb_unit_file_verify(const struct nb_unit_file *file, int unit, uint32_t crc)
{
    if (crc == file->crc[unit])
        return NB_OK;
    return nb_fail(NB_FORMAT,
        "%s: unit %d, %" PRIu64 " bytes at offset %" PRIu64 ", is damaged: its checksum is %08" PRIx32
        ", not %08" PRIx32,
        nb_unit_file_path(file), unit, file->layout.bytes[unit], file->layout.offset[unit], crc, file->crc[unit]);
}

void nb_unit_file_announce(const struct nb_unit_file *file, int unit)
{
    nb_file_reader_announce(file->reader, file->layout.offset[unit], file->layout.bytes[unit]);
}

void nb_unit_file_unlink(const struct nb_unit_file *file)
{
    nb_file_reader_unlink(file->reader);
}
