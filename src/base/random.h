/* Counter-based random numbers: Philox4x32-10. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
 * and its reference constants. The same counter and key give the same numbers on every device, so nothing depends on order. */
#ifndef NB_BASE_RANDOM_H
#define NB_BASE_RANDOM_H

#include <stdint.h>

/* Before a function of a header that kernels call too. */
#ifdef __CUDACC__
#define NB_DEVICE_FUNCTION static inline __host__ __device__
#else
#define NB_DEVICE_FUNCTION static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct nb_philox {
    uint32_t word[4];
};

NB_DEVICE_FUNCTION struct nb_philox nb_philox(const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct nb_philox number = {{c0, c1, c2, c3}};
    return number;
}

/* What a stream of numbers is for; part of the key, so that two uses of one seed never share numbers. */
enum nb_random_use {
    NB_RANDOM_SHUFFLE = 1,
    NB_RANDOM_SPLIT,
    NB_RANDOM_ADAPTER_INIT,
    NB_RANDOM_DROPOUT,
    NB_RANDOM_SAMPLE,
    NB_RANDOM_PACK,
};

/* The 32 bits number `index` of the stream (seed, use, stream): word index % 4 of the block index / 4. */
uint32_t nb_random_u32(uint64_t seed, enum nb_random_use use, uint64_t stream, uint64_t index);

/* Uniform in [0, 1): the top 24 bits of nb_random_u32, times 2^-24. */
float nb_random_uniform(uint64_t seed, enum nb_random_use use, uint64_t stream, uint64_t index);

/* Uniform integer in [0, bound), bound > 0: the high half of a 64-bit product with one number (bias below 2^-32 * bound). */
uint32_t nb_random_below(uint64_t seed, enum nb_random_use use, uint64_t stream, uint64_t index, uint32_t bound);

/* Fisher-Yates over order[0..count), in place; the same (seed, use, stream) gives the same permutation. */
void nb_random_shuffle(uint64_t seed, enum nb_random_use use, uint64_t stream, uint32_t *order, uint32_t count);

/* FNV-1a of a name, 64 bits: a module's identity in the dropout counters and in the adapter's initial values. */
uint64_t nb_name_hash(const char *name);

#ifdef __cplusplus
}
#endif

#endif
