/* The product layer of this build: values, and that a row's bits depend on nothing but its operands. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bfloat.h"
#include "base/random.h"
#include "device/cpu/product.h"

/* An operand of every dtype, and its values. */
struct operand {
    nb_bf16 *narrow;
    float *wide;
};

static struct operand make(int count, uint64_t stream)
{
    struct operand o = {malloc((size_t)count * sizeof(nb_bf16)), malloc((size_t)count * sizeof(float))};
    for (int i = 0; i < count; i++) {
        o.narrow[i] = nb_bf16_from_float(2 * nb_random_uniform(1, NB_RANDOM_SPLIT, stream, (uint64_t)i) - 1);
        o.wide[i] = nb_bf16_to_float(o.narrow[i]);
    }
    return o;
}

static void drop(struct operand *o)
{
    free(o->narrow);
    free(o->wide);
}

static const void *data_of(const struct operand *o, enum nb_dtype dtype)
{
    return dtype == NB_DTYPE_F32 ? (const void *)o->wide : (const void *)o->narrow;
}

/* Every element within what fp32 sums of k products of up to 1 may be off by; and with fewer rows the same bits. */
static void check(struct nb_products *products, struct nb_product p, const int *fewer)
{
    int m = p.m;
    struct operand a = make(m * p.k, 1), b = make(p.n * p.k, 2);
    float *c = malloc((size_t)m * (size_t)p.n * sizeof *c), *again = malloc((size_t)m * (size_t)p.n * sizeof *c);
    void *scratch = aligned_alloc(256, nb_product_scratch_bytes(&p, nb_products_have_bf16()));
    p.a_stride = p.a_transposed ? m : p.k;
    p.b_stride = p.b_transposed ? p.k : p.n;
    p.c_stride = p.n;
    for (int i = 0; i < m * p.n; i++)
        c[i] = 0.5f;
    memcpy(again, c, (size_t)m * (size_t)p.n * sizeof *c);
    nb_product_multiply(products, &p, data_of(&a, p.a_dtype), data_of(&b, p.b_dtype), c, scratch);
    assert_int_equal(nb_products_status(products), NB_OK);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < p.n; j++) {
            double want = 0;
            for (int d = 0; d < p.k; d++)
                want += (double)a.wide[p.a_transposed ? d * m + i : i * p.k + d] *
                        (double)b.wide[p.b_transposed ? j * p.k + d : d * p.n + j];
            want = (double)p.scale * want + (p.accumulate ? 0.5 : 0);
            assert_float_equal(c[i * p.n + j], want, (p.k / 16.0 + 20) * 0x1p-24 * (p.k / 3.0 + 1));
        }
    }
    for (; *fewer; fewer++) {
        if (*fewer > m || p.a_transposed)
            continue;
        p.m = *fewer;
        for (int i = 0; i < m * p.n; i++)
            again[i] = 0.5f;
        nb_product_multiply(products, &p, data_of(&a, p.a_dtype), data_of(&b, p.b_dtype), again, scratch);
        assert_memory_equal(again, c, (size_t)p.m * (size_t)p.n * sizeof *c);
        for (int i = p.m * p.n; i < m * p.n; i++) /* the rows behind are not touched */
            assert_true(again[i] == 0.5f);
    }
    assert_int_equal(nb_products_status(products), NB_OK);
    free(scratch);
    free(again);
    free(c);
    drop(&a);
    drop(&b);
}

static void products_are_right_in_every_layout(void **state)
{
    static const int sizes[][3] = {{1, 1, 1}, {16, 8, 3}, {128, 16, 64}, {48, 72, 40}, {32, 33, 129}, {112, 192, 24}};
    static const int fewer[] = {16, 32, 96, 0};
    (void)state;
    struct nb_products *products;
    assert_int_equal(nb_products_create(1, &products), NB_OK);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int bits = 0; bits < 32; bits++) {
            struct nb_product p = {.m = sizes[s][0],
                .n = sizes[s][1],
                .k = sizes[s][2],
                .a_transposed = bits & 1,
                .b_transposed = bits & 2,
                .accumulate = bits & 4,
                .a_dtype = bits & 8 ? NB_DTYPE_BF16 : NB_DTYPE_F32,
                .b_dtype = bits & 16 ? NB_DTYPE_BF16 : NB_DTYPE_F32,
                .scale = s % 2 ? 1.0f : 0.75f};
            check(products, p, fewer);
        }
    }
    nb_products_destroy(&products);
    assert_null(products);
}

/* The tiles that the ops use most, and the largest: their scratch suffices, and every tail of a row tile gives the
 * tile's bits. */
static void rows_do_not_depend_on_the_tile_they_fall_in(void **state)
{
    static const int sizes[][2] = {{192, 576}, {256, 1024}, {16, 576}, {192, 16}};
    static const int fewer[] = {16, 32, 48, 64, 80, 96, 112, 0};
    (void)state;
    struct nb_products *products;
    assert_int_equal(nb_products_create(1, &products), NB_OK);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int bits = 0; bits < 4; bits++) {
            enum nb_dtype dtype = bits & 1 ? NB_DTYPE_BF16 : NB_DTYPE_F32;
            struct nb_product p = {.m = NB_PRODUCT_ROWS,
                .n = sizes[s][0],
                .k = sizes[s][1],
                .b_transposed = bits & 2,
                .a_dtype = dtype,
                .b_dtype = dtype,
                .scale = 1};
            check(products, p, fewer);
        }
    }
    nb_products_destroy(&products);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right_in_every_layout),
        cmocka_unit_test(rows_do_not_depend_on_the_tile_they_fall_in),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
