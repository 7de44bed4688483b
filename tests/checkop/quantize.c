#include <math.h>

#include "checkop.h"
#include "quant/codec.h"
#include "quant/dynamic_map.h"

/* The parts of one quantized matrix, as they must be. Naive, one weight at a time; arithmetic in fp32, where it decides a code. */
struct parts {
    uint64_t count, blocks, superblocks;
    uint8_t *packed, *codes;
    float *absmax, *nested_absmax, offset, map[256];
};

static uint8_t code_of(enum nb_quant_type type, float x)
{
    float thresholds[NB_QUANT_CODES - 1];
    uint8_t codes[NB_QUANT_CODES];
    int above = 0;
    nb_quant_thresholds(type, thresholds, codes);
    while (above < NB_QUANT_CODES - 1 && x > thresholds[above])
        above++;
    return codes[above];
}

static void first_level(struct parts *p, enum nb_quant_type type, const struct checkop_buffer *w)
{
    for (uint64_t begin = 0; begin < p->count; begin += NB_QUANT_BLOCK) {
        uint64_t end = begin + NB_QUANT_BLOCK < p->count ? begin + NB_QUANT_BLOCK : p->count;
        float largest = 0;
        for (uint64_t i = begin; i < end; i++)
            largest = fmaxf(largest, fabsf((float)checkop_get(w, i)));
        p->absmax[begin / NB_QUANT_BLOCK] = largest;
        float inverse = largest > 0 ? 1.0f / largest : 0.0f;
        for (uint64_t i = begin; i < end; i++) {
            uint8_t code = code_of(type, (float)checkop_get(w, i) * inverse);
            p->packed[i / 2] |= (uint8_t)(i % 2 ? code : code << 4);
        }
    }
    if (p->count % 2)
        p->packed[p->count / 2] |= type == NB_QUANT_NF4 ? 7 : 0;
}

static void second_level(struct parts *p)
{
    double total = 0;
    for (uint64_t begin = 0; begin < p->blocks; begin += NB_QUANT_SUPERBLOCK) {
        double partial = 0;
        for (uint64_t i = begin; i < begin + NB_QUANT_SUPERBLOCK && i < p->blocks; i++)
            partial += (double)p->absmax[i];
        total += partial;
    }
    p->offset = (float)(total / (double)p->blocks);
    nb_dynamic_map(true, p->map);
    for (uint64_t begin = 0; begin < p->blocks; begin += NB_QUANT_SUPERBLOCK) {
        uint64_t end = begin + NB_QUANT_SUPERBLOCK < p->blocks ? begin + NB_QUANT_SUPERBLOCK : p->blocks;
        float largest = 0;
        for (uint64_t i = begin; i < end; i++)
            largest = fmaxf(largest, fabsf(p->absmax[i] - p->offset));
        p->nested_absmax[begin / NB_QUANT_SUPERBLOCK] = largest;
        for (uint64_t i = begin; i < end; i++) {
            float x = largest > 0 ? (p->absmax[i] - p->offset) * (1.0f / largest) : 0.0f;
            int code = 0;
            while (code < 255 && (double)x > ((double)p->map[code] + (double)p->map[code + 1]) / 2)
                code++;
            p->codes[i] = (uint8_t)code;
        }
    }
}

