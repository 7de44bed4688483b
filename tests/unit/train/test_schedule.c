/* Learning rates against the formulas of transformers' optimization.py (the lambdas of get_linear_schedule_with_warmup,
 * get_cosine_schedule_with_warmup and get_constant_schedule_with_warmup), evaluated by Python and printed with repr. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "train/schedule.h"

static void expect(struct nb_schedule schedule, const double *want, int count)
{
    for (int i = 0; i < count; i++) {
        double got = nb_schedule_rate(&schedule, i + 1);
        if (fabs(got - want[i]) > 1e-15 * fabs(want[i]) + 1e-20)
            fail_msg("step %d: %.17g, not %.17g", i + 1, got, want[i]);
    }
}

static void constant_is_constant(void **state)
{
    (void)state;
    const double want[] = {1e-3, 1e-3, 1e-3};
    expect((struct nb_schedule){NB_CONFIG_SCHEDULER_CONSTANT, 1e-3, 2, 3}, want, 3); /* warm-up is not its business */
}

static void constant_with_warmup(void **state)
{
    (void)state;
    const double want[] = {0.0, 0.00025, 0.0005, 0.00075, 0.001, 0.001};
    expect((struct nb_schedule){NB_CONFIG_SCHEDULER_CONSTANT_WITH_WARMUP, 1e-3, 4, 6}, want, 6);
}

static void linear(void **state)
{
    (void)state;
    const double want[] = {0.0, 0.0001, 0.0002, 0.000175, 0.00015000000000000001, 0.000125, 0.0001,
                           7.500000000000001e-05, 5e-05, 2.5e-05};
    expect((struct nb_schedule){NB_CONFIG_SCHEDULER_LINEAR, 2e-4, 2, 10}, want, 10);
}

static void cosine(void **state)
{
    (void)state;
    const double want[] = {0.0, 0.0001, 0.0002, 0.0001923879532511287, 0.00017071067811865476, 0.000138268343236509,
        0.0001, 6.173165676349103e-05, 2.9289321881345254e-05, 7.612046748871327e-06};
    expect((struct nb_schedule){NB_CONFIG_SCHEDULER_COSINE, 2e-4, 2, 10}, want, 10);
}

static void warmup_longer_than_the_run(void **state)
{
    (void)state;
    const double want[] = {0.0, 0.0001, 0.0002};
    expect((struct nb_schedule){NB_CONFIG_SCHEDULER_COSINE, 1e-3, 10, 3}, want, 3);
    expect((struct nb_schedule){NB_CONFIG_SCHEDULER_LINEAR, 1e-3, 10, 3}, want, 3);
}

static void past_the_end_is_zero(void **state)
{
    (void)state;
    struct nb_schedule schedule = {NB_CONFIG_SCHEDULER_LINEAR, 1e-3, 0, 3};
    assert_true(nb_schedule_rate(&schedule, 4) == 0.0);
    assert_true(nb_schedule_rate(&schedule, 9) == 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(constant_is_constant), cmocka_unit_test(constant_with_warmup), cmocka_unit_test(linear),
        cmocka_unit_test(cosine), cmocka_unit_test(warmup_longer_than_the_run), cmocka_unit_test(past_the_end_is_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
