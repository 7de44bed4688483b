/* The product kernel: C tiles by mma.sync, for every architecture from sm_80 on. See linear_product.cuh for what it computes.
 *
 * A block owns ROWS x COLUMNS of an output and walks its segments in steps of 64. Of step t
 *   - the left tile [ROWS][64] comes by cp.async, STAGES - 1 steps ahead;
 *   - a 4-bit right tile comes as 16 packed bytes a thread (half a block of 64 weights) into registers two steps ahead, and is decoded into
 *     one of two bf16 tiles while step t - 1 multiplies: 8 weights behind each quarter of its mma;
 *   - a bf16 right tile comes by cp.async: as the left one in the kernels for bf16 weights (PACKED false), one step ahead among 4-bit ones
 *     (an adapter, or a bf16 part beside 4-bit ones).
 * One barrier a step. Tiles lie in rows of 16-byte chunks, chunk c of row r at c ^ (r % 8): ldmatrix (transposed in the backward pass, where
 * the sum runs over the weight's rows), the decoder's stores and the epilogue's are free of bank conflicts.
 *
 * Bound by the tensor cores. Shared-memory time of a step is 69% of its tensor time at 256x128 on an A100 (warps of 64x64), and 100% at
 * 128x128 (warps of 64x32), which is for GPUs with at most half that tensor rate. Decoding is 3.6 instructions a weight.
 * The sum of an element is one chain of mma over ascending k, whatever the tile: its bits depend on the row and column alone. */
#ifndef NB_CUDA_LINEAR_KERNEL_CUH
#define NB_CUDA_LINEAR_KERNEL_CUH

#include "cuda/linear_product.cuh"
#include "device/dropout.h"

/* Of a block: rows x columns of its tile, warps along each, left tiles in flight. Two threads a column, for half a block of 64 weights each. */
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

/* ---- the adapter under dropout ---- */

/* sum += mask(left right) for the warp's mma tile rows i, 64 of the rank: fragments of two neighbouring tiles at a time. Two lanes share the
 * numbers of four features: the even one draws them for row g, the odd one for row g + 8. */
template <class S>
NB_KERNEL_FUNCTION void nb_product_add_masked(float sum[S::WIDE][4], const unsigned char *left, const unsigned char *right,
    const struct nb_product_place &place, int i, int quarters, const struct nb_dropout &dropout, int first_feature, float scale)
{
    int q = place.lane % 4;
#pragma unroll
    for (int j = 0; j < S::WIDE / 2; j++) {
        float branch[2][4] = {};
#pragma unroll 1
        for (int quarter = 0; quarter < quarters; quarter++) {
            uint32_t a[4], b[4];
            nb_product_left<S>(a, left, place, i, quarter);
            nb_product_right<S, true>(b, right, place, j, quarter);
            nb_mma_bf16(branch[0], a, b);
            nb_mma_bf16(branch[1], a, b + 2);
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int feature = first_feature + place.column_begin + place.warp_column + (2 * j + n) * 8;
            uint32_t own = nb_dropout_keep_block(&dropout, (uint32_t)(feature / 4 + q / 2));
            uint32_t other = nb_shuffle_xor_u32(own, 1);
            uint32_t above = q % 2 ? other >> 16 : own, below = q % 2 ? own >> 16 : other;
            float *to = sum[2 * j + n];
            to[0] += above & 1 ? scale * branch[n][0] : 0.0f;
            to[1] += above & 256 ? scale * branch[n][1] : 0.0f;
            to[2] += below & 1 ? scale * branch[n][2] : 0.0f;
            to[3] += below & 256 ? scale * branch[n][3] : 0.0f;
        }
    }
}

