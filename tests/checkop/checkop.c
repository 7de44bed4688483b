/* Cases, buffers and fills. */
#include "checkop.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "harness.h"

void checkop_fail(struct checkop *c, const char *format, ...)
{
    va_list arguments;
    char text[512];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    c->failures++;
    if (!c->quiet && c->messages++ < CHECKOP_MESSAGES_MAX)
        fprintf(stderr, "FAIL %s [%s] --seed %" PRIu64 ": %s\n", checkop_entry(c->op)->name, c->case_name, c->seed, text);
}

void checkop_abort(const struct checkop *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "checkop: %s [%s]: ", checkop_entry(c->op)->name, c->case_name);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(2);
}

void *checkop_allocate(uint64_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    if (memory)
        return memory;
    fprintf(stderr, "checkop: no memory for %" PRIu64 " bytes\n", bytes);
    exit(2);
}

/* ---- a case ---- */

void checkop_case(struct checkop *c, const char *format, ...)
{
    va_list arguments;
    if (c->in_case)
        checkop_abort(c, "the case before has no checkop_end");
    va_start(arguments, format);
    vsnprintf(c->case_name, sizeof c->case_name, format, arguments);
    va_end(arguments);
    c->in_case = true;
    c->has_run = false;
    c->random_index = 0;
    c->case_number++;
    c->cases++;
}

/* Elements that no expectation claimed are as they were before. */
static void expect_unclaimed_untouched(
    struct checkop *c, const struct checkop_buffer *b, const unsigned char *after, bool library, const char *where)
{
    uint64_t size = nb_dtype_bytes(b->dtype);
    for (uint64_t i = 0; i < b->count; i++) {
        bool looked_at = b->claimed[i] == CHECKOP_CLAIMED || (b->claimed[i] == CHECKOP_LEFT_OPEN && library);
        if (looked_at || memcmp(after + i * size, b->image + i * size, size) == 0)
            continue;
        checkop_fail(c, "%s%s[%" PRIu64 "] was to be left as it was, %g, and is %g", b->name, where, i, checkop_get(b, i),
                     checkop_element(after, b->dtype, i));
        return;
    }
}

void checkop_end(struct checkop *c)
{
    for (int i = 0; i < c->buffers; i++) {
        struct checkop_buffer *b = &c->buffer[i];
        if (b->written && c->has_run && !b->in_use)
            checkop_abort(c, "output %s was bound to nothing", b->name);
        if (b->written && c->has_run) {
            expect_unclaimed_untouched(c, b, b->result, false, "");
            CHECKOP_EACH_TESTED(c, b, k)
                expect_unclaimed_untouched(c, b, b->tested[k], c->target[k].library_products, c->target[k].where);
        }
        free(b->image);
        free(b->result);
        for (int k = 0; k < CHECKOP_TARGETS_MAX; k++)
            free(b->tested[k]);
        free(b->claimed);
    }
    for (int i = 0; i < c->scratches; i++)
        free(c->scratch[i]);
    if (!c->has_run)
        checkop_abort(c, "the case ran nothing");
    c->buffers = c->bindings = c->scratches = 0;
    c->scratch_field = NULL;
    c->in_case = false;
}

double *checkop_scratch(struct checkop *c, uint64_t count)
{
    if (c->scratches == CHECKOP_BUFFERS_MAX)
        checkop_abort(c, "more than %d scratch arrays", CHECKOP_BUFFERS_MAX);
    double *scratch = checkop_allocate(count * sizeof *scratch);
    c->scratch[c->scratches++] = scratch;
    return scratch;
}

const char *checkop_dtype_name(enum nb_dtype dtype)
{
    return dtype == NB_DTYPE_F32 ? "f32" : dtype == NB_DTYPE_BF16 ? "bf16" : dtype == NB_DTYPE_U8 ? "u8" : "i32";
}

/* ---- buffers ---- */

static struct checkop_buffer *add_buffer(struct checkop *c, const char *name, enum nb_dtype dtype, uint64_t count, bool written)
{
    if (!c->in_case)
        checkop_abort(c, "buffer %s stands outside a case", name);
    if (c->buffers == CHECKOP_BUFFERS_MAX)
        checkop_abort(c, "more than %d buffers", CHECKOP_BUFFERS_MAX);
    struct checkop_buffer *b = &c->buffer[c->buffers++];
    uint64_t bytes = count * nb_dtype_bytes(dtype);
    *b = (struct checkop_buffer){
        .name = name,
        .dtype = dtype,
        .count = count,
        .bytes = bytes,
        .written = written,
        .image = checkop_allocate(bytes),
        .result = checkop_allocate(bytes),
        .claimed = checkop_allocate(count),
    };
    if (written)
        memset(b->image, 0xff, bytes);
    return b;
}

struct checkop_buffer *checkop_input(struct checkop *c, const char *name, enum nb_dtype dtype, uint64_t count)
{
    return add_buffer(c, name, dtype, count, false);
}

struct checkop_buffer *checkop_output(struct checkop *c, const char *name, enum nb_dtype dtype, uint64_t count)
{
    return add_buffer(c, name, dtype, count, true);
}

uint64_t checkop_count(const struct checkop_buffer *b)
{
    return b->count;
}

