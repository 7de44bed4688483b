#include <math.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(clip_scale)

void nb_cpu_run_clip_scale(struct nb_cpu *cpu, const struct nb_clip_scale *a)
{
    (void)cpu; /* one thread: the order of the sum is part of the contract, and a partial stands for 256 elements */
    const float *partial = nb_cpu_pointer(a->partial);
    struct nb_step *step = nb_cpu_step(a->step);
    double sum = 0;
    for (uint64_t i = 0; i < a->count; i++)
        sum += partial[i];
    float norm = (float)(sqrt(sum) * (double)step->inverse_count);
    float scale = step->max_grad_norm / (norm + 1e-6f);
    step->gradient_norm = norm;
    step->clip_scale = step->max_grad_norm > 0 && scale < 1.0f ? scale : 1.0f;
    step->finite = isfinite(step->loss_sum) && isfinite(norm);
}
