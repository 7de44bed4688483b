/* AdamW with fp32 and with 8-bit moments against six steps of bitsandbytes', three tensors: whole blocks, a partial last block, and
 * one of under 4,096 elements, which keeps fp32 moments in the 8-bit optimizer too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/adamw.h"
#include "support/golden.h"

enum { STEPS = 6 };

static const struct nb_adamw_settings settings = {
    .learning_rate = 3e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0.05};

static const char *const names[] = {"large", "odd", "small"};

static void *allocate(uint64_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(memory);
    memset(memory, 0, bytes);
    return memory;
}

/* Within 1e-6 * max(1, |want|): a few units of the last place of fp32 after up to six steps. */
static void check_close(const float *got, const float *want, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-6f * fmaxf(1.0f, fabsf(want[i]))))
            fail_msg("element %d: %.9g, not %.9g", (int)i, (double)got[i], (double)want[i]);
}

static void check_f32(const struct nb_golden *golden, const char *optimizer, const char *name)
{
    char start[64];
    snprintf(start, sizeof start, "%s.%s.start", optimizer, name);
    uint64_t count = nb_golden_tensor(golden, start).count;
    float *p = allocate(count * sizeof *p), *m = allocate(count * sizeof *m), *v = allocate(count * sizeof *v);
    memcpy(p, nb_golden_f32(golden, "%s", start), count * sizeof *p);
    for (int step = 0; step < STEPS; step++) {
        struct nb_adamw_factors factors = nb_adamw_factors(&settings, step + 1, 1.0f);
        nb_adamw_block(&factors, (int64_t)count, nb_golden_f32(golden, "%s.%s.grad%d", optimizer, name, step), p, m, v);
        check_close(p, nb_golden_f32(golden, "%s.%s.after%d", optimizer, name, step), count);
        check_close(m, nb_golden_f32(golden, "%s.%s.state1.after%d", optimizer, name, step), count);
        check_close(v, nb_golden_f32(golden, "%s.%s.state2.after%d", optimizer, name, step), count);
    }
    free(p);
    free(m);
    free(v);
}

static void test_f32_moments(void **state)
{
    (void)state;
    struct nb_golden *golden = nb_golden_open("tests/golden/vectors/optimizers.safetensors");
    for (int n = 0; n < 3; n++)
        check_f32(golden, "adamw32bit", names[n]);
    check_f32(golden, "adamw8bit", "small");
    nb_golden_close(&golden);
}

struct moments8 {
    uint64_t count, blocks;
    float *p, *m_absmax, *v_absmax;
    uint8_t *m, *v;
};

static void step8(const struct nb_adamw_factors *factors, const struct nb_adamw8_coders *coders, const float *gradient,
                  struct moments8 *t)
{
    for (uint64_t block = 0; block < t->blocks; block++) {
        uint64_t begin = block * NB_DYNAMIC_BLOCK, left = t->count - begin;
        struct nb_adamw8_block b = {
            .count = left < NB_DYNAMIC_BLOCK ? (int)left : NB_DYNAMIC_BLOCK,
            .gradient = gradient + begin,
            .p = t->p + begin,
            .m_codes = t->m + begin,
            .v_codes = t->v + begin,
            .m_absmax = t->m_absmax + block,
            .v_absmax = t->v_absmax + block,
        };
        nb_adamw8_block(factors, coders, &b);
    }
}

/* Codes that differ, all of them by one. */
static uint64_t off_by_one(const uint8_t *got, const uint8_t *want, uint64_t count)
{
    uint64_t differing = 0;
    for (uint64_t i = 0; i < count; i++) {
        assert_true(abs(got[i] - want[i]) <= 1);
        differing += got[i] != want[i];
    }
    return differing;
}