/* One adapter. Its tiles take the place of the pipeline's, which has run dry. */
template <class S, bool PACKED>
NB_KERNEL_FUNCTION void nb_product_masked_segment(float sum[S::HIGH][S::WIDE][4], const struct nb_product &p,
    const struct nb_product_masked &masked, const struct nb_product_place &place)
{
    unsigned char *left = nb_shared_memory(), *right = left + nb_product_memory<S, PACKED>::RIGHT_BEGIN;
    float scale = 1.0f / (1.0f - masked.dropout);
#pragma unroll 1
    for (int k = 0; k < masked.segment.depth; k += NB_PRODUCT_STEP) {
        nb_block_barrier();
        nb_product_load_left<S>(left, masked.segment, k, place);
        nb_product_load_right<S, true>(right, masked.segment, k, place);
        nb_copy_async_commit();
        nb_copy_async_wait<0>();
        nb_block_barrier();
#pragma unroll
        for (int i = 0; i < S::HIGH; i++) {
            int row = place.row_begin + place.warp_row + i * 16 + place.lane / 4 + place.lane % 2 * 8;
            /* Rows that do not exist draw numbers too: nobody looks at them. */
            int token = p.tokens && row < place.rows ? p.tokens[p.row_begin + row] : row;
            struct nb_dropout dropout = nb_dropout(masked.dropout, masked.module, p.step->random_step, p.step->seed,
                p.slot->token_offset + (uint32_t)token);
            nb_product_add_masked<S>(sum[i], left, right, place, i, nb_product_quarters(masked.segment.depth, k), dropout,
                masked.first_feature, scale);
        }
    }
}

/* ---- storing ---- */

/* scale * (sum + bias), rounded, in shared memory as rows of COLUMNS, swizzled. */
template <class S>
NB_KERNEL_FUNCTION void nb_product_stage(
    unsigned char *tile, float sum[S::HIGH][S::WIDE][4], const struct nb_product_output &output, const struct nb_product_place &place)
{
    int g = place.lane / 4, q = place.lane % 4;
#pragma unroll
    for (int j = 0; j < S::WIDE; j++) {
        int column = place.warp_column + j * 8 + 2 * q, at = place.column_begin + column;
        float bias[2] = {0, 0};
        if (output.bias && at < output.width)
            bias[0] = nb_bf16_value(output.bias[at]);
        if (output.bias && at + 1 < output.width)
            bias[1] = nb_bf16_value(output.bias[at + 1]);
#pragma unroll
        for (int i = 0; i < S::HIGH; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = place.warp_row + i * 16 + h * 8 + g;
                float low = output.scale * (sum[i][j][2 * h] + bias[0]), high = output.scale * (sum[i][j][2 * h + 1] + bias[1]);
                *(uint32_t *)(tile + (row * (S::COLUMNS / 8) + ((column / 8) ^ (row & 7))) * 16 + q * 4) = nb_pack_bf16(low, high);
            }
        }
    }
}

/* Eight staged results to y, the first `valid` of them, added to what stands there or not. */
NB_KERNEL_FUNCTION void nb_product_store(nb_bf16 *y, uint4 staged, int valid, bool accumulate)
{
    if (valid >= 8 && !accumulate) {
        *(uint4 *)y = staged;
        return;
    }
    float value[8];
    nb_unpack8(staged, value);
    if (valid >= 8) {
        float before[8];
        nb_unpack8(*(const uint4 *)y, before);
#pragma unroll
        for (int i = 0; i < 8; i++)
            value[i] += before[i];
        *(uint4 *)y = nb_pack8(value);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < valid)
            y[i] = nb_bf16_round(accumulate ? value[i] + nb_bf16_value(y[i]) : value[i]);
}

template <class S>
NB_KERNEL_FUNCTION void nb_product_finish(
    float sum[S::HIGH][S::WIDE][4], const struct nb_product_output &output, const struct nb_product_place &place)
{
    enum { CHUNKS = S::COLUMNS / 8, EACH = S::THREADS / CHUNKS };
    unsigned char *tile = nb_shared_memory();
    nb_block_barrier();
    nb_product_stage<S>(tile, sum, output, place);
    nb_block_barrier();
    int chunk = place.thread % CHUNKS, first = place.thread / CHUNKS, column = place.column_begin + chunk * 8;
    if (column >= output.width)
        return;
#pragma unroll 4
    for (int row = first; row < S::ROWS; row += EACH) {
        if (place.row_begin + row >= place.rows)
            break;
        uint4 staged = *(const uint4 *)(tile + (row * CHUNKS + (chunk ^ (row & 7))) * 16);
        nb_bf16 *y = output.y + (int64_t)(place.row_begin + row) * output.stride + column;
        nb_product_store(y, staged, output.width - column, output.accumulate);
    }
}

