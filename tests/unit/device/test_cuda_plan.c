/* Which way a product takes on a CUDA device, and what scratch that is: from profiles alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "device/cuda/plan.h"

static const struct nb_device_profile h100 = {.name = "H100", .kind = NB_DEVICE_CUDA, .compute_capability = 90, .multiprocessors = 132,
    .bf16 = true, .bf16_tflops = 989, .memory_gb_per_s = 3350, .cublaslt_version = 130000};
static const struct nb_device_profile rtx4090 = {.name = "RTX 4090", .kind = NB_DEVICE_CUDA, .compute_capability = 89,
    .multiprocessors = 128, .bf16 = true, .bf16_tflops = 165, .memory_gb_per_s = 1008, .cublaslt_version = 130000};

static struct nb_product_site site_of(int out, int in, int tokens, bool backward)
{
    return (struct nb_product_site){.out = out, .in = in, .tokens = tokens, .backward = backward, .format = NB_WEIGHT_NF4};
}

static enum nb_product_path path_of(const struct nb_device_profile *profile, int tokens)
{
    struct nb_product_site site = site_of(4096, 4096, tokens, false);
    return nb_product_path_of(profile, &site);
}

static void test_names(void **state)
{
    (void)state;
    for (enum nb_product_path path = NB_PRODUCT_FUSED; path <= NB_PRODUCT_OVERLAPPED; path++) {
        enum nb_product_path parsed = NB_PRODUCT_FUSED;
        assert_true(nb_product_path_parse(nb_product_path_name(path), &parsed));
        assert_int_equal(parsed, path);
    }
    enum nb_product_path untouched = NB_PRODUCT_SCRATCH;
    assert_false(nb_product_path_parse("fast", &untouched));
    assert_false(nb_product_path_parse("", &untouched));
    assert_int_equal(untouched, NB_PRODUCT_SCRATCH);
}

static void test_defaults(void **state)
{
    (void)state;
    /* Hopper's library leads by far: a few hundred tokens pay for the dequantization. Elsewhere it takes thousands. */
    assert_int_equal(path_of(&h100, 128), NB_PRODUCT_FUSED);
    assert_int_equal(path_of(&h100, 2048), NB_PRODUCT_SCRATCH);
    assert_int_equal(path_of(&rtx4090, 2048), NB_PRODUCT_FUSED);
    assert_int_equal(path_of(&rtx4090, 8192), NB_PRODUCT_SCRATCH);
    /* Without it both ways run on nibble's own kernel, and fusing costs little. */
    struct nb_device_profile own = h100;
    own.cublaslt_version = 0;
    assert_int_equal(path_of(&own, 512), NB_PRODUCT_FUSED);
    /* A head's chunk of columns would be 1 GiB: dX is fused, the logits are not. */
    struct nb_product_site head = site_of(128256, 4096, 8192, true);
    assert_int_equal(nb_product_path_of(&h100, &head), NB_PRODUCT_FUSED);
    assert_int_equal(nb_product_path_of(&rtx4090, &head), NB_PRODUCT_FUSED);
    head.backward = false;
    assert_int_equal(nb_product_path_of(&h100, &head), NB_PRODUCT_SCRATCH);
    /* Once scratch, scratch at every larger number of tokens. */
    enum nb_product_path last = NB_PRODUCT_FUSED;
    for (int tokens = 1; tokens < 100000; tokens += 1 + tokens / 10) {
        enum nb_product_path path = path_of(&rtx4090, tokens);
        assert_true(path >= last);
        last = path;
    }
    struct nb_product_site straddling = site_of(4096, 4104, 1, true);
    assert_int_equal(nb_product_path_of(&rtx4090, &straddling), NB_PRODUCT_SCRATCH);
    straddling.format = NB_WEIGHT_BF16;
    assert_int_equal(nb_product_path_of(&rtx4090, &straddling), NB_PRODUCT_FUSED);
}

