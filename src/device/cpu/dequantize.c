#include "device/cpu/element.h"
#include "device/cpu/weight.h"

NB_CPU_NO_SCRATCH(dequantize)

/* Weights a thread takes at a time: whole blocks of 64 that share a scale. */
enum { PIECE = 16384 };

void nb_cpu_run_dequantize(struct nb_cpu *cpu, const struct nb_dequantize *a)
{
    struct nb_quant_matrix matrix = nb_cpu_quant_matrix(&a->from);
    uint64_t count = matrix.rows * matrix.columns;
    nb_bf16 *w = nb_cpu_pointer(a->w);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)count))
    for (uint64_t begin = 0; begin < count; begin += PIECE)
        nb_dequantize_bf16(&matrix, begin, count - begin < PIECE ? count - begin : PIECE, w + begin);
}
