/* The tiles of the product kernel (linear_kernel.cuh): how they come, how 4 bits become bf16, how a warp multiplies them. */
#ifndef NB_CUDA_LINEAR_TILE_CUH
#define NB_CUDA_LINEAR_TILE_CUH

#include "cuda/linear_product.cuh"

/* Of a block: rows x columns of its tile, warps along each, left tiles in flight. Two threads a column, for half a block of 64 weights
 * each. */
template <int ROWS_, int COLUMNS_, int WARPS_DOWN_, int WARPS_ACROSS_, int STAGES_, int BLOCKS_> struct nb_product_shape {
    enum {
        ROWS = ROWS_,
        COLUMNS = COLUMNS_,
        WARPS_ACROSS = WARPS_ACROSS_,
        STAGES = STAGES_,
        BLOCKS = BLOCKS_, /* on a multiprocessor at a time */
        THREADS = 32 * WARPS_DOWN_ * WARPS_ACROSS_,
        WARP_ROWS = ROWS_ / WARPS_DOWN_,
        WARP_COLUMNS = COLUMNS_ / WARPS_ACROSS_,
        HIGH = WARP_ROWS / 16,  /* mma tiles of a warp */
        WIDE = WARP_COLUMNS / 8,
        MASKS = ROWS_ <= 128    /* dropout's numbers beside 256 rows' sums would not fit into the registers */
    };
    static_assert(THREADS == 2 * COLUMNS_, "a thread decodes 32 weights of a step");
};

enum { NB_PRODUCT_STEP = 64, NB_PRODUCT_TABLE = 20, NB_PRODUCT_GROUP = 8 };

/* How the block's shared memory is laid out, in bytes. */
template <class S, bool PACKED> struct nb_product_memory {
    enum {
        LEFT = S::ROWS * NB_PRODUCT_STEP * 2,
        RIGHT = S::COLUMNS * NB_PRODUCT_STEP * 2,
        RIGHTS = PACKED ? 2 : S::STAGES,
        RIGHT_BEGIN = S::STAGES * LEFT,
        TABLES = RIGHT_BEGIN + RIGHTS * RIGHT, /* of a segment: its codebook, and the nested offset behind it */
        BYTES = TABLES + (PACKED ? NB_PRODUCT_SEGMENTS * NB_PRODUCT_TABLE * 4 : 0)
    };
    static_assert(BYTES <= 99 * 1024, "what sm_86, 89 and 120 have");
    static_assert(S::ROWS * S::COLUMNS * 2 <= TABLES, "the epilogue's tile");
};

/* Which step of which segment. */
struct nb_product_cursor {
    int segment, k;
};

/* What a thread knows of its block. */
struct nb_product_place {
    int row_begin, rows;       /* first row of the tile, valid rows of all */
    int column_begin, width;
    int segment_end;
    int thread, lane, warp_row, warp_column;
};

NB_KERNEL_FUNCTION void nb_product_advance(const struct nb_product &p, struct nb_product_cursor *cursor)
{
    cursor->k += NB_PRODUCT_STEP;
    if (cursor->k >= p.segment[cursor->segment].depth) {
        cursor->k = 0;
        cursor->segment++;
    }
}

/* ---- bf16 tiles ---- */

/* Eight elements of which `valid` exist (may be <= 0), zeros behind, one by one: for addresses that no 16-byte copy takes. */
NB_KERNEL_FUNCTION uint4 nb_product_gather(const nb_bf16 *from, int valid)
{
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low = 2 * i < valid ? from[2 * i] : 0, high = 2 * i + 1 < valid ? from[2 * i + 1] : 0;
        pair[i] = low | high << 16;
    }
    uint4 chunk;
    chunk.x = pair[0], chunk.y = pair[1], chunk.z = pair[2], chunk.w = pair[3];
    return chunk;
}

