/* safetensors: what is written reads back, shards, and hostile headers of every kind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "support/files.h"

/* A file of a header and `data_bytes` counting bytes, in memory exactly as long, so that a sanitizer sees a read past its end. */
static nb_status parse(const char *header, uint64_t header_bytes, size_t data_bytes, struct nb_safetensors **file,
                       unsigned char **data)
{
    size_t length = strlen(header), bytes = 8 + length + data_bytes;
    *data = malloc(bytes);
    memcpy(*data, &header_bytes, 8);
    memcpy(*data + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        (*data)[8 + length + i] = (unsigned char)i;
    return nb_safetensors_parse(*data, bytes, "hostile.safetensors", file);
}

static void refused(const char *header, size_t data_bytes, const char *words)
{
    struct nb_safetensors *file;
    unsigned char *data;
    nb_status status = parse(header, strlen(header), data_bytes, &file, &data);
    if (status != NB_FORMAT || file)
        fail_msg("accepted: %s", header);
    nb_test_says("hostile.safetensors");
    nb_test_says(words);
    free(data);
}

static const char three[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                            "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]},"
                            "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                            "\"c\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[22,23]}}  ";

static void a_sound_file_is_read(void **state)
{
    struct nb_safetensors *file;
    unsigned char *data;
    (void)state;
    nb_test_must(parse(three, strlen(three), 23, &file, &data));
    assert_int_equal(nb_safetensors_count(file), 3);
    assert_string_equal(nb_safetensors_at(file, 0)->name, "a");
    assert_string_equal(nb_safetensors_at(file, 1)->name, "b");
    const struct nb_safetensors_tensor *b = nb_safetensors_find(file, "b"), *c = nb_safetensors_find(file, "c");
    assert_int_equal(b->dtype, NB_SAFETENSORS_BF16);
    assert_int_equal(b->data[0], 16);
    assert_int_equal(b->offset, 8 + strlen(three) + 16);
    assert_int_equal(c->rank, 0);
    assert_int_equal(c->count, 1);
    assert_null(nb_safetensors_find(file, "d"));
    assert_string_equal(nb_safetensors_metadata(file, "format"), "pt");
    assert_null(nb_safetensors_metadata(file, "other"));
    nb_safetensors_close(&file);
    assert_null(file);
    nb_safetensors_close(&file);
    free(data);
}

static void every_truncation_is_refused(void **state)
{
    unsigned char *data;
    struct nb_safetensors *file;
    (void)state;
    nb_test_must(parse(three, strlen(three), 23, &file, &data));
    nb_safetensors_close(&file);
    for (size_t bytes = 0; bytes < 8 + strlen(three) + 23; bytes++) {
        unsigned char *part = malloc(bytes ? bytes : 1);
        memcpy(part, data, bytes);
        assert_int_equal(nb_safetensors_parse(part, bytes, "cut.safetensors", &file), NB_FORMAT);
        assert_null(file);
        nb_test_says("cut.safetensors");
        free(part);
    }
    free(data);
}

#define ENTRY(dtype, shape, offsets) "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void hostile_entries_are_refused(void **state)
{
    (void)state;
    refused(ENTRY("F32", "[2,2]", "[0,16]"), 15, "past the end");
    refused(ENTRY("F32", "[2,2]", "[0,12]"), 12, "need 16");
    refused(ENTRY("F32", "[2,2]", "[16,0]"), 16, "not a range");
    refused(ENTRY("F32", "[2,2]", "[-16,0]"), 16, "not a range");
    refused(ENTRY("F32", "[2,2]", "[0]"), 16, "pair of numbers");
    refused(ENTRY("F32", "[2,2]", "[0,16.0]"), 16, "pair of numbers");
    refused(ENTRY("F32", "[2,2]", "{}"), 16, "pair of numbers");
    refused(ENTRY("F32", "[2,-2]", "[0,16]"), 16, "dimension 1");
    refused(ENTRY("F32", "[2,2.5]", "[0,16]"), 16, "dimension 1");
    refused(ENTRY("F32", "4", "[0,16]"), 16, "no shape");
    refused(ENTRY("F33", "[4]", "[0,16]"), 16, "unknown dtype");
    refused(ENTRY("F32", "[4294967296,4294967296]", "[0,0]"), 0, "product overflows");
    refused(ENTRY("F32", "[4611686018427387904]", "[0,0]"), 0, "bytes overflows");
    refused(ENTRY("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "9 dimensions");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "not dtype, shape");
    refused("{\"a\":3}", 0, "not dtype, shape");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":[[[[]]]]}}", 1, "not dtype, shape");
}

static void hostile_tables_are_refused(void **state)
{
    (void)state;
    refused("[]", 0, "not a JSON object");
    refused("{\"a\":", 0, "not JSON at offset");
    refused("{} x", 0, "not JSON");
    refused("{\"\xff\":{}}", 0, "not JSON");
    refused("{}", 1, "belong to no tensor");
    refused(ENTRY("U8", "[2]", "[1,3]"), 3, "belong to no tensor");
    refused(ENTRY("U8", "[2]", "[0,2]"), 3, "after the last tensor");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
            "\"data_offsets\":[1,3]}}",
            3, "overlap");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],"
            "\"data_offsets\":[1,2]}}",
            2, "not JSON");
    refused("{\"__metadata__\":{\"format\":{}}}", 0, "format");
    refused("{\"__metadata__\":[]}", 0, "__metadata__");
}

