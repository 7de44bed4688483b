/* Every machine instruction that the kernels use beyond plain C++, each wrapped once. Kernels include no other CUDA
 * header.
 *
 * Under NB_EMULATED the same declarations are met by tests/emulator (plain g++): there a kernel's threads are
 * fibers, and what the hardware would only sometimes punish is found. Source of all shapes and layouts: NVIDIA, PTX
 * ISA 8.7, the section named.
 *
 * Kernels are written in this subset of CUDA C++, which both compilers take:
 *   - __global__, __device__, __launch_bounds__, threadIdx.x (blocks are one-dimensional), blockIdx, blockDim.x, gridDim;
 *   - shared memory is dynamic only: nb_shared_memory();
 *   - constant data is `NB_CONSTANT` at file scope; there are no __device__ variables;
 *   - vector types uint2, uint4, int2, float2, float4; math: fmaf, sqrtf, expf, logf, tanhf, fabsf, fminf, fmaxf, floorf, and the double
 *     versions. Contraction is off (-fmad=false): fmaf where one is meant;
 *   - plain pointers into global and shared memory; every access is at its natural alignment. */
#ifndef NB_CUDA_PTX_CUH
#define NB_CUDA_PTX_CUH

#include <stddef.h>
#include <stdint.h>

#ifdef NB_EMULATED
#include "emulator/cuda_runtime.h"
#define NB_INSTRUCTION static inline
#else
#include <cuda_runtime.h>
#define NB_INSTRUCTION static __device__ __forceinline__
#define NB_CONSTANT static __constant__ const
#endif

enum { NB_WARP = 32 };

/* ---- the block's memory and barriers ---- */

/* The block's dynamic shared memory, aligned to 1,024 bytes. Contents undefined at start. */
NB_INSTRUCTION unsigned char *nb_shared_memory(void);

/* All threads of the block: bar.sync 0. Orders shared and global memory among them. */
NB_INSTRUCTION void nb_block_barrier(void);

/* All threads of the block, and whether `condition` held for any of them: barrier.red.or. */
NB_INSTRUCTION bool nb_block_any(bool condition);

/* `threads` threads of the block (a multiple of 32) that name barrier `id`, 1 to 15: barrier.sync. */
NB_INSTRUCTION void nb_named_barrier(int id, int threads);

/* Counts as arrived at it without waiting: barrier.arrive. */
NB_INSTRUCTION void nb_named_arrive(int id, int threads);

/* The 32 lanes of the warp: bar.warp.sync. Orders memory among them. */
NB_INSTRUCTION void nb_warp_barrier(void);

/* Orders this thread's earlier writes before its later ones for all threads of the device: membar.gl
 * (__threadfence). */
NB_INSTRUCTION void nb_device_fence(void);

/* ---- warp exchange: all 32 lanes take part (shfl.sync, vote.sync; section 9.7.9) ---- */

NB_INSTRUCTION float nb_shuffle_xor(float value, int mask);
NB_INSTRUCTION uint32_t nb_shuffle_xor_u32(uint32_t value, int mask);
NB_INSTRUCTION float nb_shuffle(float value, int lane); /* the value of that lane */
NB_INSTRUCTION uint32_t nb_shuffle_u32(uint32_t value, int lane);
NB_INSTRUCTION float nb_shuffle_up(float value, int delta); /* of lane - delta; the own one where there is none */
NB_INSTRUCTION uint32_t nb_shuffle_up_u32(uint32_t value, int delta);
NB_INSTRUCTION uint32_t nb_ballot(bool condition); /* bit l: lane l's */
NB_INSTRUCTION bool nb_warp_any(bool condition);
NB_INSTRUCTION bool nb_warp_all(bool condition);

/* ---- copies ---- */

/* cp.async.cg: 16 bytes from global to shared memory, both 16-byte aligned, of which the first `valid` (0 to 16) are
 * read and the rest become zero; with 0 nothing is read and `global` may be anything. Lands by the wait for its
 * group, not before. */
NB_INSTRUCTION void nb_copy_async_16(void *shared, const void *global, int valid);
/* cp.async.ca: 4 or 8 bytes, aligned to as many. */
NB_INSTRUCTION void nb_copy_async_8(void *shared, const void *global, int valid);
NB_INSTRUCTION void nb_copy_async_4(void *shared, const void *global, int valid);
/* This thread's copies since the last commit become one group: cp.async.commit_group. */
NB_INSTRUCTION void nb_copy_async_commit(void);
/* Until at most N of this thread's groups are under way: cp.async.wait_group. The other threads' copies need a
 * barrier besides. */
