/* Files: whole or not at all, and one clear message for whatever the system refuses. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/file.h"
#include "support/files.h"

static int count_entries(const char *folder)
{
    DIR *opened = opendir(folder);
    assert_non_null(opened);
    int count = 0;
    for (struct dirent *entry = readdir(opened); entry; entry = readdir(opened))
        count += entry->d_name[0] != '.';
    closedir(opened);
    return count;
}

static void assert_contains(const char *path, const void *want, size_t bytes)
{
    char *got;
    size_t got_bytes;
    assert_int_equal(nb_file_read(path, 1 << 24, false, &got, &got_bytes), NB_OK);
    assert_int_equal(got_bytes, bytes);
    assert_memory_equal(got, want, bytes);
    assert_int_equal(got[bytes], 0);
    free(got);
}

static void assert_message(const char *part)
{
    if (!strstr(nb_status_message(), part))
        fail_msg("\"%s\" does not hold \"%s\"", nb_status_message(), part);
}

/* Bytes without a pattern that a chunk size could hide behind. */
static unsigned char *make_bytes(size_t bytes)
{
    unsigned char *data = malloc(bytes);
    assert_non_null(data);
    uint32_t x = 1;
    for (size_t i = 0; i < bytes; i++) {
        x = x * 1664525u + 1013904223u;
        data[i] = (unsigned char)(x >> 24);
    }
    return data;
}

static void writes_appear_whole_and_only_at_the_end(void **state)
{
    char *path = nb_path_join(*state, "file");
    const size_t sizes[] = {1, 7, 65535, 65536, 65537, 300000, 0, 3};
    unsigned char *data = make_bytes(1 << 20);
    size_t total = 0;
    struct nb_writer *writer;
    assert_int_equal(nb_writer_open(path, &writer), NB_OK);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(nb_writer_write(writer, data + total, sizes[i]), NB_OK);
        total += sizes[i];
    }
    assert_int_equal(nb_writer_bytes(writer), total);
    assert_int_equal(nb_writer_crc32(writer), crc32(0, data, (uInt)total));
    assert_false(nb_path_exists(path));
    assert_int_equal(nb_writer_finish(&writer), NB_OK);
    assert_null(writer);
    assert_contains(path, data, total);
    assert_int_equal(count_entries(*state), 1);
    free(data);
    free(path);
}

static void an_abandoned_write_keeps_the_old_file(void **state)
{
    char *path = nb_path_join(*state, "file");
    struct nb_writer *writer;
    assert_int_equal(nb_file_write(path, "old", 3), NB_OK);
    assert_int_equal(nb_writer_open(path, &writer), NB_OK);
    assert_int_equal(nb_writer_write(writer, "new", 3), NB_OK);
    nb_writer_abandon(&writer);
    assert_null(writer);
    nb_writer_abandon(&writer);
    assert_contains(path, "old", 3);
    assert_int_equal(count_entries(*state), 1);
    assert_int_equal(nb_file_write(path, "", 0), NB_OK);
    assert_contains(path, "", 0);
    free(path);
}

/* A limit on the file size stands for a full disk: write() fails part of the way in either case. */
static void a_full_disk_is_an_error_that_sticks_and_leaves_nothing(void **state)
{
    char *path = nb_path_join(*state, "file");
    unsigned char *data = make_bytes(200000);
    assert_int_equal(nb_file_write(path, "old", 3), NB_OK);
    struct rlimit before, tight = {.rlim_cur = 100000};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    tight.rlim_max = before.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    struct nb_writer *writer;
    nb_status opened = nb_writer_open(path, &writer), wrote = nb_writer_write(writer, data, 200000);
    nb_status again = nb_writer_write(writer, data, 1);
    nb_status finished = nb_writer_finish(&writer);
    char *message = strdup(nb_status_message());
    nb_status small = nb_file_write(path, data, 99999);
    nb_status large = nb_file_write(path, data, 150000);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(opened, NB_OK);
    assert_int_equal(wrote, NB_IO);
    assert_int_equal(again, NB_IO);
    assert_int_equal(finished, NB_IO);
    assert_non_null(strstr(message, path));
    assert_non_null(strstr(message, strerror(EFBIG)));
    assert_int_equal(small, NB_OK);
    assert_int_equal(large, NB_IO);
    assert_contains(path, data, 99999);
    assert_int_equal(count_entries(*state), 1);
    free(message);
    free(data);
    free(path);
}

