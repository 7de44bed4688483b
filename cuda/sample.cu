/* Some hundred kilobytes of logits, so bound by launches and latency: two kernels for the largest, four and a fill
 * for a draw with top_k or top_p, two to four microseconds each at a vocabulary of 128k. Nothing is sorted: a bf16
 * logit has 65,536 values, which are counted, and all logits of a value have one probability.
 *   tiles  a block takes 2,048 logits: the largest with its lowest id, what is no number to choose by, and a count
 *          for each value
 *   cut    one block: the largest of all; then, from the counts in falling order, the value at which top_k or top_p
 *          ends, and how many of the logits that have it are still in
 *   sums   a block a tile: the probability above the cut, in double, and how many logits stand at it
 *   pick   one block: running sums over the tiles by rising id, then over the tile in which uniform * total is
 *          passed
 * Counts are whole numbers and sums are in fixed orders, so the same logits give the same id. */
#include <math.h>

#include "base/random.h"
#include "cuda/block_scan.cuh"
#include "cuda/double_sum.cuh"
#include "device/cuda/loss_scratch.h"

enum {
    TILE = NB_CUDA_SAMPLE_TILE,
    TILE_THREADS = 256,
    EACH = TILE / TILE_THREADS,
    TILE_SHARED_BYTES = 32 * 8,
    VALUES = NB_CUDA_SAMPLE_VALUES,
    THREADS = 1024,
};

#define NONE 0xffffffffu

/* What the kernels tell each other. A logit is in if its value comes before `cut` in falling order, and of those at
 * it the first `ties`. */
struct sample_choice {
    float largest;
    uint32_t cut, ties;
    uint32_t draws; /* 0: the largest is the answer */
};

struct sample_operands {
    const nb_bf16 *logits;
    int32_t *next;
    const struct nb_slot *slot;
    int vocabulary, top_k, tiles;
    float temperature, top_p;
    uint64_t seed;
    struct sample_choice *choice;
    uint32_t *tile_best; /* (place of the value + 1) * TILE + place in the tile; 0: no number to choose by */
    double *tile_sum;
    uint32_t *tile_ties;
    uint32_t *counts;    /* NULL: neither top_k nor top_p cuts */
};

/* A tile and what comes before it. */
struct sample_tile {
    double running;
    uint32_t tile, ties;
};

/* ---- values in falling order ---- */

/* Place of a bf16 among all values, the largest first; -0 stands with +0. */
NB_KERNEL_FUNCTION uint32_t place_of(uint32_t bits)
{
    bits = bits == 0x8000u ? 0u : bits;
    return bits & 0x8000u ? bits : 0x7fffu - bits;
}

NB_KERNEL_FUNCTION float value_at(uint32_t place)
{
    return nb_bf16_low(place & 0x8000u ? place : 0x7fffu - place);
}

/* NaN or plus infinity. */
NB_KERNEL_FUNCTION bool is_bad(uint32_t bits)
{
    return (bits & 0x7fffu) > 0x7f80u || bits == 0x7f80u;
}

/* Not divided by their sum. */
NB_KERNEL_FUNCTION float probability(const struct sample_operands &o, float largest, uint32_t place)
{
    return expf((value_at(place) - largest) / o.temperature);
}

/* Logits [begin, begin + count) as bits, begin a multiple of count; those beyond the vocabulary as NONE. */
template <int COUNT>
NB_KERNEL_FUNCTION void load_logits(const struct sample_operands &o, int64_t begin, uint32_t bits[COUNT])
{
    if (COUNT == 8 && begin + COUNT <= o.vocabulary) {
        uint4 v = *(const uint4 *)(o.logits + begin);
        const uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            bits[i] = pair[i / 2 % 4] >> (i % 2 * 16) & 0xffffu;
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        bits[i] = begin + i < o.vocabulary ? o.logits[begin + i] : NONE;
}

/* ---- tiles ---- */

__global__ void __launch_bounds__(TILE_THREADS) sample_tiles_kernel(struct sample_operands o)
{
    int64_t begin = (int64_t)blockIdx.x * TILE + (int)threadIdx.x * EACH;
    uint32_t bits[EACH], best = NONE;
    load_logits<EACH>(o, begin, bits);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (bits[i] == NONE)
            continue;
        uint32_t place = place_of(bits[i]), key = (place + 1) * TILE + threadIdx.x * EACH + i;
        key = is_bad(bits[i]) ? 0u : key;
        best = key < best ? key : best;
        if (o.counts)
            nb_atomic_add(o.counts + place, 1);
    }
    best = nb_block_min(best, (uint32_t *)nb_shared_memory());
    if (threadIdx.x == 0)
        o.tile_best[blockIdx.x] = best;
}