static void one(struct checkop *c, enum nb_weight_format format, bool nested, int rows, int columns, enum checkop_pattern pattern)
{
    checkop_case(c, "%s%s %d x %d %s", format == NB_WEIGHT_NF4 ? "nf4" : "fp4", nested ? ", nested" : "", rows, columns,
                 checkop_pattern_name(pattern));
    enum nb_quant_type type = format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
    struct parts p = {.count = (uint64_t)rows * (uint64_t)columns};
    p.blocks = nb_quant_blocks(p.count);
    p.superblocks = nb_quant_superblocks(p.blocks);
    struct checkop_buffer *w = checkop_input(c, "w", NB_DTYPE_BF16, p.count);
    struct checkop_buffer *data = checkop_output(c, "data", NB_DTYPE_U8, nb_quant_packed_bytes(p.count));
    struct checkop_buffer *absmax = checkop_output(c, "absmax", nested ? NB_DTYPE_U8 : NB_DTYPE_F32, p.blocks);
    struct checkop_buffer *codebook = checkop_output(c, "codebook", NB_DTYPE_F32, NB_QUANT_CODES);
    checkop_fill_pattern(c, w, pattern);
    p.packed = (uint8_t *)checkop_scratch(c, p.count / 8 + 1);
    p.codes = (uint8_t *)checkop_scratch(c, p.blocks / 8 + 1);
    p.absmax = (float *)checkop_scratch(c, p.blocks);
    p.nested_absmax = (float *)checkop_scratch(c, p.superblocks);
    first_level(&p, type, w);
    struct nb_quantize args = {.to = {.format = format, .nested = nested, .rows = rows, .columns = columns}};
    checkop_bind(c, &args.w, w);
    checkop_bind(c, &args.to.data, data);
    checkop_bind(c, &args.to.absmax, absmax);
    checkop_bind(c, &args.to.codebook, codebook);
    checkop_bind_scratch(c, &args.scratch);
    if (nested) {
        struct checkop_buffer *nested_absmax = checkop_output(c, "nested_absmax", NB_DTYPE_F32, p.superblocks);
        struct checkop_buffer *map = checkop_output(c, "nested_map", NB_DTYPE_F32, 256);
        struct checkop_buffer *offset = checkop_output(c, "nested_offset", NB_DTYPE_F32, 1);
        second_level(&p);
        checkop_bind(c, &args.to.nested_absmax, nested_absmax);
        checkop_bind(c, &args.to.nested_map, map);
        checkop_bind(c, &args.to.nested_offset, offset);
        checkop_run(c, CHECKOP_quantize, &args);
        checkop_expect_bytes(c, nested_absmax, 0, p.superblocks, p.nested_absmax);
        checkop_expect_bytes(c, map, 0, 256, p.map);
        checkop_expect_bytes(c, offset, 0, 1, &p.offset);
        checkop_expect_bytes(c, absmax, 0, p.blocks, p.codes);
    } else {
        checkop_run(c, CHECKOP_quantize, &args);
        checkop_expect_bytes(c, absmax, 0, p.blocks, p.absmax);
    }
    checkop_expect_bytes(c, data, 0, nb_quant_packed_bytes(p.count), p.packed);
    checkop_expect_bytes(c, codebook, 0, NB_QUANT_CODES, nb_quant_codebook(type));
    checkop_end(c);
}

