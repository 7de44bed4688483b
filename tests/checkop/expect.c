/* What must come out. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

/* The spacing of the dtype's values around `value`. */
static double spacing(double value, enum nb_dtype dtype)
{
    int exponent = 0;
    if (value == 0 || !isfinite(value))
        return 0;
    frexp(value, &exponent); /* value = m * 2^exponent, 0.5 <= m < 1 */
    int digits = dtype == NB_DTYPE_BF16 ? 8 : 24;
    return ldexp(1.0, (exponent < -125 ? -125 : exponent) - digits);
}

static bool close_enough(double got, double want, enum nb_dtype dtype, struct checkop_tolerance tolerance)
{
    if (isnan(want) || isnan(got))
        return isnan(want) && isnan(got);
    if (isinf(want) || isinf(got))
        return got == want;
    double allowed = tolerance.ulps * spacing(want, dtype) + tolerance.relative * fabs(want) + tolerance.absolute;
    return fabs(got - want) <= allowed;
}

static void claim(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count)
{
    if (begin + count > b->count)
        checkop_abort(c, "expectation of %s[%" PRIu64 "] of %" PRIu64, b->name, begin + count - 1, b->count);
    if (!c->has_run)
        checkop_abort(c, "expectation of %s before the run", b->name);
    memset(b->claimed + begin, CHECKOP_CLAIMED, count);
}

/* Reports the first element out of tolerance and how many there are. */
static void compare(struct checkop *c, const struct checkop_buffer *b, const unsigned char *after, uint64_t begin, uint64_t count,
                    const double *want, struct checkop_tolerance tolerance, const char *where)
{
    uint64_t wrong = 0, first = 0;
    for (uint64_t i = 0; i < count; i++)
        if (!close_enough(checkop_element(after, b->dtype, begin + i), want[i], b->dtype, tolerance) && wrong++ == 0)
            first = i;
    if (wrong) {
        double got = checkop_element(after, b->dtype, begin + first), step = spacing(want[first], b->dtype);
        checkop_fail(c, "%s%s[%" PRIu64 "] is %.9g, not %.9g (%.3g ulp); %" PRIu64 " of %" PRIu64 " elements differ", b->name, where,
                     begin + first, got, want[first], step > 0 ? fabs(got - want[first]) / step : 0, wrong, count);
    }
}

void checkop_expect(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const double *want,
                    struct checkop_tolerance tolerance)
{
    claim(c, b, begin, count);
    compare(c, b, b->result, begin, count, want, tolerance, "");
    CHECKOP_EACH_TESTED(c, b, k) {
        struct checkop_tolerance own = tolerance;
        own.absolute += tolerance.tested + (c->target[k].library_products ? tolerance.library : 0);
        compare(c, b, b->tested[k], begin, count, want, own, c->target[k].where);
    }
}

void checkop_leave_open(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count)
{
    if (begin + count > b->count)
        checkop_abort(c, "%s[%" PRIu64 "] of %" PRIu64 " is left open", b->name, begin + count - 1, b->count);
    memset(b->claimed + begin, CHECKOP_LEFT_OPEN, count);
}

/* Of the elements, how many are the rounded `want` to the bit. */
static void compare_most(struct checkop *c, const struct checkop_buffer *b, const unsigned char *after, uint64_t begin,
                         uint64_t count, const double *want, const char *where)
{
    uint64_t equal = 0;
    for (uint64_t i = 0; i < count; i++) {
        double rounded = checkop_round(want[i], b->dtype), got = checkop_element(after, b->dtype, begin + i);
        equal += rounded == got || (isnan(rounded) && isnan(got));
    }
    if (equal * 100 < count * 97)
        checkop_fail(c, "%s%s: only %" PRIu64 " of %" PRIu64 " elements are rounded as they should be", b->name, where, equal, count);
}

void checkop_expect_activation(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const double *want,
                               double relative, double absolute)
{
    bool bf16 = b->dtype == NB_DTYPE_BF16;
    struct checkop_tolerance tolerance = {.ulps = bf16 ? 2 : 0, .relative = relative, .absolute = absolute + 0x1p-148};
    checkop_expect(c, b, begin, count, want, tolerance);
    if (!bf16 || count < 100)
        return;
    compare_most(c, b, b->result, begin, count, want, "");
    CHECKOP_EACH_TESTED(c, b, k)
        compare_most(c, b, b->tested[k], begin, count, want, c->target[k].where);
}

static double member(const unsigned char *at, enum checkop_member type)
{
    float f32;
    double f64;
    uint32_t u32;
    if (type == CHECKOP_MEMBER_F32)
        return memcpy(&f32, at, sizeof f32), (double)f32;
    if (type == CHECKOP_MEMBER_F64)
        return memcpy(&f64, at, sizeof f64), f64;
    return memcpy(&u32, at, sizeof u32), u32;
}

