#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(loss_sum)

void nb_cpu_run_loss_sum(struct nb_cpu *cpu, const struct nb_loss_sum *a)
{
    (void)cpu; /* one thread: some thousand values */
    const float *loss = nb_cpu_pointer(a->loss);
    int rows = nb_cpu_trained_rows(a->slot, 0, a->rows_max);
    double total = 0;
    for (int begin = 0; begin < rows; begin += NB_TILE_TOKENS) {
        double partial = 0;
        for (int i = begin; i < begin + NB_TILE_TOKENS && i < rows; i++)
            partial += loss[i];
        total += partial;
    }
    nb_cpu_step(a->step)->loss_sum += total;
}
