/* What the checks of args share. Private to src/device/. Each returns NB_UNSUPPORTED, naming the op, the member and its value. */
#ifndef NB_DEVICE_CHECK_H
#define NB_DEVICE_CHECK_H

#include "device/device.h"

enum { NB_HEAD_DIM_MAX = 256 };

/* F32 or BF16. */
nb_status nb_check_activation(const char *op, enum nb_dtype dtype);

/* low <= value <= high. */
nb_status nb_check_range(const char *op, const char *name, int64_t value, int64_t low, int64_t high);

/* A positive multiple of 8. */
nb_status nb_check_width(const char *op, const char *name, int64_t width);

/* At least `width`, the elements of a row, and a multiple of 8. */
nb_status nb_check_stride(const char *op, const char *name, int64_t stride, int64_t width);

/* At least one head; head_dim a multiple of 8 up to NB_HEAD_DIM_MAX. */
nb_status nb_check_heads(const char *op, const char *name, int heads, int head_dim);

/* Not null, and a multiple of `alignment` bytes. */
nb_status nb_check_pointer(const char *op, const char *name, nb_dptr pointer, uint64_t alignment);

/* Two buffers that may not be one. */
nb_status nb_check_apart(const char *op, const char *name, nb_dptr pointer, const char *other_name, nb_dptr other);

/* 1 to 2^48 elements. */
nb_status nb_check_count(const char *op, uint64_t count);

/* A norm's epsilon: finite, not negative. */
nb_status nb_check_epsilon(const char *op, float epsilon);

/* A weight: a known format, positive sizes, the parts its format has. `name` is the member's. */
nb_status nb_check_weight(const char *op, const char *name, const struct nb_weight *weight);

#endif
