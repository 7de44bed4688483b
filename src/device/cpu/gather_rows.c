#include <string.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(gather_rows)

void nb_cpu_run_gather_rows(struct nb_cpu *cpu, const struct nb_gather_rows *a)
{
    int count = nb_cpu_trained_rows(a->slot, a->row_begin, a->rows_max);
    const int32_t *rows = (const int32_t *)nb_cpu_pointer(a->rows) + a->row_begin;
    uint64_t bytes = (uint64_t)a->width * nb_dtype_bytes(a->activation);
    const char *x = nb_cpu_pointer(a->x); /* [tokens, width] */
    char *y = nb_cpu_pointer(a->y);       /* [rows_max, width] */
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)count * a->width))
    for (int i = 0; i < count; i++)
        memcpy(y + (uint64_t)i * bytes, x + (uint64_t)rows[i] * bytes, bytes);
}