static void test_table(void **state)
{
    (void)state;
    const struct nb_product_choice choices[] = {
        {4096, 4096, 4096, false, NB_PRODUCT_OVERLAPPED},
        {4096, 4096, 512, false, NB_PRODUCT_SCRATCH},
        {4096, 4096, 1024, false, NB_PRODUCT_FUSED},
        {4096, 4096, 64, true, NB_PRODUCT_OVERLAPPED},
        {4096, 4104, 64, false, NB_PRODUCT_FUSED},
    };
    struct nb_product_table table = {.device = "RTX 4090", .cublaslt_version = 130000, .count = 5, .choice = choices};
    struct nb_device_profile profile = rtx4090;
    profile.products = &table;
    assert_int_equal(path_of(&profile, 1), NB_PRODUCT_SCRATCH);
    assert_int_equal(path_of(&profile, 512), NB_PRODUCT_SCRATCH);
    assert_int_equal(path_of(&profile, 513), NB_PRODUCT_FUSED);
    assert_int_equal(path_of(&profile, 1025), NB_PRODUCT_OVERLAPPED);
    assert_int_equal(path_of(&profile, 100000), NB_PRODUCT_OVERLAPPED);
    struct nb_product_site backward = site_of(4096, 4096, 1, true), other = site_of(1024, 4096, 1, false),
                           straddling = site_of(4096, 4104, 1, false);
    assert_int_equal(nb_product_path_of(&profile, &backward), NB_PRODUCT_OVERLAPPED);
    assert_int_equal(nb_product_path_of(&profile, &other), NB_PRODUCT_FUSED);
    assert_int_equal(nb_product_path_of(&profile, &straddling), NB_PRODUCT_SCRATCH);
    /* Of another GPU or another library: as if it were not there. */
    table.cublaslt_version++;
    assert_int_equal(path_of(&profile, 1), NB_PRODUCT_FUSED);
    table.cublaslt_version--;
    strcpy(table.device, "RTX 4080");
    assert_int_equal(path_of(&profile, 1), NB_PRODUCT_FUSED);
}

static void test_chunks(void **state)
{
    (void)state;
    static const int widths[] = {8, 64, 259, 4096, 14336, 28672};
    for (int o = 0; o < 6; o++)
        for (int i = 0; i < 6; i++)
            for (int backward = 0; backward < 2; backward++) {
                struct nb_product_site site = site_of(widths[o], widths[i] == 259 ? 264 : widths[i], 2048, backward);
                int width = backward ? site.in : site.out, chunk = nb_product_chunk(&h100, &site);
                assert_true(chunk > 0 && chunk <= width);
                assert_true(chunk == width || chunk % 256 == 0);
                site.tokens = 77;
                assert_int_equal(nb_product_chunk(&h100, &site), chunk);
            }
    /* 32 MiB where the sum runs over 4,096. */
    struct nb_product_site up = site_of(14336, 4096, 2048, false);
    assert_int_equal(nb_product_chunk(&h100, &up), 4096);
}

static void test_tiles(void **state)
{
    (void)state;
    assert_int_equal(nb_product_tile_of(&h100, 4096, 14336), NB_PRODUCT_TILE_256);
    assert_int_equal(nb_product_tile_of(&rtx4090, 4096, 14336), NB_PRODUCT_TILE_128);
    /* Few large tiles would leave most of the chip idle. */
    assert_int_equal(nb_product_tile_of(&h100, 64, 4096), NB_PRODUCT_TILE_64);
    assert_int_equal(nb_product_tile_of(&rtx4090, 256, 1024), NB_PRODUCT_TILE_64);
    assert_int_equal(nb_product_tile_of(&h100, 512, 4096), NB_PRODUCT_TILE_128);
    /* As many blocks as no 32-bit count holds. */
    assert_int_equal(nb_product_tile_of(&h100, INT32_MAX, (int64_t)3 * INT32_MAX), NB_PRODUCT_TILE_256);
}

static struct nb_linear linear_of(int tokens, int in, int out, int rank)
{
    struct nb_linear args = {.tokens_max = tokens, .in = in, .x_stride = in, .parts = 2, .activation = NB_DTYPE_BF16};
    for (int p = 0; p < 2; p++) {
        args.part[p].weight = (struct nb_weight){.format = NB_WEIGHT_NF4, .rows = out, .columns = in};
        args.part[p].out = args.part[p].y_stride = out;
        args.part[p].output_scale = 1;
        args.part[p].lora.rank = rank;
        args.part[p].lora.a.address = rank > 0 ? 4096 : 0;
    }
    return args;
}

static struct nb_linear_backward backward_of(const struct nb_linear *forward)
{
    struct nb_linear_backward args = {.tokens_max = forward->tokens_max, .in = forward->in, .dx = {4096}, .parts = forward->parts,
        .activation = forward->activation, .part = {forward->part[0], forward->part[1]}};
    return args;
}

