/* NF4 and FP4 against bitsandbytes' own bytes: packed codes, scales, second-level codes, maps, decoded values, bit for bit.
 * Three differences are bitsandbytes' own and left out. Its CPU build flushes products below 2^-126 to zero before it rounds
 * them to bf16. It sums the offset in fp32, so that on fp32 and fp16 sources ours may differ by 2 units in the last place. It
 * decodes FP4's code 8, whose map entry is +0, to +0 in small matrices and to -0 in the largest of these (another loop there):
 * the sign of that zero is not compared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/matrix.h"
#include "support/golden.h"

static const char *const files[] = {
    "constant.bf16", "constant.f16", "constant.f32", "halves.bf16", "halves.f16", "halves.f32", "huge.bf16",
    "huge.f32", "last_block_partial.bf16", "last_block_partial.f16", "last_block_partial.f32",
    "many_second_level_blocks.bf16", "many_second_level_blocks.f16", "many_second_level_blocks.f32", "one_row.bf16",
    "one_row.f16", "one_row.f32", "outliers.bf16", "outliers.f16", "outliers.f32", "square.bf16", "square.f16",
    "square.f32", "straddling_rows.bf16", "straddling_rows.f16", "straddling_rows.f32", "tiny.bf16", "tiny.f32",
    "with_zero_blocks.bf16", "with_zero_blocks.f16", "with_zero_blocks.f32",
};

/* A source matrix and where its quantized form is made. */
struct subject {
    struct nb_golden *golden;
    struct nb_golden_tensor w;
    uint64_t rows, columns, count, blocks, superblocks;
    float *wide; /* w in fp32, exact */
    void *slab;
    float *scratch;
};

static void *allocate(uint64_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(memory);
    return memory;
}

static void subject_open(struct subject *s, const char *file)
{
    char path[128];
    snprintf(path, sizeof path, "tests/golden/vectors/%s.safetensors", file);
    *s = (struct subject){.golden = nb_golden_open(path)};
    s->w = nb_golden_tensor(s->golden, "w");
    s->rows = s->w.shape[0];
    s->columns = s->w.shape[1];
    s->count = s->w.count;
    s->blocks = nb_quant_blocks(s->count);
    s->superblocks = nb_quant_superblocks(s->blocks);
    s->wide = allocate(s->count * sizeof(float));
    s->scratch = allocate(s->blocks * sizeof(float));
    for (uint64_t i = 0; i < s->count; i++) {
        const uint16_t *narrow = s->w.data;
        s->wide[i] = strcmp(s->w.dtype, "F32") == 0 ? ((const float *)s->w.data)[i]
                   : strcmp(s->w.dtype, "F16") == 0 ? nb_half_to_float(narrow[i]) : nb_bf16_to_float(narrow[i]);
    }
}

static void subject_close(struct subject *s)
{
    free(s->wide);
    free(s->scratch);
    free(s->slab);
    nb_golden_close(&s->golden);
}

static struct nb_quant_matrix subject_quantize(struct subject *s, enum nb_quant_type type, bool nested,
                                               struct nb_quant_parts *parts)
{
    struct nb_quant_layout layout;
    assert_int_equal(nb_quant_matrix_layout(type, nested, s->rows, s->columns, &layout), NB_OK);
    free(s->slab);
    s->slab = allocate(layout.bytes);
    memset(s->slab, 0xa5, layout.bytes);
    *parts = nb_quant_matrix_parts(&layout, s->slab, s->scratch);
    if (strcmp(s->w.dtype, "BF16") == 0)
        assert_int_equal(nb_quantize(type, nested, s->w.data, s->rows, s->columns, parts), NB_OK);
    else
        assert_int_equal(nb_quantize_f32(type, nested, s->wide, s->rows, s->columns, parts), NB_OK);
    return nb_quant_matrix_view(&layout, s->slab, parts->nested_offset);
}

/* Distance in units of the last place; both positive. */
static uint32_t ulps(float a, float b)
{
    uint32_t x = nb_float_bits(a), y = nb_float_bits(b);
    return x > y ? x - y : y - x;
}

