#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { CHUNK_BYTES = 1 << 16, FOLDER_DEPTH_OPEN = 16 };

/* Opens for reading; a folder is refused here, because read() and mmap() name it less clearly. `flags`: O_NONBLOCK where
 * a pipe that nobody writes to is not to be waited for. */
static nb_status open_for_reading(const char *path, int flags, int *descriptor, struct stat *status)
{
    int opened = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (opened < 0)
        return nb_fail_errno("%s: cannot open", path);
    if (fstat(opened, status) != 0) {
        nb_status failed = nb_fail_errno("%s: cannot stat", path);
        close(opened);
        return failed;
    }
    if (S_ISDIR(status->st_mode)) {
        close(opened);
        return nb_fail(NB_IO, "%s: is a folder, a file was expected", path);
    }
    *descriptor = opened;
    return NB_OK;
}

nb_status nb_mapped_file_open(const char *path, struct nb_mapped_file *file)
{
    struct stat status;
    int descriptor = -1;
    *file = (struct nb_mapped_file){0};
    NB_TRY(open_for_reading(path, O_NONBLOCK, &descriptor, &status));
    nb_status result = NB_OK;
    void *data = NULL;
    if (!S_ISREG(status.st_mode)) {
        result = nb_fail(NB_IO, "%s: is not a regular file, so it cannot be mapped", path);
    } else if (status.st_size > 0) {
        data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (data == MAP_FAILED) {
            data = NULL;
            result = nb_fail_errno("%s: cannot map %lld bytes", path, (long long)status.st_size);
        }
    }
    struct nb_file_stamp stamp;
    if (result == NB_OK)
        result = nb_file_stamp_read(descriptor, path, &stamp);
    close(descriptor);
    char *copy = result == NB_OK ? strdup(path) : NULL;
    if (result == NB_OK && !copy)
        result = nb_fail(NB_MEMORY, "%s: no memory to read it", path);
    if (result != NB_OK) {
        if (data)
            munmap(data, (size_t)status.st_size);
        return result;
    }
    *file = (struct nb_mapped_file){.data = data, .bytes = (uint64_t)status.st_size, .path = copy, .stamp = stamp};
    return NB_OK;
}

void nb_mapped_file_close(struct nb_mapped_file *file)
{
    if (file->data)
        munmap((void *)(uintptr_t)file->data, (size_t)file->bytes);
    free(file->path);
    *file = (struct nb_mapped_file){0};
}

/* Cuts a range to the file's, and lets it begin where a page does. */
static bool find_pages(const struct nb_mapped_file *file, uint64_t offset, uint64_t bytes, uint64_t *begin, uint64_t *end)
{
    if (!file->data || bytes == 0 || offset >= file->bytes)
        return false;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    *begin = offset / page * page;
    *end = bytes > file->bytes - offset ? file->bytes : offset + bytes;
    return true;
}

nb_status nb_mapped_file_fetch(const struct nb_mapped_file *file, uint64_t offset, uint64_t bytes)
{
    const uint64_t piece = 4 << 20;
    uint64_t begin, end;
    if (!find_pages(file, offset, bytes, &begin, &end))
        return NB_OK;
    for (; begin < end; begin += piece) {
        uint64_t length = end - begin < piece ? end - begin : piece;
        int result;
        do
            result = madvise((void *)(uintptr_t)(file->data + begin), (size_t)length, MADV_POPULATE_READ);
        while (result != 0 && errno == EINTR);
        if (result != 0 && errno == EFAULT)
            return nb_fail(NB_IO,
                "%s: reading fails at or after offset %" PRIu64 ": the disk has an error, or the file was changed", file->path,
                begin);
    }
    return NB_OK;
}

void nb_mapped_file_forget(const struct nb_mapped_file *file, uint64_t offset, uint64_t bytes)
{
    uint64_t begin, end;
    if (!find_pages(file, offset, bytes, &begin, &end)) /* a neighbour on the first page is read again from the page cache */
        return;
    /* Advice only: a refusal costs memory, never correctness. */
    (void)madvise((void *)(uintptr_t)(file->data + begin), (size_t)(end - begin), MADV_DONTNEED);
}

/* A text that grows up to a limit. There is always one byte of room for the terminating zero. */
struct growing {
    const char *path;
    char *data;
    size_t bytes, capacity;
    uint64_t limit;
};

static nb_status growing_append(struct growing *growing, const void *data, size_t bytes)
{
    if (bytes > growing->limit - growing->bytes)
        return nb_fail(NB_FORMAT, "%s: holds more than the %llu bytes that are allowed here", growing->path,
            (unsigned long long)growing->limit);
    if (bytes >= growing->capacity - growing->bytes) {
        size_t capacity = growing->capacity;
        while (bytes >= capacity - growing->bytes) {
            if (capacity > SIZE_MAX / 2)
                return nb_fail(NB_MEMORY, "%s: no memory to read it", growing->path);
            capacity *= 2;
        }
        char *larger = realloc(growing->data, capacity);
        if (!larger)
            return nb_fail(NB_MEMORY, "%s: no memory to read it: %zu bytes were asked for", growing->path, capacity);
        growing->data = larger;
        growing->capacity = capacity;
    }
    memcpy(growing->data + growing->bytes, data, bytes);
    growing->bytes += bytes;
    return NB_OK;
}

/* Reads up to a full buffer; short only at the end of the file. */
static nb_status read_chunk(int descriptor, const char *path, unsigned char *buffer, size_t *got)
{
    *got = 0;
    while (*got < CHUNK_BYTES) {
        ssize_t part = read(descriptor, buffer + *got, CHUNK_BYTES - *got);
        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0)
            return nb_fail_errno("%s: cannot read", path);
        if (part == 0)
            break;
        *got += (size_t)part;
    }
    return NB_OK;
}