/* Pieces lie apart, begin at multiples of NB_ALIGNMENT, and more tokens never need less. */
static void check_growing(const struct nb_device_profile *profile, int in, int rank)
{
    uint64_t last = 0, last_backward = 0;
    for (int tokens = 1; tokens < 20000; tokens += 1 + tokens / 7) {
        struct nb_linear args = linear_of(tokens, in, 1000, rank);
        struct nb_linear_backward backward = backward_of(&args);
        struct nb_linear_scratch scratch;
        nb_linear_scratch_of(profile, &args, &scratch);
        assert_int_equal(scratch.bytes, nb_cuda_linear_scratch_bytes(profile, &args));
        assert_int_equal(scratch.partials % NB_ALIGNMENT, 0);
        assert_true(scratch.weights + scratch.weights_bytes <= scratch.partials);
        assert_true(scratch.partials + scratch.partials_bytes <= scratch.bytes);
        assert_true(scratch.bytes >= last);
        last = scratch.bytes;
        nb_linear_backward_scratch_of(profile, &backward, &scratch);
        assert_int_equal(scratch.bytes, nb_cuda_linear_backward_scratch_bytes(profile, &backward));
        assert_true(scratch.weights + scratch.weights_bytes <= scratch.u[0]);
        assert_int_equal(scratch.u[0] % NB_ALIGNMENT, 0);
        assert_int_equal(scratch.u[1] % NB_ALIGNMENT, 0);
        assert_true(scratch.u[1] - scratch.u[0] >= (uint64_t)tokens * (uint64_t)rank * 2);
        assert_true(scratch.partials - scratch.u[1] >= (uint64_t)tokens * (uint64_t)rank * 2);
        assert_true(scratch.partials + scratch.partials_bytes <= scratch.bytes);
        assert_true(scratch.bytes >= last_backward);
        last_backward = scratch.bytes;
    }
}

static void test_scratch(void **state)
{
    (void)state;
    check_growing(&h100, 4096, 16);
    check_growing(&rtx4090, 4096, 3);
    check_growing(&rtx4090, 1096, 0);
    /* A table that goes back to fused with more tokens. */
    const struct nb_product_choice choices[] = {
        {1000, 4096, 128, false, NB_PRODUCT_OVERLAPPED},
        {1000, 4096, 8192, false, NB_PRODUCT_FUSED},
        {2000, 4096, 300, true, NB_PRODUCT_SCRATCH},
        {2000, 4096, 500, true, NB_PRODUCT_FUSED},
    };
    struct nb_product_table table = {.device = "RTX 4090", .cublaslt_version = 130000, .count = 4, .choice = choices};
    struct nb_device_profile profile = rtx4090;
    profile.products = &table;
    check_growing(&profile, 4096, 16);
}

static void test_sites(void **state)
{
    (void)state;
    struct nb_linear args = linear_of(64, 4096, 1000, 16);
    struct nb_linear_backward backward = backward_of(&args);
    struct nb_product_site site = nb_linear_site(&args, 1), back = nb_linear_backward_site(&backward);
    assert_true(site.out == 1000 && site.in == 4096 && site.tokens == 64 && !site.backward && site.format == NB_WEIGHT_NF4);
    assert_true(back.out == 2000 && back.in == 4096 && back.tokens == 64 && back.backward && back.format == NB_WEIGHT_NF4);
    backward.part[1].weight.format = NB_WEIGHT_BF16;
    assert_int_equal(nb_linear_backward_site(&backward).format, NB_WEIGHT_NF4);
    backward.part[0].weight.format = NB_WEIGHT_BF16;
    assert_int_equal(nb_linear_backward_site(&backward).format, NB_WEIGHT_BF16);
    assert_true(nb_linear_is_few(&args));
    args.site_tokens = 65;
    assert_int_equal(nb_linear_site(&args, 0).tokens, 65);
    assert_false(nb_linear_is_few(&args));
    args.site_tokens = 0;
    args.tokens_max = 65;
    assert_false(nb_linear_is_few(&args));
    args.tokens_max = 1;
    args.part[1].lora.dropout = 0.1f;
    assert_false(nb_linear_is_few(&args));
    args.part[1].lora.a.address = 0;
    assert_true(nb_linear_is_few(&args));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_sites),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
