/* Decoding: every path gives the plain path's bits, every range the whole matrix's, and quantizing the same bytes at any number
 * of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "base/random.h"
#include "quant/dequantize_paths.h"
#include "quant/matrix.h"

static void *allocate(uint64_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(memory);
    return memory;
}

enum { BLOCKS = 24, COUNT = BLOCKS * NB_QUANT_BLOCK, GUARD = 16 };

/* Scales that could go wrong: zeros, subnormal products, products that round up to infinity, NaN, either sign. */
static const float scales[BLOCKS] = {
    0.0f, -0.0f, 1.0f, -1.0f, 0.37f, -0.37f, 1e-3f, 123456.0f, 0x1p-149f, 0x1p-133f, 0x1p-126f, 0x1p-120f,
    1e-38f, -1e-38f, 3.4e38f, 3.39e38f, -3.4028235e38f, INFINITY, -INFINITY, NAN, 0.0123f, 1e30f, 7.0f, 1.0000001f,
};

/* All 256 bytes stand in the packed data, in another place in each block. Inputs and outputs lie on odd addresses. */
static void check_path(enum nb_dequantize_path path)
{
    struct nb_dequantize_functions functions, plain;
    if (!nb_dequantize_path(path, &functions)) {
        print_message("this processor lacks path %d\n", (int)path);
        skip();
    }
    assert_true(nb_dequantize_path(NB_DEQUANTIZE_PLAIN, &plain));
    uint8_t packed_memory[COUNT / 2 + 1], *packed = packed_memory + 1;
    for (int i = 0; i < COUNT / 2; i++)
        packed[i] = (uint8_t)(i * 37 + i / 256);
    static nb_bf16 narrow[COUNT + 2 * GUARD], want_narrow[COUNT];
    float codebook[17];
    for (enum nb_quant_type type = NB_QUANT_NF4; type <= NB_QUANT_FP4; type++) {
        memcpy(codebook + 1, nb_quant_codebook(type), 16 * sizeof *codebook);
        memset(narrow, 0x5a, sizeof narrow);
        plain.bf16(packed, codebook + 1, scales, BLOCKS, want_narrow);
        functions.bf16(packed, codebook + 1, scales, BLOCKS, narrow + GUARD + 1);
        assert_memory_equal(narrow + GUARD + 1, want_narrow, sizeof want_narrow);
        for (int i = 0; i < GUARD - 1; i++) {
            assert_int_equal(narrow[i], 0x5a5a);
            assert_int_equal(narrow[GUARD + 1 + COUNT + i], 0x5a5a);
        }
    }
}

/* The plain path itself against the definition, weight by weight. */
static void test_plain_path(void **state)
{
    (void)state;
    struct nb_dequantize_functions plain;
    uint8_t packed[COUNT / 2];
    static nb_bf16 narrow[COUNT];
    const float *codebook = nb_quant_codebook(NB_QUANT_NF4);
    assert_true(nb_dequantize_path(NB_DEQUANTIZE_PLAIN, &plain));
    for (int i = 0; i < COUNT / 2; i++)
        packed[i] = (uint8_t)(i * 37 + i / 256);
    plain.bf16(packed, codebook, scales, BLOCKS, narrow);
    for (int i = 0; i < COUNT; i++) {
        int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
        nb_bf16 want = nb_bf16_from_float(codebook[code] * scales[i / NB_QUANT_BLOCK]);
        assert_int_equal(narrow[i], want);
    }
}

static void test_avx2_path(void **state)
{
    (void)state;
    check_path(NB_DEQUANTIZE_AVX2);
}

static void test_avx512_path(void **state)
{
    (void)state;
    check_path(NB_DEQUANTIZE_AVX512);
}

/* A random matrix, quantized into a slab of its own. */
struct subject {
    struct nb_quant_layout layout;
    void *slab;
    float *scratch;
    struct nb_quant_matrix matrix;
};

static void subject_make(struct subject *s, enum nb_quant_type type, bool nested, uint64_t rows, uint64_t columns)
{
    uint64_t count = rows * columns;
    nb_bf16 *w = allocate(count * sizeof *w);
    for (uint64_t i = 0; i < count; i++) /* blocks of differing scale, so that a wrong one shows */
        w[i] = nb_bf16_from_float((nb_random_uniform(1, NB_RANDOM_SHUFFLE, 0, i) - 0.5f) * (float)(1 + i / 64 % 7));
    assert_int_equal(nb_quant_matrix_layout(type, nested, rows, columns, &s->layout), NB_OK);
    s->slab = allocate(s->layout.bytes);
    s->scratch = allocate(nb_quant_blocks(count) * sizeof(float));
    memset(s->slab, 0, s->layout.bytes);
    struct nb_quant_parts parts = nb_quant_matrix_parts(&s->layout, s->slab, s->scratch);
    assert_int_equal(nb_quantize(type, nested, w, rows, columns, &parts), NB_OK);
    s->matrix = nb_quant_matrix_view(&s->layout, s->slab, parts.nested_offset);
    free(w);
}

