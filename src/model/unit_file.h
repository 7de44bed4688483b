/* A file of a model's units as they lie in memory: what a first start made, and later ones read.
 *
 *   header    at 0: magic, version, number of units, sizes, and a key: text that says what they were made of
 *   units     in order, each from a multiple of NB_UNIT_FILE_ALIGNMENT on, zeros between
 *   tail      at the next such multiple: the crc32 of each unit, then that of these, and the file ends
 *
 * Who reads one knows what it must begin with, so the header is never parsed: it is the expected one, byte by byte, or
 * the file is refused. The tail stands last, so that a file is written in one go. Private to src/model/. */
#ifndef NB_MODEL_UNIT_FILE_H
#define NB_MODEL_UNIT_FILE_H

#include <stdint.h>

#include "base/status.h"

enum { NB_UNIT_FILE_ALIGNMENT = 4096 };

/* Rises when the header, the tail, or where a tensor lies in its unit changes its meaning. */
enum { NB_UNIT_FILE_VERSION = 1 };

/* Borrowed by the calls below, for their duration. */
struct nb_unit_file_shape {
    const char *key;
    int units;
    const uint64_t *bytes; /* [units] */
};

/* ---- writing ---- */

struct nb_unit_file_writer;

/* To a temporary name until it is whole (nb_writer_open_locked). Errors: NB_IO, NB_MEMORY. */
nb_status nb_unit_file_create(
    const char *path, const struct nb_unit_file_shape *shape, struct nb_unit_file_writer **writer);

/* The next bytes of the next unit; at most to its end. Errors: NB_IO. */
nb_status nb_unit_file_append(struct nb_unit_file_writer *writer, const void *data, uint64_t bytes);

/* After the last unit's last byte: syncs and renames. Destroys *writer and nulls it, whatever it returns. */
nb_status nb_unit_file_finish(struct nb_unit_file_writer **writer);

/* Leaves nothing on the disk. Takes NULL; nulls the handle. */
void nb_unit_file_abandon(struct nb_unit_file_writer **writer);

/* ---- reading ---- */

struct nb_unit_file;

/* Reads and checks header and tail. Errors: NB_FORMAT, naming file and offset, for one that is damaged, short, or not
 * of this shape; NB_IO, NB_MEMORY. */
nb_status nb_unit_file_open(const char *path, const struct nb_unit_file_shape *shape, struct nb_unit_file **file);

/* Takes NULL; nulls the handle. */
void nb_unit_file_close(struct nb_unit_file **file);

const char *nb_unit_file_path(const struct nb_unit_file *file);

/* Part of a unit, from its byte `begin` on; *crc, 0 before the first part, goes on over them (NULL: nobody asks). A
 * unit that was read whole, in order, is then verified. Errors: NB_IO as nb_file_reader_read; NB_FORMAT, naming file,
 * unit and offset. */
nb_status nb_unit_file_read(
    const struct nb_unit_file *file, int unit, uint64_t begin, void *to, uint64_t bytes, uint32_t *crc);
nb_status nb_unit_file_verify(const struct nb_unit_file *file, int unit, uint32_t crc);

/* Advises the kernel that a unit will be read. */
void nb_unit_file_announce(const struct nb_unit_file *file, int unit);

/* Removes it from the disk; it can still be read. */
void nb_unit_file_unlink(const struct nb_unit_file *file);

#endif