/* ---- cut ---- */

/* The largest logit: its place + 1, 0 where one is bad; *id the lowest that has it. */
NB_KERNEL_FUNCTION uint32_t find_best(const struct sample_operands &o, uint32_t *slots, uint32_t *id)
{
    uint32_t best = NONE, lowest = NONE;
    for (int tile = (int)threadIdx.x; tile < o.tiles; tile += THREADS) {
        uint32_t place = o.tile_best[tile] / TILE;
        best = place < best ? place : best;
    }
    best = nb_block_min(best, slots);
    for (int tile = (int)threadIdx.x; tile < o.tiles; tile += THREADS) {
        uint32_t key = o.tile_best[tile], at = (uint32_t)tile * TILE + key % TILE;
        if (key / TILE == best && at < lowest)
            lowest = at;
    }
    *id = nb_block_min(lowest, slots);
    return best;
}

/* How many logits of a value are in, when `before` of at most `limit` came first. */
NB_KERNEL_FUNCTION uint32_t within(uint32_t count, uint32_t before, uint32_t limit)
{
    uint32_t left = before < limit ? limit - before : 0;
    return count < left ? count : left;
}

/* The place at which a set ends, and how many of the logits there are in it. */
struct sample_cut {
    uint32_t place, ties;
};

NB_KERNEL_FUNCTION uint32_t taken_of(struct sample_cut cut, uint32_t place, uint32_t count)
{
    return place < cut.place ? count : place == cut.place ? cut.ties : 0;
}

/* Values are looked at in rows of 128, four to a lane, so that reads are whole lines: a warp sums 16 rows, a running
 * sum over the 512 tells the row, one over the row's values the value. What the block's shared memory holds: */
enum { ROW = NB_WARP * 4, ROWS = VALUES / ROW, OWN_ROWS = ROWS / (THREADS / NB_WARP) };
struct sample_shared {
    double slots[THREADS];
    double sum_of_row[ROWS], sum_before;
    uint32_t count_of_row[ROWS], count_before, row;
    struct sample_cut cut;
    struct sample_tile found;
};

NB_KERNEL_FUNCTION uint4 counts_of_lane(const struct sample_operands &o, int row)
{
    return ((const uint4 *)o.counts)[row * NB_WARP + (int)threadIdx.x % NB_WARP];
}

/* Count of the value that thread `threadIdx.x` < ROW has of the row. */
NB_KERNEL_FUNCTION uint32_t count_of_thread(const struct sample_operands &o, uint32_t row)
{
    return threadIdx.x < ROW ? o.counts[row * ROW + threadIdx.x] : 0;
}

/* The first `limit` logits. */
NB_KERNEL_FUNCTION struct sample_cut cut_by_count(
    const struct sample_operands &o, struct sample_shared *shared, uint32_t limit)
{
    int first = (int)threadIdx.x / NB_WARP * OWN_ROWS;
    uint32_t *slots = (uint32_t *)shared->slots;
    for (int row = first; row < first + OWN_ROWS; row++) {
        uint4 four = counts_of_lane(o, row);
        uint32_t count = four.x + four.y + four.z + four.w;
        for (int mask = 16; mask > 0; mask /= 2)
            count += nb_shuffle_xor_u32(count, mask);
        if (threadIdx.x % NB_WARP == 0)
            shared->count_of_row[row] = count;
    }
    nb_block_barrier();
    uint32_t count = threadIdx.x < ROWS ? shared->count_of_row[threadIdx.x] : 0;
    uint32_t end = nb_block_scan<uint32_t>(count, slots);
    if (end >= limit && end - count < limit) {
        shared->row = threadIdx.x;
        shared->count_before = end - count;
    }
    nb_block_barrier();
    uint32_t row = shared->row;
    count = count_of_thread(o, row);
    end = shared->count_before + nb_block_scan<uint32_t>(count, slots);
    if (end >= limit && end - count < limit) {
        struct sample_cut cut = {row * ROW + threadIdx.x, limit - (end - count)};
        shared->cut = cut;
    }
    nb_block_barrier();
    return shared->cut;
}

