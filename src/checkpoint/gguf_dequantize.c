/* GGUF blocks to fp32. Source of layouts and formulas: ggml's ggml-common.h, its dequantize_row_* functions, and gguf-py's quants.py. */
#include <string.h>

#include "base/bfloat.h"
#include "checkpoint/gguf.h"

enum { SUPER = 256 }; /* weights of a K-quant's block */

static const struct {
    const char *name;
    uint16_t weights, bytes;
} types[] = {
    [NB_GGUF_F32] = {"F32", 1, 4},
    [NB_GGUF_F16] = {"F16", 1, 2},
    [NB_GGUF_BF16] = {"BF16", 1, 2},
    [NB_GGUF_Q4_0] = {"Q4_0", 32, 18},
    [NB_GGUF_Q4_1] = {"Q4_1", 32, 20},
    [NB_GGUF_Q5_0] = {"Q5_0", 32, 22},
    [NB_GGUF_Q5_1] = {"Q5_1", 32, 24},
    [NB_GGUF_Q8_0] = {"Q8_0", 32, 34},
    [NB_GGUF_Q2_K] = {"Q2_K", SUPER, 84},
    [NB_GGUF_Q3_K] = {"Q3_K", SUPER, 110},
    [NB_GGUF_Q4_K] = {"Q4_K", SUPER, 144},
    [NB_GGUF_Q5_K] = {"Q5_K", SUPER, 176},
    [NB_GGUF_Q6_K] = {"Q6_K", SUPER, 210},
    [NB_GGUF_IQ4_NL] = {"IQ4_NL", 32, 18},
    [NB_GGUF_IQ4_XS] = {"IQ4_XS", SUPER, 136},
};

enum { TYPES = sizeof types / sizeof types[0] };

const char *nb_gguf_type_name(uint32_t type)
{
    return type < TYPES ? types[type].name : NULL;
}

uint32_t nb_gguf_block_weights(uint32_t type)
{
    return type < TYPES ? types[type].weights : 0;
}

uint32_t nb_gguf_block_bytes(uint32_t type)
{
    return type < TYPES ? types[type].bytes : 0;
}

static float half_at(const uint8_t *bytes)
{
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return nb_half_to_float(half);
}

static uint32_t word_at(const uint8_t *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static void f32(const uint8_t *b, uint64_t count, float *out)
{
    memcpy(out, b, count * sizeof *out);
}

static void f16(const uint8_t *b, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = half_at(b + 2 * i);
}

static void bf16(const uint8_t *b, uint64_t count, float *out)
{
    for (uint64_t i = 0; i < count; i++) {
        nb_bf16 value;
        memcpy(&value, b + 2 * i, sizeof value);
        out[i] = nb_bf16_to_float(value);
    }
}

/* 32 weights: scale, 16 bytes of two codes each; the low nibbles are the first 16 weights. */
static void q4_0(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void q4_1(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b[4 + i] & 15) + m;
        out[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

/* As Q4, with the fifth bit of weight i in bit i of a word before the nibbles. */
static void q5_0(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b);
    uint32_t high = word_at(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((int)((b[6 + i] & 15u) | ((high >> i) & 1u) << 4) - 16);
        out[i + 16] = d * (float)((int)((b[6 + i] >> 4) | ((high >> (i + 16)) & 1u) << 4) - 16);
    }
}

static void q5_1(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b), m = half_at(b + 2);
    uint32_t high = word_at(b + 4);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[8 + i] & 15u) | ((high >> i) & 1u) << 4) + m;
        out[i + 16] = d * (float)((b[8 + i] >> 4) | ((high >> (i + 16)) & 1u) << 4) + m;
    }
}

static void q8_0(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b);
    for (int i = 0; i < 32; i++)
        out[i] = d * (float)(int8_t)b[2 + i];
}

/* Two halves of 128 weights, 32 bytes each; the four pairs of bits of a byte are weights 32 apart. Sixteen groups of 16 weights have
 * a 4-bit scale (low nibble) and minimum (high nibble) each. */
static void q2_k(const uint8_t *restrict b, float *restrict out)
{
    const uint8_t *scales = b, *codes = b + 16;
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int group = 0; group < 16; group++) {
        const uint8_t *q = codes + group / 8 * 32 + group % 2 * 16;
        int shift = group % 8 / 2 * 2;
        float scale = d * (float)(scales[group] & 15), minimum = dmin * (float)(scales[group] >> 4);
        for (int i = 0; i < 16; i++)
            out[group * 16 + i] = scale * (float)((q[i] >> shift) & 3) - minimum;
    }
}

/* Codes as in Q2_K with a third bit: bit j of mask byte i belongs to weight 32 j + i, and a clear one means minus 4. The 6-bit
 * scales: low nibbles in 8 bytes (groups 0 to 7 low, 8 to 15 high), the top pairs of bits in 4 more. */
static void q3_k(const uint8_t *restrict b, float *restrict out)
{
    const uint8_t *mask = b, *codes = b + 32, *scales = b + 96;
    float d = half_at(b + 108);
    for (int group = 0; group < 16; group++) {
        const uint8_t *q = codes + group / 8 * 32 + group % 2 * 16, *m = mask + group % 2 * 16;
        int shift = group % 8 / 2 * 2, bit = group / 2;
        int low = (scales[group % 8] >> (group / 8 * 4)) & 15, high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
        float scale = d * (float)((low | high << 4) - 32);
        for (int i = 0; i < 16; i++)
            out[group * 16 + i] = scale * (float)(((q[i] >> shift) & 3) - (((m[i] >> bit) & 1) ? 0 : 4));
    }
}