/* ---- the block ---- */

/* Which tile is the block's, and of which output. Eight row tiles share a column tile's weights before the next column tile's turn comes, so
 * that both sides stay in the second-level cache. */
template <class S>
NB_KERNEL_FUNCTION int nb_product_place_of(const struct nb_product &p, struct nb_product_place *place)
{
    int group = (int)blockIdx.x / (NB_PRODUCT_GROUP * p.column_tiles_all), first = group * NB_PRODUCT_GROUP;
    int rest = (int)blockIdx.x - first * p.column_tiles_all;
    int high = p.row_tiles - first < NB_PRODUCT_GROUP ? p.row_tiles - first : NB_PRODUCT_GROUP;
    int column_tile = rest / high, output = 0;
    while (output + 1 < p.outputs && column_tile >= p.column_tiles[output])
        column_tile -= p.column_tiles[output++];
    int warp = (int)threadIdx.x / 32;
    place->row_begin = (first + rest % high) * S::ROWS;
    place->rows = nb_valid_rows(p.slot, p.rows_from, p.row_begin, p.rows_max);
    place->column_begin = column_tile * S::COLUMNS;
    place->width = p.output[output].width;
    place->segment_end = p.output[output].segment_end;
    place->thread = (int)threadIdx.x;
    place->lane = (int)threadIdx.x % 32;
    place->warp_row = warp / S::WARPS_ACROSS * S::WARP_ROWS;
    place->warp_column = warp % S::WARPS_ACROSS * S::WARP_COLUMNS;
    return output;
}

/* The codebooks and offsets of the block's 4-bit segments. */
NB_KERNEL_FUNCTION void nb_product_tables(float *tables, const struct nb_product &p, int begin, const struct nb_product_place &place)
{
    for (int s = begin; s < place.segment_end; s++) {
        const struct nb_product_segment &segment = p.segment[s];
        if (segment.right)
            continue;
        if (place.thread < 16)
            tables[s * NB_PRODUCT_TABLE + place.thread] = segment.packed.codebook[place.thread];
        else if (place.thread == 16)
            tables[s * NB_PRODUCT_TABLE + 16] = segment.packed.nested_offset ? segment.packed.nested_offset[0] : 0.0f;
    }
}

