/* checkop: one harness that tests and times every op of the table.
 *
 * A check makes buffers, fills them, binds them to an op's args, runs, and states what each output must hold. One checkop_run runs
 * the op on the reference device (cpu, 1 thread), then on cpu devices with 2 and 5 threads and in deferred mode under several seeds,
 * whose bytes must equal the reference's; and on the device under test, where there is one, whose values must stand within the same
 * tolerances as the reference's. Where an op's rows may come in chunks (row_begin) and there are several tiles of them, the reference
 * and the device under test run again in chunks of one and of two, and must give their own bytes again. Each buffer is allocated
 * separately, guard bytes in front and behind, all of them NaN if read.
 * After every run: guards untouched, inputs untouched, and in outputs every element that no expectation claimed untouched - so rows
 * beyond the valid count and the gaps of strides need no words of their own.
 *
 *     static void one(struct checkop *c, int tokens, int width, enum nb_dtype dtype)
 *     {
 *         checkop_case(c, "%d x %d %s", tokens, width, checkop_dtype_name(dtype));
 *         struct checkop_buffer *a = checkop_input(c, "a", dtype, (uint64_t)tokens * width); ...
 *         checkop_fill_normal(a, 1.0);
 *         struct checkop_buffer *y = checkop_output(c, "y", dtype, ...);
 *         struct nb_add args = {.tokens_max = tokens, .width = width, .activation = dtype};
 *         checkop_bind(c, &args.a, a); ...
 *         checkop_run(c, CHECKOP_add, &args);
 *         double *want = checkop_scratch(c, n); ... the formula, naively, in double ...
 *         checkop_expect(c, y, 0, n, want, (struct checkop_tolerance){.ulps = 0.5});
 *         checkop_end(c);
 *     }
 *
 *     void checkop_add(struct checkop *c) { one(c, 1, 8, NB_DTYPE_F32); ... }
 *
 * The harness finds checkop_NAME for every op of NB_OPS; an op without one, or whose check never ran it, fails the whole run. */
#ifndef NB_TESTS_CHECKOP_H
#define NB_TESTS_CHECKOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bfloat.h"
#include "device/device.h"

struct checkop;
struct checkop_buffer;

/* CHECKOP_embedding, ... in the order of the table. */
enum checkop_op {
#define CHECKOP_ENTRY(name) CHECKOP_##name,
    NB_OPS(CHECKOP_ENTRY)
#undef CHECKOP_ENTRY
    CHECKOP_OPS
};

/* The checks: one a file of tests/checkop, or an op and its backward together. */
#define CHECKOP_DECLARE(name) void checkop_##name(struct checkop *c);
NB_OPS(CHECKOP_DECLARE)
#undef CHECKOP_DECLARE

/* ---- a case ---- */

