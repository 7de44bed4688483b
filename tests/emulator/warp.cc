/* Warp operations: each lane hands in its operands, the last one to arrive computes for all. */
#include <cmath>
#include <cstring>

#include "emulator/machine.h"

#define NB_PLACE __builtin_return_address(0)

/* The exchange of the operation that the running lane is about to join. */
static inline struct nb_exchange *exchange_of(struct nb_machine *machine)
{
    struct nb_warp *warp = machine->lane->warp;
    return &warp->exchange[warp->turn];
}

static inline struct nb_exchange *exchange_value(
    struct nb_machine *machine, enum nb_operation operation, uint32_t value, const void *place)
{
    struct nb_exchange *exchange = exchange_of(machine);
    exchange->value[machine->lane->index] = value;
    if (nb_machine_arrive(machine, operation, place))
        nb_machine_release(machine);
    return exchange;
}

extern "C" uint32_t nb_emulator_shuffle_xor(uint32_t value, int mask)
{
    struct nb_machine *machine = nb_machine_here;
    unsigned lane = machine->lane->index;
    return exchange_value(machine, NB_OPERATION_SHUFFLE_XOR, value, NB_PLACE)->value[(lane ^ (unsigned)mask) & 31];
}

extern "C" uint32_t nb_emulator_shuffle(uint32_t value, int lane)
{
    return exchange_value(nb_machine_here, NB_OPERATION_SHUFFLE, value, NB_PLACE)->value[lane & 31];
}

extern "C" uint32_t nb_emulator_shuffle_up(uint32_t value, int delta)
{
    struct nb_machine *machine = nb_machine_here;
    int lane = machine->lane->index, from = lane - (delta & 31);
    return exchange_value(machine, NB_OPERATION_SHUFFLE_UP, value, NB_PLACE)->value[from < 0 ? lane : from];
}

static uint32_t vote(enum nb_operation operation, bool condition, const void *place)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_exchange *exchange = exchange_of(machine);
    exchange->value[machine->lane->index] = condition;
    if (nb_machine_arrive(machine, operation, place)) {
        uint32_t votes = 0;
        for (int l = 0; l < NB_LANES; l++)
            votes |= exchange->value[l] << l;
        exchange->result = votes;
        nb_machine_release(machine);
    }
    return exchange->result;
}

extern "C" uint32_t nb_emulator_ballot(bool condition)
{
    return vote(NB_OPERATION_BALLOT, condition, NB_PLACE);
}

extern "C" bool nb_emulator_warp_any(bool condition)
{
    return vote(NB_OPERATION_WARP_ANY, condition, NB_PLACE) != 0;
}

extern "C" bool nb_emulator_warp_all(bool condition)
{
    return vote(NB_OPERATION_WARP_ALL, condition, NB_PLACE) == UINT32_MAX;
}

/* ---- matrices ---- */

/* `rows`: the 8 rows, 16 bytes each, of matrix `i`. */
static void distribute(struct nb_exchange *exchange, const unsigned char *const rows[8], int i, bool transposed)
{
    uint16_t element[8][8];
    for (int r = 0; r < 8; r++)
        memcpy(element[r], rows[r], 16);
    for (int l = 0; l < NB_LANES; l++) {
        int row = l / 4, column = 2 * (l % 4);
        uint32_t low = transposed ? element[column][row] : element[row][column];
        uint32_t high = transposed ? element[column + 1][row] : element[row][column + 1];
        exchange->matrix[l][i] = low | high << 16;
    }
}

extern "C" nb_u32_x4 nb_emulator_ldmatrix(const void *row, int matrices, bool transposed)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_exchange *exchange = exchange_of(machine);
    struct nb_lane *lane = machine->lane;
    unsigned index = lane->index;
    if (index < 8 * (unsigned)matrices) {
        uint32_t offset = 0;
        if (!nb_shared_offset(machine, row, &offset))
            nb_machine_fault(machine, NB_EMULATOR_OUT_OF_BOUNDS, NB_PLACE,
                "ldmatrix of %p, which is not in the block's %u bytes of shared memory", row, machine->shared_bytes);
        if (offset % 16)
            nb_machine_fault(machine, NB_EMULATOR_MISALIGNED, NB_PLACE,
                "ldmatrix of shared byte %u, which is no multiple of 16", offset);
        nb_shared_read_by_warp(machine, lane, offset, 16, NB_PLACE);
    }
    exchange->row[index] = (const unsigned char *)row;
    enum nb_operation operation = (enum nb_operation)(NB_OPERATION_LDMATRIX_X2 + (matrices == 4) + 2 * transposed);
    if (nb_machine_arrive(machine, operation, NB_PLACE)) {
        for (int i = 0; i < matrices; i++)
            distribute(exchange, exchange->row + 8 * i, i, transposed);
        nb_machine_release(machine);
    }
    return exchange->matrix[index];
}

