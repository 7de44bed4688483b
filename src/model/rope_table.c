#include "model/rope_table.h"

#include <math.h>

static float scale_llama3(const struct nb_rope_spec *spec, float frequency)
{
    const float pi = 3.14159265358979323846f;
    float context = (float)spec->original_max_positions, factor = (float)spec->factor;
    float low = (float)spec->low_freq_factor, high = (float)spec->high_freq_factor;
    float wave_length = 2 * pi / frequency;
    if (wave_length > context / low)
        return frequency / factor;
    if (wave_length < context / high)
        return frequency;
    float smooth = (context / wave_length - low) / (high - low);
    return (1 - smooth) * frequency / factor + smooth * frequency;
}

void nb_rope_inverse_frequencies(const struct nb_rope_spec *spec, int head_dim, float *inverse_frequency)
{
    for (int i = 0; i < head_dim / 2; i++) {
        float frequency = 1.0f / powf((float)spec->theta, (float)(2 * i) / (float)head_dim);
        inverse_frequency[i] = spec->type == NB_ROPE_LLAMA3 ? scale_llama3(spec, frequency) : frequency;
    }
}

void nb_rope_angles(const float *inverse_frequency, int half, int begin, int count, float *cosine, float *sine)
{
    for (int t = 0; t < count; t++)
        for (int i = 0; i < half; i++) {
            float angle = (float)(begin + t) * inverse_frequency[i];
            cosine[(long)t * half + i] = cosf(angle);
            sine[(long)t * half + i] = sinf(angle);
        }
}
