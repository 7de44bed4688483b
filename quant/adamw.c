#include "quant/adamw.h"

#include <math.h>

#include "base/simd.h"

struct nb_adamw_factors nb_adamw_factors(const struct nb_adamw_settings *settings, int64_t step, float gradient_scale)
{
    double c1 = 1.0 - pow(settings->beta1, (double)step);
    double c2 = sqrt(1.0 - pow(settings->beta2, (double)step));
    return (struct nb_adamw_factors){
        .beta1 = (float)settings->beta1,
        .one_minus_beta1 = (float)(1.0 - settings->beta1),
        .beta2 = (float)settings->beta2,
        .one_minus_beta2 = (float)(1.0 - settings->beta2),
        .decay = (float)(1.0 - settings->learning_rate * settings->weight_decay),
        .step_size = (float)(-settings->learning_rate * c2 / c1),
        .epsilon = (float)(c2 * settings->epsilon),
        .gradient_scale = gradient_scale,
    };
}

NB_CLONES
void nb_adamw_block(const struct nb_adamw_factors *factors, int64_t count, const float *restrict gradient,
    float *restrict p, float *restrict m, float *restrict v)
{
    const struct nb_adamw_factors f = *factors;
    for (int64_t i = 0; i < count; i++) {
        float g = f.gradient_scale * gradient[i];
        m[i] = f.beta1 * m[i] + f.one_minus_beta1 * g;
        v[i] = f.beta2 * v[i] + f.one_minus_beta2 * (g * g);
        p[i] = p[i] * f.decay + f.step_size * (m[i] / (sqrtf(v[i]) + f.epsilon));
    }
}

void nb_adamw8_coders_init(struct nb_adamw8_coders *coders)
{
    nb_dynamic_coder_init(true, &coders->first);
    nb_dynamic_coder_init(false, &coders->second);
}

void nb_adamw8_block(
    const struct nb_adamw_factors *factors, const struct nb_adamw8_coders *coders, const struct nb_adamw8_block *block)
{
    float m[NB_DYNAMIC_BLOCK], v[NB_DYNAMIC_BLOCK];
    nb_dynamic_dequantize_block(coders->first.map, block->m_codes, block->count, *block->m_absmax, m);
    nb_dynamic_dequantize_block(coders->second.map, block->v_codes, block->count, *block->v_absmax, v);
    nb_adamw_block(factors, block->count, block->gradient, block->p, m, v);
    nb_dynamic_quantize_block(&coders->first, m, block->count, block->m_codes, block->m_absmax);
    nb_dynamic_quantize_block(&coders->second, v, block->count, block->v_codes, block->v_absmax);
}
