/* Golden values for tests: a small reader of safetensors files that trusts them. Independent of the program's own reader, so that
 * a mistake there cannot hide. Failures (no file, no such tensor) print what is missing and exit: a test without its golden
 * values must not pass. */
#ifndef NB_TESTS_SUPPORT_GOLDEN_H
#define NB_TESTS_SUPPORT_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nb_golden;

struct nb_golden_tensor {
    const char *dtype; /* "F32", "BF16", "F16", "U8", "I64", ...; owned by the file */
    int ndim;
    uint64_t shape[8];
    uint64_t count;    /* product of the shape */
    uint64_t bytes;
    const void *data;  /* aligned to 16 bytes, owned by the file */
};

/* Opens a file, named from the source root. Never NULL. */
struct nb_golden *nb_golden_open(const char *path);

/* Takes NULL; nulls the handle. */
void nb_golden_close(struct nb_golden **golden);

bool nb_golden_has(const struct nb_golden *golden, const char *name);
struct nb_golden_tensor nb_golden_tensor(const struct nb_golden *golden, const char *name);

/* The data of a tensor that must have this dtype; printf in the name. */
const float *nb_golden_f32(const struct nb_golden *golden, const char *format, ...) __attribute__((format(printf, 2, 3)));
const uint8_t *nb_golden_u8(const struct nb_golden *golden, const char *format, ...) __attribute__((format(printf, 2, 3)));
const uint16_t *nb_golden_bf16(const struct nb_golden *golden, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The names in the file's order, for tests that walk all tensors: NULL after the last. Owned by the file. */
const char *nb_golden_name(const struct nb_golden *golden, size_t index);

#endif
