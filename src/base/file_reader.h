/* Files that are read a range at a time for as long as a program runs, while others may come to change them. */
#ifndef NB_BASE_FILE_READER_H
#define NB_BASE_FILE_READER_H

#include "base/file.h"

/* Holds the file open: one that is renamed, removed or put in another's place is read on as it was. */
struct nb_file_reader;

/* Never waits. Errors: NB_IO, naming the path, also for what is no regular file; NB_MEMORY. */
nb_status nb_file_reader_open(const char *path, struct nb_file_reader **reader);

/* Takes NULL; nulls the handle. */
void nb_file_reader_close(struct nb_file_reader **reader);

const char *nb_file_reader_path(const struct nb_file_reader *reader);
const struct nb_file_stamp *nb_file_reader_stamp(const struct nb_file_reader *reader); /* when it was opened */

/* Reads [offset, offset + bytes). Errors: NB_IO, naming path and offset, also where the file ends too early, and where
 * it is no longer what it was when it was opened: what was read may then be of both. */
nb_status nb_file_reader_read(const struct nb_file_reader *reader, uint64_t offset, void *to, uint64_t bytes);

/* Advises the kernel to read a range ahead. */
void nb_file_reader_announce(const struct nb_file_reader *reader, uint64_t offset, uint64_t bytes);

/* Removes the file from its folder, unless another has taken its place there. It can still be read. */
void nb_file_reader_unlink(const struct nb_file_reader *reader);

#endif
