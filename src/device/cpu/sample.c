#include <math.h>

#include "base/random.h"
#include "device/cpu/element.h"

/* A logit with its id, as one number that sorts by falling logit, then by rising id. */
typedef uint64_t sort_key;

enum { DIGIT_BITS = 8, DIGITS = 4, DIGIT_VALUES = 1 << DIGIT_BITS };

/* Bits that fall as the value rises: a float's order as an unsigned integer's, turned around. -0 counts as 0. */
static uint32_t falling_bits(float value)
{
    uint32_t bits = nb_float_bits(value + 0.0f);
    uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~rising;
}

static float value_of(sort_key key)
{
    uint32_t rising = ~(uint32_t)(key >> 32);
    return nb_float_from_bits(rising & 0x80000000u ? rising & 0x7fffffffu : ~rising);
}

/* Sorts by the upper 32 bits, least significant digit first; each pass is stable, so ids stay in order. Four passes end in `key`. */
static void sort_by_logit(sort_key *key, sort_key *other, int count)
{
    for (int digit = 0; digit < DIGITS; digit++) {
        int shift = 32 + digit * DIGIT_BITS, start[DIGIT_VALUES + 1] = {0};
        for (int i = 0; i < count; i++)
            start[((key[i] >> shift) & (DIGIT_VALUES - 1)) + 1]++;
        for (int value = 0; value < DIGIT_VALUES; value++)
            start[value + 1] += start[value];
        for (int i = 0; i < count; i++)
            other[start[(key[i] >> shift) & (DIGIT_VALUES - 1)]++] = key[i];
        sort_key *swap = key;
        key = other;
        other = swap;
    }
}

/* How many of the first `count` sorted logits the smallest set has whose share of their probability reaches top_p; at least 1. */
static int nucleus(const sort_key *key, int count, float temperature, float top_p)
{
    double total = 0, running = 0;
    float largest = value_of(key[0]);
    for (int i = 0; i < count; i++)
        total += nb_expf((value_of(key[i]) - largest) / temperature);
    for (int i = 0; i < count; i++) {
        running += nb_expf((value_of(key[i]) - largest) / temperature);
        if (running >= (double)top_p * total)
            return i + 1;
    }
    return count;
}

/* The last key of the set that top_k and top_p leave. */
static sort_key last_chosen(const struct nb_sample *a)
{
    if (a->top_k == 0 && a->top_p >= 1.0f)
        return UINT64_MAX;
    sort_key *key = nb_cpu_pointer(a->scratch.base), *other = key + a->vocabulary;
    const void *logits = nb_cpu_pointer(a->logits);
    for (int i = 0; i < a->vocabulary; i++)
        key[i] = (sort_key)falling_bits(nb_cpu_get(logits, a->activation, i)) << 32 | (uint32_t)i;
    sort_by_logit(key, other, a->vocabulary);
    int count = a->top_k > 0 && a->top_k < a->vocabulary ? a->top_k : a->vocabulary;
    if (a->top_p < 1.0f)
        count = nucleus(key, count, a->temperature, a->top_p);
    return key[count - 1];
}

/* The id of the largest logit, -1 if one is NaN or plus infinity. */
static int32_t largest_of(const struct nb_sample *a)
{
    const void *logits = nb_cpu_pointer(a->logits);
    int32_t best = 0;
    for (int32_t i = 0; i < a->vocabulary; i++) {
        float logit = nb_cpu_get(logits, a->activation, i);
        if (!(logit < INFINITY))
            return -1;
        if (logit > nb_cpu_get(logits, a->activation, best))
            best = i;
    }
    return best;
}

uint64_t nb_cpu_sample_scratch_bytes(const struct nb_device_profile *profile, const struct nb_sample *a)
{
    (void)profile;
    bool sorts = a->temperature > 0 && (a->top_k > 0 || a->top_p < 1.0f);
    return sorts ? 2 * sizeof(sort_key) * (uint64_t)a->vocabulary : 0;
}

void nb_cpu_run_sample(struct nb_cpu *cpu, const struct nb_sample *a)
{
    (void)cpu; /* one thread: one row */
    const void *logits = nb_cpu_pointer(a->logits);
    int32_t *next = nb_cpu_pointer(a->next), best = largest_of(a);
    *next = best;
    if (a->temperature <= 0 || best < 0)
        return;
    sort_key last = last_chosen(a);
    float largest = nb_cpu_get(logits, a->activation, best);
    double uniform = nb_random_uniform(a->seed, NB_RANDOM_SAMPLE, 0, nb_cpu_slot(a->slot)->sample_index);
    double total = 0, running = 0;
    /* The first walk adds the chosen probabilities up, the second stops where the uniform share of them is passed. */
    for (int walk = 0; walk < 2; walk++)
        for (int32_t i = 0; i < a->vocabulary; i++) {
            float logit = nb_cpu_get(logits, a->activation, i);
            sort_key key = (sort_key)falling_bits(logit) << 32 | (uint32_t)i;
            if (key > last)
                continue;
            double probability = nb_expf((logit - largest) / a->temperature);
            if (walk == 0) {
                total += probability;
            } else if ((running += probability) > uniform * total) {
                *next = i;
                return;
            }
        }
}