/* Whether half is value rounded to nearest, ties to even. */
static bool is_nearest_half(float value, uint16_t half)
{
    double exact = (double)value, distance = fabs(exact - (double)nb_half_to_float(half));
    for (int step = -1; step <= 1; step += 2) {
        uint16_t neighbour = (uint16_t)(half + step);
        if ((neighbour & 0x7fffu) > 0x7bffu) /* beyond zero or the largest */
            continue;
        double other = fabs(exact - (double)nb_half_to_float(neighbour));
        if (other < distance || (other == distance && (half & 1u) != 0))
            return false;
    }
    return (signbit(value) != 0) == (half >> 15 != 0);
}

/* +0 or -0, in fp32, bf16 or fp16. */
static bool is_zero(const struct nb_golden_tensor *tensor, uint64_t i)
{
    if (strcmp(tensor->dtype, "F32") == 0)
        return (((const uint32_t *)tensor->data)[i] & 0x7fffffffu) == 0;
    return (((const uint16_t *)tensor->data)[i] & 0x7fffu) == 0;
}

/* The decoded values in the source's dtype; the matrix holds the reference's offset. */
static void check_decoded(const struct subject *s, const struct nb_quant_matrix *matrix, const char *name)
{
    struct nb_golden_tensor want = nb_golden_tensor(s->golden, name);
    float *absmax = allocate(s->blocks * sizeof *absmax);
    nb_bf16 *narrow = allocate(s->count * sizeof *narrow);
    nb_dequantize_absmax(matrix, 0, s->blocks, absmax);
    nb_dequantize_bf16(matrix, 0, s->count, narrow);
    assert_int_equal(want.count, s->count);
    for (uint64_t i = 0; i < s->count; i++) {
        int code = matrix->packed[i / 2] >> (i % 2 ? 0 : 4) & 15;
        float product = matrix->codebook[code] * absmax[i / NB_QUANT_BLOCK];
        assert_int_equal(narrow[i], nb_bf16_from_float(product));
        if (matrix->type == NB_QUANT_FP4 && code == 8) {
            assert_true(is_zero(&want, i));
            assert_int_equal(narrow[i], 0);
            continue;
        }
        if (strcmp(want.dtype, "F32") == 0)
            assert_int_equal(nb_float_bits(product), ((const uint32_t *)want.data)[i]);
        else if (strcmp(want.dtype, "F16") == 0)
            assert_true(is_nearest_half(product, ((const uint16_t *)want.data)[i]));
        else if (fabsf(product) >= 0x1p-126f || product == 0.0f)
            assert_int_equal(narrow[i], ((const uint16_t *)want.data)[i]);
    }
    free(absmax);
    free(narrow);
}

static void check_plain(struct subject *s, enum nb_quant_type type)
{
    const char *t = nb_quant_type_name(type);
    char name[64];
    struct nb_quant_parts parts;
    struct nb_quant_matrix matrix = subject_quantize(s, type, false, &parts);
    assert_memory_equal(matrix.packed, nb_golden_u8(s->golden, "%s.plain.packed", t), nb_quant_packed_bytes(s->count));
    assert_memory_equal(matrix.absmax, nb_golden_f32(s->golden, "%s.plain.absmax", t), s->blocks * sizeof(float));
    assert_memory_equal(matrix.codebook, nb_golden_f32(s->golden, "%s.quant_map", t), 16 * sizeof(float));
    snprintf(name, sizeof name, "%s.plain.dequantized", t);
    check_decoded(s, &matrix, name);
}

static void check_nested(struct subject *s, enum nb_quant_type type)
{
    const char *t = nb_quant_type_name(type);
    char name[64];
    struct nb_quant_parts parts;
    struct nb_quant_matrix matrix = subject_quantize(s, type, true, &parts);
    float offset = *nb_golden_f32(s->golden, "%s.dq.nested_offset", t);
    assert_memory_equal(matrix.packed, nb_golden_u8(s->golden, "%s.dq.packed", t), nb_quant_packed_bytes(s->count));
    assert_memory_equal(matrix.nested_map, nb_golden_f32(s->golden, "nested_quant_map"), 256 * sizeof(float));
    assert_memory_equal(s->scratch, nb_golden_f32(s->golden, "%s.plain.absmax", t), s->blocks * sizeof(float));
    if (strcmp(s->w.dtype, "BF16") == 0)
        assert_int_equal(nb_float_bits(matrix.nested_offset), nb_float_bits(offset));
    assert_true(ulps(matrix.nested_offset, offset) <= 2);

    if (matrix.nested_offset != offset) { /* given the reference's offset, the rest must be exact */
        nb_quantize_scales(s->scratch, s->blocks, offset, parts.absmax_codes, parts.nested_absmax);
        matrix.nested_offset = offset;
    }
    assert_memory_equal(matrix.absmax_codes, nb_golden_u8(s->golden, "%s.dq.absmax", t), s->blocks);
    assert_memory_equal(matrix.nested_absmax, nb_golden_f32(s->golden, "%s.dq.nested_absmax", t),
                        s->superblocks * sizeof(float));
    snprintf(name, sizeof name, "%s.dq.dequantized", t);
    check_decoded(s, &matrix, name);
}

