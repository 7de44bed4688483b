/* What helps the compiler vectorize. */
#ifndef NB_BASE_SIMD_H
#define NB_BASE_SIMD_H

/* Before a hot function of a portable build (meson's cpu=portable): compiled for several machines, chosen at start. The same bits on
 * each: contraction and reassociation are off. A native build needs none. None under AddressSanitizer, whose runtime is not up yet when
 * the choice is made, and with clang, which cannot clone for a level of x86-64. */
#if defined(NB_PORTABLE) && defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define NB_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define NB_CLONES
#endif

#endif
