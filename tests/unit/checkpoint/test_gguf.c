/* GGUF: values of every block type against the reference's, metadata, and hostile files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bfloat.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "support/files.h"

/* Types whose value is scale * code + minimum have two roundings, which the reference may do in another order. */
static const struct {
    const char *name;
    enum nb_gguf_type type;
    uint32_t ulps;
} types[] = {
    {"F16", NB_GGUF_F16, 0},
    {"BF16", NB_GGUF_BF16, 0},
    {"Q4_0", NB_GGUF_Q4_0, 0},
    {"Q4_1", NB_GGUF_Q4_1, 1},
    {"Q5_0", NB_GGUF_Q5_0, 0},
    {"Q5_1", NB_GGUF_Q5_1, 1},
    {"Q8_0", NB_GGUF_Q8_0, 0},
    {"Q2_K", NB_GGUF_Q2_K, 1},
    {"Q3_K", NB_GGUF_Q3_K, 0},
    {"Q4_K", NB_GGUF_Q4_K, 1},
    {"Q5_K", NB_GGUF_Q5_K, 1},
    {"Q6_K", NB_GGUF_Q6_K, 0},
    {"IQ4_NL", NB_GGUF_IQ4_NL, 0},
    {"IQ4_XS", NB_GGUF_IQ4_XS, 0},
};

static uint32_t distance_ulps(float a, float b)
{
    int64_t x = nb_float_bits(a), y = nb_float_bits(b);
    x = x & 0x80000000 ? 0x80000000 - x : x;
    y = y & 0x80000000 ? 0x80000000 - y : y;
    return (uint32_t)(x > y ? x - y : y - x);
}

static void every_type_has_the_reference_values(void **state)
{
    struct nb_safetensors *file;
    (void)state;
    assert_int_equal(nb_safetensors_open("tests/golden/gguf_blocks.safetensors", &file), NB_OK);
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        char name[32];
        static float got[8 * 512];
        snprintf(name, sizeof name, "%s.bytes", types[t].name);
        const struct nb_safetensors_tensor *bytes = nb_safetensors_find(file, name);
        snprintf(name, sizeof name, "%s.values", types[t].name);
        const struct nb_safetensors_tensor *values = nb_safetensors_find(file, name);
        assert_non_null(bytes);
        assert_non_null(values);
        assert_int_equal(values->count, 8 * 512);
        assert_int_equal(
            bytes->bytes, 8 * 512 / nb_gguf_block_weights(types[t].type) * nb_gguf_block_bytes(types[t].type));
        nb_gguf_dequantize(types[t].type, bytes->data, values->count, got);
        for (size_t i = 0; i < values->count; i++) {
            float want;
            memcpy(&want, values->data + i * sizeof want, sizeof want);
            if (distance_ulps(got[i], want) > types[t].ulps)
                fail_msg("%s, weight %zu: %.9g, not %.9g", types[t].name, i, (double)got[i], (double)want);
        }
    }
    nb_safetensors_close(&file);
}

enum { FILE_ROOM = 4096 };

static void put_header(struct nb_test_bytes *b, uint32_t version, uint64_t tensors, uint64_t keys)
{
    b->bytes = 0;
    nb_test_put(b, "GGUF", 4);
    nb_test_put_u32(b, version);
    nb_test_put_u64(b, tensors);
    nb_test_put_u64(b, keys);
}

static void put_tensor(
    struct nb_test_bytes *b, const char *name, uint64_t columns, uint64_t rows, uint32_t type, uint64_t offset)
{
    nb_test_put_text(b, name);
    nb_test_put_u32(b, 2);
    nb_test_put_u64(b, columns);
    nb_test_put_u64(b, rows);
    nb_test_put_u32(b, type);
    nb_test_put_u64(b, offset);
}

/* Two keys of each kind that matters and two tensors; `alignment` as a key. */
static void put_small_file(struct nb_test_bytes *b, uint32_t version)
{
    put_header(b, version, 2, 5);
    nb_test_put_text(b, "general.architecture");
    nb_test_put_u32(b, 8);
    nb_test_put_text(b, "llama");
    nb_test_put_text(b, "general.alignment");
    nb_test_put_u32(b, 4);
    nb_test_put_u32(b, 64);
    nb_test_put_text(b, "a.tokens");
    nb_test_put_u32(b, 9);
    nb_test_put_u32(b, 8);
    nb_test_put_u64(b, 3);
    nb_test_put_text(b, "one");
    nb_test_put_text(b, "");
    nb_test_put_text(b, "three");
    nb_test_put_text(b, "a.kinds");
    nb_test_put_u32(b, 9);
    nb_test_put_u32(b, 5);
    nb_test_put_u64(b, 2);
    nb_test_put_u32(b, (uint32_t)-7);
    nb_test_put_u32(b, 3);
    nb_test_put_text(b, "a.base");
    nb_test_put_u32(b, 6);
    float base = 1.5f;
    nb_test_put(b, &base, sizeof base);
    put_tensor(b, "second", 4, 2, NB_GGUF_F32, 64);
    put_tensor(b, "first", 32, 1, NB_GGUF_Q8_0, 0);
    while (b->bytes % 64)
        nb_test_put(b, "", 1);
    unsigned char zeros[64 + 32] = {0};
    nb_test_put(b, zeros, sizeof zeros);
}

