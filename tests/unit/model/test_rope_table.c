/* The rotation's angles, against their formulas in double precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model/rope_table.h"

enum { HEAD_DIM = 64, HALF = HEAD_DIM / 2 };

/* A power, a quotient and their operands rounded: a few ulp of fp32. */
static const double relative = 4 * 0x1p-23;

static void test_default(void **state)
{
    (void)state;
    struct nb_rope_spec spec = {.type = NB_ROPE_DEFAULT, .theta = 500000};
    float inverse[HALF];
    nb_rope_inverse_frequencies(&spec, HEAD_DIM, inverse);
    assert_true(inverse[0] == 1.0f);
    for (int i = 0; i < HALF; i++) {
        double want = pow(500000, -2.0 * i / HEAD_DIM);
        assert_true(fabs((double)inverse[i] - want) <= relative * want);
    }
}

/* Llama 3.1's: factor 8 over a context of 8192; wave lengths under 2048 are left, over 8192 divided, blended between. */
static void test_llama3(void **state)
{
    (void)state;
    struct nb_rope_spec plain = {.type = NB_ROPE_DEFAULT, .theta = 500000}, spec = plain;
    spec.type = NB_ROPE_LLAMA3;
    spec.factor = 8;
    spec.low_freq_factor = 1;
    spec.high_freq_factor = 4;
    spec.original_max_positions = 8192;
    float before[HALF], after[HALF];
    int kept = 0, divided = 0, blended = 0;
    nb_rope_inverse_frequencies(&plain, HEAD_DIM, before);
    nb_rope_inverse_frequencies(&spec, HEAD_DIM, after);
    for (int i = 0; i < HALF; i++) {
        double wave = 2 * acos(-1) / (double)before[i];
        if (wave < 2048) {
            assert_true(after[i] == before[i]);
            kept++;
        } else if (wave > 8192) {
            assert_true(after[i] == before[i] / 8);
            divided++;
        } else {
            double share = (8192 / wave - 1) / (4 - 1), want = (double)before[i] * ((1 - share) / 8 + share);
            assert_true(fabs((double)after[i] - want) <= 2 * relative * want);
            blended++;
        }
    }
    assert_true(kept > 0 && divided > 0 && blended > 0);
}

static void test_angles(void **state)
{
    (void)state;
    enum { BEGIN = 1000, COUNT = 7 };
    struct nb_rope_spec spec = {.type = NB_ROPE_DEFAULT, .theta = 10000};
    float inverse[HALF], cosine[COUNT][HALF], sine[COUNT][HALF];
    nb_rope_inverse_frequencies(&spec, HEAD_DIM, inverse);
    nb_rope_angles(inverse, HALF, BEGIN, COUNT, &cosine[0][0], &sine[0][0]);
    for (int t = 0; t < COUNT; t++)
        for (int i = 0; i < HALF; i++) {
            double angle = (double)((float)(BEGIN + t) * inverse[i]);
            assert_true(fabs((double)cosine[t][i] - cos(angle)) <= 0x1p-23);
            assert_true(fabs((double)sine[t][i] - sin(angle)) <= 0x1p-23);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default),
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_angles),
    };
    return cmocka_run_group_tests_name("rope table", tests, NULL, NULL);
}