/* The 6-bit scale and minimum of group j of 8, packed in 12 bytes. */
static void k_scale(const uint8_t *s, int j, int *scale, int *minimum)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *minimum = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

/* Groups of 32; a run of 32 bytes holds two, low nibbles first. */
static void q4_k(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b), dmin = half_at(b + 2);
    for (int group = 0; group < 8; group++) {
        const uint8_t *q = b + 16 + group / 2 * 32;
        int scale, minimum, shift = group % 2 * 4;
        k_scale(b + 4, group, &scale, &minimum);
        float s = d * (float)scale, m = dmin * (float)minimum;
        for (int i = 0; i < 32; i++)
            out[group * 32 + i] = s * (float)((q[i] >> shift) & 15) - m;
    }
}

/* As Q4_K; bit j of byte i of the 32 high bytes is the fifth bit of weight i of group j. */
static void q5_k(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b), dmin = half_at(b + 2);
    const uint8_t *high = b + 16;
    for (int group = 0; group < 8; group++) {
        const uint8_t *q = b + 48 + group / 2 * 32;
        int scale, minimum, shift = group % 2 * 4;
        k_scale(b + 4, group, &scale, &minimum);
        float s = d * (float)scale, m = dmin * (float)minimum;
        for (int i = 0; i < 32; i++)
            out[group * 32 + i] = s * (float)(((q[i] >> shift) & 15) | ((high[i] >> group) & 1) << 4) - m;
    }
}

/* Two halves of 128 weights: 64 bytes of low nibbles, 32 of high pairs, 8 signed scales for groups of 16. */
static void q6_k(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b + 208);
    for (int group = 0; group < 16; group++) {
        int half = group / 8, run = group % 8 / 2, start = group % 2 * 16; /* run: which 32 of the 128 */
        const uint8_t *low = b + half * 64 + run % 2 * 32 + start, *high = b + 128 + half * 32 + start;
        float scale = d * (float)(int8_t)b[192 + group];
        for (int i = 0; i < 16; i++)
            out[group * 16 + i] =
                scale * (float)((((low[i] >> (run / 2 * 4)) & 15) | ((high[i] >> (run * 2)) & 3) << 4) - 32);
    }
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void iq4_run(float scale, const uint8_t *restrict q, float *restrict out)
{
    for (int i = 0; i < 16; i++) {
        out[i] = scale * (float)iq4_values[q[i] & 15];
        out[i + 16] = scale * (float)iq4_values[q[i] >> 4];
    }
}

static void iq4_nl(const uint8_t *restrict b, float *restrict out)
{
    iq4_run(half_at(b), b + 2, out);
}

/* Eight groups of 32 with a 6-bit scale: low nibbles in 4 bytes, top pairs of bits in a 16-bit word. */
static void iq4_xs(const uint8_t *restrict b, float *restrict out)
{
    float d = half_at(b);
    int high = b[2] | b[3] << 8;
    for (int group = 0; group < 8; group++) {
        int scale = ((b[4 + group / 2] >> (group % 2 * 4)) & 15) | ((high >> (group * 2)) & 3) << 4;
        iq4_run(d * (float)(scale - 32), b + 8 + group * 16, out + group * 32);
    }
}

typedef void block_reader(const uint8_t *restrict block, float *restrict out);

/* Inlined with a constant reader, so that each type has a loop of its own. */
static inline __attribute__((always_inline)) void each(
    block_reader *reader, enum nb_gguf_type type, const uint8_t *b, uint64_t count, float *out)
{
    uint64_t weights = types[type].weights, bytes = types[type].bytes;
    for (uint64_t i = 0; i < count / weights; i++)
        reader(b + i * bytes, out + i * weights);
}

void nb_gguf_dequantize(enum nb_gguf_type type, const void *blocks, uint64_t count, float *out)
{
    const uint8_t *b = blocks;
    switch (type) {
    case NB_GGUF_F32:
        f32(b, count, out);
        break;
    case NB_GGUF_F16:
        f16(b, count, out);
        break;
    case NB_GGUF_BF16:
        bf16(b, count, out);
        break;
    case NB_GGUF_Q4_0:
        each(q4_0, type, b, count, out);
        break;
    case NB_GGUF_Q4_1:
        each(q4_1, type, b, count, out);
        break;
    case NB_GGUF_Q5_0:
        each(q5_0, type, b, count, out);
        break;
    case NB_GGUF_Q5_1:
        each(q5_1, type, b, count, out);
        break;
    case NB_GGUF_Q8_0:
        each(q8_0, type, b, count, out);
        break;
    case NB_GGUF_Q2_K:
        each(q2_k, type, b, count, out);
        break;
    case NB_GGUF_Q3_K:
        each(q3_k, type, b, count, out);
        break;
    case NB_GGUF_Q4_K:
        each(q4_k, type, b, count, out);
        break;
    case NB_GGUF_Q5_K:
        each(q5_k, type, b, count, out);
        break;
    case NB_GGUF_Q6_K:
        each(q6_k, type, b, count, out);
        break;
    case NB_GGUF_IQ4_NL:
        each(iq4_nl, type, b, count, out);
        break;
    case NB_GGUF_IQ4_XS:
        each(iq4_xs, type, b, count, out);
        break;
    }
}
