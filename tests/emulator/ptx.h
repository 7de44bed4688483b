/* The instructions of cuda/ptx.cuh, met by the emulated machine. Operands travel in registers, for a pointer to a
 * thread's variables would put them into memory, where each access is one to check. */
#ifndef NB_TESTS_EMULATOR_PTX_H
#define NB_TESTS_EMULATOR_PTX_H

#include <string.h>

typedef float nb_float_x4 __attribute__((vector_size(16)));
typedef uint32_t nb_u32_x4 __attribute__((vector_size(16)));

extern "C" {
unsigned char *nb_emulator_shared(void) __attribute__((const));
void nb_emulator_block_barrier(void);
bool nb_emulator_block_any(bool condition);
void nb_emulator_named_barrier(int id, int threads, bool wait);
void nb_emulator_warp_barrier(void);
void nb_emulator_device_fence(void);
uint32_t nb_emulator_shuffle_xor(uint32_t value, int mask);
uint32_t nb_emulator_shuffle(uint32_t value, int lane);
uint32_t nb_emulator_shuffle_up(uint32_t value, int delta);
uint32_t nb_emulator_ballot(bool condition);
bool nb_emulator_warp_any(bool condition);
bool nb_emulator_warp_all(bool condition);
void nb_emulator_copy_async(void *shared, const void *global, int valid, int bytes);
void nb_emulator_copy_async_commit(void);
void nb_emulator_copy_async_wait(int groups);
nb_u32_x4 nb_emulator_load_once(const void *global);
void nb_emulator_store_once(void *global, nb_u32_x4 value);
void nb_emulator_mbarrier_init(uint64_t *barrier, int arrivals);
void nb_emulator_mbarrier_arrive(uint64_t *barrier);
void nb_emulator_mbarrier_wait(uint64_t *barrier, int parity);
void nb_emulator_copy_async_arrive(uint64_t *barrier);
nb_u32_x4 nb_emulator_ldmatrix(const void *row, int matrices, bool transposed);
nb_float_x4 nb_emulator_mma_bf16(nb_float_x4 d, nb_u32_x4 a, uint64_t b);
uint32_t nb_emulator_atomic_add(uint32_t *global, uint32_t value);
uint32_t nb_emulator_atomic_max(uint32_t *global, uint32_t value);
uint32_t nb_emulator_fma_bf16(uint32_t a, uint32_t b, uint32_t c);
float nb_emulator_exp2(float x);
float nb_emulator_reciprocal(float x);
}

#define NB_EMULATED_INSTRUCTION __attribute__((always_inline)) NB_INSTRUCTION

NB_EMULATED_INSTRUCTION uint32_t nb_emulator_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

NB_EMULATED_INSTRUCTION float nb_emulator_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

NB_EMULATED_INSTRUCTION unsigned char *nb_shared_memory(void)
{
    return nb_emulator_shared();
}

NB_EMULATED_INSTRUCTION void nb_block_barrier(void)
{
    nb_emulator_block_barrier();
}

NB_EMULATED_INSTRUCTION bool nb_block_any(bool condition)
{
    return nb_emulator_block_any(condition);
}

NB_EMULATED_INSTRUCTION void nb_named_barrier(int id, int threads)
{
    nb_emulator_named_barrier(id, threads, true);
}

NB_EMULATED_INSTRUCTION void nb_named_arrive(int id, int threads)
{
    nb_emulator_named_barrier(id, threads, false);
}

NB_EMULATED_INSTRUCTION void nb_warp_barrier(void)
{
    nb_emulator_warp_barrier();
}

NB_EMULATED_INSTRUCTION void nb_device_fence(void)
{
    nb_emulator_device_fence();
}

NB_EMULATED_INSTRUCTION float nb_shuffle_xor(float value, int mask)
{
    return nb_emulator_float(nb_emulator_shuffle_xor(nb_emulator_bits(value), mask));
}

NB_EMULATED_INSTRUCTION uint32_t nb_shuffle_xor_u32(uint32_t value, int mask)
{
    return nb_emulator_shuffle_xor(value, mask);
}

NB_EMULATED_INSTRUCTION float nb_shuffle(float value, int lane)
{
    return nb_emulator_float(nb_emulator_shuffle(nb_emulator_bits(value), lane));
}

NB_EMULATED_INSTRUCTION uint32_t nb_shuffle_u32(uint32_t value, int lane)
{
    return nb_emulator_shuffle(value, lane);
}

NB_EMULATED_INSTRUCTION float nb_shuffle_up(float value, int delta)
{
    return nb_emulator_float(nb_emulator_shuffle_up(nb_emulator_bits(value), delta));
}

NB_EMULATED_INSTRUCTION uint32_t nb_shuffle_up_u32(uint32_t value, int delta)
{
    return nb_emulator_shuffle_up(value, delta);
}

NB_EMULATED_INSTRUCTION uint32_t nb_ballot(bool condition)
{
    return nb_emulator_ballot(condition);
}

NB_EMULATED_INSTRUCTION bool nb_warp_any(bool condition)
{
    return nb_emulator_warp_any(condition);
}