static void subject_free(struct subject *s)
{
    free(s->slab);
    free(s->scratch);
}

/* The definition, one weight at a time. */
static nb_bf16 weight_at(const struct nb_quant_matrix *m, uint64_t i)
{
    uint64_t block = i / 64;
    float absmax = m->nested ? m->nested_map[m->absmax_codes[block]] * m->nested_absmax[block / 256] : m->absmax[block];
    if (m->nested)
        absmax = absmax + m->nested_offset;
    return nb_bf16_from_float(m->codebook[m->packed[i / 2] >> (i % 2 ? 0 : 4) & 15] * absmax);
}

static void check_range(const struct nb_quant_matrix *matrix, const nb_bf16 *whole, uint64_t begin, uint64_t count)
{
    nb_bf16 *narrow = allocate((count + 2) * sizeof *narrow);
    narrow[0] = narrow[count + 1] = 0x1234;
    nb_dequantize_bf16(matrix, begin, count, narrow + 1);
    if (count > 0)
        assert_memory_equal(narrow + 1, whole + begin, count * sizeof *narrow);
    assert_true(narrow[0] == 0x1234 && narrow[count + 1] == 0x1234);
    free(narrow);
}

/* One weight; less than a block; odd counts; rows that straddle blocks; several second-level blocks (16,384 weights each). */
static void test_ranges(void **state)
{
    (void)state;
    static const uint64_t shapes[][2] = {{1, 1}, {1, 63}, {5, 77}, {64, 64}, {3, 101}, {300, 200}, {129, 257}};
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        for (int nested = 0; nested < 2; nested++) {
            struct subject s;
            uint64_t count = shapes[shape][0] * shapes[shape][1];
            subject_make(&s, nested ? NB_QUANT_NF4 : NB_QUANT_FP4, nested, shapes[shape][0], shapes[shape][1]);
            nb_bf16 *whole = allocate(count * sizeof *whole);
            for (uint64_t i = 0; i < count; i++)
                whole[i] = weight_at(&s.matrix, i);
            check_range(&s.matrix, whole, 0, count);
            check_range(&s.matrix, whole, count, 0);
            check_range(&s.matrix, whole, count - 1, 1);
            for (uint64_t trial = 0; trial < 60; trial++) {
                uint64_t begin = nb_random_below(2, NB_RANDOM_SHUFFLE, shape, 2 * trial, (uint32_t)count);
                uint64_t length = nb_random_below(2, NB_RANDOM_SHUFFLE, shape, 2 * trial + 1, (uint32_t)(count - begin + 1));
                check_range(&s.matrix, whole, begin, length);
                check_range(&s.matrix, whole, begin / 64 * 64, length);
            }
            free(whole);
            subject_free(&s);
        }
    }
}

/* Scales of a range that begins and ends inside second-level blocks. */
static void test_absmax_ranges(void **state)
{
    (void)state;
    struct subject s;
    float whole[1000], part[1000];
    subject_make(&s, NB_QUANT_NF4, true, 320, 200);
    nb_dequantize_absmax(&s.matrix, 0, 1000, whole);
    for (uint64_t b = 0; b < 1000; b++) {
        float product = s.matrix.nested_map[s.matrix.absmax_codes[b]] * s.matrix.nested_absmax[b / 256];
        assert_true(whole[b] == product + s.matrix.nested_offset);
    }
    for (uint64_t begin = 0; begin < 1000; begin += 37) {
        nb_dequantize_absmax(&s.matrix, begin, 1000 - begin, part);
        assert_memory_equal(part, whole + begin, (1000 - begin) * sizeof *part);
    }
    subject_free(&s);
}

#ifdef _OPENMP
static void test_threads(void **state)
{
    (void)state;
    struct subject one, other;
    int before = omp_get_max_threads();
    omp_set_num_threads(1);
    subject_make(&one, NB_QUANT_NF4, true, 517, 333);
    static const int threads[] = {2, 5};
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(threads[i]);
        subject_make(&other, NB_QUANT_NF4, true, 517, 333);
        assert_memory_equal(one.slab, other.slab, one.layout.bytes);
        assert_int_equal(nb_float_bits(one.matrix.nested_offset), nb_float_bits(other.matrix.nested_offset));
        subject_free(&other);
    }
    omp_set_num_threads(before);
    subject_free(&one);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_path),
        cmocka_unit_test(test_avx2_path),
        cmocka_unit_test(test_avx512_path),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_absmax_ranges),
#ifdef _OPENMP
        cmocka_unit_test(test_threads),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