/* /dev/full refuses every byte, and is still a device afterwards. */
static void a_device_is_written_directly(void **state)
{
    (void)state;
    struct stat status;
    if (access("/dev/full", W_OK) != 0)
        skip();
    assert_int_equal(nb_file_write("/dev/full", "x", 1), NB_IO);
    assert_message("/dev/full: cannot write: No space left on device");
    assert_int_equal(nb_file_write("/dev/null", "x", 1), NB_OK);
    assert_int_equal(stat("/dev/null", &status), 0);
    assert_true(S_ISCHR(status.st_mode));
}

/* As /dev/stdout is after "> file": the link stays a link, and what follows goes on behind what was written. */
static void a_link_to_a_descriptor_is_written_through(void **state)
{
    char *path = nb_path_join(*state, "file"), *link = nb_path_join(*state, "link");
    struct stat status;
    int descriptor = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(descriptor >= 0);
    char *target = nb_format("/proc/self/fd/%d", descriptor);
    assert_int_equal(symlink(target, link), 0);
    assert_int_equal(nb_file_write(link, "one ", 4), NB_OK);
    assert_int_equal(write(descriptor, "two", 3), 3);
    assert_int_equal(close(descriptor), 0);
    assert_int_equal(lstat(link, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    assert_contains(path, "one two", 7);
    assert_int_equal(count_entries(*state), 2);
    free(target);
    free(link);
    free(path);
}

/* In a child without root's powers: to root every folder is writable. */
static int without_permission(const char *path)
{
    struct nb_writer *writer;
    struct nb_mapped_file file;
    char *text;
    size_t bytes;
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
        return 77;
    if (nb_writer_open(path, &writer) != NB_IO || !strstr(nb_status_message(), strerror(EACCES)))
        return 1;
    if (nb_mapped_file_open(path, &file) != NB_IO || !strstr(nb_status_message(), path))
        return 2;
    if (nb_file_read(path, 100, false, &text, &bytes) != NB_IO || !strstr(nb_status_message(), strerror(EACCES)))
        return 3;
    return 0;
}

static void missing_permission_is_named(void **state)
{
    char *folder = nb_path_join(*state, "closed"), *path = nb_path_join(folder, "file");
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(chmod(folder, 0), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(without_permission(path));
    int code;
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(chmod(folder, 0700), 0);
    free(path);
    free(folder);
    assert_true(WIFEXITED(code));
    if (WEXITSTATUS(code) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(code), 0);
}

static void what_is_no_file_is_refused(void **state)
{
    struct nb_mapped_file file;
    struct nb_writer *writer;
    char *text, *missing = nb_path_join(*state, "nowhere/file");
    size_t bytes;
    assert_int_equal(nb_mapped_file_open(*state, &file), NB_IO);
    assert_message("is a folder");
    assert_int_equal(nb_mapped_file_open("/dev/null", &file), NB_IO);
    assert_message("not a regular file");
    assert_int_equal(nb_file_read(*state, 100, false, &text, &bytes), NB_IO);
    assert_null(text);
    assert_int_equal(nb_writer_open(*state, &writer), NB_IO);
    assert_null(writer);
    assert_int_equal(nb_writer_open(missing, &writer), NB_IO);
    assert_message(missing);
    assert_int_equal(nb_mapped_file_open(missing, &file), NB_IO);
    assert_message(strerror(ENOENT));
    nb_mapped_file_close(&file);
    free(missing);
}

/* The one name in a folder that holds these words; the caller frees the path. */
static char *entry_with(const char *folder, const char *words)
{
    DIR *opened = opendir(folder);
    char *path = NULL;
    assert_non_null(opened);
    for (struct dirent *entry = readdir(opened); entry; entry = readdir(opened))
        if (strstr(entry->d_name, words)) {
            assert_null(path);
            path = nb_path_join(folder, entry->d_name);
        }
    closedir(opened);
    assert_non_null(path);
    return path;
}

/* Whoever writes one, be it a process of another name space with the same number, is not disturbed. */
static void a_locked_temporary_is_no_leftover(void **state)
{
    char *path = nb_path_join(*state, "file"), *plain = nb_format("%s.tmp-%ld", path, (long)getpid());
    struct nb_writer *writer, *other;
    assert_int_equal(nb_writer_open_locked(path, &writer), NB_OK);
    char *temporary = entry_with(*state, ".tmp-");
    assert_false(nb_writer_remove_leftover(temporary));
    assert_true(nb_path_exists(temporary));
    /* The same process and the same file: another name, and neither takes the other's. */
    assert_int_equal(nb_writer_open_locked(path, &other), NB_OK);
    assert_int_equal(nb_writer_write(writer, "first", 5), NB_OK);
    assert_int_equal(nb_writer_write(other, "other", 5), NB_OK);
    assert_int_equal(nb_writer_finish(&writer), NB_OK);
    assert_contains(path, "first", 5);
    free(temporary);
    temporary = entry_with(*state, ".tmp-");
    assert_false(nb_writer_remove_leftover(temporary));
    assert_int_equal(nb_writer_finish(&other), NB_OK);
    assert_contains(path, "other", 5);
    assert_int_equal(count_entries(*state), 1);
    free(temporary);
    /* What is left by a process that is gone, though its number may be a living one's. */
    assert_int_equal(nb_file_write(plain, "left", 4), NB_OK);
    assert_true(nb_writer_remove_leftover(plain));
    assert_false(nb_path_exists(plain));
    assert_false(nb_writer_remove_leftover(plain));
    assert_int_equal(mkfifo(plain, 0600), 0);
    alarm(20);
    assert_false(nb_writer_remove_leftover(plain));
    assert_true(nb_path_exists(plain));
    /* And a pipe is neither written to nor replaced. */
    assert_int_equal(nb_writer_open_locked(plain, &writer), NB_IO);
    assert_message("not a regular file");
    alarm(0);
    free(path);
    free(plain);
}

/* A pipe that nobody writes to is not waited for where it could not be mapped; one that is written to is read. */
static void pipes_are_read_and_not_mapped(void **state)
{
    struct nb_mapped_file file;
    char *path = nb_path_join(*state, "pipe"), *text;
    size_t bytes;
    assert_int_equal(mkfifo(path, 0600), 0);
    alarm(20);
    assert_int_equal(nb_mapped_file_open(path, &file), NB_IO);
    assert_message("not a regular file");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        usleep(100000); /* so that the reader comes first */
        int descriptor = open(path, O_WRONLY);
        _exit(write(descriptor, "words", 5) == 5 ? 0 : 1);
    }
    assert_int_equal(nb_file_read(path, 100, false, &text, &bytes), NB_OK);
    assert_string_equal(text, "words");
    int code;
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(code, 0);
    alarm(0);
    free(text);
    free(path);
}

static void a_mapped_file_holds_the_bytes_even_after_forgetting(void **state)
{
    char *path = nb_path_join(*state, "file");
    unsigned char *data = make_bytes(50000);
    struct nb_mapped_file file;
    assert_int_equal(nb_file_write(path, data, 50000), NB_OK);
    assert_int_equal(nb_mapped_file_open(path, &file), NB_OK);
    assert_int_equal(file.bytes, 50000);
    assert_string_equal(file.path, path);
    assert_memory_equal(file.data, data, 50000);
    nb_mapped_file_forget(&file, 1, 49999);
    nb_mapped_file_forget(&file, 40000, UINT64_MAX);
    nb_mapped_file_forget(&file, 50000, 1);
    assert_memory_equal(file.data, data, 50000);
    nb_mapped_file_close(&file);
    assert_null(file.path);
    nb_mapped_file_close(&file);
    assert_int_equal(nb_file_write(path, "", 0), NB_OK);
    assert_int_equal(nb_mapped_file_open(path, &file), NB_OK);
    assert_null(file.data);
    assert_int_equal(file.bytes, 0);
    nb_mapped_file_close(&file);
    free(data);
    free(path);
}

static void a_read_stops_at_its_limit(void **state)
{
    char *path = nb_path_join(*state, "file"), *text;
    unsigned char *data = make_bytes(200000);
    size_t bytes;
    assert_int_equal(nb_file_write(path, data, 200000), NB_OK);
    assert_int_equal(nb_file_read(path, 200000, false, &text, &bytes), NB_OK);
    assert_int_equal(bytes, 200000);
    free(text);
    assert_int_equal(nb_file_read(path, 199999, false, &text, &bytes), NB_FORMAT);
    assert_null(text);
    assert_message("199999 bytes");
    free(data);
    free(path);
}

/* Packs into gzip's form. The caller frees. */
static unsigned char *pack(const unsigned char *data, size_t bytes, size_t *packed_bytes)
{
    z_stream stream = {0};
    assert_int_equal(deflateInit2(&stream, 1, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
    size_t room = deflateBound(&stream, bytes);
    unsigned char *packed = malloc(room);
    assert_non_null(packed);
    stream.next_in = (unsigned char *)(uintptr_t)data;
    stream.avail_in = (uInt)bytes;
    stream.next_out = packed;
    stream.avail_out = (uInt)room;
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    *packed_bytes = stream.total_out;
    deflateEnd(&stream);
    return packed;
}

static void gzip_is_unpacked_however_many_members_it_has(void **state)
{
    char *path = nb_path_join(*state, "file.gz"), *text;
    unsigned char *data = make_bytes(150000);
    size_t bytes, first_bytes, second_bytes;
    unsigned char *first = pack(data, 100000, &first_bytes), *second = pack(data + 100000, 50000, &second_bytes);
    struct nb_writer *writer;
    assert_int_equal(nb_writer_open(path, &writer), NB_OK);
    assert_int_equal(nb_writer_write(writer, first, first_bytes), NB_OK);
    assert_int_equal(nb_writer_write(writer, second, second_bytes), NB_OK);
    assert_int_equal(nb_writer_finish(&writer), NB_OK);
    assert_int_equal(nb_file_read(path, 150000, true, &text, &bytes), NB_OK);
    assert_int_equal(bytes, 150000);
    assert_memory_equal(text, data, 150000);
    free(text);
    assert_int_equal(nb_file_read(path, 149999, true, &text, &bytes), NB_FORMAT);
    assert_int_equal(nb_file_read(path, 1 << 20, false, &text, &bytes), NB_OK);
    assert_int_equal(bytes, first_bytes + second_bytes);
    free(text);
    free(first);
    free(second);
    free(data);
    free(path);
}

static void damaged_gzip_is_refused_at_every_cut(void **state)
{
    char *path = nb_path_join(*state, "file.gz"), *text;
    const unsigned char line[] = "{\"text\": \"a row of data, a row of data\"}\n";
    size_t bytes, packed_bytes;
    unsigned char *packed = pack(line, sizeof line - 1, &packed_bytes);
    for (size_t cut = 2; cut < packed_bytes; cut++) {
        assert_int_equal(nb_file_write(path, packed, cut), NB_OK);
        assert_int_equal(nb_file_read(path, 1000, true, &text, &bytes), NB_FORMAT);
        assert_null(text);
        assert_message("ends early");
    }
    packed[packed_bytes - 6] ^= 1; /* the checksum */
    assert_int_equal(nb_file_write(path, packed, packed_bytes), NB_OK);
    assert_int_equal(nb_file_read(path, 1000, true, &text, &bytes), NB_FORMAT);
    assert_message("damaged gzip");
    free(packed);
    free(path);
}

/* A small file that unpacks to 64 MiB of zeros must stop at the limit. */
static void a_gzip_bomb_stops_at_the_limit(void **state)
{
    char *path = nb_path_join(*state, "file.gz"), *text;
    const size_t bomb = 64 << 20;
    unsigned char *zeros = calloc(bomb, 1);
    size_t bytes, packed_bytes;
    assert_non_null(zeros);
    unsigned char *packed = pack(zeros, bomb, &packed_bytes);
    assert_int_equal(nb_file_write(path, packed, packed_bytes), NB_OK);
    assert_int_equal(nb_file_read(path, 1 << 20, true, &text, &bytes), NB_FORMAT);
    assert_message("1048576 bytes");
    free(packed);
    free(zeros);
    free(path);
}

static void folders_are_made_and_removed(void **state)
{
    char *deep = nb_path_join(*state, "a//b/c/"), *top = nb_path_join(*state, "a"), *file = nb_path_join(*state, "kept");
    char *inner = nb_path_join(deep, "file"), *link = nb_path_join(deep, "link");
    assert_int_equal(nb_make_folder(deep), NB_OK);
    assert_int_equal(nb_make_folder(deep), NB_OK);
    assert_true(nb_path_is_folder(deep));
    assert_int_equal(nb_sync_folder(deep), NB_OK);
    assert_int_equal(nb_file_write(inner, "x", 1), NB_OK);
    assert_int_equal(nb_file_write(file, "x", 1), NB_OK);
    assert_int_equal(symlink(*state, link), 0);
    assert_int_equal(nb_remove_folder(top), NB_OK);
    assert_false(nb_path_exists(top));
    assert_true(nb_path_exists(file)); /* the link out of the folder was not followed */
    assert_int_equal(nb_remove_folder(top), NB_OK);
    assert_int_equal(nb_make_folder(file), NB_IO);
    assert_message(file);
    assert_int_equal(nb_make_folder(""), NB_IO);
    free(deep);
    free(top);
    free(file);
    free(inner);
    free(link);
}

static void names_are_joined_with_one_slash(void **state)
{
    (void)state;
    const char *const cases[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *joined = nb_path_join(cases[i][0], cases[i][1]);
        assert_string_equal(joined, cases[i][2]);
        free(joined);
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, nb_test_make_folder, nb_test_remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(writes_appear_whole_and_only_at_the_end),
        IN_FOLDER(an_abandoned_write_keeps_the_old_file),
        IN_FOLDER(a_full_disk_is_an_error_that_sticks_and_leaves_nothing),
        cmocka_unit_test(a_device_is_written_directly),
        IN_FOLDER(a_link_to_a_descriptor_is_written_through),
        IN_FOLDER(missing_permission_is_named),
        IN_FOLDER(what_is_no_file_is_refused),
        IN_FOLDER(a_locked_temporary_is_no_leftover),
        IN_FOLDER(pipes_are_read_and_not_mapped),
        IN_FOLDER(a_mapped_file_holds_the_bytes_even_after_forgetting),
        IN_FOLDER(a_read_stops_at_its_limit),
        IN_FOLDER(gzip_is_unpacked_however_many_members_it_has),
        IN_FOLDER(damaged_gzip_is_refused_at_every_cut),
        IN_FOLDER(a_gzip_bomb_stops_at_the_limit),
        IN_FOLDER(folders_are_made_and_removed),
        cmocka_unit_test(names_are_joined_with_one_slash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