static nb_status parse(const struct nb_test_bytes *b, struct nb_gguf **gguf)
{
    /* Exactly as long as the file, so that the sanitizer sees a read past its end. */
    unsigned char *copy = malloc(b->bytes ? b->bytes : 1);
    memcpy(copy, b->data, b->bytes);
    nb_status status = nb_gguf_parse(copy, b->bytes, "hostile.gguf", gguf);
    if (status != NB_OK)
        free(copy);
    return status;
}

static void metadata_and_tensors_are_read(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        unsigned char room[FILE_ROOM];
        struct nb_test_bytes b = {.data = room, .capacity = sizeof room};
        struct nb_gguf *gguf;
        const struct nb_gguf_text *texts;
        size_t count;
        int64_t integer = 0;
        double number = 0;
        put_small_file(&b, version);
        assert_int_equal(nb_gguf_parse(b.data, b.bytes, "small.gguf", &gguf), NB_OK);
        assert_true(nb_gguf_string_is(gguf, "general.architecture", "llama"));
        assert_false(nb_gguf_string_is(gguf, "general.architecture", "llam"));
        assert_true(nb_gguf_strings(gguf, "a.tokens", &texts, &count));
        assert_int_equal(count, 3);
        assert_int_equal(texts[1].bytes, 0);
        assert_memory_equal(texts[2].text, "three", 5);
        assert_true(nb_gguf_array_integer(gguf, "a.kinds", 0, &integer));
        assert_int_equal(integer, -7);
        assert_false(nb_gguf_array_integer(gguf, "a.kinds", 2, &integer));
        assert_true(nb_gguf_number(gguf, "a.base", &number));
        assert_true(number == 1.5);
        assert_false(nb_gguf_integer(gguf, "a.base", &integer));
        assert_false(nb_gguf_has(gguf, "a.bas"));
        const struct nb_gguf_tensor *tensor = nb_gguf_tensor_find(gguf, "second");
        assert_non_null(tensor);
        assert_int_equal(tensor->shape[0], 2);
        assert_int_equal(tensor->shape[1], 4);
        assert_int_equal(tensor->offset % 64, 0);
        assert_ptr_equal(tensor->data + tensor->bytes, b.data + b.bytes);
        assert_string_equal(nb_gguf_tensor_at(gguf, 0)->name, "second");
        assert_null(nb_gguf_tensor_find(gguf, "third"));
        nb_gguf_close(&gguf);
        assert_null(gguf);
    }
}

static void every_truncation_is_refused(void **state)
{
    unsigned char room[FILE_ROOM];
    struct nb_test_bytes b = {.data = room, .capacity = sizeof room};
    struct nb_gguf *gguf;
    (void)state;
    put_small_file(&b, 3);
    size_t whole = b.bytes;
    for (b.bytes = 0; b.bytes < whole; b.bytes++) {
        assert_int_not_equal(parse(&b, &gguf), NB_OK);
        assert_null(gguf);
        assert_non_null(strstr(nb_status_message(), "hostile.gguf"));
    }
}

static void expect(struct nb_test_bytes *b, nb_status status, const char *words)
{
    struct nb_gguf *gguf;
    assert_int_equal(parse(b, &gguf), status);
    assert_null(gguf);
    if (!strstr(nb_status_message(), words))
        fail_msg("\"%s\" does not say \"%s\"", nb_status_message(), words);
}

static void hostile_headers_are_refused(void **state)
{
    unsigned char room[FILE_ROOM];
    struct nb_test_bytes b = {.data = room, .capacity = sizeof room};
    (void)state;
    put_small_file(&b, 3);
    b.data[0] = 'g';
    expect(&b, NB_FORMAT, "GGUF");
    put_header(&b, 1, 0, 0);
    expect(&b, NB_UNSUPPORTED, "version 1");
    put_header(&b, 0x03000000, 0, 0);
    expect(&b, NB_UNSUPPORTED, "big-endian");
    put_header(&b, 3, 0, UINT64_MAX);
    expect(&b, NB_FORMAT, "keys");
    put_header(&b, 3, UINT64_MAX / 8, 0);
    expect(&b, NB_FORMAT, "tensors");
    put_header(&b, 3, 0, 1);
    nb_test_put_u64(&b, UINT64_MAX - 3);
    nb_test_put(&b, "0123456789", 10);
    expect(&b, NB_FORMAT, "past the end");
}

