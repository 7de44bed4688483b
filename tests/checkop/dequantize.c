#include "checkop.h"
#include "quant/codec.h"
#include "quant/dynamic_map.h"

struct variant {
    enum nb_weight_format format;
    bool nested;
    int rows, columns;
    bool foreign; /* another codebook than the format's */
    bool tiny;    /* scales so small that weights are subnormal */
};

static void one(struct checkop *c, struct variant k)
{
    enum nb_weight_format format = k.format;
    bool nested = k.nested;
    int rows = k.rows, columns = k.columns;
    checkop_case(c, "%s%s %d x %d%s%s", format == NB_WEIGHT_NF4 ? "nf4" : "fp4", nested ? ", nested" : "", rows, columns,
                 k.foreign ? ", foreign codebook" : "", k.tiny ? ", tiny scales" : "");
    double size = k.tiny ? 1e-38 : 1;
    uint64_t count = (uint64_t)rows * (uint64_t)columns, blocks = nb_quant_blocks(count);
    const float *values = nb_quant_codebook(format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4);
    struct checkop_buffer *w = checkop_output(c, "w", NB_DTYPE_BF16, count);
    struct checkop_buffer *data = checkop_input(c, "data", NB_DTYPE_U8, nb_quant_packed_bytes(count));
    struct checkop_buffer *absmax = checkop_input(c, "absmax", nested ? NB_DTYPE_U8 : NB_DTYPE_F32, blocks);
    struct checkop_buffer *codebook = checkop_input(c, "codebook", NB_DTYPE_F32, NB_QUANT_CODES);
    struct checkop_buffer *nested_absmax = checkop_input(c, "nested_absmax", NB_DTYPE_F32, nb_quant_superblocks(blocks));
    struct checkop_buffer *map = checkop_input(c, "nested_map", NB_DTYPE_F32, 256);
    struct checkop_buffer *offset = checkop_input(c, "nested_offset", NB_DTYPE_F32, 1);
    checkop_fill_below(c, data, 256);
    if (nested)
        checkop_fill_below(c, absmax, 256);
    else
        checkop_fill_uniform(c, absmax, 0, 2 * size);
    checkop_fill_uniform(c, nested_absmax, 0, size);
    checkop_set(offset, 0, 1.0625 * size);
    float dynamic[256];
    nb_dynamic_map(true, dynamic);
    for (uint64_t i = 0; i < 256; i++)
        checkop_set(map, i, (double)dynamic[i] * 0.99); /* not the usual map: the file's own counts */
    for (uint64_t i = 0; i < NB_QUANT_CODES; i++)
        checkop_set(codebook, i, k.foreign ? checkop_random_normal(c) : (double)values[i]);
    double *want = checkop_scratch(c, count);
    for (uint64_t i = 0; i < count; i++) {
        int byte = (int)checkop_get(data, i / 2), code = i % 2 ? byte & 15 : byte >> 4;
        float scale = (float)checkop_get(absmax, i / NB_QUANT_BLOCK);
        if (nested) { /* product and sum rounded separately */
            float product = (float)checkop_get(map, (uint64_t)scale) *
                            (float)checkop_get(nested_absmax, i / NB_QUANT_BLOCK / NB_QUANT_SUPERBLOCK);
            scale = product + (float)checkop_get(offset, 0);
        }
        want[i] = checkop_round((double)((float)checkop_get(codebook, (uint64_t)code) * scale), NB_DTYPE_BF16);
    }
    struct nb_dequantize args = {.from = {.format = format, .nested = nested, .rows = rows, .columns = columns}};
    checkop_bind(c, &args.w, w);
    checkop_bind(c, &args.from.data, data);
    checkop_bind(c, &args.from.absmax, absmax);
    checkop_bind(c, &args.from.codebook, codebook);
    if (nested) {
        checkop_bind(c, &args.from.nested_absmax, nested_absmax);
        checkop_bind(c, &args.from.nested_map, map);
        checkop_bind(c, &args.from.nested_offset, offset);
    }
    checkop_run(c, CHECKOP_dequantize, &args);
    checkop_expect(c, w, 0, count, want, (struct checkop_tolerance){0});
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { ROWS = 1536, COLUMNS = 576, COUNT = ROWS * COLUMNS, BLOCKS = COUNT / NB_QUANT_BLOCK };
    checkop_case(c, "nf4, nested, %d x %d", ROWS, COLUMNS);
    struct nb_dequantize args = {.from = {.format = NB_WEIGHT_NF4, .nested = true, .rows = ROWS, .columns = COLUMNS}};
    checkop_bind(c, &args.w, checkop_output(c, "w", NB_DTYPE_BF16, COUNT));
    checkop_bind(c, &args.from.data, checkop_input(c, "data", NB_DTYPE_U8, COUNT / 2));
    checkop_bind(c, &args.from.absmax, checkop_input(c, "absmax", NB_DTYPE_U8, BLOCKS));
    checkop_bind(c, &args.from.nested_absmax, checkop_input(c, "nested_absmax", NB_DTYPE_F32, nb_quant_superblocks(BLOCKS)));
    checkop_bind(c, &args.from.nested_map, checkop_input(c, "nested_map", NB_DTYPE_F32, 256));
    checkop_bind(c, &args.from.nested_offset, checkop_input(c, "nested_offset", NB_DTYPE_F32, 1));
    checkop_bind(c, &args.from.codebook, checkop_input(c, "codebook", NB_DTYPE_F32, NB_QUANT_CODES));
    checkop_bench(c, CHECKOP_dequantize, &args, 2.5 * COUNT, 0);
}

void checkop_dequantize(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_dequantize bad = {.w = p, .from = {.format = NB_WEIGHT_NF4, .nested = true, .rows = 8, .columns = 8, .data = q,
                                                 .absmax = q, .codebook = q, .nested_absmax = q, .nested_map = q}};
    checkop_refuses(c, CHECKOP_dequantize, &bad, "from.nested_offset is null");
    bad.from.rows = 0;
    checkop_refuses(c, CHECKOP_dequantize, &bad, "0 x 8");
    for (int k = 0; k < 4; k++) {
        enum nb_weight_format format = k & 1 ? NB_WEIGHT_FP4 : NB_WEIGHT_NF4;
        one(c, (struct variant){format, k & 2, 1, 1, false, false});
        one(c, (struct variant){format, k & 2, 3, 21, false, false});
        one(c, (struct variant){format, k & 2, 7, 72, false, false});
        one(c, (struct variant){format, k & 2, 130, 200, false, false});
        one(c, (struct variant){format, k & 2, 151, 333, false, false}); /* several threads, an odd number of weights */
        one(c, (struct variant){format, k & 2, 11, 100, true, false});
        one(c, (struct variant){format, k & 2, 11, 100, false, true});
        /* a superblock, which is a CUDA block's share, too: one less, exactly, one over and a block over */
        one(c, (struct variant){format, k & 2, 43, 381, false, false});
        one(c, (struct variant){format, k & 2, 128, 128, false, false});
        one(c, (struct variant){format, k & 2, 5, 3277, false, false});
        one(c, (struct variant){format, k & 2, 257, 64, false, false});
    }
}