template <int N> NB_INSTRUCTION void nb_copy_async_wait(void);

/* 16 bytes that are read once: ld.global.nc.L1::no_allocate. The kernel writes nothing there. */
NB_INSTRUCTION uint4 nb_load_once_16(const void *global);
/* 16 bytes that are not read again soon: st.global.cs. */
NB_INSTRUCTION void nb_store_once_16(void *global, uint4 value);

/* ---- mbarrier, 8 bytes in shared memory, aligned (section 9.7.13.15) ---- */

NB_INSTRUCTION void nb_mbarrier_init(uint64_t *barrier, int arrivals);
NB_INSTRUCTION void nb_mbarrier_arrive(uint64_t *barrier);
/* Until the phase with this parity (0 for the first) is complete: mbarrier.try_wait.parity in a loop. */
NB_INSTRUCTION void nb_mbarrier_wait(uint64_t *barrier, int parity);
/* This thread's copies so far count as one arrival when they have landed: cp.async.mbarrier.arrive.noinc. */
NB_INSTRUCTION void nb_copy_async_arrive(uint64_t *barrier);

/* ---- matrices ---- */

/* ldmatrix: four (two) 8x8 matrices of 16-bit elements. Lane l gives the address, 16-byte aligned in shared memory,
 * of row l % 8 of matrix l / 8 (lanes 0 to 15 for x2); r[i] holds of matrix i row lane / 4, columns 2 * (lane % 4)
 * and the next, the lower column in the low half. _trans: of the transposed matrix. Section 9.7.14.5.15. */
NB_INSTRUCTION void nb_ldmatrix_x4(uint32_t r[4], const void *row);
NB_INSTRUCTION void nb_ldmatrix_x4_trans(uint32_t r[4], const void *row);
NB_INSTRUCTION void nb_ldmatrix_x2(uint32_t r[2], const void *row);
NB_INSTRUCTION void nb_ldmatrix_x2_trans(uint32_t r[2], const void *row);

/* mma.sync.m16n8k16, bf16 by bf16 into fp32: d += a b. With g = lane / 4, q = lane % 4 (section 9.7.14.5.8):
 *   a[0]: row g, columns 2q, 2q+1;  a[1]: row g+8, the same;  a[2]: row g, columns 2q+8, 2q+9;  a[3]: row g+8, those
 *   b[0]: rows 2q, 2q+1 of column g;  b[1]: rows 2q+8, 2q+9
 *   d[0], d[1]: row g, columns 2q, 2q+1;  d[2], d[3]: row g+8 */
NB_INSTRUCTION void nb_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);

/* ---- arithmetic ---- */

/* prmt: byte i of the result is byte (selector >> 4i) & 7 of {a: 0 to 3, b: 4 to 7}; bit 3 of a selector would
 * spread the sign: leave it 0. */
NB_INSTRUCTION uint32_t nb_permute_bytes(uint32_t a, uint32_t b, uint32_t selector);
/* cvt.rn.bf16x2.f32: `low` in the low half. */
NB_INSTRUCTION uint32_t nb_pack_bf16(float low, float high);
/* fma.rn.bf16x2: both halves, rounded once. */
NB_INSTRUCTION uint32_t nb_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);
/* ex2.approx.ftz.f32: 2^x within 2 ulp; results below 2^-126 are 0. 2^-infinity is 0. */
NB_INSTRUCTION float nb_exp2_fast(float x);
/* rcp.approx.ftz.f32: 1/x within 1 ulp. */
NB_INSTRUCTION float nb_reciprocal_fast(float x);
/* Adds to a word of global memory and returns what it was: atom.add.u32. For counting blocks, never for sums that a
 * result holds. */
NB_INSTRUCTION uint32_t nb_atomic_add(uint32_t *global, uint32_t value);
/* The largest seen: atom.max.u32 (global memory). */
NB_INSTRUCTION uint32_t nb_atomic_max(uint32_t *global, uint32_t value);

#ifdef NB_EMULATED
#include "emulator/ptx.h"
#else

extern __shared__ __align__(1024) unsigned char nb_shared_bytes[];

NB_INSTRUCTION unsigned char *nb_shared_memory(void)
{
    return nb_shared_bytes;
}

NB_INSTRUCTION uint32_t nb_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

NB_INSTRUCTION void nb_block_barrier(void)
{
    __syncthreads();
}