static inline float bf16_value(uint32_t bits)
{
    float value;
    bits <<= 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

typedef float float_x8 __attribute__((vector_size(32)));

/* The operands as rows: four words, eight elements of which the even ones come first. That order of k is the same
 * on both sides. */
struct mma_rows {
    float a[16][16];
    float_x8 b[16], d[16];
};

static inline void unpack_pairs(float to[8], const uint32_t pairs[4])
{
    for (int q = 0; q < 4; q++) {
        to[q] = bf16_value(pairs[q]);
        uint32_t high = pairs[q] & 0xffff0000u;
        memcpy(&to[4 + q], &high, sizeof high);
    }
}

static inline void gather_rows(struct mma_rows *rows, const struct nb_exchange *exchange)
{
    for (int g = 0; g < 8; g++) {
        uint32_t words[4][4];
        for (int q = 0; q < 4; q++) {
            nb_u32_x4 lane = exchange->a[4 * g + q];
            for (int i = 0; i < 4; i++)
                words[i][q] = lane[i];
            memcpy((char *)&rows->d[g] + 8 * q, &exchange->d[4 * g + q], 8);
            memcpy((char *)&rows->d[g + 8] + 8 * q, (const char *)&exchange->d[4 * g + q] + 8, 8);
        }
        for (int i = 0; i < 4; i++)
            unpack_pairs(&rows->a[g + i % 2 * 8][i / 2 * 8], words[i]);
    }
    for (int q = 0; q < 4; q++) {
        uint32_t words[2][8];
        for (int g = 0; g < 8; g++) {
            words[0][g] = (uint32_t)exchange->b[4 * g + q];
            words[1][g] = (uint32_t)(exchange->b[4 * g + q] >> 32);
        }
        for (int i = 0; i < 2; i++) {
            uint32_t low[8], high[8];
            for (int g = 0; g < 8; g++)
                low[g] = words[i][g] << 16, high[g] = words[i][g] & 0xffff0000u;
            memcpy(&rows->b[8 * i + q], low, sizeof low);
            memcpy(&rows->b[8 * i + 4 + q], high, sizeof high);
        }
    }
}

/* d += a b, the 16 products of an element in an order that the seed chooses, before or after d. Products are exact
 * in fp32. Hardware sums in yet another way; what may be relied on is only that it is always the same. */
__attribute__((target_clones("avx2", "default"), optimize("O3"))) static void multiply(
    struct nb_exchange *exchange, unsigned order)
{
    struct mma_rows rows;
    gather_rows(&rows, exchange);
    bool d_first = order & 16;
    for (int row = 0; row < 16; row += 4) {
        const float_x8 zero = {};
        float_x8 sum[4];
        for (int i = 0; i < 4; i++)
            sum[i] = d_first ? rows.d[row + i] : zero;
        for (unsigned k = 0; k < 16; k++) {
            unsigned at = k ^ (order & 15);
            float_x8 b = rows.b[at];
            for (int i = 0; i < 4; i++)
                sum[i] += rows.a[row + i][at] * b;
        }
        for (int i = 0; i < 4; i++)
            rows.d[row + i] = d_first ? sum[i] : rows.d[row + i] + sum[i];
    }
    for (int l = 0; l < NB_LANES; l++) {
        memcpy(&exchange->d[l], (const char *)&rows.d[l / 4] + l % 4 * 8, 8);
        memcpy((char *)&exchange->d[l] + 8, (const char *)&rows.d[l / 4 + 8] + l % 4 * 8, 8);
    }
}

extern "C" nb_float_x4 nb_emulator_mma_bf16(nb_float_x4 d, nb_u32_x4 a, uint64_t b)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_exchange *exchange = exchange_of(machine);
    unsigned index = machine->lane->index;
    exchange->a[index] = a;
    exchange->b[index] = b;
    exchange->d[index] = d;
    if (nb_machine_arrive(machine, NB_OPERATION_MMA, NB_PLACE)) {
        multiply(exchange, machine->mma_order);
        nb_machine_release(machine);
    }
    return exchange->d[index];
}

/* ---- arithmetic ---- */

/* s + error, exact, rounded to fp32 "to odd": the last bit says that something was cut off, so that rounding again
 * to fewer bits rounds but once (Boldo and Melquiond, Emulation of a FMA and correctly rounded sums: proved
 * algorithms using rounding to odd, 2008). */
static float to_odd(double sum, double error)
{
    float rounded = (float)sum;
    double rest = (sum - (double)rounded) + error;
    if (rest == 0.0 || std::isinf(rounded) || std::isnan(rounded))
        return rounded;
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    bool away = (rounded > 0.0f && rest < 0.0) || (rounded < 0.0f && rest > 0.0);
    bits = (away ? bits - 1 : bits) | 1; /* cut off, then sticky */
    memcpy(&rounded, &bits, sizeof rounded);
    return rounded;
}

extern "C" uint32_t nb_emulator_fma_bf16(uint32_t a, uint32_t b, uint32_t c)
{
    double product = (double)bf16_value(a) * (double)bf16_value(b), addend = bf16_value(c); /* exact */
    double sum = product + addend, back = sum - product;
    double error = std::isfinite(sum) ? (product - (sum - back)) + (addend - back) : 0.0; /* Knuth's two-sum */
    float value = to_odd(sum, error);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

static const float smallest_normal = 0x1p-126f;

extern "C" float nb_emulator_exp2(float x)
{
    float y = exp2f(std::fabs(x) < smallest_normal ? 0.0f : x);
    return y < smallest_normal ? 0.0f : y;
}

extern "C" float nb_emulator_reciprocal(float x)
{
    float y = 1.0f / (std::fabs(x) < smallest_normal ? std::copysign(0.0f, x) : x);
    return std::fabs(y) < smallest_normal ? std::copysign(0.0f, y) : y;
}
