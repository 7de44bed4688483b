/* exp and tanh of the CPU device against the C library's in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "device/cpu/math.h"

/* |got - want| in spacings of fp32 at want, subnormal ones included. */
static double ulps(float got, double want)
{
    int exponent = 0;
    frexp(want, &exponent);
    double spacing = ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
    return fabs((double)got - want) / spacing;
}

/* Every 251st float of the range, both signs. */
static void exp_is_within_an_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42d00000u; bits += 251) { /* to 104 */
        float x = nb_float_from_bits(bits);
        if (x < 88.72f)
            worst = fmax(worst, ulps(nb_expf(x), exp((double)x)));
        worst = fmax(worst, ulps(nb_expf(-x), exp(-(double)x)));
    }
    print_message("worst: %.3f ulp\n", worst);
    assert_true(worst <= 1.0);
}

static void exp_is_right_at_the_ends(void **state)
{
    (void)state;
    assert_true(nb_expf(0.0f) == 1.0f);
    assert_true(nb_expf(-0.0f) == 1.0f);
    assert_true(isinf(nb_expf(88.73f)));
    assert_true(isinf(nb_expf(3e38f)));
    assert_true(isinf(nb_expf(INFINITY)));
    assert_true(nb_expf(-INFINITY) == 0.0f);
    assert_true(nb_expf(-104.0f) == 0.0f);
    assert_true(nb_expf(-3e38f) == 0.0f);
    assert_true(isnan(nb_expf(NAN)));
    assert_true(nb_expf(1e-40f) == 1.0f);
    assert_true(nb_expf(-103.0f) > 0.0f); /* subnormal */
}

static void tanh_is_within_two_ulp(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits < 0x42000000u; bits += 251) { /* to 32 */
        float x = nb_float_from_bits(bits);
        worst = fmax(worst, ulps(nb_tanhf(x), tanh((double)x)));
        assert_true(nb_tanhf(-x) == -nb_tanhf(x));
    }
    print_message("worst: %.3f ulp\n", worst);
    assert_true(worst <= 2.0);
    assert_true(nb_tanhf(INFINITY) == 1.0f);
    assert_true(nb_tanhf(-INFINITY) == -1.0f);
    assert_true(isnan(nb_tanhf(NAN)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_an_ulp),
        cmocka_unit_test(exp_is_right_at_the_ends),
        cmocka_unit_test(tanh_is_within_two_ulp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