/* The lane's share of the row's probability within the cut. */
NB_KERNEL_FUNCTION double sum_of_lane(const struct sample_operands &o, float largest, struct sample_cut cut, int row)
{
    uint4 four = counts_of_lane(o, row);
    const uint32_t count[4] = {four.x, four.y, four.z, four.w};
    double sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t place = (uint32_t)row * ROW + threadIdx.x % NB_WARP * 4 + i, taken = taken_of(cut, place, count[i]);
        if (taken > 0)
            sum += (double)taken * (double)probability(o, largest, place);
    }
    return sum;
}

/* Of the logits within `cut`, the smallest set of the largest whose share of their probability reaches top_p. */
NB_KERNEL_FUNCTION struct sample_cut cut_by_probability(
    const struct sample_operands &o, struct sample_shared *shared, float largest, struct sample_cut cut)
{
    int first = (int)threadIdx.x / NB_WARP * OWN_ROWS;
    for (int row = first; row < first + OWN_ROWS; row++) {
        double sum = nb_warp_sum_double(sum_of_lane(o, largest, cut, row));
        if (threadIdx.x % NB_WARP == 0)
            shared->sum_of_row[row] = sum;
    }
    nb_block_barrier();
    double own = threadIdx.x < ROWS ? shared->sum_of_row[threadIdx.x] : 0.0;
    double end = nb_block_scan<double>(own, shared->slots);
    double target = (double)o.top_p * shared->slots[THREADS - 1];
    uint32_t row = nb_block_min(end >= target ? threadIdx.x : NONE, shared->count_of_row);
    if (row == NONE) /* no probability is a number: all stay in */
        return cut;
    if (threadIdx.x == row)
        shared->sum_before = end - own;
    nb_block_barrier();
    uint32_t place = row * ROW + threadIdx.x, taken = taken_of(cut, place, count_of_thread(o, row));
    double each = taken > 0 ? (double)probability(o, largest, place) : 0.0;
    own = (double)taken * each;
    end = shared->sum_before + nb_block_scan<double>(own, shared->slots);
    /* Should rounding keep all sums below the target, the row's last. ~ turns the order around. */
    uint32_t reaches = nb_block_min(taken > 0 && end >= target ? threadIdx.x : NONE, shared->count_of_row);
    uint32_t last = ~nb_block_min(taken > 0 ? ~threadIdx.x : NONE, shared->count_of_row);
    if (threadIdx.x == (reaches != NONE ? reaches : last)) {
        double missing = target - (end - own), wanted = missing > each ? ceil(missing / each) : 1.0;
        struct sample_cut at = {place, wanted < (double)taken ? (uint32_t)wanted : taken};
        shared->cut = at;
    }
    nb_block_barrier();
    return shared->cut;
}

__global__ void __launch_bounds__(THREADS) sample_cut_kernel(struct sample_operands o)
{
    uint32_t id, best = find_best(o, (uint32_t *)nb_shared_memory(), &id);
    bool bad = best == 0, draws = !bad && o.temperature > 0;
    float largest = bad ? 0.0f : value_at(best - 1);
    if (threadIdx.x == 0) {
        struct sample_choice choice = {largest, VALUES, 0, draws};
        *o.next = bad ? -1 : (int32_t)id;
        *o.choice = choice;
    }
    if (!draws || !o.counts)
        return;
    struct sample_shared *shared = (struct sample_shared *)nb_shared_memory();
    struct sample_cut cut = {VALUES, 0};
    if (o.top_k > 0 && o.top_k < o.vocabulary)
        cut = cut_by_count(o, shared, (uint32_t)o.top_k);
    if (o.top_p < 1.0f)
        cut = cut_by_probability(o, shared, largest, cut);
    if (threadIdx.x == 0) {
        o.choice->cut = cut.place;
        o.choice->ties = cut.ties;
    }
}

/* ---- sums ---- */

__global__ void __launch_bounds__(TILE_THREADS) sample_sums_kernel(struct sample_operands o)
{
    const struct sample_choice choice = *o.choice;
    if (!choice.draws)
        return;
    uint32_t bits[EACH], ties = 0;
    double sum = 0;
    load_logits<EACH>(o, (int64_t)blockIdx.x * TILE + (int)threadIdx.x * EACH, bits);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        uint32_t place = bits[i] == NONE ? NONE : place_of(bits[i]);
        if (place < choice.cut)
            sum += (double)probability(o, choice.largest, place);
        ties += place == choice.cut;
    }
    double *slots = (double *)nb_shared_memory();
    sum = nb_block_sum_double(sum, slots);
    double all_ties = nb_block_sum_double((double)ties, slots);
    if (threadIdx.x == 0) {
        o.tile_sum[blockIdx.x] = sum;
        o.tile_ties[blockIdx.x] = (uint32_t)all_ties;
    }
}

