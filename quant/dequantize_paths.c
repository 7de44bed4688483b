#include "quant/dequantize_paths.h"

#include "quant/codec.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86 1
#include <immintrin.h>
#endif

/* Rounding is elementwise, so a block's 16 products are rounded once and its 64 weights are looked up among them. */

static void plain_bf16(const uint8_t *packed, const float *codebook, const float *absmax, int64_t blocks, nb_bf16 *out)
{
    for (int64_t block = 0; block < blocks; block++) {
        nb_bf16 table[NB_QUANT_CODES];
        for (int code = 0; code < NB_QUANT_CODES; code++)
            table[code] = nb_bf16_from_float(codebook[code] * absmax[block]);
        for (int i = 0; i < NB_QUANT_BLOCK / 2; i++) {
            *out++ = table[*packed >> 4];
            *out++ = table[*packed++ & 15];
        }
    }
}

#ifdef HAVE_X86

#define AVX2   __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw")))

/* nb_bf16_from_float in 8 lanes, the result in the low half of each. The processor's own instruction would flush subnormals. */
AVX2 static inline __m256i round_to_bf16_avx2(__m256 value)
{
    __m256i bits = _mm256_castps_si256(value);
    __m256i upper = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
}

/* A block's 16 bf16 values as two byte tables, for byte shuffles. */
struct byte_tables {
    __m128i low, high;
};

AVX2 static inline struct byte_tables tables_avx2(const float *codebook, float absmax)
{
    __m256 scale = _mm256_set1_ps(absmax);
    __m256i first = round_to_bf16_avx2(_mm256_mul_ps(_mm256_loadu_ps(codebook), scale));
    __m256i second = round_to_bf16_avx2(_mm256_mul_ps(_mm256_loadu_ps(codebook + 8), scale));
    __m256i words =
        _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8); /* undoes the interleaving of halves */
    __m128i a = _mm256_castsi256_si128(words), b = _mm256_extracti128_si256(words, 1), mask = _mm_set1_epi16(0xff);
    return (struct byte_tables){
        .low = _mm_packus_epi16(_mm_and_si128(a, mask), _mm_and_si128(b, mask)),
        .high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8)),
    };
}

/* 16 packed bytes to 32 words, in order. */
AVX2 static inline void look_up_avx2(struct byte_tables tables, const uint8_t *packed, __m128i words[4])
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)packed), mask = _mm_set1_epi8(15);
    __m128i earlier = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask), later = _mm_and_si128(bytes, mask);
    __m128i codes[2] = {_mm_unpacklo_epi8(earlier, later), _mm_unpackhi_epi8(earlier, later)};
    for (int half = 0; half < 2; half++) {
        __m128i low = _mm_shuffle_epi8(tables.low, codes[half]), high = _mm_shuffle_epi8(tables.high, codes[half]);
        words[2 * half] = _mm_unpacklo_epi8(low, high);
        words[2 * half + 1] = _mm_unpackhi_epi8(low, high);
    }
}

AVX2 static void avx2_bf16(
    const uint8_t *packed, const float *codebook, const float *absmax, int64_t blocks, nb_bf16 *out)
{
    for (int64_t block = 0; block < blocks; block++) {
        struct byte_tables tables = tables_avx2(codebook, absmax[block]);
        for (int part = 0; part < 2; part++, packed += 16) {
            __m128i words[4];
            look_up_avx2(tables, packed, words);
            for (int i = 0; i < 4; i++, out += 8)
                _mm_storeu_si128((__m128i *)(void *)out, words[i]);
        }
    }
}

AVX512 static inline __m512i round_to_bf16_avx512(__m512 value)
{
    __m512i bits = _mm512_castps_si512(value);
    __m512i upper = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    return _mm512_mask_or_epi32(
        rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), upper, _mm512_set1_epi32(0x40));
}

/* A byte widened to 32 bits becomes two 16-bit indices at once: v >> 4 below and v above. The permutation reads 5 bits of an
 * index, so the table stands in the register twice and the fifth bit does not matter. */
AVX512 static void avx512_bf16(
    const uint8_t *packed, const float *codebook, const float *absmax, int64_t blocks, nb_bf16 *out)
{
    __m512 values = _mm512_loadu_ps(codebook);
    for (int64_t block = 0; block < blocks; block++) {
        __m256i rounded =
            _mm512_cvtepi32_epi16(round_to_bf16_avx512(_mm512_mul_ps(values, _mm512_set1_ps(absmax[block]))));
        __m512i table = _mm512_broadcast_i64x4(rounded);
        for (int part = 0; part < 2; part++, packed += 16, out += 32) {
            __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)packed));
            __m512i codes = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(codes, table));
        }
    }
}

#endif

bool nb_dequantize_path(enum nb_dequantize_path path, struct nb_dequantize_functions *functions)
{
    switch (path) {
    case NB_DEQUANTIZE_PLAIN:
        *functions = (struct nb_dequantize_functions){plain_bf16};
        return true;
#ifdef HAVE_X86
    case NB_DEQUANTIZE_AVX2:
        if (!__builtin_cpu_supports("avx2"))
            return false;
        *functions = (struct nb_dequantize_functions){avx2_bf16};
        return true;
    case NB_DEQUANTIZE_AVX512:
        if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
            return false;
        *functions = (struct nb_dequantize_functions){avx512_bf16};
        return true;
#endif
    default:
        return false;
    }
}