static void hostile_lengths_are_refused(void **state)
{
    static const uint64_t lengths[] = {3, 100000000, 100000001, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63};
    struct nb_safetensors *file;
    unsigned char *data;
    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        assert_int_equal(parse("{}", lengths[i], 0, &file, &data), NB_FORMAT);
        assert_null(file);
        nb_test_says(lengths[i] > 100000000 ? "is refused" : "past the end");
        free(data);
    }
}

static void deep_nesting_is_refused(void **state)
{
    enum { DEPTH = 1000000 };
    struct nb_safetensors *file;
    unsigned char *data;
    char *bomb = malloc(DEPTH + 1);
    (void)state;
    memset(bomb, '[', DEPTH);
    bomb[DEPTH] = '\0';
    assert_int_equal(parse(bomb, DEPTH, 0, &file, &data), NB_FORMAT);
    nb_test_says("not JSON");
    free(data);
    free(bomb);
}

static void what_is_written_reads_back(void **state)
{
    const char *folder = *state;
    static const struct nb_safetensors_entry entries[] = {
        {"z.first", NB_SAFETENSORS_F32, 2, {2, 3}}, {"a.second", NB_SAFETENSORS_U8, 1, {5}}, {"scalar", NB_SAFETENSORS_F64, 0, {0}},
        {"none", NB_SAFETENSORS_BF16, 2, {0, 7}}};
    unsigned char bytes[24 + 5 + 8];
    struct nb_safetensors_writer *writer;
    struct nb_safetensors *file;
    uint32_t crc;
    char *path = nb_path_join(folder, "x.safetensors"), *whole;
    size_t whole_bytes;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7);
    nb_test_must(nb_safetensors_writer_open(path, entries, 4, &writer));
    assert_false(nb_path_exists(path));
    nb_test_must(nb_safetensors_writer_write(writer, bytes, 11));
    nb_test_must(nb_safetensors_writer_write(writer, bytes + 11, sizeof bytes - 11));
    nb_test_must(nb_safetensors_writer_finish(&writer, &crc));
    assert_null(writer);
    nb_test_must(nb_file_read(path, 1 << 20, false, &whole, &whole_bytes));
    assert_int_equal(crc, crc32(0, (const unsigned char *)whole, (unsigned)whole_bytes));
    free(whole);
    nb_test_must(nb_safetensors_open(path, &file));
    assert_int_equal(nb_safetensors_count(file), 4);
    assert_memory_equal(nb_safetensors_find(file, "z.first")->data, bytes, 24);
    assert_memory_equal(nb_safetensors_find(file, "a.second")->data, bytes + 24, 5);
    assert_int_equal(nb_safetensors_find(file, "z.first")->offset % 8, 0);
    assert_int_equal(nb_safetensors_find(file, "none")->bytes, 0);
    assert_string_equal(nb_safetensors_metadata(file, "format"), "pt");
    nb_safetensors_forget(file, nb_safetensors_find(file, "z.first"));
    assert_memory_equal(nb_safetensors_find(file, "z.first")->data, bytes, 24);
    nb_safetensors_close(&file);
    free(path);
}

