#include "device/check.h"

#include <inttypes.h>
#include <math.h>

nb_status nb_check_activation(const char *op, enum nb_dtype dtype)
{
    if (dtype == NB_DTYPE_F32 || dtype == NB_DTYPE_BF16)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: dtype %d is neither F32 nor BF16", op, (int)dtype);
}

nb_status nb_check_range(const char *op, const char *name, int64_t value, int64_t low, int64_t high)
{
    if (value >= low && value <= high)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s %" PRId64 " is outside %" PRId64 " to %" PRId64, op, name, value, low, high);
}

nb_status nb_check_width(const char *op, const char *name, int64_t width)
{
    if (width > 0 && width % 8 == 0)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s %" PRId64 " is not a positive multiple of 8", op, name, width);
}

nb_status nb_check_stride(const char *op, const char *name, int64_t stride, int64_t width)
{
    if (stride >= width && stride % 8 == 0)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s %" PRId64 " is not a multiple of 8 of at least %" PRId64, op, name, stride, width);
}

nb_status nb_check_heads(const char *op, const char *name, int heads, int head_dim)
{
    if (heads <= 0)
        return nb_fail(NB_UNSUPPORTED, "%s: %s %d is not positive", op, name, heads);
    if (head_dim > 0 && head_dim % 8 == 0 && head_dim <= NB_HEAD_DIM_MAX)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: head_dim %d is not a multiple of 8 up to %d", op, head_dim, NB_HEAD_DIM_MAX);
}

nb_status nb_check_pointer(const char *op, const char *name, nb_dptr pointer, uint64_t alignment)
{
    if (nb_dptr_is_null(pointer))
        return nb_fail(NB_UNSUPPORTED, "%s: %s is null", op, name);
    if (pointer.address % alignment == 0)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s 0x%" PRIx64 " is not aligned to %" PRIu64 " bytes", op, name, pointer.address, alignment);
}

nb_status nb_check_apart(const char *op, const char *name, nb_dptr pointer, const char *other_name, nb_dptr other)
{
    if (pointer.address != other.address)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s and %s are both at 0x%" PRIx64, op, name, other_name, pointer.address);
}

nb_status nb_check_count(const char *op, uint64_t count)
{
    if (count > 0 && count <= (uint64_t)1 << 48)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: count %" PRIu64 " is outside 1 to 2^48", op, count);
}

nb_status nb_check_epsilon(const char *op, float epsilon)
{
    if (epsilon >= 0 && isfinite(epsilon))
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: epsilon %g is negative or not finite", op, (double)epsilon);
}

/* "name.part" has to be there. */
static nb_status check_part(const char *op, const char *name, const char *part, nb_dptr pointer, uint64_t alignment)
{
    if (nb_dptr_is_null(pointer))
        return nb_fail(NB_UNSUPPORTED, "%s: %s.%s is null", op, name, part);
    if (pointer.address % alignment == 0)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %s.%s 0x%" PRIx64 " is not aligned to %" PRIu64 " bytes", op, name, part, pointer.address,
                   alignment);
}

nb_status nb_check_weight(const char *op, const char *name, const struct nb_weight *weight)
{
    if (weight->rows <= 0 || weight->columns <= 0)
        return nb_fail(NB_UNSUPPORTED, "%s: %s is %d x %d", op, name, weight->rows, weight->columns);
    NB_TRY(check_part(op, name, "data", weight->data, 16));
    if (weight->format == NB_WEIGHT_BF16)
        return NB_OK;
    if (weight->format != NB_WEIGHT_NF4 && weight->format != NB_WEIGHT_FP4)
        return nb_fail(NB_UNSUPPORTED, "%s: %s.format %d is none of bf16, nf4, fp4", op, name, (int)weight->format);
    NB_TRY(check_part(op, name, "absmax", weight->absmax, weight->nested ? 1 : 4));
    NB_TRY(check_part(op, name, "codebook", weight->codebook, 4));
    if (!weight->nested)
        return NB_OK;
    NB_TRY(check_part(op, name, "nested_absmax", weight->nested_absmax, 4));
    NB_TRY(check_part(op, name, "nested_map", weight->nested_map, 4));
    return check_part(op, name, "nested_offset", weight->nested_offset, 4);
}
