/* What helps the compiler vectorize. */
#ifndef NB_BASE_SIMD_H
#define NB_BASE_SIMD_H

/* Before a hot function of a portable build (meson's cpu=portable): compiled for several machines, chosen at start. The same bits on
 * each: contraction and reassociation are off. A native build needs none. */
#ifdef NB_PORTABLE
#define NB_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define NB_CLONES
#endif

#endif
