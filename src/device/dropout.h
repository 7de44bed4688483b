/* Which inputs of an adapter's branch dropout keeps: the one definition for all devices.
 * Philox counter {feature / 4, token within the step, random_step, low half of module}, key {seed[0] ^ high half of module, seed[1]};
 * word feature % 4 of the result, its top 24 bits as u in [0, 1), keeps the feature where u >= dropout. */
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
static inline struct nb_dropout nb_dropout(float dropout, uint64_t module, uint32_t random_step, const uint32_t seed[2], uint32_t token)
{
    uint32_t threshold = (uint32_t)(dropout * 0x1p24f); /* the product is exact */
    threshold += (float)threshold < dropout * 0x1p24f;
    return (struct nb_dropout){token, random_step, (uint32_t)module, {seed[0] ^ (uint32_t)(module >> 32), seed[1]}, threshold};
}

/* Whether a feature is kept. */
static inline bool nb_dropout_keep(const struct nb_dropout *d, uint32_t feature)
{
    uint32_t counter[4] = {feature / 4, d->token, d->random_step, d->module};
    return nb_philox(counter, d->key).word[feature % 4] >> 8 >= d->threshold;
}

enum { NB_DROPOUT_GROUP = 64 };

/* keep[i] = 1 where feature begin + i is kept, else 0, for 64 features; begin is a multiple of 4. nb_dropout_keep of 16 blocks side by
 * side, so that the compiler vectorizes it. */
static inline void nb_dropout_keep_group(const struct nb_dropout *d, uint32_t begin, uint8_t keep[NB_DROPOUT_GROUP])
{
    uint32_t c0[16], c1[16], c2[16], c3[16], k0 = d->key[0], k1 = d->key[1];
    for (int i = 0; i < 16; i++) {
        c0[i] = begin / 4 + (uint32_t)i;
        c1[i] = d->token;
        c2[i] = d->random_step;
        c3[i] = d->module;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 16; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c1[i] = (uint32_t)p1;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 16; i++) {
        keep[4 * i] = c0[i] >> 8 >= d->threshold;
        keep[4 * i + 1] = c1[i] >> 8 >= d->threshold;
        keep[4 * i + 2] = c2[i] >> 8 >= d->threshold;
        keep[4 * i + 3] = c3[i] >> 8 >= d->threshold;
    }
}

#endif
