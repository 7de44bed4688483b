/* Files read in ranges while they may change, and checksums on all cores. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/crc32.h"
#include "base/file_reader.h"
#include "support/files.h"

static void a_checksum_is_zlibs(void **state)
{
    (void)state;
    enum { BYTES = 40 << 20 };
    static const size_t lengths[] = {
        0, 1, 7, 4096, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, BYTES - 3};
    unsigned char *data = malloc(BYTES);
    assert_non_null(data);
    for (size_t i = 0; i < BYTES; i++)
        data[i] = (unsigned char)(i * i / 3 + i);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint32_t whole = nb_crc32(0, data + i % 3, lengths[i]);
        assert_int_equal(whole, crc32_z(0, data + i % 3, lengths[i]));
        size_t part = lengths[i] / 3;
        assert_int_equal(nb_crc32(nb_crc32(0, data + i % 3, part), data + i % 3 + part, lengths[i] - part), whole);
    }
    free(data);
}

static char *file_of(void **state, const char *name, const char *text)
{
    char *path = nb_path_join(*state, name);
    nb_test_must(nb_file_write(path, text, strlen(text)));
    return path;
}

static void ranges_are_read(void **state)
{
    char *path = file_of(state, "ranges", "abcdefgh"), read[9] = {0};
    struct nb_file_reader *reader;
    nb_test_must(nb_file_reader_open(path, &reader));
    assert_string_equal(nb_file_reader_path(reader), path);
    assert_int_equal(nb_file_reader_stamp(reader)->bytes, 8);
    nb_file_reader_announce(reader, 0, 8);
    nb_test_must(nb_file_reader_read(reader, 2, read, 3));
    assert_string_equal(read, "cde");
    nb_test_must(nb_file_reader_read(reader, 0, read, 8));
    assert_string_equal(read, "abcdefgh");
    nb_test_must(nb_file_reader_read(reader, 8, read, 0));
    assert_int_equal(nb_file_reader_read(reader, 5, read, 4), NB_IO);
    nb_test_says("ends at offset 8, 1 bytes too early");
    nb_file_reader_close(&reader);
    nb_file_reader_close(&reader);
    assert_int_equal(nb_file_reader_open("/nowhere/to/be/found", &reader), NB_IO);
    nb_test_says("/nowhere/to/be/found");
    assert_null(reader);
    free(path);
}

/* A pipe that nobody writes to is not waited for. */
static void only_files_are_read(void **state)
{
    char *pipe = nb_path_join(*state, "pipe");
    assert_int_equal(mkfifo(pipe, 0600), 0);
    const char *const path[] = {*state, pipe, "/dev/null"};
    alarm(20);
    for (size_t i = 0; i < sizeof path / sizeof *path; i++) {
        struct nb_file_reader *reader;
        assert_int_equal(nb_file_reader_open(path[i], &reader), NB_IO);
        assert_null(reader);
        nb_test_says(path[i]);
        nb_test_says("not a regular file");
    }
    alarm(0);
    free(pipe);
}

/* Another size, and another time with the same size. One that is renamed away is read on. */
static void changes_are_seen(void **state)
{
    char *path = file_of(state, "changes", "abcdefgh"), *moved = nb_path_join(*state, "moved"), read[9] = {0};
    for (int change = 0; change < 3; change++) {
        struct nb_file_reader *reader;
        free(file_of(state, "changes", "abcdefgh"));
        nb_test_must(nb_file_reader_open(path, &reader));
        if (change == 0) {
            assert_int_equal(truncate(path, 6), 0);
        } else if (change == 1) {
            usleep(20000); /* the file system's clock ticks */
            FILE *file = fopen(path, "r+");
            assert_true(file && fputc('x', file) == 'x' && fclose(file) == 0);
        } else {
            assert_int_equal(rename(path, moved), 0);
            free(file_of(state, "changes", "another"));
        }
        nb_status status = nb_file_reader_read(reader, 1, read, 3);
        assert_int_equal(status, change < 2 ? NB_IO : NB_OK);
        if (change < 2)
            nb_test_says("was changed while it was in use (seen when reading at offset 1)");
        else
            assert_string_equal(read, "bcd");
        nb_file_reader_unlink(reader); /* not what took its place */
        assert_true(nb_path_exists(path) == (change == 2));
        nb_file_reader_close(&reader);
    }
    free(moved);
    free(path);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, nb_test_make_folder, nb_test_remove_folder)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checksum_is_zlibs),
        IN_FOLDER(ranges_are_read),
        IN_FOLDER(only_files_are_read),
        IN_FOLDER(changes_are_seen),
    };
    return cmocka_run_group_tests_name("file reader", tests, NULL, NULL);
}
