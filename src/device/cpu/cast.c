#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(cast)

/* Elements a thread takes at a time. */
enum { PIECE = 16384 };

NB_CPU_INLINE void piece_from(const void *restrict x, void *restrict y, enum nb_dtype to, int64_t count, enum nb_dtype from)
{
    if (to == NB_DTYPE_F32)
        for (int64_t i = 0; i < count; i++)
            nb_cpu_put(y, NB_DTYPE_F32, i, nb_cpu_get(x, from, i));
    else
        for (int64_t i = 0; i < count; i++)
            nb_cpu_put(y, NB_DTYPE_BF16, i, nb_cpu_get(x, from, i));
}

NB_CLONES
static void piece(const struct nb_cast *a, uint64_t begin, int64_t count)
{
    NB_CPU_SPECIALIZE(a->from, piece_from, nb_cpu_element(a->x, a->from, begin), nb_cpu_element(a->y, a->to, begin), a->to, count);
}

void nb_cpu_run_cast(struct nb_cpu *cpu, const struct nb_cast *a)
{
    int64_t count = (int64_t)a->count;
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, count))
    for (int64_t begin = 0; begin < count; begin += PIECE)
        piece(a, (uint64_t)begin, count - begin < PIECE ? count - begin : PIECE);
}
