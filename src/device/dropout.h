/* Which inputs of an adapter's branch dropout keeps: the one definition for all devices.
 * Philox counter {feature / 4, token within the step, random_step, low half of module}, key {seed[0] ^ high half of
 * module, seed[1]}; word feature % 4 of the result, its top 24 bits as u in [0, 1), keeps the feature where u >=
 * dropout. */
#ifndef NB_DEVICE_DROPOUT_H
#define NB_DEVICE_DROPOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/random.h"

/* What a row's numbers are drawn with. `token`: slot->token_offset + row. */
struct nb_dropout {
    uint32_t token, random_step, module, key[2];
    uint32_t threshold; /* kept where word >> 8 >= this: the least integer t with t * 2^-24 >= dropout */
};

/* 0 <= dropout < 1. */
NB_DEVICE_FUNCTION struct nb_dropout nb_dropout(
    float dropout, uint64_t module, uint32_t random_step, const uint32_t seed[2], uint32_t token)
{
    uint32_t threshold = (uint32_t)(dropout * 0x1p24f); /* the product is exact */
    threshold += (float)threshold < dropout * 0x1p24f;
    struct nb_dropout d = {
        token, random_step, (uint32_t)module, {seed[0] ^ (uint32_t)(module >> 32), seed[1]}, threshold};
    return d;
}

/* Whether a feature is kept. */
NB_DEVICE_FUNCTION bool nb_dropout_keep(const struct nb_dropout *d, uint32_t feature)
{
    uint32_t counter[4] = {feature / 4, d->token, d->random_step, d->module};
    return nb_philox(counter, d->key).word[feature % 4] >> 8 >= d->threshold;
}

/* Features 4 * block to 4 * block + 3 at once: byte i is 1 where 4 * block + i is kept, else 0; byte 0 is the lowest. A
 * loop over blocks vectorizes. */
NB_DEVICE_FUNCTION uint32_t nb_dropout_keep_block(const struct nb_dropout *d, uint32_t block)
{
    uint32_t counter[4] = {block, d->token, d->random_step, d->module};
    struct nb_philox number = nb_philox(counter, d->key);
    uint32_t k0 = number.word[0] >> 8 >= d->threshold, k1 = number.word[1] >> 8 >= d->threshold;
    uint32_t k2 = number.word[2] >> 8 >= d->threshold, k3 = number.word[3] >> 8 >= d->threshold;
    return k0 | k1 << 8 | k2 << 16 | k3 << 24;
}

#endif
