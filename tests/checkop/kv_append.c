#include "checkop.h"

struct shape {
    int tokens, tokens_max, width, k_gap, v_gap, cached, capacity;
};

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype)
{
    checkop_case(c, "%d of %d x %d behind %d of %d, %s", s.tokens, s.tokens_max, s.width, s.cached, s.capacity,
                 checkop_dtype_name(dtype));
    int k_stride = s.width + s.k_gap, v_stride = s.width + s.v_gap;
    uint64_t width = (uint64_t)s.width;
    struct checkop_buffer *k = checkop_input(c, "k", dtype, (uint64_t)s.tokens_max * (uint64_t)k_stride);
    struct checkop_buffer *v = checkop_input(c, "v", dtype, (uint64_t)s.tokens_max * (uint64_t)v_stride);
    struct checkop_buffer *k_cache = checkop_output(c, "k_cache", dtype, (uint64_t)s.capacity * width);
    struct checkop_buffer *v_cache = checkop_output(c, "v_cache", dtype, (uint64_t)s.capacity * width);
    checkop_fill_normal(c, k, 1.0);
    checkop_fill_normal(c, v, 1.0);
    struct nb_kv_append args = {.tokens_max = s.tokens_max, .width = s.width, .k_stride = k_stride, .v_stride = v_stride,
                                .capacity = s.capacity, .activation = dtype};
    checkop_bind(c, &args.k, k);
    checkop_bind(c, &args.v, v);
    checkop_bind(c, &args.k_cache, k_cache);
    checkop_bind(c, &args.v_cache, v_cache);
    struct nb_slot slot = {.tokens = (uint32_t)s.tokens, .cache_tokens = (uint32_t)s.cached};
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    checkop_run(c, CHECKOP_kv_append, &args);
    uint64_t element = nb_dtype_bytes(dtype);
    for (int t = 0; t < s.tokens && s.cached + t < s.capacity; t++) {
        uint64_t to = (uint64_t)(s.cached + t) * width;
        checkop_expect_bytes(c, k_cache, to, width, (char *)checkop_image(k) + (uint64_t)t * (uint64_t)k_stride * element);
        checkop_expect_bytes(c, v_cache, to, width, (char *)checkop_image(v) + (uint64_t)t * (uint64_t)v_stride * element);
    }
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { TOKENS = 1024, WIDTH = 192, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d f32", TOKENS, WIDTH);
    struct nb_kv_append args = {.tokens_max = TOKENS, .width = WIDTH, .k_stride = WIDTH, .v_stride = WIDTH, .capacity = TOKENS};
    checkop_bind(c, &args.k, checkop_input(c, "k", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.v, checkop_input(c, "v", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.k_cache, checkop_output(c, "k_cache", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.v_cache, checkop_output(c, "v_cache", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_kv_append, &args, 4.0 * COUNT * 4, 0);
}

void checkop_kv_append(struct checkop *c)
{
    /* a first prompt; one token behind others; the last that fits; a prompt that would run over the end; strides that differ */
    static const struct shape shapes[] = {
        {5, 7, 24, 0, 0, 0, 9},     {1, 1, 192, 384, 8, 17, 40}, {1, 2, 8, 0, 16, 11, 12},
        {6, 6, 16, 0, 0, 10, 12}, {70, 70, 256, 8, 24, 3, 80}, {2, 2, 8200, 0, 8, 1, 4},
    };
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_kv_append bad = {.k = p, .v = p, .k_cache = q, .v_cache = q, .slot = p, .tokens_max = 1, .width = 8, .k_stride = 8,
                               .v_stride = 8, .capacity = 1};
    checkop_refuses(c, CHECKOP_kv_append, &bad, "k_cache and v_cache");
    bad.v_stride = 0;
    checkop_refuses(c, CHECKOP_kv_append, &bad, "v_stride 0");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        one(c, shapes[i], NB_DTYPE_F32);
        one(c, shapes[i], NB_DTYPE_BF16);
    }
}