/* HEIGHT rows of CHUNKS 16-byte chunks to `tile`. Row r is row `row` + r of `from`, of `rows` that exist; columns likewise. */
struct nb_product_source {
    const nb_bf16 *from;
    int stride, row, rows, column, columns;
};
template <int HEIGHT, int CHUNKS, int THREADS>
NB_KERNEL_FUNCTION void nb_product_load(unsigned char *tile, const struct nb_product_source &s, int thread)
{
    enum { EACH = THREADS / CHUNKS };
    static_assert(EACH % 8 == 0 && HEIGHT % EACH == 0, "the swizzle is the same in each row of a thread");
    int chunk = thread % CHUNKS, r = thread / CHUNKS;
    const nb_bf16 *from = s.from + (int64_t)(s.row + r) * s.stride + (s.column + chunk * 8);
    unsigned char *to = tile + (r * CHUNKS + (chunk ^ (r & 7))) * 16;
    int valid = s.columns - (s.column + chunk * 8), bytes = valid < 0 ? 0 : valid > 8 ? 16 : 2 * valid;
    if (((uintptr_t)s.from % 16 | (unsigned)s.stride % 8) == 0) {
#pragma unroll
        for (int i = 0; i < HEIGHT / EACH; i++)
            nb_copy_async_16(to + i * EACH * CHUNKS * 16, from + (int64_t)(i * EACH) * s.stride,
                s.row + r + i * EACH < s.rows ? bytes : 0);
    } else {
#pragma unroll 1
        for (int i = 0; i < HEIGHT / EACH; i++)
            *(uint4 *)(to + i * EACH * CHUNKS * 16) =
                nb_product_gather(from + (int64_t)(i * EACH) * s.stride, s.row + r + i * EACH < s.rows ? valid : 0);
    }
}

template <class S>
NB_KERNEL_FUNCTION void nb_product_load_left(
    unsigned char *tile, const struct nb_product_segment &segment, int k, const struct nb_product_place &place)
{
    struct nb_product_source source = {segment.left, segment.left_stride, place.row_begin, place.rows, k, segment.depth};
    nb_product_load<S::ROWS, NB_PRODUCT_STEP / 8, S::THREADS>(tile, source, place.thread);
}

template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_load_right(
    unsigned char *tile, const struct nb_product_segment &segment, int k, const struct nb_product_place &place)
{
    if (BACKWARD) {
        struct nb_product_source source = {segment.right, segment.right_stride, k, segment.depth, place.column_begin, place.width};
        nb_product_load<NB_PRODUCT_STEP, S::COLUMNS / 8, S::THREADS>(tile, source, place.thread);
    } else {
        struct nb_product_source source = {segment.right, segment.right_stride, place.column_begin, place.width, k, segment.depth};
        nb_product_load<S::COLUMNS, NB_PRODUCT_STEP / 8, S::THREADS>(tile, source, place.thread);
    }
}

/* ---- 4-bit tiles ---- */

/* Half a block of a step to come: its bytes, and what its scale is made of. */
struct nb_product_fetch {
    uint4 packed;
    uint32_t code;
    float scale, map;
};

/* Which half block of a step's tile is the thread's: row `row` of the tile, and weights 32 * half of it. Two neighbours read 32 bytes, and
 * eight threads in a row store to different banks. */
template <class S, bool BACKWARD> NB_KERNEL_FUNCTION void nb_product_half(int thread, int *row, int *half)
{
    if (!BACKWARD || S::COLUMNS == 64) {
        *row = thread / 2;
        *half = thread % 2;
    } else {
        *row = thread / 16 * 4 + thread / 2 % 4;
        *half = thread % 2 + thread / 8 % 2 * 2;
    }
}

/* Where none is, zeros: the weight decoded from them is finite and meets zeros of the left tile, or columns that nobody stores. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION struct nb_product_fetch nb_product_fetch_packed(
    const struct nb_product_segment &segment, int k, const struct nb_product_place &place)
{
    struct nb_product_fetch fetch;
    int row, half;
    nb_product_half<S, BACKWARD>(place.thread, &row, &half);
    int down = BACKWARD ? k + row : place.column_begin + row;
    int across = (BACKWARD ? place.column_begin : k) + half * 32;
    fetch.packed.x = 0, fetch.packed.y = 0, fetch.packed.z = 0, fetch.packed.w = 0;
    fetch.code = 0;
    fetch.scale = 0;
    fetch.map = 0;
    if (down < (BACKWARD ? segment.depth : place.width) && across < (BACKWARD ? place.width : segment.depth)) {
        int64_t flat = segment.packed_begin + (int64_t)down * segment.right_stride + across;
        fetch.packed = nb_load_once_16(segment.packed.data + flat / 2);
        if (segment.packed.nested_absmax) {
            fetch.code = ((const uint8_t *)segment.packed.absmax)[flat / 64];
            fetch.scale = segment.packed.nested_absmax[flat / 16384];
        } else {
            fetch.scale = ((const float *)segment.packed.absmax)[flat / 64];
        }
    }
    return fetch;
}

/* The table's value, once its code has come. */
NB_KERNEL_FUNCTION void nb_product_fetch_map(const struct nb_product_segment &segment, struct nb_product_fetch *fetch)
{
    if (segment.packed.nested_map)
        fetch->map = segment.packed.nested_map[fetch->code];
}