/* A weight that is not finite surfaces where the stream is waited for; the first of two is named. */
static void poisoned(struct checkop *c, bool nested, int rows, int columns, uint64_t at, double poison)
{
    uint64_t count = (uint64_t)rows * (uint64_t)columns, blocks = nb_quant_blocks(count);
    checkop_case(c, "%d x %d%s, weight %d is %g", rows, columns, nested ? ", nested" : "", (int)at, poison);
    struct checkop_buffer *w = checkop_input(c, "w", NB_DTYPE_BF16, count);
    checkop_fill_normal(c, w, 1.0);
    checkop_set(w, count - 1, INFINITY);
    checkop_set(w, at, poison);
    struct nb_quantize args = {.to = {.format = NB_WEIGHT_NF4, .nested = nested, .rows = rows, .columns = columns}};
    checkop_bind(c, &args.w, w);
    checkop_bind(c, &args.to.data, checkop_output(c, "data", NB_DTYPE_U8, nb_quant_packed_bytes(count)));
    checkop_bind(c, &args.to.absmax, checkop_output(c, "absmax", nested ? NB_DTYPE_U8 : NB_DTYPE_F32, blocks));
    checkop_bind(c, &args.to.codebook, checkop_output(c, "codebook", NB_DTYPE_F32, NB_QUANT_CODES));
    checkop_bind_scratch(c, &args.scratch);
    if (nested) {
        uint64_t superblocks = nb_quant_superblocks(blocks);
        checkop_bind(c, &args.to.nested_absmax, checkop_output(c, "nested_absmax", NB_DTYPE_F32, superblocks));
        checkop_bind(c, &args.to.nested_map, checkop_output(c, "nested_map", NB_DTYPE_F32, 256));
        checkop_bind(c, &args.to.nested_offset, checkop_output(c, "nested_offset", NB_DTYPE_F32, 1));
    }
    checkop_run_fails(c, CHECKOP_quantize, &args, NB_FORMAT);
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { ROWS = 1536, COLUMNS = 576, COUNT = ROWS * COLUMNS, BLOCKS = COUNT / NB_QUANT_BLOCK };
    checkop_case(c, "nf4, nested, %d x %d", ROWS, COLUMNS);
    struct checkop_buffer *w = checkop_input(c, "w", NB_DTYPE_BF16, COUNT);
    checkop_fill_normal(c, w, 1.0);
    struct nb_quantize args = {.to = {.format = NB_WEIGHT_NF4, .nested = true, .rows = ROWS, .columns = COLUMNS}};
    checkop_bind(c, &args.w, w);
    checkop_bind(c, &args.to.data, checkop_output(c, "data", NB_DTYPE_U8, COUNT / 2));
    checkop_bind(c, &args.to.absmax, checkop_output(c, "absmax", NB_DTYPE_U8, BLOCKS));
    checkop_bind(c, &args.to.nested_absmax, checkop_output(c, "nested_absmax", NB_DTYPE_F32, nb_quant_superblocks(BLOCKS)));
    checkop_bind(c, &args.to.nested_map, checkop_output(c, "nested_map", NB_DTYPE_F32, 256));
    checkop_bind(c, &args.to.nested_offset, checkop_output(c, "nested_offset", NB_DTYPE_F32, 1));
    checkop_bind(c, &args.to.codebook, checkop_output(c, "codebook", NB_DTYPE_F32, NB_QUANT_CODES));
    checkop_bind_scratch(c, &args.scratch);
    checkop_bench(c, CHECKOP_quantize, &args, 2.5 * COUNT, 0);
}

void checkop_quantize(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    const nb_dptr p = {4096};
    struct nb_quantize bad = {.w = p, .to = {.format = NB_WEIGHT_BF16, .rows = 8, .columns = 8, .data = {8192}}};
    checkop_refuses(c, CHECKOP_quantize, &bad, "bf16");
    bad.to.format = NB_WEIGHT_FP4;
    checkop_refuses(c, CHECKOP_quantize, &bad, "to.absmax is null");
    for (int k = 0; k < 4; k++) {
        enum nb_weight_format format = k & 1 ? NB_WEIGHT_FP4 : NB_WEIGHT_NF4;
        one(c, format, k & 2, 1, 1, CHECKOP_NORMAL);       /* half a byte */
        one(c, format, k & 2, 3, 21, CHECKOP_NORMAL);      /* one partial block */
        one(c, format, k & 2, 7, 72, CHECKOP_NORMAL);      /* blocks across rows */
        one(c, format, k & 2, 130, 200, CHECKOP_NORMAL);   /* two second-level blocks, the last partial */
        one(c, format, k & 2, 43, 381, CHECKOP_NORMAL);    /* a superblock less one weight, exactly one, one weight over, a block over */
        one(c, format, k & 2, 128, 128, CHECKOP_NORMAL);
        one(c, format, k & 2, 5, 3277, CHECKOP_NORMAL);
        one(c, format, k & 2, 257, 64, CHECKOP_NORMAL);
        one(c, format, k & 2, 20, 40, CHECKOP_MIXED);
        one(c, format, k & 2, 20, 40, CHECKOP_ZERO);
        one(c, format, k & 2, 20, 40, CHECKOP_CONSTANT);
        one(c, format, k & 2, 20, 40, CHECKOP_HUGE);
    }
    poisoned(c, false, 9, 40, 123, NAN);
    poisoned(c, true, 9, 40, 123, -INFINITY);
    poisoned(c, false, 9, 41, 9 * 41 - 1, NAN);
    poisoned(c, true, 1100, 500, 530000, INFINITY); /* more scales than a CUDA block looks at in a round */
}