double checkop_element(const void *from, enum nb_dtype dtype, uint64_t i)
{
    switch (dtype) {
    case NB_DTYPE_F32:
        return (double)((const float *)from)[i];
    case NB_DTYPE_BF16:
        return (double)nb_bf16_to_float(((const nb_bf16 *)from)[i]);
    case NB_DTYPE_U8:
        return ((const uint8_t *)from)[i];
    default:
        return ((const int32_t *)from)[i];
    }
}

double checkop_get(const struct checkop_buffer *b, uint64_t i)
{
    return checkop_element(b->image, b->dtype, i);
}

void checkop_set(struct checkop_buffer *b, uint64_t i, double value)
{
    switch (b->dtype) {
    case NB_DTYPE_F32:
        ((float *)(void *)b->image)[i] = (float)value;
        break;
    case NB_DTYPE_BF16:
        ((nb_bf16 *)(void *)b->image)[i] = nb_bf16_from_float((float)value);
        break;
    case NB_DTYPE_U8:
        b->image[i] = (uint8_t)value;
        break;
    case NB_DTYPE_I32:
        ((int32_t *)(void *)b->image)[i] = (int32_t)value;
        break;
    }
}

double checkop_got(const struct checkop_buffer *b, uint64_t i)
{
    return checkop_element(b->result, b->dtype, i);
}

void *checkop_image(struct checkop_buffer *b)
{
    return b->image;
}

const void *checkop_result(const struct checkop_buffer *b)
{
    return b->result;
}

/* ---- fills ---- */

static uint32_t random_word(struct checkop *c)
{
    uint64_t stream = (uint64_t)c->op << 32 | c->case_number;
    return nb_random_u32(c->seed, NB_RANDOM_SHUFFLE, stream, c->random_index++);
}

/* In (0, 1). */
static double random_unit(struct checkop *c)
{
    return ((double)random_word(c) + 0.5) * 0x1p-32;
}

uint32_t checkop_random_below(struct checkop *c, uint32_t bound)
{
    return (uint32_t)((uint64_t)random_word(c) * bound >> 32);
}

double checkop_random_normal(struct checkop *c)
{
    double radius = sqrt(-2.0 * log(random_unit(c)));
    return radius * cos(6.283185307179586 * random_unit(c));
}

void checkop_fill_normal(struct checkop *c, struct checkop_buffer *b, double deviation)
{
    for (uint64_t i = 0; i < b->count; i++)
        checkop_set(b, i, deviation * checkop_random_normal(c));
}

void checkop_fill_uniform(struct checkop *c, struct checkop_buffer *b, double low, double high)
{
    for (uint64_t i = 0; i < b->count; i++)
        checkop_set(b, i, low + (high - low) * random_unit(c));
}

void checkop_fill_value(struct checkop_buffer *b, uint64_t begin, uint64_t count, double value)
{
    for (uint64_t i = begin; i < begin + count; i++)
        checkop_set(b, i, value);
}

const char *checkop_pattern_name(enum checkop_pattern pattern)
{
    static const char *const name[CHECKOP_PATTERNS] = {"normal", "huge", "zero", "subnormal", "constant", "mixed"};
    return name[pattern];
}

void checkop_fill_pattern(struct checkop *c, struct checkop_buffer *b, enum checkop_pattern pattern)
{
    switch (pattern) {
    case CHECKOP_NORMAL:
        checkop_fill_normal(c, b, 1.0);
        break;
    case CHECKOP_HUGE:
        checkop_fill_normal(c, b, 1e15);
        break;
    case CHECKOP_SUBNORMAL:
        checkop_fill_normal(c, b, 1e-39);
        break;
    case CHECKOP_CONSTANT:
        checkop_fill_value(b, 0, b->count, -0.7109375);
        break;
    case CHECKOP_MIXED:
        for (uint64_t i = 0; i < b->count; i++) {
            double magnitude = pow(10.0, 12.0 * random_unit(c) - 6.0);
            uint32_t sign = checkop_random_below(c, 4);
            checkop_set(b, i, sign == 0 ? magnitude : sign == 1 ? -magnitude : sign == 2 ? 0.0 : -0.0);
        }
        break;
    default:
        checkop_fill_value(b, 0, b->count, 0.0);
    }
}

void checkop_fill_below(struct checkop *c, struct checkop_buffer *b, uint32_t bound)
{
    for (uint64_t i = 0; i < b->count; i++)
        checkop_set(b, i, checkop_random_below(c, bound));
}

struct checkop_buffer *checkop_slot(struct checkop *c, const struct nb_slot *slot)
{
    struct checkop_buffer *b = checkop_input(c, "slot", NB_DTYPE_U8, sizeof *slot);
    memcpy(b->image, slot, sizeof *slot);
    return b;
}

struct checkop_buffer *checkop_step(struct checkop *c, const struct nb_step *step, bool written)
{
    struct checkop_buffer *b = add_buffer(c, "step", NB_DTYPE_U8, sizeof *step, written);
    memcpy(b->image, step, sizeof *step);
    return b;
}

/* ---- references ---- */

double checkop_round(double value, enum nb_dtype dtype)
{
    return dtype == NB_DTYPE_BF16 ? (double)nb_bf16_to_float(nb_bf16_from_float((float)value)) : (double)(float)value;
}

double checkop_difference(checkop_loss *loss, void *context, double *x, uint64_t i)
{
    double at = x[i], step = 1e-5 * fmax(1.0, fabs(at));
    x[i] = at + step;
    double above = loss(context, x), high = x[i];
    x[i] = at - step;
    double below = loss(context, x), low = x[i];
    x[i] = at;
    return (above - below) / (high - low);
}