NB_INSTRUCTION bool nb_block_any(bool condition)
{
    return __syncthreads_or(condition) != 0;
}

NB_INSTRUCTION void nb_named_barrier(int id, int threads)
{
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

NB_INSTRUCTION void nb_named_arrive(int id, int threads)
{
    asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

NB_INSTRUCTION void nb_warp_barrier(void)
{
    __syncwarp();
}

NB_INSTRUCTION void nb_device_fence(void)
{
    __threadfence();
}

#define NB_ALL_LANES 0xffffffffu

NB_INSTRUCTION float nb_shuffle_xor(float value, int mask)
{
    return __shfl_xor_sync(NB_ALL_LANES, value, mask);
}

NB_INSTRUCTION uint32_t nb_shuffle_xor_u32(uint32_t value, int mask)
{
    return __shfl_xor_sync(NB_ALL_LANES, value, mask);
}

NB_INSTRUCTION float nb_shuffle(float value, int lane)
{
    return __shfl_sync(NB_ALL_LANES, value, lane);
}

NB_INSTRUCTION uint32_t nb_shuffle_u32(uint32_t value, int lane)
{
    return __shfl_sync(NB_ALL_LANES, value, lane);
}

NB_INSTRUCTION float nb_shuffle_up(float value, int delta)
{
    return __shfl_up_sync(NB_ALL_LANES, value, (unsigned)delta);
}

NB_INSTRUCTION uint32_t nb_shuffle_up_u32(uint32_t value, int delta)
{
    return __shfl_up_sync(NB_ALL_LANES, value, (unsigned)delta);
}

NB_INSTRUCTION uint32_t nb_ballot(bool condition)
{
    return __ballot_sync(NB_ALL_LANES, condition);
}

NB_INSTRUCTION bool nb_warp_any(bool condition)
{
    return __any_sync(NB_ALL_LANES, condition) != 0;
}

NB_INSTRUCTION bool nb_warp_all(bool condition)
{
    return __all_sync(NB_ALL_LANES, condition) != 0;
}

NB_INSTRUCTION void nb_copy_async_16(void *shared, const void *global, int valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(nb_shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
}

NB_INSTRUCTION void nb_copy_async_8(void *shared, const void *global, int valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(nb_shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
}

NB_INSTRUCTION void nb_copy_async_4(void *shared, const void *global, int valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(nb_shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
}

NB_INSTRUCTION void nb_copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> NB_INSTRUCTION void nb_copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

NB_INSTRUCTION uint4 nb_load_once_16(const void *global)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
}

NB_INSTRUCTION void nb_store_once_16(void *global, uint4 v)
{
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

NB_INSTRUCTION void nb_mbarrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(nb_shared_address(barrier)), "r"(arrivals) : "memory");
}

NB_INSTRUCTION void nb_mbarrier_arrive(uint64_t *barrier)
{
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(nb_shared_address(barrier)) : "memory");
}

/* test_wait, not try_wait, which sm_80 lacks. */
NB_INSTRUCTION void nb_mbarrier_wait(uint64_t *barrier, int parity)
{
    uint32_t done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(nb_shared_address(barrier)), "r"(parity)
                     : "memory");
}

NB_INSTRUCTION void nb_copy_async_arrive(uint64_t *barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(nb_shared_address(barrier)) : "memory");
}

NB_INSTRUCTION void nb_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(nb_shared_address(row))
                 : "memory");
}

NB_INSTRUCTION void nb_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(nb_shared_address(row))
                 : "memory");
}

NB_INSTRUCTION void nb_ldmatrix_x2(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(nb_shared_address(row))
                 : "memory");
}

NB_INSTRUCTION void nb_ldmatrix_x2_trans(uint32_t r[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(nb_shared_address(row))
                 : "memory");
}

NB_INSTRUCTION void nb_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

NB_INSTRUCTION uint32_t nb_permute_bytes(uint32_t a, uint32_t b, uint32_t selector)
{
    /* Not __byte_perm, which masks its selector first. */
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

NB_INSTRUCTION uint32_t nb_pack_bf16(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

NB_INSTRUCTION uint32_t nb_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

NB_INSTRUCTION float nb_exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

NB_INSTRUCTION float nb_reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

NB_INSTRUCTION uint32_t nb_atomic_add(uint32_t *global, uint32_t value)
{
    return atomicAdd(global, value);
}

NB_INSTRUCTION uint32_t nb_atomic_max(uint32_t *global, uint32_t value)
{
    return atomicMax(global, value);
}

#endif

#endif