static void test_vectors(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        struct subject s;
        print_message("%s\n", files[f]);
        subject_open(&s, files[f]);
        for (enum nb_quant_type type = NB_QUANT_NF4; type <= NB_QUANT_FP4; type++) {
            check_plain(&s, type);
            check_nested(&s, type);
        }
        subject_close(&s);
    }
}

/* NF4's codebook in bf16, as the specification writes it. */
static void test_codebook_in_bf16(void **state)
{
    (void)state;
    static const nb_bf16 want[16] = {0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d, 0xbdba, 0x0000,
                                     0x3da3, 0x3e25, 0x3e7c, 0x3ead, 0x3ee2, 0x3f10, 0x3f39, 0x3f80};
    for (int i = 0; i < 16; i++)
        assert_int_equal(nb_bf16_from_float(nb_quant_codebook(NB_QUANT_NF4)[i]), want[i]);
}

/* x > t takes the upper code, so a weight that lies on a threshold takes the lower one, and the next float the upper. The block's
 * largest weight is 1, which makes the scaling exact. */
static void test_thresholds(void **state)
{
    (void)state;
    for (enum nb_quant_type type = NB_QUANT_NF4; type <= NB_QUANT_FP4; type++) {
        float thresholds[15], w[64] = {0}, absmax[1], codebook[16];
        uint8_t order[16], packed[32];
        struct nb_quant_parts parts = {.packed = packed, .absmax = absmax, .codebook = codebook};
        nb_quant_thresholds(type, thresholds, order);
        w[0] = 1.0f;
        for (int i = 0; i < 15; i++) {
            w[1 + 2 * i] = thresholds[i];
            w[2 + 2 * i] = nextafterf(thresholds[i], INFINITY);
        }
        assert_int_equal(nb_quantize_f32(type, false, w, 1, 64, &parts), NB_OK);
        for (int i = 0; i < 15; i++) {
            int on = 1 + 2 * i, above = 2 + 2 * i;
            assert_int_equal(packed[on / 2] >> (on % 2 ? 0 : 4) & 15, order[i]);
            assert_int_equal(packed[above / 2] >> (above % 2 ? 0 : 4) & 15, order[i + 1]);
        }
    }
}

/* Zero blocks and the padding of an odd count: the code of 0, NF4 7 and FP4 0. */
static void test_zeros_and_padding(void **state)
{
    (void)state;
    static const uint8_t zero_code[] = {[NB_QUANT_NF4] = 7, [NB_QUANT_FP4] = 0};
    for (enum nb_quant_type type = NB_QUANT_NF4; type <= NB_QUANT_FP4; type++) {
        nb_bf16 w[67] = {0};
        uint8_t packed[34];
        float absmax[2], codebook[16];
        struct nb_quant_parts parts = {.packed = packed, .absmax = absmax, .codebook = codebook};
        w[64] = w[65] = w[66] = 0x3f80;
        assert_int_equal(nb_quantize(type, false, w, 1, 67, &parts), NB_OK);
        for (int i = 0; i < 32; i++)
            assert_int_equal(packed[i], zero_code[type] * 0x11);
        int one = type == NB_QUANT_NF4 ? 15 : 3;
        assert_int_equal(packed[32], one * 0x11);
        assert_int_equal(packed[33], one << 4 | zero_code[type]);
        assert_true(absmax[0] == 0.0f && absmax[1] == 1.0f);
    }
}

