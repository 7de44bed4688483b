/* A weight matrix of an op, as the quantizer sees it. Only inside an op: it reads device memory. */
#ifndef NB_DEVICE_CPU_WEIGHT_H
#define NB_DEVICE_CPU_WEIGHT_H

#include "device/cpu/cpu.h"
#include "quant/matrix.h"

/* The format is NF4 or FP4. */
static inline struct nb_quant_matrix nb_cpu_quant_matrix(const struct nb_weight *w)
{
    return (struct nb_quant_matrix){
        .type = w->format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4,
        .nested = w->nested,
        .rows = (uint64_t)w->rows,
        .columns = (uint64_t)w->columns,
        .packed = nb_cpu_pointer(w->data),
        .absmax_codes = w->nested ? nb_cpu_pointer(w->absmax) : NULL,
        .absmax = w->nested ? NULL : nb_cpu_pointer(w->absmax),
        .nested_absmax = nb_cpu_pointer(w->nested_absmax),
        .nested_map = nb_cpu_pointer(w->nested_map),
        .codebook = nb_cpu_pointer(w->codebook),
        .nested_offset = w->nested ? *(const float *)nb_cpu_pointer(w->nested_offset) : 0.0f,
    };
}

#endif