NB_EMULATED_INSTRUCTION bool nb_warp_all(bool condition)
{
    return nb_emulator_warp_all(condition);
}

NB_EMULATED_INSTRUCTION void nb_copy_async_16(void *shared, const void *global, int valid)
{
    nb_emulator_copy_async(shared, global, valid, 16);
}

NB_EMULATED_INSTRUCTION void nb_copy_async_8(void *shared, const void *global, int valid)
{
    nb_emulator_copy_async(shared, global, valid, 8);
}

NB_EMULATED_INSTRUCTION void nb_copy_async_4(void *shared, const void *global, int valid)
{
    nb_emulator_copy_async(shared, global, valid, 4);
}

NB_EMULATED_INSTRUCTION void nb_copy_async_commit(void)
{
    nb_emulator_copy_async_commit();
}

template <int N> NB_EMULATED_INSTRUCTION void nb_copy_async_wait(void)
{
    nb_emulator_copy_async_wait(N);
}

NB_EMULATED_INSTRUCTION uint4 nb_load_once_16(const void *global)
{
    nb_u32_x4 v = nb_emulator_load_once(global);
    return {v[0], v[1], v[2], v[3]};
}

NB_EMULATED_INSTRUCTION void nb_store_once_16(void *global, uint4 value)
{
    nb_emulator_store_once(global, nb_u32_x4{value.x, value.y, value.z, value.w});
}

NB_EMULATED_INSTRUCTION void nb_mbarrier_init(uint64_t *barrier, int arrivals)
{
    nb_emulator_mbarrier_init(barrier, arrivals);
}

NB_EMULATED_INSTRUCTION void nb_mbarrier_arrive(uint64_t *barrier)
{
    nb_emulator_mbarrier_arrive(barrier);
}

NB_EMULATED_INSTRUCTION void nb_mbarrier_wait(uint64_t *barrier, int parity)
{
    nb_emulator_mbarrier_wait(barrier, parity);
}

NB_EMULATED_INSTRUCTION void nb_copy_async_arrive(uint64_t *barrier)
{
    nb_emulator_copy_async_arrive(barrier);
}

NB_EMULATED_INSTRUCTION void nb_ldmatrix_x4(uint32_t r[4], const void *row)
{
    nb_u32_x4 v = nb_emulator_ldmatrix(row, 4, false);
    memcpy(r, &v, 16); /* one access, not four */
}

NB_EMULATED_INSTRUCTION void nb_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    nb_u32_x4 v = nb_emulator_ldmatrix(row, 4, true);
    memcpy(r, &v, 16); /* one access, not four */
}

NB_EMULATED_INSTRUCTION void nb_ldmatrix_x2(uint32_t r[2], const void *row)
{
    nb_u32_x4 v = nb_emulator_ldmatrix(row, 2, false);
    memcpy(r, &v, 8);
}

NB_EMULATED_INSTRUCTION void nb_ldmatrix_x2_trans(uint32_t r[2], const void *row)
{
    nb_u32_x4 v = nb_emulator_ldmatrix(row, 2, true);
    memcpy(r, &v, 8);
}

NB_EMULATED_INSTRUCTION void nb_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    nb_float_x4 sums;
    nb_u32_x4 rows;
    uint64_t columns;
    memcpy(&sums, d, 16);
    memcpy(&rows, a, 16);
    memcpy(&columns, b, 8);
    sums = nb_emulator_mma_bf16(sums, rows, columns);
    memcpy(d, &sums, 16);
}

NB_EMULATED_INSTRUCTION uint32_t nb_permute_bytes(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t bytes = a | (uint64_t)b << 32;
    uint32_t permuted = 0;
    for (int i = 0; i < 4; i++)
        permuted |= (uint32_t)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return permuted;
}

/* To nearest, ties to even; any NaN becomes 0x7fff. */
NB_EMULATED_INSTRUCTION uint32_t nb_emulator_to_bf16(float value)
{
    uint32_t bits = nb_emulator_bits(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

NB_EMULATED_INSTRUCTION uint32_t nb_pack_bf16(float low, float high)
{
    return nb_emulator_to_bf16(low) | nb_emulator_to_bf16(high) << 16;
}

NB_EMULATED_INSTRUCTION uint32_t nb_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    return nb_emulator_fma_bf16(a & 0xffff, b & 0xffff, c & 0xffff) | nb_emulator_fma_bf16(a >> 16, b >> 16, c >> 16)
                                                                          << 16;
}

NB_EMULATED_INSTRUCTION float nb_exp2_fast(float x)
{
    return nb_emulator_exp2(x);
}

NB_EMULATED_INSTRUCTION float nb_reciprocal_fast(float x)
{
    return nb_emulator_reciprocal(x);
}

NB_EMULATED_INSTRUCTION uint32_t nb_atomic_add(uint32_t *global, uint32_t value)
{
    return nb_emulator_atomic_add(global, value);
}

NB_EMULATED_INSTRUCTION uint32_t nb_atomic_max(uint32_t *global, uint32_t value)
{
    return nb_emulator_atomic_max(global, value);
}

#endif
