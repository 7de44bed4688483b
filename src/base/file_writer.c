/* Files that are written whole or not at all. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"

enum { CHUNK_BYTES = 1 << 16 };

struct nb_writer {
    char *path, *temporary; /* temporary is NULL where a device or pipe is written directly */
    int descriptor;
    int failed_errno; /* the first failure; 0 while there is none */
    uint32_t crc;
    uint64_t bytes;
    size_t pending;
    unsigned char buffer[CHUNK_BYTES];
};

static void writer_free(struct nb_writer **writer)
{
    struct nb_writer *w = *writer;
    *writer = NULL;
    if (!w)
        return;
    if (w->descriptor >= 0)
        close(w->descriptor);
    free(w->path);
    free(w->temporary);
    free(w);
}

/* A copy of the descriptor that a link such as /dev/stdout stands for; -1 for any other path. Such a link must not be
 * replaced by a file, and the file behind it has a place to go on writing from. */
static int linked_descriptor(const char *path)
{
    static const char prefix[] = "/proc/self/fd/";
    char target[64], *end;
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return -1;
    target[length] = 0;
    if (strncmp(target, prefix, sizeof prefix - 1) != 0)
        return -1;
    long number = strtol(target + sizeof prefix - 1, &end, 10);
    return *end || number < 0 || number > INT_MAX ? -1 : fcntl((int)number, F_DUPFD_CLOEXEC, 0);
}

nb_status nb_writer_open(const char *path, struct nb_writer **writer)
{
    struct stat status;
    bool exists = stat(path, &status) == 0;
    *writer = NULL;
    if (exists && S_ISDIR(status.st_mode))
        return nb_fail(NB_IO, "%s: is a folder, so no file of that name can be written", path);
    struct nb_writer *w = calloc(1, sizeof *w);
    if (!w)
        return nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    w->descriptor = -1;
    w->crc = (uint32_t)crc32_z(0, NULL, 0);
    w->path = nb_format("%s", path);
    /* Renaming over /dev/null or a pipe would replace it with a plain file, for every program on the machine. */
    w->descriptor = linked_descriptor(path);
    bool direct = w->descriptor >= 0 || (exists && !S_ISREG(status.st_mode));
    if (!direct)
        w->temporary = nb_format("%s.tmp-%ld", path, (long)getpid());
    int flags = O_WRONLY | O_CLOEXEC | (direct ? 0 : O_CREAT | O_TRUNC | O_NOFOLLOW);
    if (w->descriptor < 0)
        w->descriptor = open(direct ? path : w->temporary, flags, 0666);
    if (w->descriptor < 0) {
        nb_status failed = nb_fail_errno("%s: cannot write", path);
        writer_free(&w);
        return failed;
    }
    *writer = w;
    return NB_OK;
}

/* A new file, locked; -1 with errno where it cannot be, EEXIST also where another has taken it for a leftover in the
 * moment before the lock. A file system without locks holds no one back. */
static int make_locked(const char *path)
{
    struct stat status;
    int descriptor = open(path, O_WRONLY | O_CLOEXEC | O_CREAT | O_EXCL | O_NOFOLLOW, 0666);
    if (descriptor < 0)
        return -1;
    bool lost = flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!lost && fstat(descriptor, &status) == 0 && status.st_nlink > 0)
        return descriptor;
    close(descriptor);
    errno = EEXIST;
    return -1;
}

nb_status nb_writer_open_locked(const char *path, struct nb_writer **writer)
{
    enum { TRIES = 8 };
    struct stat status;
    *writer = NULL;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        return nb_fail(NB_IO, "%s: is not a regular file, so none of that name is written", path);
    struct nb_writer *w = calloc(1, sizeof *w);
    if (!w)
        return nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    w->descriptor = -1;
    w->crc = (uint32_t)crc32_z(0, NULL, 0);
    w->path = nb_format("%s", path);
    errno = EEXIST;
    for (int i = 0; i < TRIES && w->descriptor < 0 && errno == EEXIST; i++) {
        uint64_t number;
        if (getrandom(&number, sizeof number, 0) != sizeof number)
            break;
        free(w->temporary);
        w->temporary = nb_format("%s.tmp-%ld-%016" PRIx64, path, (long)getpid(), number);
        w->descriptor = make_locked(w->temporary);
    }
    if (w->descriptor < 0) {
        nb_status failed = nb_fail_errno("%s: cannot write", path);
        writer_free(&w);
        return failed;
    }
    *writer = w;
    return NB_OK;
}

