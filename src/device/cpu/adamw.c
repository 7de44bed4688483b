#include "quant/adamw.h"

#include <string.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(adamw)

/* Elements a thread takes at a time: whole blocks of the 8-bit moments, and small enough that what is updated is still in the
 * first-level cache when it is copied and its gradient zeroed. */
enum { PIECE = 8 * NB_DYNAMIC_BLOCK };

struct tensor {
    const struct nb_adamw *args;
    const struct nb_adamw8_coders *coders;
    struct nb_adamw_factors factors;
    float *master, *gradient;
};

static void update_8bit(const struct tensor *t, int64_t begin, int count)
{
    uint8_t *m = nb_cpu_pointer(t->args->m), *v = nb_cpu_pointer(t->args->v);
    float *m_absmax = nb_cpu_pointer(t->args->m_absmax), *v_absmax = nb_cpu_pointer(t->args->v_absmax);
    for (int64_t i = begin; i < begin + count; i += NB_DYNAMIC_BLOCK) {
        struct nb_adamw8_block block = {
            .count = begin + count - i < NB_DYNAMIC_BLOCK ? (int)(begin + count - i) : NB_DYNAMIC_BLOCK,
            .gradient = t->gradient + i,
            .p = t->master + i,
            .m_codes = m + i,
            .v_codes = v + i,
            .m_absmax = m_absmax + i / NB_DYNAMIC_BLOCK,
            .v_absmax = v_absmax + i / NB_DYNAMIC_BLOCK,
        };
        nb_adamw8_block(&t->factors, t->coders, &block);
    }
}

static void update(const struct tensor *t, int64_t begin, int count)
{
    if (t->args->moments_8bit)
        update_8bit(t, begin, count);
    else
        nb_adamw_block(&t->factors, count, t->gradient + begin, t->master + begin, (float *)nb_cpu_pointer(t->args->m) + begin,
                       (float *)nb_cpu_pointer(t->args->v) + begin);
    nb_cpu_store(t->args->copy, t->args->copy_dtype, (uint64_t)begin, t->master + begin, count);
}

void nb_cpu_run_adamw(struct nb_cpu *cpu, const struct nb_adamw *a)
{
    const struct nb_step *step = nb_cpu_step(a->step);
    struct nb_adamw_settings settings = {step->learning_rate, a->beta1, a->beta2, a->epsilon, a->weight_decay};
    struct tensor t = {
        .args = a,
        .coders = &cpu->adamw8,
        .factors = nb_adamw_factors(&settings, step->step, step->inverse_count * step->clip_scale),
        .master = nb_cpu_pointer(a->master),
        .gradient = nb_cpu_pointer(a->gradient),
    };
    bool finite = step->finite;
    int64_t elements = (int64_t)a->count;
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, elements))
    for (int64_t begin = 0; begin < elements; begin += PIECE) {
        int count = elements - begin < PIECE ? (int)(elements - begin) : PIECE;
        if (finite)
            update(&t, begin, count);
        memset(t.gradient + begin, 0, (size_t)count * sizeof *t.gradient);
    }
}
