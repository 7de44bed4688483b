#include "base/file_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Linux reads no more than 2 GiB at a time. */
static const uint64_t part_bytes_max = UINT64_C(1) << 30;

struct nb_file_reader {
    char *path;
    int descriptor;
    struct nb_file_stamp stamp;
};

static struct nb_file_stamp stamp_of(const struct stat *status)
{
    return (struct nb_file_stamp){(uint64_t)status->st_dev, (uint64_t)status->st_ino, (uint64_t)status->st_size,
        (int64_t)status->st_mtim.tv_sec, (int64_t)status->st_mtim.tv_nsec};
}

nb_status nb_file_stamp_read(int descriptor, const char *path, struct nb_file_stamp *stamp)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0)
        return nb_fail_errno("%s: cannot stat", path);
    *stamp = stamp_of(&status);
    return NB_OK;
}

bool nb_file_stamp_equal(const struct nb_file_stamp *a, const struct nb_file_stamp *b)
{
    return a->device == b->device && a->inode == b->inode && a->bytes == b->bytes && a->seconds == b->seconds &&
           a->nanoseconds == b->nanoseconds;
}

static nb_status read_kind(int descriptor, const char *path, struct nb_file_stamp *stamp)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0)
        return nb_fail_errno("%s: cannot stat", path);
    if (!S_ISREG(status.st_mode))
        return nb_fail(NB_IO, "%s: is not a regular file, so it cannot be read in ranges", path);
    *stamp = stamp_of(&status);
    return NB_OK;
}

nb_status nb_file_reader_open(const char *path, struct nb_file_reader **reader)
{
    *reader = NULL;
    /* A pipe would be waited for, until someone writes to it. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return nb_fail_errno("%s: cannot open", path);
    struct nb_file_reader *r = calloc(1, sizeof *r);
    char *copy = strdup(path);
    nb_status status = r && copy ? read_kind(descriptor, path, &r->stamp)
                                 : nb_fail(NB_MEMORY, "%s: no memory to read it", path);
    if (status != NB_OK) {
        close(descriptor);
        free(copy);
        free(r);
        return status;
    }
    r->descriptor = descriptor;
    r->path = copy;
    *reader = r;
    return NB_OK;
}

void nb_file_reader_close(struct nb_file_reader **reader)
{
    struct nb_file_reader *r = *reader;
    *reader = NULL;
    if (!r)
        return;
    close(r->descriptor);
    free(r->path);
    free(r);
}

const char *nb_file_reader_path(const struct nb_file_reader *reader)
{
    return reader->path;
}

const struct nb_file_stamp *nb_file_reader_stamp(const struct nb_file_reader *reader)
{
    return &reader->stamp;
}

/* After the bytes were read: a change while they were counts as well. */
static nb_status check_unchanged(const struct nb_file_reader *reader, uint64_t offset)
{
    struct nb_file_stamp now;
    NB_TRY(nb_file_stamp_read(reader->descriptor, reader->path, &now));
    if (nb_file_stamp_equal(&now, &reader->stamp))
        return NB_OK;
    return nb_fail(NB_IO,
        "%s: was changed while it was in use (seen when reading at offset %" PRIu64 "): it has %" PRIu64
        " bytes, at first it had %" PRIu64 "; put it back, and start again",
        reader->path, offset, now.bytes, reader->stamp.bytes);
}

nb_status nb_file_reader_read(const struct nb_file_reader *reader, uint64_t offset, void *to, uint64_t bytes)
{
    uint64_t done = 0;
    while (done < bytes) {
        uint64_t want = bytes - done < part_bytes_max ? bytes - done : part_bytes_max;
        ssize_t got = pread(reader->descriptor, (char *)to + done, (size_t)want, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return nb_fail_errno(
                "%s: cannot read %" PRIu64 " bytes at offset %" PRIu64, reader->path, want, offset + done);
        if (got == 0) {
            NB_TRY(check_unchanged(reader, offset + done));
            return nb_fail(NB_IO, "%s: ends at offset %" PRIu64 ", %" PRIu64 " bytes too early", reader->path,
                offset + done, bytes - done);
        }
        done += (uint64_t)got;
    }
    return check_unchanged(reader, offset);
}

void nb_file_reader_announce(const struct nb_file_reader *reader, uint64_t offset, uint64_t bytes)
{
    /* Advice only: where it is not taken, reading waits for the disk. */
    (void)posix_fadvise(reader->descriptor, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

void nb_file_reader_unlink(const struct nb_file_reader *reader)
{
    struct stat there;
    if (stat(reader->path, &there) == 0 && (uint64_t)there.st_ino == reader->stamp.inode &&
        (uint64_t)there.st_dev == reader->stamp.device)
        unlink(reader->path);
}
