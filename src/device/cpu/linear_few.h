/* nb_linear for a few rows, as in generation: bound by the reading of the weights, which are dequantized a row at a
 * time in cache. */
#ifndef NB_DEVICE_CPU_LINEAR_FEW_H
#define NB_DEVICE_CPU_LINEAR_FEW_H

#include "device/cpu/cpu.h"

enum { NB_LINEAR_FEW_ROWS = 8 };

/* rows <= NB_LINEAR_FEW_ROWS, no dropout. */
void nb_linear_few(struct nb_cpu *cpu, const struct nb_linear *a, int rows);
uint64_t nb_linear_few_scratch_bytes(const struct nb_device_profile *profile, const struct nb_linear *a);

#endif