/* Segments whose weights are bf16: both tiles of a step come STAGES - 1 steps ahead. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_sum_bf16(
    float sum[S::HIGH][S::WIDE][4], const struct nb_product &p, int segment_begin, const struct nb_product_place &place)
{
    typedef nb_product_memory<S, false> memory;
    unsigned char *shared = nb_shared_memory(), *rights = shared + memory::RIGHT_BEGIN;
    struct nb_product_cursor now = {segment_begin, 0}, load = now;
    int stage = 0, load_stage = 0;
#pragma unroll 1
    for (int ahead = 0; ahead < S::STAGES - 1 || now.segment < place.segment_end; ahead++) {
        bool multiplies = ahead >= S::STAGES - 1;
        if (multiplies) {
            nb_copy_async_wait<S::STAGES - 2>();
            nb_block_barrier();
        }
        if (load.segment < place.segment_end) {
            const struct nb_product_segment &segment = p.segment[load.segment];
            nb_product_load_left<S>(shared + load_stage * memory::LEFT, segment, load.k, place);
            nb_product_load_right<S, BACKWARD>(rights + load_stage * memory::RIGHT, segment, load.k, place);
            nb_product_advance(p, &load);
            load_stage = load_stage + 1 == S::STAGES ? 0 : load_stage + 1;
        }
        nb_copy_async_commit();
        if (!multiplies)
            continue;
        const unsigned char *left = shared + stage * memory::LEFT, *right = rights + stage * memory::RIGHT;
        const struct nb_product_segment &segment = p.segment[now.segment];
        int quarters = nb_product_quarters(segment.depth, now.k);
        if (quarters == 4) {
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++)
                nb_product_multiply<S, BACKWARD>(sum, left, right, place, quarter);
        } else {
#pragma unroll 1
            for (int quarter = 0; quarter < quarters; quarter++)
                nb_product_multiply<S, BACKWARD>(sum, left, right, place, quarter);
        }
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        float factor = segment.factor;
        nb_product_advance(p, &now);
        if (now.k == 0 && factor != 1.0f)
            nb_product_scale<S>(sum, factor);
    }
}

/* Segments among which are 4-bit ones. `now` multiplies, `next` is decoded or copied meanwhile, `fetch` is read into registers. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_sum_packed(
    float sum[S::HIGH][S::WIDE][4], const struct nb_product &p, int segment_begin, const struct nb_product_place &place)
{
    typedef nb_product_memory<S, true> memory;
    unsigned char *shared = nb_shared_memory(), *rights = shared + memory::RIGHT_BEGIN;
    float *tables = (float *)(shared + memory::TABLES);
    int end = place.segment_end;
    struct nb_product_cursor now = {segment_begin, 0}, next = now, fetch = now, load = now;
    struct nb_product_fetch bytes;
    int stage = 0, load_stage = 0, buffer = 0;
    nb_product_tables(tables, p, segment_begin, place);
    nb_block_barrier();
    /* The loop's steps before the first product: left tiles; the first right tile; the bytes of the second. */
    for (int i = 0; i < S::STAGES - 1; i++) {
        if (load.segment < end) {
            nb_product_load_left<S>(shared + load_stage++ * memory::LEFT, p.segment[load.segment], load.k, place);
            nb_product_advance(p, &load);
        }
        if (i == 0 && now.segment < end && p.segment[now.segment].right)
            nb_product_load_right<S, BACKWARD>(rights, p.segment[now.segment], now.k, place);
        nb_copy_async_commit();
    }
    if (now.segment < end) {
        const struct nb_product_segment &segment = p.segment[now.segment];
        if (!segment.right) {
            bytes = nb_product_fetch_packed<S, BACKWARD>(segment, now.k, place);
            nb_product_fetch_map(segment, &bytes);
            struct nb_scaled_codes codes = nb_product_codes(segment, bytes, tables + now.segment * NB_PRODUCT_TABLE);
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++)
                nb_product_decode<S, BACKWARD>(rights, codes, bytes, quarter, place.thread);
        }
        nb_product_advance(p, &next);
        fetch = next;
        if (next.segment < end && !p.segment[next.segment].right) {
            bytes = nb_product_fetch_packed<S, BACKWARD>(p.segment[next.segment], next.k, place);
            nb_product_fetch_map(p.segment[next.segment], &bytes);
        }
        if (fetch.segment < end)
            nb_product_advance(p, &fetch);
    }
