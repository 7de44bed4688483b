#include "model/random_weights.h"

#include "base/random.h"

void nb_fill_random_weights(nb_bf16 *values, uint64_t count)
{
    for (uint64_t i = 0; i < count; i += 4) {
        const uint32_t counter[4] = {(uint32_t)i, (uint32_t)(i >> 32), 0, 0}, key[2] = {3, 5};
        struct nb_philox number = nb_philox(counter, key);
        for (uint64_t k = 0; k < 4 && i + k < count; k++)
            values[i + k] = nb_bf16_from_float(((float)(number.word[k] >> 8) * 0x1p-23f - 1) * 0.035f);
    }
}
