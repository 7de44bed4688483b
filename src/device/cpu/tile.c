#include "device/cpu/tile.h"

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

const void *nb_tile_rows_padded(const struct nb_tile_rows *rows, void *buffer, int *stride)
{
    const char *from = nb_cpu_element(rows->from, rows->dtype, (uint64_t)rows->index);
    *stride = rows->stride;
    if (rows->valid == rows->padded)
        return from;
    uint64_t bytes = nb_dtype_bytes(rows->dtype), row_bytes = bytes * (uint64_t)rows->columns;
    char *to = buffer;
    for (int i = 0; i < rows->valid; i++)
        memcpy(to + (uint64_t)i * row_bytes, from + (uint64_t)i * (uint64_t)rows->stride * bytes, row_bytes);
    memset(to + (uint64_t)rows->valid * row_bytes, 0, (uint64_t)(rows->padded - rows->valid) * row_bytes);
    *stride = rows->columns;
    return buffer;
}

void nb_cpu_leave_products(struct nb_cpu *cpu, int entered)
{
    nb_products_leave(entered);
    nb_status status = nb_products_status(cpu->products);
    if (status != NB_OK)
        nb_cpu_work_failed(cpu, status);
}

int nb_cpu_thread(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}