/* Begins a case, named for failure messages; the random numbers restart from (seed, op, case number). */
void checkop_case(struct checkop *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Looks for elements that changed but were not claimed, then frees the case's buffers and scratch. */
void checkop_end(struct checkop *c);

/* `count` doubles for a reference, zero; freed by checkop_end. */
double *checkop_scratch(struct checkop *c, uint64_t count);

/* "f32", "bf16", "u8", "i32" */
const char *checkop_dtype_name(enum nb_dtype dtype);

/* check(c, &cases[k], dtype) for every case of an array, in both activation dtypes. */
#define CHECKOP_EACH(c, cases, check)                                              \
    for (size_t k_ = 0; k_ < sizeof(cases) / sizeof *(cases); k_++)                \
        for (int dtype_ = NB_DTYPE_F32; dtype_ <= NB_DTYPE_BF16; dtype_++)         \
            (check)((c), &(cases)[k_], (enum nb_dtype)dtype_)

/* ---- buffers: an image on the host, allocated anew on each device for each run ---- */

/* Inputs must come back unchanged. Filled with zeros. `name` must outlive the case (a literal). */
struct checkop_buffer *checkop_input(struct checkop *c, const char *name, enum nb_dtype dtype, uint64_t count);
/* Filled with bytes 0xff (NaN): what an op reads before it wrote shows. Fill it for ops that accumulate or work in place. */
struct checkop_buffer *checkop_output(struct checkop *c, const char *name, enum nb_dtype dtype, uint64_t count);

uint64_t checkop_count(const struct checkop_buffer *b);
/* Element i as it was before the run, exact in a double; set rounds to the buffer's dtype. */
double checkop_get(const struct checkop_buffer *b, uint64_t i);
void checkop_set(struct checkop_buffer *b, uint64_t i, double value);
/* Element i after the run, on the reference device. */
double checkop_got(const struct checkop_buffer *b, uint64_t i);
/* The image before the run (to fill with structs), and the bytes after it on the reference device. */
void *checkop_image(struct checkop_buffer *b);
const void *checkop_result(const struct checkop_buffer *b);

/* Fills, over [begin, begin + count) or the whole buffer. */
void checkop_fill_normal(struct checkop *c, struct checkop_buffer *b, double deviation);
void checkop_fill_uniform(struct checkop *c, struct checkop_buffer *b, double low, double high);
void checkop_fill_value(struct checkop_buffer *b, uint64_t begin, uint64_t count, double value);
/* Integers in [0, bound). */
void checkop_fill_below(struct checkop *c, struct checkop_buffer *b, uint32_t bound);
/* What numerics trip over: the usual, huge values (their squares still fit fp32), zeros, subnormal values, one constant, and
 * magnitudes from 1e-6 to 1e6 beside each other with zeros of both signs. */
enum checkop_pattern {
    CHECKOP_NORMAL, CHECKOP_HUGE, CHECKOP_ZERO, CHECKOP_SUBNORMAL, CHECKOP_CONSTANT, CHECKOP_MIXED, CHECKOP_PATTERNS
};
const char *checkop_pattern_name(enum checkop_pattern pattern);
void checkop_fill_pattern(struct checkop *c, struct checkop_buffer *b, enum checkop_pattern pattern);
uint32_t checkop_random_below(struct checkop *c, uint32_t bound);
double checkop_random_normal(struct checkop *c);

/* A slot, or a step, in device memory: an input, or (step, written by ops) an output. */
struct checkop_buffer *checkop_slot(struct checkop *c, const struct nb_slot *slot);
struct checkop_buffer *checkop_step(struct checkop *c, const struct nb_step *step, bool written);

/* ---- running ---- */

/* On each device *field will hold the address of b's element `at`. Two fields may be bound to one buffer. A field that is not bound
 * keeps its value (null). Bindings end with the case. */
void checkop_bind(struct checkop *c, nb_dptr *field, struct checkop_buffer *b);
void checkop_bind_at(struct checkop *c, nb_dptr *field, struct checkop_buffer *b, uint64_t at);
/* On each device *field will be what scratch_bytes of that device asks for, guarded. */
void checkop_bind_scratch(struct checkop *c, struct nb_scratch *field);

/* Runs the op on all devices, from the images. `args` is the op's struct, bound before. Once a case. */
void checkop_run(struct checkop *c, enum checkop_op op, void *args);

/* nb_check_NAME must refuse: returns NB_UNSUPPORTED with a message that holds `word`. Needs no case. */
void checkop_refuses(struct checkop *c, enum checkop_op op, const void *args, const char *word);
/* The op is accepted, and the stream's wait reports `status`, on every device. In place of checkop_run. */
void checkop_run_fails(struct checkop *c, enum checkop_op op, void *args, nb_status status);

/* ---- what must come out ---- */

/* |got - want| <= ulps * ulp(want) + relative * |want| + absolute, where ulp is the buffer's dtype's spacing at want. NaN equals NaN,
 * an infinity only itself. All zero: equal. Derive it from the dtype and the number of roundings, in a comment. */
struct checkop_tolerance {
    double ulps, relative, absolute;
    double tested;  /* besides, absolute, on a device under test: where `want` follows from what the reference stored before */
    double library; /* besides, absolute, where a library multiplies: it rounds what stood in its result before */
};

/* Elements that a library's products may leave as anything; nibble's own leave them as they were. */
void checkop_leave_open(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count);
/* Elements [begin, begin + count) of b after the run, against want[0 .. count); claims them. */
void checkop_expect(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const double *want,
                    struct checkop_tolerance tolerance);
/* For results in an activation dtype whose `want` was rounded at the same points. F32: within `relative` and `absolute`, and 2 ulp of
 * a subnormal. BF16: the same, widened by 2 ulp, since a value next to a tie may round the other way where fp32 and double differ; such
 * ones are rare, so of 100 or more elements 97 in 100 have to be equal. */
void checkop_expect_activation(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const double *want,
                               double relative, double absolute);
/* A member of a struct, `offset` bytes into a U8 buffer: got within relative * |want|. Claims it. */
enum checkop_member { CHECKOP_MEMBER_F32, CHECKOP_MEMBER_F64, CHECKOP_MEMBER_U32 };
void checkop_expect_member(struct checkop *c, struct checkop_buffer *b, uint64_t offset, enum checkop_member type, double want,
                           double relative);
/* The same bytes as `want` holds, elements of b's dtype; claims them. */
void checkop_expect_bytes(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const void *want);
/* On each device elements [begin, begin + count) hold the same bytes as those from `first` on. Does not claim. */
void checkop_expect_repeated(struct checkop *c, struct checkop_buffer *b, uint64_t first, uint64_t begin, uint64_t count);
/* The root mean square of got - want is at most `relative` times that of want: for sums whose elements cancel. Does not claim. */
void checkop_expect_norm(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const double *want,
                         double relative);
/* Claims without looking (partial results whose bytes are the device's own affair). */
void checkop_claim(struct checkop_buffer *b, uint64_t begin, uint64_t count);
/* Any other condition. */
void checkop_true(struct checkop *c, bool condition, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- helpers for references ---- */

/* `value` rounded to the dtype (F32, BF16), as the ops store it. */
double checkop_round(double value, enum nb_dtype dtype);

/* Central difference of loss(context, x) by x[i], x restored. In double with a step of 1e-5 of x's size the error is about
 * 1e-10 relative to the loss's curvature: far below fp32's 6e-8. */
typedef double checkop_loss(void *context, const double *x);
double checkop_difference(checkop_loss *loss, void *context, double *x, uint64_t i);

/* ---- --bench ---- */

/* Whether this is a run with --bench: then checks only time, on the cpu device with all threads (or --threads N) and on the device
 * under test. Without it, do not make the big buffers. */
bool checkop_wants_bench(const struct checkop *c);

/* Times the op (after checkop_case and the binds): prints minimum, median and spread, and `bytes` (read and written once) a second
 * with its share of the measured memcpy rate; where flops > 0 also GFLOP/s. Ends the case. */
void checkop_bench(struct checkop *c, enum checkop_op op, void *args, double bytes, double flops);

#endif
