#include "model/work.h"

nb_status nb_work_take(
    const struct nb_work *work, enum nb_category category, const char *name, uint64_t bytes, nb_dptr *address)
{
    return nb_arena_take(work->arena, category, name, bytes, &address->address);
}

nb_status nb_work_take_matrix(const struct nb_work *work, enum nb_category category, const char *name,
    struct nb_matrix_shape shape, nb_dptr *address)
{
    uint64_t bytes = (uint64_t)shape.rows * (uint64_t)shape.columns * nb_dtype_bytes(shape.dtype);
    return nb_work_take(work, category, name, bytes, address);
}

#define DEFINE_WITH_SCRATCH(name)                                                                                    \
    nb_status nb_work_##name(const struct nb_work *work, struct nb_##name *args)                                     \
    {                                                                                                                \
        return run_##name(work, args, work->device->name##_scratch_bytes(&work->device->profile, args));             \
    }

#define DEFINE_WITH_SCRATCH_OF_TOKENS(name)                                                        \
    nb_status nb_work_##name(const struct nb_work *work, struct nb_##name *args, int tokens_limit) \
    {                                                                                              \
        struct nb_##name largest = *args;                                                          \
        largest.tokens_max = tokens_limit;                                                         \
        return run_##name(work, args, work->device->name##_scratch_bytes(&work->device->profile, &largest)); \
    }

#define DEFINE_RUN(name)                                                                                             \
    static nb_status run_##name(const struct nb_work *work, struct nb_##name *args, uint64_t scratch_bytes)          \
    {                                                                                                                \
        uint64_t frame = nb_arena_frame(work->arena);                                                                \
        args->scratch.bytes = scratch_bytes;                                                                         \
        NB_TRY(                                                                                                      \
            nb_work_take(work, NB_CATEGORY_SCRATCH, "scratch of " #name, args->scratch.bytes, &args->scratch.base)); \
        nb_status status = work->device->name(work->device, work->stream, args);                                     \
        nb_arena_release_to(work->arena, frame);                                                                     \
        return status;                                                                                               \
    }

DEFINE_RUN(linear)
DEFINE_RUN(linear_backward)
DEFINE_RUN(attention)
DEFINE_RUN(attention_backward)
DEFINE_RUN(quantize)
DEFINE_RUN(sample)

DEFINE_WITH_SCRATCH_OF_TOKENS(linear)
DEFINE_WITH_SCRATCH_OF_TOKENS(linear_backward)
DEFINE_WITH_SCRATCH_OF_TOKENS(attention)
DEFINE_WITH_SCRATCH_OF_TOKENS(attention_backward)
DEFINE_WITH_SCRATCH(quantize)
DEFINE_WITH_SCRATCH(sample)

static int last_chunk(int chunk, int end)
{
    return end > 0 ? (end - 1) / chunk * chunk : 0;
}

int nb_work_first_chunk(const struct nb_work *work, int chunk, int end)
{
    int last = last_chunk(chunk, end);
    if (work->device->repeat && last > 0)
        work->device->repeat(work->device, last / chunk);
    return 0;
}

int nb_work_next_chunk(const struct nb_work *work, int begin, int chunk, int end)
{
    int last = last_chunk(chunk, end);
    if (!work->device->repeat || begin == last)
        return begin + chunk;
    work->device->repeat(work->device, 1);
    return last;
}
