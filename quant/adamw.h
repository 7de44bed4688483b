/* The arithmetic of AdamW on one block of a tensor, with fp32 or 8-bit moments.
 * Source: Loshchilov and Hutter 2019, arXiv 1711.05101, in torch's order; 8-bit: bitsandbytes, kOptimizerStatic8bit2StateBlockwise.
 *
 *   g = gradient_scale * gradient
 *   m = beta1 * m + (1 - beta1) * g
 *   v = beta2 * v + (1 - beta2) * g * g
 *   p = p * (1 - learning_rate * weight_decay) + step_size * m / (sqrt(v) + c2 * epsilon)
 * c1 = 1 - beta1^t, c2 = sqrt(1 - beta2^t), step_size = -learning_rate * c2 / c1.
 *
 * Elementwise apart from the scales of 8-bit blocks, so neither the cut into blocks of fp32 moments nor threads change a bit. */
#ifndef NB_QUANT_ADAMW_H
#define NB_QUANT_ADAMW_H

#include <stdint.h>

#include "quant/dynamic_map.h"

#ifdef __cplusplus
extern "C" {
#endif

struct nb_adamw_settings {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
};

/* What one step multiplies by. Computed in double precision, rounded once. */
struct nb_adamw_factors {
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float decay;          /* 1 - learning_rate * weight_decay */
    float step_size;      /* -learning_rate * c2 / c1 */
    float epsilon;        /* c2 * epsilon */
    float gradient_scale; /* gradients are sums: 1 / trained tokens * the clip scale */
};

/* `step` counts from 1. */
struct nb_adamw_factors nb_adamw_factors(const struct nb_adamw_settings *settings, int64_t step, float gradient_scale);

/* Updates p, m, v [count] from gradient [count], all fp32, none overlapping. Any count. */
void nb_adamw_block(const struct nb_adamw_factors *factors, int64_t count, const float *gradient, float *p, float *m, float *v);

/* The two maps of 8-bit moments: the first signed, the second unsigned. 16.4 KiB. */
struct nb_adamw8_coders {
    struct nb_dynamic_coder first, second;
};

void nb_adamw8_coders_init(struct nb_adamw8_coders *coders);

/* One block of 256 elements, the last of a tensor less. Nothing overlaps. Before the first step the codes may be anything
 * and the scales 0. A tensor of under 4,096 elements keeps fp32 moments: the caller's choice. */
struct nb_adamw8_block {
    int count;             /* 1 to 256 */
    const float *gradient; /* [count] */
    float *p;              /* [count] */
    uint8_t *m_codes;      /* [count], signed map */
    uint8_t *v_codes;      /* [count], unsigned map */
    float *m_absmax;       /* one */
    float *v_absmax;       /* one */
};

/* The parameters move by the moments as they are before they are quantized again. */
void nb_adamw8_block(const struct nb_adamw_factors *factors, const struct nb_adamw8_coders *coders,
                     const struct nb_adamw8_block *block);

#ifdef __cplusplus
}
#endif

#endif
