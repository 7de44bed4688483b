#include <string.h>

#include "quant/dequantize_paths.h"
#include "quant/matrix.h"

void nb_dequantize_absmax(const struct nb_quant_matrix *matrix, uint64_t begin, uint64_t count, float *absmax)
{
    if (!matrix->nested) {
        memcpy(absmax, matrix->absmax + begin, count * sizeof *absmax);
        return;
    }
    for (uint64_t done = 0; done < count;) { /* one second-level block at a time */
        uint64_t block = begin + done, left = NB_QUANT_SUPERBLOCK - block % NB_QUANT_SUPERBLOCK;
        uint64_t run = left < count - done ? left : count - done;
        float scale = matrix->nested_absmax[block / NB_QUANT_SUPERBLOCK];
        for (uint64_t i = 0; i < run; i++)
            absmax[done + i] = matrix->nested_map[matrix->absmax_codes[block + i]] * scale + matrix->nested_offset;
        done += run;
    }
}

/* Weights [begin, begin + count) of one block, which may be the matrix's partial last. */
static void dequantize_within_block(const struct nb_quant_matrix *matrix, uint64_t begin, uint64_t count, nb_bf16 *out)
{
    if (count == 0) /* begin may then be the matrix's end, where no scale is */
        return;
    float absmax;
    nb_dequantize_absmax(matrix, begin / NB_QUANT_BLOCK, 1, &absmax);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t index = begin + i;
        int code = matrix->packed[index / 2] >> (index % 2 ? 0 : 4) & 15;
        out[i] = nb_bf16_from_float(matrix->codebook[code] * absmax);
    }
}

static struct nb_dequantize_functions fastest(void)
{
    struct nb_dequantize_functions functions;
    int path = NB_DEQUANTIZE_PATHS - 1;
    while (!nb_dequantize_path((enum nb_dequantize_path)path, &functions))
        path--; /* ends at the plain path, which is always there */
    return functions;
}

/* A range of weights: a piece of a block, whole blocks, a piece of a block. Each may be empty. */
struct range {
    uint64_t head, blocks, tail;
};

static struct range cut(uint64_t begin, uint64_t count)
{
    uint64_t head = (NB_QUANT_BLOCK - begin % NB_QUANT_BLOCK) % NB_QUANT_BLOCK;
    head = head < count ? head : count;
    return (struct range){head, (count - head) / NB_QUANT_BLOCK, (count - head) % NB_QUANT_BLOCK};
}

void nb_dequantize_bf16(const struct nb_quant_matrix *matrix, uint64_t begin, uint64_t count, nb_bf16 *out)
{
    struct nb_dequantize_functions functions = fastest();
    struct range range = cut(begin, count);
    float absmax[NB_QUANT_SUPERBLOCK];
    dequantize_within_block(matrix, begin, range.head, out);
    begin += range.head;
    out += range.head;
    while (range.blocks > 0) {
        uint64_t run = range.blocks < NB_QUANT_SUPERBLOCK ? range.blocks : NB_QUANT_SUPERBLOCK;
        nb_dequantize_absmax(matrix, begin / NB_QUANT_BLOCK, run, absmax);
        functions.bf16(matrix->packed + begin / 2, matrix->codebook, absmax, (int64_t)run, out);
        begin += run * NB_QUANT_BLOCK;
        out += run * NB_QUANT_BLOCK;
        range.blocks -= run;
    }
    dequantize_within_block(matrix, begin, range.tail, out);
}