/* table: the segment's. As nb_block_scale: the map's value times the nested scale, plus the offset, each rounded. */
NB_KERNEL_FUNCTION struct nb_scaled_codes nb_product_codes(
    const struct nb_product_segment &segment, const struct nb_product_fetch &fetch, const float *table)
{
    float scale = segment.packed.nested_map ? fetch.map * fetch.scale + table[16] : fetch.scale;
    return nb_scale_codes(table, scale);
}

/* Eight of the 32 weights, `quarter` 0 to 3, to their place in the tile. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_decode(
    unsigned char *tile, const struct nb_scaled_codes &codes, const struct nb_product_fetch &fetch, int quarter, int thread)
{
    int row, half;
    nb_product_half<S, BACKWARD>(thread, &row, &half);
    enum { CHUNKS = BACKWARD ? S::COLUMNS / 8 : NB_PRODUCT_STEP / 8 };
    uint32_t word = quarter == 0 ? fetch.packed.x : quarter == 1 ? fetch.packed.y : quarter == 2 ? fetch.packed.z : fetch.packed.w;
    *(uint4 *)(tile + (row * CHUNKS + ((half * 4 + quarter) ^ (row & 7))) * 16) = nb_decode_8(codes, word);
}

/* ---- multiplying ---- */

/* Left fragment: rows 16 * i on of the warp's, k from 16 * quarter. */
template <class S>
NB_KERNEL_FUNCTION void nb_product_left(
    uint32_t a[4], const unsigned char *tile, const struct nb_product_place &place, int i, int quarter)
{
    int row = place.warp_row + i * 16 + place.lane % 16, chunk = quarter * 2 + place.lane / 16;
    nb_ldmatrix_x4(a, tile + (row * (NB_PRODUCT_STEP / 8) + (chunk ^ (place.lane & 7))) * 16);
}

/* Right fragments of two neighbouring mma tiles: b[0], b[1] of columns 16 * j to + 7 of the warp's, b[2], b[3] of the next eight. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_right(
    uint32_t b[4], const unsigned char *tile, const struct nb_product_place &place, int j, int quarter)
{
    int lane = place.lane;
    if (BACKWARD) {
        int row = quarter * 16 + lane % 16, chunk = place.warp_column / 8 + j * 2 + lane / 16;
        nb_ldmatrix_x4_trans(b, tile + (row * (S::COLUMNS / 8) + (chunk ^ (lane & 7))) * 16);
    } else {
        int row = place.warp_column + j * 16 + lane / 16 * 8 + lane % 8, chunk = quarter * 2 + lane / 8 % 2;
        nb_ldmatrix_x4(b, tile + (row * (NB_PRODUCT_STEP / 8) + (chunk ^ (lane & 7))) * 16);
    }
}

/* sum += left right over 16 of the step. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_multiply(float sum[S::HIGH][S::WIDE][4], const unsigned char *left, const unsigned char *right,
    const struct nb_product_place &place, int quarter)
{
    uint32_t a[S::HIGH][4];
#pragma unroll
    for (int i = 0; i < S::HIGH; i++)
        nb_product_left<S>(a[i], left, place, i, quarter);
#pragma unroll
    for (int j = 0; j < S::WIDE / 2; j++) {
        uint32_t b[4];
        nb_product_right<S, BACKWARD>(b, right, place, j, quarter);
#pragma unroll
        for (int i = 0; i < S::HIGH; i++) {
            nb_mma_bf16(sum[i][2 * j], a[i], b);
            nb_mma_bf16(sum[i][2 * j + 1], a[i], b + 2);
        }
    }
}

template <class S> NB_KERNEL_FUNCTION void nb_product_scale(float sum[S::HIGH][S::WIDE][4], float factor)
{
#pragma unroll
    for (int i = 0; i < S::HIGH; i++)
#pragma unroll
        for (int j = 0; j < S::WIDE; j++)
#pragma unroll
            for (int l = 0; l < 4; l++)
                sum[i][j][l] *= factor;
}

/* 16-fold steps that a step of 64 at k needs. */
NB_KERNEL_FUNCTION int nb_product_quarters(int depth, int k)
{
    return depth - k >= NB_PRODUCT_STEP ? 4 : (depth - k + 15) / 16;
}

#endif