static nb_status read_plain(int descriptor, unsigned char *input, size_t got, struct growing *text)
{
    while (got) {
        NB_TRY(growing_append(text, input, got));
        NB_TRY(read_chunk(descriptor, text->path, input, &got));
    }
    return NB_OK;
}

/* Unpacks one buffer of input. *inside says whether a member has begun and not ended: a file may hold several, one after another. */
static nb_status inflate_chunk(z_stream *stream, bool *inside, struct growing *text)
{
    unsigned char output[CHUNK_BYTES];
    do {
        if (!*inside && stream->avail_in == 0)
            return NB_OK;
        if (!*inside && inflateReset(stream) != Z_OK)
            return nb_fail(NB_FORMAT, "%s: zlib cannot restart", text->path);
        *inside = true;
        stream->next_out = output;
        stream->avail_out = sizeof output;
        int code = inflate(stream, Z_NO_FLUSH);
        if (code == Z_MEM_ERROR)
            return nb_fail(NB_MEMORY, "%s: no memory to read it", text->path);
        if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
            return nb_fail(NB_FORMAT, "%s: damaged gzip data after %zu unpacked bytes: %s", text->path, text->bytes,
                stream->msg ? stream->msg : "not a deflate stream");
        NB_TRY(growing_append(text, output, sizeof output - stream->avail_out));
        *inside = code != Z_STREAM_END;
    } while (stream->avail_in > 0 || stream->avail_out == 0);
    return NB_OK;
}

static nb_status read_gzip(int descriptor, unsigned char *input, size_t got, struct growing *text)
{
    z_stream stream = {0};
    if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK)
        return nb_fail(NB_MEMORY, "%s: no memory to read it", text->path);
    nb_status status = NB_OK;
    bool inside = true;
    while (got && status == NB_OK) {
        stream.next_in = input;
        stream.avail_in = (uInt)got;
        status = inflate_chunk(&stream, &inside, text);
        if (status == NB_OK)
            status = read_chunk(descriptor, text->path, input, &got);
    }
    if (status == NB_OK && inside)
        status =
            nb_fail(NB_FORMAT, "%s: the gzip data ends early, after %zu unpacked bytes. The download may be incomplete",
                text->path, text->bytes);
    inflateEnd(&stream);
    return status;
}

nb_status nb_file_read(const char *path, uint64_t limit, bool gunzip, char **data, size_t *bytes)
{
    struct stat status;
    int descriptor = -1;
    unsigned char input[CHUNK_BYTES];
    size_t got;
    *data = NULL;
    *bytes = 0;
    NB_TRY(open_for_reading(path, 0, &descriptor, &status));
    struct growing text = {.path = path, .limit = limit, .capacity = CHUNK_BYTES};
    if (S_ISREG(status.st_mode) && status.st_size >= CHUNK_BYTES && (uint64_t)status.st_size <= limit)
        text.capacity = (size_t)status.st_size + 1;
    text.data = malloc(text.capacity);
    nb_status result = text.data ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory to read it", path);
    if (result == NB_OK)
        result = read_chunk(descriptor, path, input, &got);
    if (result == NB_OK && gunzip && got >= 2 && input[0] == 0x1f && input[1] == 0x8b)
        result = read_gzip(descriptor, input, got, &text);
    else if (result == NB_OK)
        result = read_plain(descriptor, input, got, &text);
    close(descriptor);
    if (result != NB_OK) {
        free(text.data);
        return result;
    }
    text.data[text.bytes] = 0;
    *data = text.data;
    *bytes = text.bytes;
    return NB_OK;
}

nb_status nb_make_folder(const char *path)
{
    char *copy = nb_format("%s", path);
    nb_status status = NB_OK;
    for (char *end = copy; *end && status == NB_OK;) {
        end += strspn(end, "/");
        end += strcspn(end, "/");
        char kept = *end;
        *end = 0;
        if (mkdir(copy, 0777) != 0 && !nb_path_is_folder(copy)) {
            /* The second mkdir is for its errno, which looking has replaced. */
            if (nb_path_exists(copy))
                status = nb_fail(NB_IO, "%s: is not a folder; remove it, or choose another place", copy);
            else if (mkdir(copy, 0777) != 0)
                status = nb_fail_errno("%s: cannot make the folder", copy);
        }
        *end = kept;
    }
    if (status == NB_OK && !nb_path_is_folder(path))
        status = nb_fail(NB_IO, "\"%s\": is not a folder", path);
    free(copy);
    return status;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)kind;
    (void)place;
    if (remove(path) == 0 || errno == ENOENT)
        return 0;
    nb_fail_errno("%s: cannot remove", path);
    return 1;
}

nb_status nb_remove_folder(const char *path)
{
    if (!nb_path_exists(path))
        return NB_OK;
    /* FTW_PHYS: a link is removed, never followed out of the folder. */
    int code = nftw(path, remove_entry, FOLDER_DEPTH_OPEN, FTW_DEPTH | FTW_PHYS);
    if (code < 0)
        return nb_fail_errno("%s: cannot remove the folder", path);
    return code ? NB_IO : NB_OK;
}

bool nb_path_exists(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0;
}

bool nb_path_is_folder(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

char *nb_path_join(const char *folder, const char *name)
{
    size_t bytes = strlen(folder);
    bool separated = bytes == 0 || folder[bytes - 1] == '/';
    return nb_format("%s%s%s", folder, separated ? "" : "/", name);
}

char *nb_format(const char *format, ...)
{
    va_list arguments;
    char *text;
    va_start(arguments, format);
    int bytes = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (bytes < 0)
        abort();
    return text;
}