/* ---- pick ---- */

/* nb_random_uniform(seed, NB_RANDOM_SAMPLE, 0, index). */
NB_KERNEL_FUNCTION float uniform_of(uint64_t seed, uint32_t index)
{
    const uint32_t counter[4] = {index / 4, (uint32_t)NB_RANDOM_SAMPLE << 24, 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    struct nb_philox number = nb_philox(counter, key);
    uint32_t even = index & 2 ? number.word[2] : number.word[0], odd = index & 2 ? number.word[3] : number.word[1];
    uint32_t word = index & 1 ? odd : even;
    return (float)(word >> 8) * 0x1p-24f;
}

/* The tile in which the running probability exceeds uniform * total, into shared->found: a thread takes `per` tiles
 * in a row. Returns whether there is one, and the threshold. */
NB_KERNEL_FUNCTION bool find_tile(const struct sample_operands &o, const struct sample_choice &choice,
    struct sample_shared *shared, double *threshold)
{
    int per = (o.tiles + THREADS - 1) / THREADS, begin = (int)threadIdx.x * per;
    int end = begin + per < o.tiles ? begin + per : o.tiles;
    double each = choice.ties > 0 ? (double)probability(o, choice.largest, choice.cut) : 0.0, own = 0;
    uint32_t own_ties = 0;
    for (int tile = begin; tile < end; tile++)
        own_ties += o.tile_ties[tile];
    uint32_t ties = nb_block_scan<uint32_t>(own_ties, (uint32_t *)shared->slots) - own_ties, before = ties;
    for (int tile = begin; tile < end; before += o.tile_ties[tile], tile++)
        own += o.tile_sum[tile] + within(o.tile_ties[tile], before, choice.ties) * each;
    double sum = nb_block_scan<double>(own, shared->slots);
    *threshold = (double)uniform_of(o.seed, o.slot->sample_index) * shared->slots[THREADS - 1];
    uint32_t first = nb_block_min(sum > *threshold ? threadIdx.x : NONE, shared->count_of_row);
    if (threadIdx.x == first) {
        struct sample_tile at = {sum - own, (uint32_t)begin, ties};
        for (; (int)at.tile < end; at.tile++) {
            uint32_t taken = within(o.tile_ties[at.tile], at.ties, choice.ties);
            double in_tile = o.tile_sum[at.tile] + taken * each;
            if (in_tile > 0)
                shared->found = at; /* the last one with a chance, should rounding keep the sum below */
            if (at.running + in_tile > *threshold)
                break;
            at.running += in_tile;
            at.ties += o.tile_ties[at.tile];
        }
    }
    nb_block_barrier();
    return first != NONE;
}

enum { PAIR = TILE / THREADS };

/* The id within the tile. */
NB_KERNEL_FUNCTION void pick_within(
    const struct sample_operands &o, const struct sample_choice &choice, struct sample_shared *shared, double threshold)
{
    const struct sample_tile at = shared->found;
    uint32_t id = at.tile * TILE + threadIdx.x * PAIR, bits[PAIR], ties = 0, last = NONE;
    load_logits<PAIR>(o, id, bits);
    uint32_t place[PAIR];
#pragma unroll
    for (int i = 0; i < PAIR; i++) {
        place[i] = bits[i] == NONE ? NONE : place_of(bits[i]);
        ties += place[i] == choice.cut;
    }
    uint32_t before = at.ties + nb_block_scan<uint32_t>(ties, (uint32_t *)shared->slots) - ties;
    double chance[PAIR], own = 0;
#pragma unroll
    for (int i = 0; i < PAIR; i++) {
        bool in = place[i] < choice.cut || (place[i] == choice.cut && before < choice.ties);
        before += place[i] == choice.cut;
        chance[i] = in ? (double)probability(o, choice.largest, place[i]) : 0.0;
        own += chance[i];
        last = chance[i] > 0 ? id + i : last;
    }
    double sum = at.running + nb_block_scan<double>(own, shared->slots);
    uint32_t *slots = shared->count_of_row;
    uint32_t first = nb_block_min(sum > threshold && last != NONE ? threadIdx.x : NONE, slots);
    /* Should rounding keep all sums below: the last with a chance. ~ turns the order around. */
    uint32_t reversed = nb_block_min(last == NONE ? NONE : ~last, slots);
    if (first == NONE && threadIdx.x == 0 && reversed != NONE)
        *o.next = (int32_t)~reversed;
    if (threadIdx.x != first)
        return;
    double running = sum - own;
#pragma unroll
    for (int i = PAIR - 1; i >= 0; i--) { /* the first that exceeds, else the pair's last with a chance */
        double up_to = running;
        for (int k = 0; k <= i; k++)
            up_to += chance[k];
        if (chance[i] > 0 && up_to > threshold)
            last = id + i;
    }
    *o.next = (int32_t)last;
}

__global__ void __launch_bounds__(THREADS) sample_pick_kernel(struct sample_operands o)
{
    const struct sample_choice choice = *o.choice;
    if (!choice.draws)
        return;
    struct sample_shared *shared = (struct sample_shared *)nb_shared_memory();
    double threshold;
    if (find_tile(o, choice, shared, &threshold))
        pick_within(o, choice, shared, threshold);
}

/* ---- the op ---- */

static struct sample_operands operands_of(const struct nb_sample *args, const struct nb_cuda_sample_scratch *scratch)
{
    nb_dptr base = args->scratch.base;
    struct sample_operands o = {};
    o.logits = nb_pointer<const nb_bf16>(args->logits);
    o.next = nb_pointer<int32_t>(args->next);
    o.slot = nb_pointer<const struct nb_slot>(args->slot);
    o.vocabulary = args->vocabulary;
    o.top_k = args->top_k;
    o.tiles = (int)scratch->tiles;
    o.temperature = args->temperature;
    o.top_p = args->top_p;
    o.seed = args->seed;
    o.choice = nb_pointer<struct sample_choice>(nb_dptr_at(base, scratch->choice));
    o.tile_best = nb_pointer<uint32_t>(nb_dptr_at(base, scratch->tile_best));
    o.tile_sum = nb_pointer<double>(nb_dptr_at(base, scratch->tile_sum));
    o.tile_ties = nb_pointer<uint32_t>(nb_dptr_at(base, scratch->tile_ties));
    if (scratch->counts_bytes > 0)
        o.counts = nb_pointer<uint32_t>(nb_dptr_at(base, scratch->counts));
    return o;
}

nb_status nb_cuda_sample(struct nb_device *device, struct nb_stream *stream, const struct nb_sample *args)
{
    NB_TRY(nb_check_sample(args));
    NB_TRY(nb_cuda_refuse_f32("sample", args->activation));
    struct nb_cuda_sample_scratch scratch;
    nb_cuda_sample_scratch_of(args, &scratch);
    NB_TRY(nb_cuda_require_scratch("sample", &args->scratch, scratch.bytes));
    struct sample_operands o = operands_of(args, &scratch);
    struct nb_launch tiles = {dim3((unsigned)o.tiles), TILE_THREADS, TILE_SHARED_BYTES};
    struct nb_launch one = {dim3(1), THREADS, sizeof(struct sample_shared)};
    if (scratch.counts_bytes > 0)
        NB_TRY(device->fill_zero(device, stream, nb_dptr_at(args->scratch.base, scratch.counts), scratch.counts_bytes));
    NB_TRY(nb_cuda_launch("sample, tiles", sample_tiles_kernel, tiles, stream->stream, o));
    NB_TRY(nb_cuda_launch("sample, cut", sample_cut_kernel, one, stream->stream, o));
    if (args->temperature <= 0)
        return NB_OK;
    NB_TRY(nb_cuda_launch("sample, sums", sample_sums_kernel, tiles, stream->stream, o));
    return nb_cuda_launch("sample, pick", sample_pick_kernel, one, stream->stream, o);
}

nb_status nb_cuda_prepare_sample(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("sample, tiles", sample_tiles_kernel, TILE_SHARED_BYTES));
    NB_TRY(nb_cuda_load("sample, cut", sample_cut_kernel, sizeof(struct sample_shared)));
    NB_TRY(nb_cuda_load("sample, sums", sample_sums_kernel, TILE_SHARED_BYTES));
    return nb_cuda_load("sample, pick", sample_pick_kernel, sizeof(struct sample_shared));
}