/* Starts with the given code bytes under zero scales: what they are must not matter. */
static uint64_t check_8bit(const struct nb_golden *golden, const char *name, uint8_t start_code, uint64_t *differing)
{
    char start[64];
    snprintf(start, sizeof start, "adamw8bit.%s.start", name);
    uint64_t count = nb_golden_tensor(golden, start).count, blocks = (count + NB_DYNAMIC_BLOCK - 1) / NB_DYNAMIC_BLOCK;
    struct moments8 t = {
        .count = count, .blocks = blocks,
        .p = allocate(count * sizeof(float)), .m = allocate(count), .v = allocate(count),
        .m_absmax = allocate(blocks * sizeof(float)), .v_absmax = allocate(blocks * sizeof(float)),
    };
    struct nb_adamw8_coders coders;
    nb_adamw8_coders_init(&coders);
    memcpy(t.p, nb_golden_f32(golden, "%s", start), count * sizeof *t.p);
    memset(t.m, start_code, count);
    memset(t.v, start_code, count);
    for (int step = 0; step < STEPS; step++) {
        struct nb_adamw_factors factors = nb_adamw_factors(&settings, step + 1, 1.0f);
        step8(&factors, &coders, nb_golden_f32(golden, "adamw8bit.%s.grad%d", name, step), &t);
        check_close(t.p, nb_golden_f32(golden, "adamw8bit.%s.after%d", name, step), count);
        check_close(t.m_absmax, nb_golden_f32(golden, "adamw8bit.%s.absmax1.after%d", name, step), blocks);
        check_close(t.v_absmax, nb_golden_f32(golden, "adamw8bit.%s.absmax2.after%d", name, step), blocks);
        *differing += off_by_one(t.m, nb_golden_u8(golden, "adamw8bit.%s.state1.after%d", name, step), count);
        *differing += off_by_one(t.v, nb_golden_u8(golden, "adamw8bit.%s.state2.after%d", name, step), count);
    }
    free(t.p);
    free(t.m);
    free(t.v);
    free(t.m_absmax);
    free(t.v_absmax);
    return 2 * STEPS * count;
}

static void test_8bit_moments(void **state)
{
    (void)state;
    struct nb_golden *golden = nb_golden_open("tests/golden/vectors/optimizers.safetensors");
    uint64_t codes = 0, differing = 0;
    for (int n = 0; n < 2; n++) {
        codes += check_8bit(golden, names[n], 0, &differing);
        codes += check_8bit(golden, names[n], 200, &differing);
    }
    print_message("%d of %d codes off by one\n", (int)differing, (int)codes);
    assert_true(differing * 10000 <= codes);
    nb_golden_close(&golden);
}

/* The golden parameters move little; here the decay, the bias correction and the step are told apart by hand. */
static void test_one_step_by_hand(void **state)
{
    (void)state;
    const struct nb_adamw_settings s = {.learning_rate = 0.5, .beta1 = 0.5, .beta2 = 0.75, .epsilon = 1.0, .weight_decay = 0.25};
    struct nb_adamw_factors factors = nb_adamw_factors(&s, 1, 0.5f);
    float p = 8.0f, m = 0.0f, v = 0.0f, gradient = 8.0f;
    nb_adamw_block(&factors, 1, &gradient, &p, &m, &v);
    /* g = 4, m = 2, v = 4, m / c1 = 4, sqrt(v) / c2 = 4; p = 8 * 0.875 - 0.5 * 4 / (4 + 1) */
    assert_true(m == 2.0f && v == 4.0f);
    assert_true(fabsf(p - 6.6f) < 2e-6f);
}

/* The cut into calls changes no bit. */
static void test_cuts(void **state)
{
    (void)state;
    enum { COUNT = 1000 };
    float gradient[COUNT], whole[3][COUNT], cut[3][COUNT];
    struct nb_adamw_factors factors = nb_adamw_factors(&settings, 3, 0.125f);
    for (int i = 0; i < COUNT; i++) {
        gradient[i] = sinf((float)i) * expf((float)(i % 20 - 10));
        whole[0][i] = cosf((float)i);
        whole[1][i] = sinf((float)i * 0.5f) * 0.1f;
        whole[2][i] = fabsf(cosf((float)i * 0.7f)) * 1e-3f;
    }
    memcpy(cut, whole, sizeof cut);
    nb_adamw_block(&factors, COUNT, gradient, whole[0], whole[1], whole[2]);
    for (int begin = 0, length = 1; begin < COUNT; begin += length, length = length * 2 % 37) {
        if (length > COUNT - begin)
            length = COUNT - begin;
        nb_adamw_block(&factors, length, gradient + begin, cut[0] + begin, cut[1] + begin, cut[2] + begin);
    }
    assert_memory_equal(cut, whole, sizeof cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_moments),
        cmocka_unit_test(test_8bit_moments),
        cmocka_unit_test(test_one_step_by_hand),
        cmocka_unit_test(test_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
