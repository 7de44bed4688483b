#include "checkpoint/tensor_read.h"

#include <string.h>

enum {
    PIECE = 4096,               /* weights converted at a time: 16 KiB of fp32 stay in the first-level cache */
    PIECE_BLOCK = 256,          /* a multiple of every GGUF block */
    PARALLEL_WEIGHTS = 1 << 15, /* below this, waking the other threads costs more than the work */
};

_Static_assert(PIECE % PIECE_BLOCK == 0, "pieces are whole blocks");

/* Whether any of the values is infinite or NaN. */
static bool any_not_finite(const nb_bf16 *values, int64_t count)
{
    uint16_t highest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint16_t magnitude = values[i] & 0x7fff;
        highest = magnitude > highest ? magnitude : highest;
    }
    return highest >= 0x7f80;
}

static int64_t first_not_finite(const nb_bf16 *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if ((values[i] & 0x7f80) == 0x7f80)
            return i;
    return -1;
}

static void convert_plain(
    enum nb_safetensors_dtype dtype, const unsigned char *restrict data, int64_t count, nb_bf16 *restrict out)
{
    switch (dtype) {
    case NB_SAFETENSORS_F32:
        for (int64_t i = 0; i < count; i++) {
            float value;
            memcpy(&value, data + i * 4, sizeof value);
            out[i] = nb_bf16_from_float(value);
        }
        break;
    case NB_SAFETENSORS_F16:
        for (int64_t i = 0; i < count; i++) {
            uint16_t half;
            memcpy(&half, data + i * 2, sizeof half);
            out[i] = nb_bf16_from_float(nb_half_to_float(half));
        }
        break;
    default:
        memcpy(out, data, (size_t)count * sizeof *out);
    }
}

int64_t nb_tensor_read_plain(
    enum nb_safetensors_dtype dtype, const unsigned char *data, int64_t rows, int64_t columns, nb_bf16 *out)
{
    int64_t count = rows * columns, bytes = (int64_t)nb_safetensors_dtype_bytes(dtype), bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (count >= PARALLEL_WEIGHTS)
    for (int64_t begin = 0; begin < count; begin += PIECE) {
        int64_t length = count - begin < PIECE ? count - begin : PIECE;
        convert_plain(dtype, data + begin * bytes, length, out + begin);
        bad |= any_not_finite(out + begin, length);
    }
    return bad ? first_not_finite(out, count) : -1;
}

static int64_t stored_row(int64_t row, int64_t head_rows)
{
    int64_t in_head = row % head_rows, half = head_rows / 2;
    return row - in_head + in_head % half * 2 + in_head / half;
}

/* One row of `columns` weights, a whole number of blocks. */
static int64_t read_row(const struct nb_gguf_tensor *tensor, int64_t row, int64_t columns, nb_bf16 *restrict out)
{
    float piece[PIECE] __attribute__((aligned(64)));
    int64_t weights = nb_gguf_block_weights(tensor->type), bytes = nb_gguf_block_bytes(tensor->type), bad = 0;
    const unsigned char *blocks = tensor->data + row * (columns / weights) * bytes;
    for (int64_t begin = 0; begin < columns; begin += PIECE) {
        int64_t length = columns - begin < PIECE ? columns - begin : PIECE;
        nb_gguf_dequantize(tensor->type, blocks + begin / weights * bytes, (uint64_t)length, piece);
        for (int64_t i = 0; i < length; i++)
            out[begin + i] = nb_bf16_from_float(piece[i]);
        bad |= any_not_finite(out + begin, length);
    }
    return bad;
}

int64_t nb_tensor_read_gguf(
    const struct nb_gguf_tensor *tensor, int64_t rows, int64_t columns, int64_t permuted_heads, nb_bf16 *out)
{
    int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (rows * columns >= PARALLEL_WEIGHTS)
    for (int64_t row = 0; row < rows; row++) {
        int64_t from = permuted_heads > 0 ? stored_row(row, rows / permuted_heads) : row;
        bad |= read_row(tensor, from, columns, out + row * columns);
    }
    return bad ? first_not_finite(out, rows * columns) : -1;
}

int64_t nb_tensor_read_quantized(const struct nb_quant_matrix *matrix, nb_bf16 *out)
{
    int64_t count = (int64_t)(matrix->rows * matrix->columns), bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (count >= PARALLEL_WEIGHTS)
    for (int64_t begin = 0; begin < count; begin += PIECE) {
        int64_t length = count - begin < PIECE ? count - begin : PIECE;
        nb_dequantize_bf16(matrix, (uint64_t)begin, (uint64_t)length, out + begin);
        bad |= any_not_finite(out + begin, length);
    }
    return bad ? first_not_finite(out, count) : -1;
}

int64_t nb_tensor_first_not_finite(const nb_bf16 *values, int64_t count)
{
    int64_t bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (count >= PARALLEL_WEIGHTS)
    for (int64_t begin = 0; begin < count; begin += PIECE)
        bad |= any_not_finite(values + begin, count - begin < PIECE ? count - begin : PIECE);
    return bad ? first_not_finite(values, count) : -1;
}
