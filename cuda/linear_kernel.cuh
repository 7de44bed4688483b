/* The product kernel: C tiles by mma.sync, for every architecture from sm_80 on. See linear_product.cuh for what it computes.
 *
 * A block owns ROWS x COLUMNS of an output and walks its segments in steps of 64. Of step t
 *   - the left tile [ROWS][64] comes by cp.async, STAGES - 1 steps ahead;
 *   - a 4-bit right tile comes as 16 packed bytes a thread (half a block of 64 weights) into registers two steps ahead, and is decoded
 *     into one of two bf16 tiles while step t - 1 multiplies: 8 weights behind each quarter of its mma;
 *   - a bf16 right tile comes by cp.async: as the left one in the kernels for bf16 weights (PACKED false), one step ahead among 4-bit
 *     ones (an adapter, or a bf16 part beside 4-bit ones).
 * One barrier a step. Tiles lie in rows of 16-byte chunks, chunk c of row r at c ^ (r % 8): ldmatrix (transposed in the backward pass,
 * where the sum runs over the weight's rows), the decoder's stores and the epilogue's are free of bank conflicts.
 *
 * Bound by the tensor cores. What a step takes of an A100's multiprocessor (4-bit weights; tensor cores 2,048 cycles at 256x128, 1,024
 * at 128x128): of shared memory 1,408 cycles at 256x128 (warps of 64x64), but 1,024 at 128x128 (64x32), which is for small
 * products there, and for chips whose tensor cores are slower by 2 to 4 beside the same shared memory; of the issue slots of a
 * scheduler about 950 (46%), and 770 of 4,096 at 128x128 on an RTX 4090 (19%). Estimated from that: 90% of the tensor cores' rate on
 * sm_86, 89 and 120, 80% on sm_80, and 45 to 50% on sm_90, where mma.sync reaches about 60% of wgmma. Compiled for sm_80 to 120 no
 * kernel spills: 215 to 251 registers at 256x128, 145 to 219 at 128x128, 91 to 150 at 64x64. Decoding adds 135 instructions to a step's
 * 190 at 256x128, 4.2 a weight: 3.6 for half blocks, and stores and addresses. The sum of an element is one chain of mma over ascending
 * k, whatever the tile: its bits depend on the row and column alone. */
#ifndef NB_CUDA_LINEAR_KERNEL_CUH
#define NB_CUDA_LINEAR_KERNEL_CUH

#include "cuda/linear_tile.cuh"
#include "device/dropout.h"

/* ---- the adapter under dropout ---- */

/* sum += mask(left right) for the warp's mma tile rows i, 64 of the rank: fragments of two neighbouring tiles at a time. Two lanes
 * share the numbers of four features: the even one draws them for row g, the odd one for row g + 8. */
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
            int token = p.tokens && row < place.rows ? p.tokens[p.row_begin + row] : p.row_begin + row;
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

/* Which tile is the block's, and of which output. Eight row tiles share a column tile's weights before the next column tile's turn
 * comes, so that both sides stay in the second-level cache. */
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

/* Segments among which are 4-bit ones: where the loop over them stands. Step `now` multiplies, `next` is decoded or copied meanwhile,
 * the bytes of `fetch` are read into registers, and `load`'s left tile is on its way. */
struct nb_product_loop {
    struct nb_product_cursor now, next, fetch, load;
    int stage, load_stage, buffer; /* of the left tiles `now` and `load`; of the right tile `now` */
    struct nb_product_fetch bytes; /* of `next` */
};

/* Whether there is such a step, and with 4-bit weights. */
NB_KERNEL_FUNCTION bool nb_product_is_packed(
    const struct nb_product &p, const struct nb_product_cursor &cursor, const struct nb_product_place &place)
{
    return cursor.segment < place.segment_end && !p.segment[cursor.segment].right;
}

NB_KERNEL_FUNCTION bool nb_product_is_bf16(
    const struct nb_product &p, const struct nb_product_cursor &cursor, const struct nb_product_place &place)
{
    return cursor.segment < place.segment_end && p.segment[cursor.segment].right;
}

template <class S>
NB_KERNEL_FUNCTION void nb_product_load_next_left(
    const struct nb_product &p, struct nb_product_loop *l, const struct nb_product_place &place)
{
    if (l->load.segment < place.segment_end) {
        unsigned char *tile = nb_shared_memory() + l->load_stage * nb_product_memory<S, true>::LEFT;
        nb_product_load_left<S>(tile, p.segment[l->load.segment], l->load.k, place);
        nb_product_advance(p, &l->load);
    }
    l->load_stage = l->load_stage + 1 == S::STAGES ? 0 : l->load_stage + 1;
}

