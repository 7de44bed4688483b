/* The dynamic 8-bit maps against published ones, and the nearest-code search against plain counting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/bfloat.h"
#include "quant/dynamic_map.h"
#include "support/golden.h"

static void test_maps(void **state)
{
    (void)state;
    struct nb_golden *golden = nb_golden_open("tests/golden/vectors/optimizers.safetensors");
    float map[256];
    nb_dynamic_map(true, map);
    assert_memory_equal(map, nb_golden_f32(golden, "adamw8bit.qmap1"), sizeof map);
    assert_true(map[127] == 0.0f && map[255] == 1.0f && map[0] == -0.992968738f);
    nb_dynamic_map(false, map);
    assert_memory_equal(map, nb_golden_f32(golden, "adamw8bit.qmap2"), sizeof map);
    assert_true(map[0] == 0.0f && map[255] == 1.0f);
    nb_golden_close(&golden);
}

/* The definition: how many midpoints of neighbouring values lie below x, in exact arithmetic. */
static int count_midpoints_below(const float map[256], float x)
{
    int code = 0;
    for (int i = 0; i < 255; i++)
        code += ((double)map[i] + (double)map[i + 1]) / 2.0 < (double)x;
    return code;
}

static void check_around(const struct nb_dynamic_coder *coder, float x)
{
    const float near[] = {nextafterf(x, -INFINITY), x, nextafterf(x, INFINITY)};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nb_dynamic_code(coder, near[i]), count_midpoints_below(coder->map, near[i]));
        assert_int_equal(nb_dynamic_code(coder, -near[i]), count_midpoints_below(coder->map, -near[i]));
    }
}

/* Every value, every midpoint and every edge of the search's buckets, with the floats on both sides: between two of these the
 * nearest code cannot change, so nothing is left to chance. */
static void test_nearest_code(void **state)
{
    (void)state;
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        struct nb_dynamic_coder coder;
        nb_dynamic_coder_init(is_signed, &coder);
        for (int i = 0; i < 256; i++) {
            check_around(&coder, coder.map[i]);
            assert_int_equal(nb_dynamic_code(&coder, coder.map[i]), i);
            if (i < 255)
                check_around(&coder, (float)(((double)coder.map[i] + (double)coder.map[i + 1]) / 2.0));
        }
        for (uint32_t bits = 0x33800000; bits <= 0x3f810000; bits += 0x10000) /* 2^-24 to 1 */
            check_around(&coder, nb_float_from_bits(bits));
        static const float extremes[] = {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-24f, 1.0000001f, 2.0f, 3e38f};
        for (size_t i = 0; i < sizeof extremes / sizeof *extremes; i++)
            check_around(&coder, extremes[i]);
        int zero = is_signed ? 127 : 0;
        assert_int_equal(nb_dynamic_code(&coder, 0.0f), zero);
        assert_int_equal(nb_dynamic_code(&coder, -0.0f), zero);
    }
}

/* bitsandbytes' CUDA build, four values of absmax 1. */
static void test_known_codes(void **state)
{
    (void)state;
    static const float x[4] = {1.0f, 0.009434154f, -0.07749839f, 0.0f};
    static const uint8_t want[4] = {255, 157, 72, 127};
    struct nb_dynamic_coder coder;
    uint8_t codes[4];
    float absmax;
    nb_dynamic_coder_init(true, &coder);
    nb_dynamic_quantize_block(&coder, x, 4, codes, &absmax);
    assert_memory_equal(codes, want, sizeof want);
    assert_true(absmax == 1.0f);
}

static void test_block_of_zeros(void **state)
{
    (void)state;
    static const float x[3] = {0.0f, -0.0f, 0.0f};
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        struct nb_dynamic_coder coder;
        uint8_t codes[4] = {9, 9, 9, 9};
        float absmax = 9.0f, back[4] = {9.0f, 9.0f, 9.0f, 9.0f};
        nb_dynamic_coder_init(is_signed, &coder);
        nb_dynamic_quantize_block(&coder, x, 3, codes, &absmax);
        assert_true(absmax == 0.0f);
        for (int i = 0; i < 3; i++)
            assert_int_equal(codes[i], is_signed ? 127 : 0);
        assert_int_equal(codes[3], 9);
        nb_dynamic_dequantize_block(coder.map, codes, 3, absmax, back);
        assert_true(back[0] == 0.0f && back[2] == 0.0f && back[3] == 9.0f);
    }
}

/* Any scale, subnormal ones included, where 1 / absmax overflows: the map's own values come back as their codes. The largest
 * magnitude is 1.0's, at 255. */
static void test_round_trip_at_any_scale(void **state)
{
    (void)state;
    static const float scales[] = {0x1p-140f, 0x1p-128f, 0x1p-100f, 1.0f, 0x1p+100f, 3.4e38f};
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        struct nb_dynamic_coder coder;
        float x[256], absmax;
        uint8_t codes[256];
        nb_dynamic_coder_init(true, &coder);
        for (int i = 0; i < 256; i++)
            x[i] = coder.map[i] * scales[s];
        nb_dynamic_quantize_block(&coder, x, 256, codes, &absmax);
        assert_true(absmax == scales[s]);
        for (int i = 0; i < 256; i++) /* at 2^-140 the products themselves are coarse */
            assert_int_equal(codes[i], scales[s] >= 0x1p-126f ? i : count_midpoints_below(coder.map, x[i] / absmax));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_nearest_code),
        cmocka_unit_test(test_known_codes),
        cmocka_unit_test(test_block_of_zeros),
        cmocka_unit_test(test_round_trip_at_any_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
