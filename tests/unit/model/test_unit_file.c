/* Files of units: their bytes, as the header's comment has them, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/unit_file.h"
#include "support/files.h"

enum { UNITS = 3, FIRST = 4096, SECOND = 8192, THIRD = 16384, TAIL = 20480, BYTES = TAIL + (UNITS + 1) * 4 };

static const uint64_t sizes[UNITS] = {256, 5000, 4096};
static const uint64_t offsets[UNITS] = {FIRST, SECOND, THIRD};
static const struct nb_unit_file_shape shape = {.key = "made of this\n", .units = UNITS, .bytes = sizes};

static unsigned char byte_of(int unit, uint64_t i)
{
    return (unsigned char)((uint64_t)unit * 31 + i * 7 + i / 256);
}

/* In pieces of `piece` bytes, which end at the units' ends. */
static char *write_file(void **state, uint64_t piece)
{
    char *path = nb_path_join(*state, "units");
    struct nb_unit_file_writer *writer;
    nb_test_must(nb_unit_file_create(path, &shape, &writer));
    for (int unit = 0; unit < UNITS; unit++)
        for (uint64_t begin = 0; begin < sizes[unit]; begin += piece) {
            unsigned char bytes[5000];
            uint64_t count = sizes[unit] - begin < piece ? sizes[unit] - begin : piece;
            for (uint64_t i = 0; i < count; i++)
                bytes[i] = byte_of(unit, begin + i);
            nb_test_must(nb_unit_file_append(writer, bytes, count));
        }
    assert_false(nb_path_exists(path));
    nb_test_must(nb_unit_file_finish(&writer));
    assert_null(writer);
    return path;
}

static void the_bytes_are_where_the_comment_says(void **state)
{
    for (uint64_t piece = 100; piece <= 5000; piece += 4900) {
        char *path = write_file(state, piece), *data;
        const struct {
            char magic[8];
            uint32_t version, units;
            uint64_t file_bytes, key_bytes, sizes[UNITS];
        } header = {"NBUNITS", 1, UNITS, BYTES, sizeof "made of this\n" - 1, {256, 5000, 4096}};
        uint32_t sums[UNITS + 1];
        size_t bytes;
        nb_test_must(nb_file_read(path, 1 << 20, false, &data, &bytes));
        assert_int_equal(bytes, BYTES);
        assert_memory_equal(data, &header, sizeof header);
        assert_memory_equal(data + sizeof header, "made of this\n", header.key_bytes);
        for (size_t i = sizeof header + header.key_bytes; i < FIRST; i++)
            assert_int_equal(data[i], 0);
        for (int unit = 0; unit < UNITS; unit++) {
            for (uint64_t i = 0; i < sizes[unit]; i++)
                assert_int_equal((unsigned char)data[offsets[unit] + i], byte_of(unit, i));
            sums[unit] = (uint32_t)crc32_z(0, (const unsigned char *)data + offsets[unit], sizes[unit]);
        }
        sums[UNITS] = (uint32_t)crc32_z(0, (const unsigned char *)sums, UNITS * sizeof *sums);
        assert_memory_equal(data + TAIL, sums, sizeof sums);
        assert_int_equal(remove(path), 0);
        free(data);
        free(path);
    }
}

static void units_are_read_and_verified(void **state)
{
    char *path = write_file(state, 777);
    struct nb_unit_file *file;
    nb_test_must(nb_unit_file_open(path, &shape, &file));
    for (int unit = 0; unit < UNITS; unit++) {
        unsigned char bytes[5000];
        uint32_t crc = 0;
        nb_unit_file_announce(file, unit);
        for (uint64_t begin = 0; begin < sizes[unit]; begin += 100)
            nb_test_must(nb_unit_file_read(
                file, unit, begin, bytes + begin, sizes[unit] - begin < 100 ? sizes[unit] - begin : 100, &crc));
        nb_test_must(nb_unit_file_verify(file, unit, crc));
        assert_int_equal(nb_unit_file_verify(file, unit, crc ^ 1), NB_FORMAT);
        nb_test_says(path);
        char *where = nb_format("offset %d,", (int)offsets[unit]);
        nb_test_says(where);
        free(where);
        for (uint64_t i = 0; i < sizes[unit]; i++)
            assert_int_equal(bytes[i], byte_of(unit, i));
    }
    nb_unit_file_unlink(file);
    assert_false(nb_path_exists(path));
    nb_unit_file_close(&file);
    nb_unit_file_close(&file);
    free(path);
}

static void another_shape_is_refused(void **state)
{
    static const uint64_t other_sizes[UNITS] = {256, 4999, 4097}, fewer[UNITS] = {256, 5000};
    const struct nb_unit_file_shape others[] = {{"made of that\n", UNITS, sizes}, {shape.key, UNITS, other_sizes},
        {shape.key, UNITS - 1, fewer}, {"", UNITS, sizes}};
    char *path = write_file(state, 5000);
    struct nb_unit_file *file;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(nb_unit_file_open(path, &others[i], &file), NB_FORMAT);
        assert_null(file);
        nb_test_says(path);
        nb_test_says("offset");
    }
    assert_int_equal(nb_unit_file_open("/nowhere/to/be/found", &shape, &file), NB_IO);
    free(path);
}

static void an_abandoned_one_leaves_nothing(void **state)
{
    char *path = nb_path_join(*state, "abandoned");
    struct nb_unit_file_writer *writer;
    nb_test_must(nb_unit_file_create(path, &shape, &writer));
    nb_test_must(nb_unit_file_append(writer, "some", 4));
    nb_unit_file_abandon(&writer);
    nb_unit_file_abandon(&writer);
    nb_status status = nb_sync_folder(*state);
    assert_int_equal(status, NB_OK);
    assert_false(nb_path_exists(path));
    free(path);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, nb_test_make_folder, nb_test_remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(the_bytes_are_where_the_comment_says),
        IN_FOLDER(units_are_read_and_verified),
        IN_FOLDER(another_shape_is_refused),
        IN_FOLDER(an_abandoned_one_leaves_nothing),
    };
    return cmocka_run_group_tests_name("unit file", tests, NULL, NULL);
}