static void compare_member(struct checkop *c, const struct checkop_buffer *b, const unsigned char *after, uint64_t offset,
                           enum checkop_member type, double want, double relative, const char *where)
{
    double got = member(after + offset, type);
    bool equal = got == want || (isnan(got) && isnan(want));
    if (!equal && !(fabs(got - want) <= relative * fabs(want)))
        checkop_fail(c, "%s%s, %" PRIu64 " bytes in: %.17g, not %.17g", b->name, where, offset, got, want);
}

void checkop_expect_member(struct checkop *c, struct checkop_buffer *b, uint64_t offset, enum checkop_member type, double want,
                           double relative)
{
    claim(c, b, offset, type == CHECKOP_MEMBER_F64 ? 8 : 4);
    compare_member(c, b, b->result, offset, type, want, relative, "");
    CHECKOP_EACH_TESTED(c, b, k)
        compare_member(c, b, b->tested[k], offset, type, want, relative, c->target[k].where);
}

static void compare_bytes(struct checkop *c, const struct checkop_buffer *b, const unsigned char *after, uint64_t begin,
                          uint64_t count, const unsigned char *want, const char *where)
{
    uint64_t size = nb_dtype_bytes(b->dtype);
    for (uint64_t i = 0; i < count; i++)
        if (memcmp(after + (begin + i) * size, want + i * size, size) != 0) {
            checkop_fail(c, "%s%s[%" PRIu64 "] is %.9g, not %.9g to the bit", b->name, where, begin + i,
                         checkop_element(after, b->dtype, begin + i), checkop_element(want, b->dtype, i));
            return;
        }
}

void checkop_expect_bytes(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const void *want)
{
    claim(c, b, begin, count);
    compare_bytes(c, b, b->result, begin, count, want, "");
    CHECKOP_EACH_TESTED(c, b, k)
        compare_bytes(c, b, b->tested[k], begin, count, want, c->target[k].where);
}

void checkop_expect_repeated(struct checkop *c, struct checkop_buffer *b, uint64_t first, uint64_t begin, uint64_t count)
{
    uint64_t size = nb_dtype_bytes(b->dtype);
    if (first + count > b->count || begin + count > b->count)
        checkop_abort(c, "expectation of %s[%" PRIu64 "] of %" PRIu64, b->name, begin + count - 1, b->count);
    compare_bytes(c, b, b->result, begin, count, b->result + first * size, "");
    CHECKOP_EACH_TESTED(c, b, k)
        compare_bytes(c, b, b->tested[k], begin, count, b->tested[k] + first * size, c->target[k].where);
}

static void compare_norm(struct checkop *c, const struct checkop_buffer *b, const unsigned char *after, uint64_t begin,
                         uint64_t count, const double *want, double relative, const char *where)
{
    double error = 0, norm = 0;
    for (uint64_t i = 0; i < count; i++) {
        double difference = checkop_element(after, b->dtype, begin + i) - want[i];
        error += difference * difference;
        norm += want[i] * want[i];
    }
    if (!(sqrt(error) <= relative * sqrt(norm)))
        checkop_fail(c, "%s%s is off by %.3g of its norm, more than %.3g", b->name, where, sqrt(error) / sqrt(norm), relative);
}

void checkop_expect_norm(struct checkop *c, struct checkop_buffer *b, uint64_t begin, uint64_t count, const double *want,
                         double relative)
{
    if (begin + count > b->count)
        checkop_abort(c, "expectation of %s[%" PRIu64 "] of %" PRIu64, b->name, begin + count - 1, b->count);
    compare_norm(c, b, b->result, begin, count, want, relative, "");
    CHECKOP_EACH_TESTED(c, b, k)
        compare_norm(c, b, b->tested[k], begin, count, want, relative, c->target[k].where);
}

void checkop_claim(struct checkop_buffer *b, uint64_t begin, uint64_t count)
{
    memset(b->claimed + begin, CHECKOP_CLAIMED, count);
}

void checkop_true(struct checkop *c, bool condition, const char *format, ...)
{
    va_list arguments;
    char text[512];
    if (condition)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    checkop_fail(c, "%s", text);
}

void checkop_refuses(struct checkop *c, enum checkop_op op, const void *args, const char *word)
{
    char before[sizeof c->case_name];
    memcpy(before, c->case_name, sizeof before);
    snprintf(c->case_name, sizeof c->case_name, "refuses %s", word);
    const char *name = checkop_entry(op)->name;
    nb_status status = checkop_entry(op)->accept(args);
    if (status != NB_UNSUPPORTED)
        checkop_fail(c, "the args were accepted, status %d", (int)status);
    else if (!strstr(nb_status_message(), word) || strncmp(nb_status_message(), name, strlen(name)) != 0)
        checkop_fail(c, "the message does not begin with %s or lacks %s: %s", name, word, nb_status_message());
    memcpy(c->case_name, before, sizeof before);
}