bool nb_writer_remove_leftover(const char *temporary)
{
    struct stat status;
    /* Some file systems lock only what is open for writing. */
    int descriptor = open(temporary, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0)
        return false;
    bool removed = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
                   flock(descriptor, LOCK_EX | LOCK_NB) == 0 && unlink(temporary) == 0;
    close(descriptor);
    return removed;
}

static nb_status writer_failure(const struct nb_writer *writer)
{
    return nb_fail(NB_IO, "%s: cannot write: %s", writer->path, strerror(writer->failed_errno));
}

static nb_status write_all(struct nb_writer *writer, const unsigned char *data, size_t bytes)
{
    while (bytes) {
        ssize_t part = write(writer->descriptor, data, bytes);
        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0) {
            writer->failed_errno = errno;
            return writer_failure(writer);
        }
        data += part;
        bytes -= (size_t)part;
    }
    return NB_OK;
}

static nb_status writer_flush(struct nb_writer *writer)
{
    size_t pending = writer->pending;
    writer->pending = 0;
    return write_all(writer, writer->buffer, pending);
}

nb_status nb_writer_write(struct nb_writer *writer, const void *data, size_t bytes)
{
    if (writer->failed_errno)
        return writer_failure(writer);
    if (!bytes)
        return NB_OK;
    if (bytes > CHUNK_BYTES - writer->pending)
        NB_TRY(writer_flush(writer));
    if (bytes >= CHUNK_BYTES) {
        NB_TRY(write_all(writer, data, bytes));
    } else {
        memcpy(writer->buffer + writer->pending, data, bytes);
        writer->pending += bytes;
    }
    writer->crc = (uint32_t)crc32_z(writer->crc, data, bytes);
    writer->bytes += bytes;
    return NB_OK;
}

uint32_t nb_writer_crc32(const struct nb_writer *writer)
{
    return writer->crc;
}

uint64_t nb_writer_bytes(const struct nb_writer *writer)
{
    return writer->bytes;
}

/* Devices, pipes and some network file systems cannot sync and say so; that is no failure to write. */
static bool sync_failed(int descriptor)
{
    return fsync(descriptor) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS;
}

nb_status nb_sync_folder(const char *path)
{
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0)
        return nb_fail_errno("%s: cannot open the folder", path);
    nb_status status = sync_failed(descriptor) ? nb_fail_errno("%s: cannot sync the folder", path) : NB_OK;
    close(descriptor);
    return status;
}

static nb_status sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return nb_sync_folder(".");
    char *folder = nb_format("%.*s", slash == path ? 1 : (int)(slash - path), path);
    nb_status status = nb_sync_folder(folder);
    free(folder);
    return status;
}

nb_status nb_writer_finish(struct nb_writer **writer)
{
    struct nb_writer *w = *writer;
    nb_status status = w->failed_errno ? writer_failure(w) : writer_flush(w);
    if (status == NB_OK && sync_failed(w->descriptor))
        status = nb_fail_errno("%s: cannot sync", w->path);
    /* A lock must hold until the file has its name; closing, which tells of errors, comes before. */
    int descriptor = w->descriptor;
    w->descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (close(descriptor) != 0 && status == NB_OK)
        status = nb_fail_errno("%s: cannot close", w->path);
    if (status == NB_OK && w->temporary && rename(w->temporary, w->path) != 0)
        status = nb_fail_errno("%s: cannot rename %s into place", w->path, w->temporary);
    if (status != NB_OK)
        nb_writer_abandon(writer);
    else if (w->temporary)
        status = sync_parent(w->path);
    writer_free(writer);
    return status;
}

void nb_writer_abandon(struct nb_writer **writer)
{
    if (*writer && (*writer)->temporary)
        unlink((*writer)->temporary);
    writer_free(writer);
}

nb_status nb_file_write(const char *path, const void *data, size_t bytes)
{
    struct nb_writer *writer;
    NB_TRY(nb_writer_open(path, &writer));
    nb_status status = nb_writer_write(writer, data, bytes);
    if (status != NB_OK) {
        nb_writer_abandon(&writer);
        return status;
    }
    return nb_writer_finish(&writer);
}
