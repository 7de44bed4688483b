/* bfloat16 and binary16, all 65,536 of each, and the rounding of fp32 at its edges. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bfloat.h"

static void every_bfloat_survives_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float value = nb_bf16_to_float((nb_bf16)bits);
        if ((bits & 0x7fff) > 0x7f80) { /* NaNs stay NaNs of their sign, made quiet */
            assert_true(isnan(value));
            assert_int_equal(nb_bf16_from_float(value), bits | 0x40);
        } else {
            assert_int_equal(nb_bf16_from_float(value), bits);
        }
    }
}

/* Between two neighbours a and b: the middle goes to the even one, and one step of fp32 beside it to the nearer one. */
static void rounding_is_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7f80; bits++) {
        uint32_t middle = bits << 16 | 0x8000, even = bits + (bits & 1);
        assert_int_equal(nb_bf16_from_float(nb_float_from_bits(middle)), even);
        assert_int_equal(nb_bf16_from_float(nb_float_from_bits(middle - 1)), bits);
        assert_int_equal(nb_bf16_from_float(nb_float_from_bits(middle + 1)), bits + 1);
        assert_int_equal(nb_bf16_from_float(nb_float_from_bits(middle | 0x80000000u)), even | 0x8000);
    }
    assert_int_equal(nb_bf16_from_float(3.4028235e38f), 0x7f80); /* the largest fp32 is nearer to infinity than to the largest bf16 */
    assert_int_equal(nb_bf16_from_float(INFINITY), 0x7f80);
    assert_int_equal(nb_bf16_from_float(-0.0f), 0x8000);
}

/* A NaN whose payload lies in the low half alone must not round to infinity. */
static void a_nan_stays_a_nan(void **state)
{
    (void)state;
    assert_true(isnan(nb_bf16_to_float(nb_bf16_from_float(nb_float_from_bits(0x7f800001u)))));
    assert_true(isnan(nb_bf16_to_float(nb_bf16_from_float(nb_float_from_bits(0xffffffffu)))));
}

static void every_half_has_its_ieee_value(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float got = nb_half_to_float((uint16_t)bits);
        int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 0x3ff);
        double sign = bits & 0x8000 ? -1 : 1;
        assert_int_equal(!!signbit(got), bits >> 15);
        if (exponent == 31 && fraction) {
            assert_true(isnan(got));
            continue;
        }
        /* IEEE 754-2008, 3.4: (1 + fraction / 2^10) * 2^(exponent - 15), and fraction * 2^-24 where the exponent is 0. */
        double want = exponent == 31 ? INFINITY : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        assert_true((double)got == sign * want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bfloat_survives_the_round_trip),
        cmocka_unit_test(rounding_is_to_nearest_even),
        cmocka_unit_test(a_nan_stays_a_nan),
        cmocka_unit_test(every_half_has_its_ieee_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