/* All of step `cursor`'s weights from `bytes`. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_decode_all(unsigned char *tile, const struct nb_product &p, const struct nb_product_cursor &cursor,
    const struct nb_product_fetch &bytes, const float *tables, const struct nb_product_place &place)
{
    struct nb_scaled_codes codes = nb_product_codes(p.segment[cursor.segment], bytes, tables + cursor.segment * NB_PRODUCT_TABLE);
#pragma unroll
    for (int quarter = 0; quarter < 4; quarter++)
        nb_product_decode<S, BACKWARD>(tile, codes, bytes, quarter, place.thread);
}

/* Before the first product: the left tiles of the first steps, the first right tile, the bytes of the second. */
template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_begin(const struct nb_product &p, int segment_begin, unsigned char *right, const float *tables,
    struct nb_product_loop *l, const struct nb_product_place &place)
{
    l->now.segment = segment_begin, l->now.k = 0;
    l->next = l->fetch = l->load = l->now;
    l->stage = l->load_stage = l->buffer = 0;
    l->bytes = nb_product_fetch();
    for (int i = 0; i < S::STAGES - 1; i++) {
        nb_product_load_next_left<S>(p, l, place);
        if (i == 0 && nb_product_is_bf16(p, l->now, place))
            nb_product_load_right<S, BACKWARD>(right, p.segment[l->now.segment], l->now.k, place);
        nb_copy_async_commit();
    }
    if (nb_product_is_packed(p, l->now, place)) {
        l->bytes = nb_product_fetch_packed<S, BACKWARD>(p.segment[l->now.segment], l->now.k, place);
        nb_product_fetch_map(p.segment[l->now.segment], &l->bytes);
        nb_product_decode_all<S, BACKWARD>(right, p, l->now, l->bytes, tables, place);
    }
    if (l->now.segment < place.segment_end)
        nb_product_advance(p, &l->next);
    l->fetch = l->next;
    if (nb_product_is_packed(p, l->next, place)) {
        l->bytes = nb_product_fetch_packed<S, BACKWARD>(p.segment[l->next.segment], l->next.k, place);
        nb_product_fetch_map(p.segment[l->next.segment], &l->bytes);
    }
    if (l->fetch.segment < place.segment_end)
        nb_product_advance(p, &l->fetch);
}

template <class S, bool BACKWARD>
NB_KERNEL_FUNCTION void nb_product_sum_packed(
    float sum[S::HIGH][S::WIDE][4], const struct nb_product &p, int segment_begin, const struct nb_product_place &place)
{
    typedef nb_product_memory<S, true> memory;
    unsigned char *shared = nb_shared_memory(), *rights = shared + memory::RIGHT_BEGIN;
    float *tables = (float *)(shared + memory::TABLES);
    struct nb_product_loop l;
    nb_product_tables(tables, p, segment_begin, place);
    nb_block_barrier();
    nb_product_begin<S, BACKWARD>(p, segment_begin, rights, tables, &l, place);
#pragma unroll 1
    while (l.now.segment < place.segment_end) {
        /* A bf16 right tile came with the last group, the left tile with one before. */
        if (p.segment[l.now.segment].right)
            nb_copy_async_wait<0>();
        else
            nb_copy_async_wait<S::STAGES - 2>();
        nb_block_barrier();
        const unsigned char *left = shared + l.stage * memory::LEFT, *right = rights + l.buffer * memory::RIGHT;
        unsigned char *next_right = rights + (l.buffer ^ 1) * memory::RIGHT;
        bool decodes = nb_product_is_packed(p, l.next, place), fetches = nb_product_is_packed(p, l.fetch, place);
        nb_product_load_next_left<S>(p, &l, place);
        if (nb_product_is_bf16(p, l.next, place))
            nb_product_load_right<S, BACKWARD>(next_right, p.segment[l.next.segment], l.next.k, place);
        nb_copy_async_commit();
        struct nb_product_fetch later = l.bytes;
        if (fetches)
            later = nb_product_fetch_packed<S, BACKWARD>(p.segment[l.fetch.segment], l.fetch.k, place);
        int quarters = nb_product_quarters(p.segment[l.now.segment].depth, l.now.k);
        if (quarters == 4 && decodes) {
            struct nb_scaled_codes codes =
                nb_product_codes(p.segment[l.next.segment], l.bytes, tables + l.next.segment * NB_PRODUCT_TABLE);
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                nb_product_multiply<S, BACKWARD>(sum, left, right, place, quarter);
                nb_product_decode<S, BACKWARD>(next_right, codes, l.bytes, quarter, place.thread);
            }
        } else {
#pragma unroll 1
            for (int quarter = 0; quarter < quarters; quarter++)
                nb_product_multiply<S, BACKWARD>(sum, left, right, place, quarter);
            if (decodes)
                nb_product_decode_all<S, BACKWARD>(next_right, p, l.next, l.bytes, tables, place);
        }
        if (fetches)
            nb_product_fetch_map(p.segment[l.fetch.segment], &later);
        l.bytes = later;
        l.stage = l.stage + 1 == S::STAGES ? 0 : l.stage + 1;
        l.buffer ^= 1;
        float factor = p.segment[l.now.segment].factor;
        l.now = l.next;
        if (l.now.k == 0 && factor != 1.0f)
            nb_product_scale<S>(sum, factor);
        l.next = l.fetch;
        if (l.fetch.segment < place.segment_end)
            nb_product_advance(p, &l.fetch);
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

template <bool BACKWARD, bool PACKED>
static struct nb_product_kernel_choice nb_product_kernel_by_tile(enum nb_product_tile tile, const char *name)
{
    switch (tile) {
    case NB_PRODUCT_TILE_64: return nb_product_kernel_of<nb_product_shape_64, BACKWARD, PACKED>(name);
    case NB_PRODUCT_TILE_128: return nb_product_kernel_of<nb_product_shape_128, BACKWARD, PACKED>(name);
    default: return nb_product_kernel_of<nb_product_shape_256, BACKWARD, PACKED>(name);
    }
}

#endif