static void hostile_metadata_is_refused(void **state)
{
    unsigned char room[FILE_ROOM];
    struct nb_test_bytes b = {.data = room, .capacity = sizeof room};
    (void)state;
    put_header(&b, 3, 0, 1);
    nb_test_put_text(&b, "key");
    nb_test_put_u32(&b, 77);
    nb_test_put_u64(&b, 0);
    expect(&b, NB_FORMAT, "key key: value type 77");
    put_header(&b, 3, 0, 1);
    nb_test_put_text(&b, "key");
    nb_test_put_u32(&b, 9);
    nb_test_put_u32(&b, 9); /* an array of arrays */
    nb_test_put_u64(&b, 1);
    expect(&b, NB_FORMAT, "in an array");
    put_header(&b, 3, 0, 1);
    nb_test_put_text(&b, "key");
    nb_test_put_u32(&b, 9);
    nb_test_put_u32(&b, 10);
    nb_test_put_u64(&b, UINT64_C(1) << 61); /* times 8 is 0 */
    expect(&b, NB_FORMAT, "past the end");
    put_header(&b, 3, 0, 1);
    nb_test_put_text(&b, "key");
    nb_test_put_u32(&b, 9);
    nb_test_put_u32(&b, 8);
    nb_test_put_u64(&b, UINT64_C(1) << 60);
    expect(&b, NB_FORMAT, "strings");
    put_header(&b, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        nb_test_put_text(&b, "twin");
        nb_test_put_u32(&b, 4);
        nb_test_put_u32(&b, 1);
    }
    expect(&b, NB_FORMAT, "twin is given twice");
    for (uint32_t alignment = 0; alignment < 100; alignment += 33) {
        put_header(&b, 3, 0, 1);
        nb_test_put_text(&b, "general.alignment");
        nb_test_put_u32(&b, 4);
        nb_test_put_u32(&b, alignment);
        expect(&b, NB_FORMAT, "alignment");
    }
}

static void put_one_tensor(struct nb_test_bytes *b, uint64_t columns, uint64_t rows, uint32_t type, uint64_t offset)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "w", columns, rows, type, offset);
    while (b->bytes % 32)
        nb_test_put(b, "", 1);
    unsigned char zeros[256] = {0};
    nb_test_put(b, zeros, sizeof zeros);
}

static void hostile_tensors_are_refused(void **state)
{
    unsigned char room[FILE_ROOM];
    struct nb_test_bytes b = {.data = room, .capacity = sizeof room};
    (void)state;
    put_one_tensor(&b, 4, 2, 4, 0);
    expect(&b, NB_UNSUPPORTED, "type 4");
    put_one_tensor(&b, 4, 2, UINT32_MAX, 0);
    expect(&b, NB_UNSUPPORTED, "type 4294967295");
    put_one_tensor(&b, 33, 1, NB_GGUF_Q8_0, 0);
    expect(&b, NB_FORMAT, "whole blocks");
    put_one_tensor(&b, 0, 1, NB_GGUF_F32, 0);
    expect(&b, NB_FORMAT, "extents");
    put_one_tensor(&b, UINT64_C(1) << 33, UINT64_C(1) << 33, NB_GGUF_F32, 0);
    expect(&b, NB_FORMAT, "extents");
    put_one_tensor(&b, UINT64_C(1) << 62, 1, NB_GGUF_F32, 0);
    expect(&b, NB_FORMAT, "overflows");
    put_one_tensor(&b, 4, 2, NB_GGUF_F32, 1);
    expect(&b, NB_FORMAT, "multiple of the alignment");
    put_one_tensor(&b, 4, 2, NB_GGUF_F32, 256);
    expect(&b, NB_FORMAT, "past the end");
    put_one_tensor(&b, 4, 2, NB_GGUF_F32, UINT64_MAX - 31);
    expect(&b, NB_FORMAT, "past the end");
    put_header(&b, 3, 1, 0);
    nb_test_put_text(&b, "w");
    nb_test_put_u32(&b, 5);
    for (int i = 0; i < 8; i++)
        nb_test_put_u64(&b, 1);
    expect(&b, NB_FORMAT, "rank 5");
    put_header(&b, 3, 2, 0);
    put_tensor(&b, "a", 16, 2, NB_GGUF_F32, 0);
    put_tensor(&b, "b", 16, 2, NB_GGUF_F32, 64);
    unsigned char zeros[512] = {0};
    nb_test_put(&b, zeros, sizeof zeros);
    expect(&b, NB_FORMAT, "overlap");
    put_header(&b, 3, 2, 0);
    put_tensor(&b, "a", 16, 2, NB_GGUF_F32, 0);
    put_tensor(&b, "a", 16, 2, NB_GGUF_F32, 128);
    nb_test_put(&b, zeros, sizeof zeros);
    expect(&b, NB_FORMAT, "given twice");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_has_the_reference_values),
        cmocka_unit_test(metadata_and_tensors_are_read),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(hostile_metadata_is_refused),
        cmocka_unit_test(hostile_tensors_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