/* 1 / absmax overflows below 2^-128: the codes must not. */
static void test_subnormal_block(void **state)
{
    (void)state;
    nb_bf16 w[64], back[64];
    uint8_t packed[32];
    float absmax[1], codebook[16];
    struct nb_quant_parts parts = {.packed = packed, .absmax = absmax, .codebook = codebook};
    for (int i = 0; i < 64; i++)
        w[i] = (nb_bf16)(i % 2 ? 0x8004 : i % 4 ? 4 : 0); /* -4, 4 and 0 times 2^-133 */
    assert_int_equal(nb_quantize(NB_QUANT_NF4, false, w, 8, 8, &parts), NB_OK);
    struct nb_quant_matrix matrix = {.rows = 8, .columns = 8, .packed = packed, .absmax = absmax, .codebook = codebook};
    nb_dequantize_bf16(&matrix, 0, 64, back);
    assert_memory_equal(back, w, sizeof w);
}

static void test_weights_that_are_not_finite(void **state)
{
    (void)state;
    enum { ROWS = 300, COLUMNS = 200, COUNT = ROWS * COLUMNS };
    nb_bf16 *w = allocate(COUNT * sizeof *w);
    struct nb_quant_layout layout;
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, true, ROWS, COLUMNS, &layout), NB_OK);
    void *slab = allocate(layout.bytes);
    float *scratch = allocate(nb_quant_blocks(COUNT) * sizeof *scratch);
    struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, slab, scratch);
    for (int i = 0; i < COUNT; i++)
        w[i] = 0x3f80;
    w[123 * COLUMNS + 45] = 0xff80; /* -infinity */
    w[123 * COLUMNS + 46] = 0x7fc0; /* NaN */
    w[250 * COLUMNS] = 0x7f80;
    assert_int_equal(nb_quantize(NB_QUANT_NF4, true, w, ROWS, COLUMNS, &parts), NB_FORMAT);
    assert_non_null(strstr(nb_status_message(), "row 123, column 45 (element 24645)"));
    w[123 * COLUMNS + 45] = 0x3f80;
    assert_int_equal(nb_quantize(NB_QUANT_NF4, true, w, ROWS, COLUMNS, &parts), NB_FORMAT);
    assert_non_null(strstr(nb_status_message(), "row 123, column 46 (element 24646)"));
    free(w);
    free(slab);
    free(scratch);
}

static void test_shapes_refused(void **state)
{
    (void)state;
    struct nb_quant_layout layout;
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, true, 0, 64, &layout), NB_UNSUPPORTED);
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, true, 64, 0, &layout), NB_UNSUPPORTED);
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, true, UINT64_C(1) << 33, UINT64_C(1) << 33, &layout), NB_UNSUPPORTED);
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, true, UINT64_C(1) << 24, UINT64_C(1) << 24, &layout), NB_OK);
}

/* Parts follow one another on multiples of 16 bytes and end at `bytes`. 4.127 bits a weight and the two tables. */
static void test_layout(void **state)
{
    (void)state;
    struct nb_quant_layout layout;
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, true, 3, 100, &layout), NB_OK);
    assert_int_equal(layout.packed, 0);
    assert_int_equal(layout.packed_bytes, 150);
    assert_int_equal(layout.absmax, 160);
    assert_int_equal(layout.absmax_bytes, 5);
    assert_int_equal(layout.nested_absmax, 176);
    assert_int_equal(layout.nested_absmax_bytes, 4);
    assert_int_equal(layout.nested_map, 192);
    assert_int_equal(layout.codebook, 1216);
    assert_int_equal(layout.bytes, 1280);
    assert_int_equal(nb_quant_matrix_layout(NB_QUANT_NF4, false, 3, 100, &layout), NB_OK);
    assert_int_equal(layout.absmax_bytes, 20);
    assert_int_equal(layout.nested_map_bytes, 0);
    assert_int_equal(layout.codebook, 192);
    assert_int_equal(layout.bytes, 256);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_codebook_in_bf16),
        cmocka_unit_test(test_thresholds),
        cmocka_unit_test(test_zeros_and_padding),
        cmocka_unit_test(test_subnormal_block),
        cmocka_unit_test(test_weights_that_are_not_finite),
        cmocka_unit_test(test_shapes_refused),
        cmocka_unit_test(test_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
