#include "base/random.h"

uint32_t nb_random_u32(uint64_t seed, enum nb_random_use use, uint64_t stream, uint64_t index)
{
    uint64_t block = index / 4;
    /* The use goes into the top byte of the block number, which no stream here reaches. */
    uint32_t counter[4] = {
        (uint32_t)block, (uint32_t)(block >> 32) | (uint32_t)use << 24, (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    return nb_philox(counter, key).word[index % 4];
}

float nb_random_uniform(uint64_t seed, enum nb_random_use use, uint64_t stream, uint64_t index)
{
    return (float)(nb_random_u32(seed, use, stream, index) >> 8) * 0x1p-24f;
}

uint32_t nb_random_below(uint64_t seed, enum nb_random_use use, uint64_t stream, uint64_t index, uint32_t bound)
{
    return (uint32_t)(((uint64_t)nb_random_u32(seed, use, stream, index) * bound) >> 32);
}

void nb_random_shuffle(uint64_t seed, enum nb_random_use use, uint64_t stream, uint32_t *order, uint32_t count)
{
    for (uint32_t i = count; i > 1; i--) {
        uint32_t j = nb_random_below(seed, use, stream, count - i, i);
        uint32_t swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

uint64_t nb_name_hash(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}
