#include "quant/codec.h"

/* Quantiles of a normal distribution, as bitsandbytes publishes them; not recomputed, so that every bit agrees. */
static const float nf4_codebook[NB_QUANT_CODES] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

static const float fp4_codebook[NB_QUANT_CODES] = {
    0.0f, 1.0f / 192.0f,  2.0f / 3.0f,  1.0f,  1.0f / 3.0f,  1.0f / 2.0f,  1.0f / 6.0f,  1.0f / 4.0f,
    0.0f, -1.0f / 192.0f, -2.0f / 3.0f, -1.0f, -1.0f / 3.0f, -1.0f / 2.0f, -1.0f / 6.0f, -1.0f / 4.0f,
};

const char *nb_quant_type_name(enum nb_quant_type type)
{
    return type == NB_QUANT_NF4 ? "nf4" : "fp4";
}

const float *nb_quant_codebook(enum nb_quant_type type)
{
    return type == NB_QUANT_NF4 ? nf4_codebook : fp4_codebook;
}

void nb_quant_thresholds(enum nb_quant_type type, float thresholds[NB_QUANT_CODES - 1], uint8_t codes[NB_QUANT_CODES])
{
    const float *codebook = nb_quant_codebook(type);
    for (int code = 0; code < NB_QUANT_CODES; code++) { /* insertion, stable */
        int place = code;
        for (; place > 0 && codebook[codes[place - 1]] > codebook[code]; place--)
            codes[place] = codes[place - 1];
        codes[place] = (uint8_t)code;
    }
    for (int i = 0; i < NB_QUANT_CODES - 1; i++)
        thresholds[i] = (codebook[codes[i]] + codebook[codes[i + 1]]) / 2.0f;
}
