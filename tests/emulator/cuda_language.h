/* What CUDA C++ has beyond C++, as far as cuda/ uses it, for plain g++. */
#ifndef NB_TESTS_EMULATOR_CUDA_LANGUAGE_H
#define NB_TESTS_EMULATOR_CUDA_LANGUAGE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define NB_CONSTANT      static const

/* Sizes and alignments as in CUDA's vector_types.h: an access to a whole vector is one instruction, and must be
 * aligned as such. */
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(8) int2 {
    int32_t x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) int4 {
    int32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct uint3 {
    uint32_t x, y, z;
};
struct dim3 {
    uint32_t x, y, z;
    constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z)
    {
    }
};

static inline struct uint2 make_uint2(uint32_t x, uint32_t y)
{
    return {x, y};
}
static inline struct int2 make_int2(int32_t x, int32_t y)
{
    return {x, y};
}
static inline struct float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline struct uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}
static inline struct int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w)
{
    return {x, y, z, w};
}
static inline struct float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline struct double2 make_double2(double x, double y)
{
    return {x, y};
}

/* Where the running fiber stands. Functions of no memory: a fiber's place never changes, and it never leaves its
 * OS thread. */
extern "C" {
unsigned nb_emulator_thread_index(void) __attribute__((const));
unsigned nb_emulator_block_index(int axis) __attribute__((const));
unsigned nb_emulator_block_threads(void) __attribute__((const));
unsigned nb_emulator_grid_blocks(int axis) __attribute__((const));
}

static inline struct uint3 nb_emulator_thread_place(void)
{
    return {nb_emulator_thread_index(), 0, 0};
}
static inline struct uint3 nb_emulator_block_place(void)
{
    return {nb_emulator_block_index(0), nb_emulator_block_index(1), nb_emulator_block_index(2)};
}
static inline struct dim3 nb_emulator_block_extent(void)
{
    return {nb_emulator_block_threads(), 1, 1};
}
static inline struct dim3 nb_emulator_grid_extent(void)
{
    return {nb_emulator_grid_blocks(0), nb_emulator_grid_blocks(1), nb_emulator_grid_blocks(2)};
}

#define threadIdx (nb_emulator_thread_place())
#define blockIdx  (nb_emulator_block_place())
#define blockDim  (nb_emulator_block_extent())
#define gridDim   (nb_emulator_grid_extent())

#endif