static void an_unfinished_file_leaves_nothing(void **state)
{
    const char *folder = *state;
    static const struct nb_safetensors_entry twice[] = {{"a", NB_SAFETENSORS_U8, 1, {1}}, {"a", NB_SAFETENSORS_U8, 1, {1}}};
    struct nb_safetensors_writer *writer;
    char *path = nb_path_join(folder, "y.safetensors");
    nb_test_must(nb_safetensors_writer_open(path, twice, 1, &writer));
    assert_int_equal(nb_safetensors_writer_finish(&writer, NULL), NB_USAGE);
    assert_null(writer);
    assert_false(nb_path_exists(path));
    assert_int_equal(nb_safetensors_writer_open(path, twice, 2, &writer), NB_USAGE);
    assert_null(writer);
    assert_int_equal(nb_safetensors_writer_open("/nonexistent/y.safetensors", twice, 1, &writer), NB_IO);
    nb_test_must(nb_safetensors_writer_open(path, twice, 1, &writer));
    nb_safetensors_writer_abandon(&writer);
    assert_null(writer);
    assert_false(nb_path_exists(path));
    free(path);
}

static void write_shard(const char *folder, const char *name, const char *tensor)
{
    struct nb_safetensors_entry entry = {tensor, NB_SAFETENSORS_U8, 1, {4}};
    struct nb_safetensors_writer *writer;
    char *path = nb_path_join(folder, name);
    nb_test_must(nb_safetensors_writer_open(path, &entry, 1, &writer));
    nb_test_must(nb_safetensors_writer_write(writer, tensor, 4));
    nb_test_must(nb_safetensors_writer_finish(&writer, NULL));
    free(path);
}

static nb_status open_index(const char *folder, const char *index, struct nb_safetensors **file)
{
    char *path = nb_path_join(folder, "model.safetensors.index.json");
    nb_test_must(nb_file_write(path, index, strlen(index)));
    free(path);
    return nb_safetensors_open_folder(folder, "model", file);
}

static void shards_are_one_file(void **state)
{
    const char *folder = *state;
    struct nb_safetensors *file;
    assert_int_equal(nb_safetensors_open_folder(folder, "model", &file), NB_IO);
    write_shard(folder, "one.safetensors", "abcd");
    write_shard(folder, "two.safetensors", "efgh");
    write_shard(folder, "twin.safetensors", "abcd");
    nb_test_must(open_index(folder, "{\"weight_map\": {\"efgh\": \"two.safetensors\", \"abcd\": \"one.safetensors\"}}", &file));
    assert_int_equal(nb_safetensors_count(file), 2);
    assert_memory_equal(nb_safetensors_find(file, "abcd")->data, "abcd", 4);
    assert_memory_equal(nb_safetensors_find(file, "efgh")->data, "efgh", 4);
    nb_safetensors_close(&file);
    static const struct {
        const char *index, *words;
        nb_status status;
    } bad[] = {
        {"{\"weight_map\": {\"abcd\": \"../one.safetensors\"}}", "beside the index", NB_FORMAT},
        {"{\"weight_map\": {\"abcd\": \"/etc/passwd\"}}", "beside the index", NB_FORMAT},
        {"{\"weight_map\": {\"abcd\": 3}}", "beside the index", NB_FORMAT},
        {"{\"weight_map\": {}}", "names no tensors", NB_FORMAT},
        {"{\"weight_map\": []}", "weight_map", NB_FORMAT},
        {"[", "not JSON", NB_FORMAT},
        {"{\"weight_map\": {\"ijkl\": \"one.safetensors\"}}", "ijkl is not in one.safetensors", NB_FORMAT},
        {"{\"weight_map\": {\"abcd\": \"two.safetensors\", \"efgh\": \"one.safetensors\"}}", "where the index has it", NB_FORMAT},
        {"{\"weight_map\": {\"abcd\": \"one.safetensors\", \"x\": \"twin.safetensors\"}}", "abcd", NB_FORMAT},
        {"{\"weight_map\": {\"abcd\": \"three.safetensors\"}}", "three.safetensors", NB_IO},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(open_index(folder, bad[i].index, &file), bad[i].status);
        assert_null(file);
        nb_test_says(bad[i].words);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_file_is_read),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(hostile_entries_are_refused),
        cmocka_unit_test(hostile_tables_are_refused),
        cmocka_unit_test(hostile_lengths_are_refused),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test_setup_teardown(what_is_written_reads_back, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(an_unfinished_file_leaves_nothing, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(shards_are_one_file, nb_test_make_folder, nb_test_remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
