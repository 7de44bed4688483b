/* Files: mapped for reading, and written whole or not at all. */
#ifndef NB_BASE_FILE_H
#define NB_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* What tells one state of a file from another: its place on the disk, its size, and when it was last written. */
struct nb_file_stamp {
    uint64_t device, inode, bytes;
    int64_t seconds, nanoseconds;
};

/* Of an open file. Errors: NB_IO, naming the path. */
nb_status nb_file_stamp_read(int descriptor, const char *path, struct nb_file_stamp *stamp);
bool nb_file_stamp_equal(const struct nb_file_stamp *a, const struct nb_file_stamp *b);

/* A file mapped read-only. `data` is NULL for an empty file. */
struct nb_mapped_file {
    const unsigned char *data;
    uint64_t bytes;
    char *path;                 /* as given, owned */
    struct nb_file_stamp stamp; /* when it was mapped */
};

/* Maps a regular file. Never waits. Errors: NB_IO (missing, no permission, a directory, a pipe), naming the path. */
nb_status nb_mapped_file_open(const char *path, struct nb_mapped_file *file);

/* Unmaps and clears `file`. Takes a cleared one. */
void nb_mapped_file_close(struct nb_mapped_file *file);

/* Brings [offset, offset + bytes) into memory, so that a disk that fails, or a file that has become shorter, is an error here and not
 * a signal at the first access. Where the kernel cannot (before Linux 5.14) it does nothing. Errors: NB_IO, naming the file and, to
 * within a few megabytes, the offset. */
nb_status nb_mapped_file_fetch(const struct nb_mapped_file *file, uint64_t offset, uint64_t bytes);

/* Tells the kernel that [offset, offset + bytes) has been read and its pages may go, so that a loaded model's file does not count
 * as the program's memory. */
void nb_mapped_file_forget(const struct nb_mapped_file *file, uint64_t offset, uint64_t bytes);

/* Reads a whole file into memory with a terminating zero; gzip is unpacked when `gunzip` and the file starts with its magic.
 * Refuses more than `limit` bytes (unpacked). The caller frees *data. Errors: NB_IO, NB_FORMAT (damaged gzip), NB_MEMORY. */
nb_status nb_file_read(const char *path, uint64_t limit, bool gunzip, char **data, size_t *bytes);

/* A file written to "PATH.tmp-PID" beside its place, synced and renamed by nb_writer_finish; an unfinished one leaves nothing.
 * Where a device or a pipe already stands at PATH (/dev/stdout), it is written directly. */
struct nb_writer;

/* Errors: NB_IO naming the path. */
nb_status nb_writer_open(const char *path, struct nb_writer **writer);

/* The same for a file that others may be writing as well, on this machine or another: written to "PATH.tmp-PID-RANDOM",
 * which is locked (flock) for as long as it is written, so that it can be told from what a killed process left. Errors:
 * also NB_IO where PATH is something else than a regular file. */
nb_status nb_writer_open_locked(const char *path, struct nb_writer **writer);

/* Removes such a temporary file if nobody writes it any longer, and says whether it did. Where the file system has no
 * locks none is removed. */
bool nb_writer_remove_leftover(const char *temporary);

/* Errors stick: after a failed write every later call, and finish, fail with NB_IO naming the path ("No space left on device"). */
nb_status nb_writer_write(struct nb_writer *writer, const void *data, size_t bytes);

/* The zlib crc32 and the count of all bytes written so far. */
uint32_t nb_writer_crc32(const struct nb_writer *writer);
uint64_t nb_writer_bytes(const struct nb_writer *writer);

/* Flushes, syncs the file, renames it into place and syncs the folder. Destroys *writer and nulls it, whatever it returns. */
nb_status nb_writer_finish(struct nb_writer **writer);

/* Removes the temporary file. Takes NULL; nulls the handle. */
void nb_writer_abandon(struct nb_writer **writer);

/* Writes one whole small file the same way. */
nb_status nb_file_write(const char *path, const void *data, size_t bytes);

/* Makes a folder and its parents. An existing folder is fine. Errors: NB_IO. */
nb_status nb_make_folder(const char *path);

/* Syncs a folder, so that renames in it survive a power cut. */
nb_status nb_sync_folder(const char *path);

/* Removes a folder with the plain files and folders in it. A missing one is fine. */
nb_status nb_remove_folder(const char *path);

bool nb_path_exists(const char *path);
bool nb_path_is_folder(const char *path);

/* "folder/name", allocated; the caller frees it. */
char *nb_path_join(const char *folder, const char *name);

/* printf into a new string, which the caller frees. Aborts when memory is out: for short names only. */
char *nb_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