#pragma unroll 1
    while (now.segment < end) {
        /* A bf16 right tile came with the last group, the left tile with one before. */
        if (p.segment[now.segment].right)
            nb_copy_async_wait<0>();
        else
            nb_copy_async_wait<S::STAGES - 2>();
        nb_block_barrier();
        const unsigned char *left = shared + stage * memory::LEFT, *right = rights + buffer * memory::RIGHT;
        unsigned char *next_right = rights + (buffer ^ 1) * memory::RIGHT;
        bool copies = next.segment < end && p.segment[next.segment].right;
        bool decodes = next.segment < end && !copies;
        if (load.segment < end) {
            nb_product_load_left<S>(shared + load_stage * memory::LEFT, p.segment[load.segment], load.k, place);
            nb_product_advance(p, &load);
        }
        if (copies)
            nb_product_load_right<S, BACKWARD>(next_right, p.segment[next.segment], next.k, place);
        nb_copy_async_commit();
        struct nb_product_fetch later = bytes;
        bool fetches = fetch.segment < end && !p.segment[fetch.segment].right;
        if (fetches)
            later = nb_product_fetch_packed<S, BACKWARD>(p.segment[fetch.segment], fetch.k, place);
        int quarters = nb_product_quarters(p.segment[now.segment].depth, now.k);
        if (quarters == 4 && decodes) {
            struct nb_scaled_codes codes =
                nb_product_codes(p.segment[next.segment], bytes, tables + next.segment * NB_PRODUCT_TABLE);
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                nb_product_multiply<S, BACKWARD>(sum, left, right, place, quarter);
                nb_product_decode<S, BACKWARD>(next_right, codes, bytes, quarter, place.thread);
            }
        } else {
#pragma unroll 1
            for (int quarter = 0; quarter < quarters; quarter++)
                nb_product_multiply<S, BACKWARD>(sum, left, right, place, quarter);
            if (decodes) {
                struct nb_scaled_codes codes =
                    nb_product_codes(p.segment[next.segment], bytes, tables + next.segment * NB_PRODUCT_TABLE);
#pragma unroll
                for (int quarter = 0; quarter < 4; quarter++)
                    nb_product_decode<S, BACKWARD>(next_right, codes, bytes, quarter, place.thread);
            }
        }
        if (fetches)
            nb_product_fetch_map(p.segment[fetch.segment], &later);
        bytes = later;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        load_stage = load_stage + 1 == S::STAGES ? 0 : load_stage + 1;
        buffer ^= 1;
        float factor = p.segment[now.segment].factor;
        now = next;
        if (now.k == 0 && factor != 1.0f)
            nb_product_scale<S>(sum, factor);
        next = fetch;
        if (fetch.segment < end)
            nb_product_advance(p, &fetch);
    }
}

template <class S, bool BACKWARD, bool PACKED>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) nb_product_kernel(const struct nb_product p)
{
    struct nb_product_place place;
    int o = nb_product_place_of<S>(p, &place);
    if (place.row_begin >= place.rows)
        return;
    float sum[S::HIGH][S::WIDE][4];
#pragma unroll
    for (int i = 0; i < S::HIGH; i++)
#pragma unroll
        for (int j = 0; j < S::WIDE; j++)
#pragma unroll
            for (int l = 0; l < 4; l++)
                sum[i][j][l] = 0;
    if (PACKED)
        nb_product_sum_packed<S, BACKWARD>(sum, p, p.output[o].segment_begin, place);
    else
        nb_product_sum_bf16<S, BACKWARD>(sum, p, p.output[o].segment_begin, place);
    if (BACKWARD && S::MASKS)
        for (int m = 0; m < p.masked_count; m++)
            nb_product_masked_segment<S, PACKED>(sum, p, p.masked[m], place);
    nb_product_finish<S>(sum, p.output[o], place);
}

/* ---- the kernels by tile ---- */

typedef nb_product_shape<64, 64, 2, 2, 3, 2> nb_product_shape_64;
typedef nb_product_shape<128, 128, 2, 4, 3, 1> nb_product_shape_128;
typedef nb_product_shape<256, 128, 4, 2, 2, 1> nb_product_shape_256;

template <class S, bool BACKWARD, bool PACKED> static struct nb_product_kernel_choice nb_product_kernel_of(const char *name)
{
    struct nb_product_kernel_choice choice = {
        nb_product_kernel<S, BACKWARD, PACKED>, name, S::ROWS, S::COLUMNS, S::THREADS, nb_product_memory<S, PACKED>::BYTES};
    return choice;
}

template <bool BACKWARD, bool PACKED> static struct nb_product_kernel_choice nb_product_kernel_by_tile(enum nb_product_tile tile, const char *name)
{
    switch (tile) {
    case NB_PRODUCT_TILE_64: return nb_product_kernel_of<nb_product_shape_64, BACKWARD, PACKED>(name);
    case NB_PRODUCT_TILE_128: return nb_product_kernel_of<nb_product_shape_128, BACKWARD, PACKED>(name);
    default: return nb_product_kernel_of<nb_product_shape_256, BACKWARD, PACKED>(name);
    }
}

#endif
