/* Loops that a portable build compiles for several processors, chosen when the program starts. A native build has one. */
#ifndef NB_QUANT_CLONES_H
#define NB_QUANT_CLONES_H

/* Not under AddressSanitizer, whose runtime is not up yet when the choice is made. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__AVX2__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define NB_QUANT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define NB_QUANT_CLONES
#endif

#endif
