#include "device/cpu/element.h"
#include "quant/matrix.h"

uint64_t nb_cpu_quantize_scratch_bytes(const struct nb_device_profile *profile, const struct nb_quantize *a)
{
    (void)profile;
    return a->to.nested ? nb_quant_blocks((uint64_t)a->to.rows * (uint64_t)a->to.columns) * sizeof(float) : 0;
}

void nb_cpu_run_quantize(struct nb_cpu *cpu, const struct nb_quantize *a)
{
    struct nb_quant_parts parts = {
        .packed = nb_cpu_pointer(a->to.data),
        .absmax = nb_cpu_pointer(a->to.nested ? a->scratch.base : a->to.absmax),
        .absmax_codes = a->to.nested ? nb_cpu_pointer(a->to.absmax) : NULL,
        .nested_absmax = nb_cpu_pointer(a->to.nested_absmax),
        .nested_map = nb_cpu_pointer(a->to.nested_map),
        .codebook = nb_cpu_pointer(a->to.codebook),
    };
    enum nb_quant_type type = a->to.format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
    nb_status status = nb_quantize(type, a->to.nested, nb_cpu_pointer(a->w), (uint64_t)a->to.rows, (uint64_t)a->to.columns, &parts);
    if (status != NB_OK)
        nb_cpu_work_failed(cpu, status);
    else if (a->to.nested)
        *(float *)nb_cpu_pointer(a->to.nested_offset) = parts.nested_offset;
}
