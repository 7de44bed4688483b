#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(square_sum)

/* partial[i] for tiles of 256 elements. */
NB_CLONES
static void sum_tiles(const float *restrict gradient, float *restrict partial, int64_t tiles)
{
    for (int64_t tile = 0; tile < tiles; tile++) {
        const float *g = gradient + tile * NB_TILE_ELEMENTS;
        float lane[16] = {0};
        for (int i = 0; i < NB_TILE_ELEMENTS; i += 16)
            for (int l = 0; l < 16; l++)
                lane[l] += g[i + l] * g[i + l];
        partial[tile] = nb_sum16(lane);
    }
}

void nb_cpu_run_square_sum(struct nb_cpu *cpu, const struct nb_square_sum *a)
{
    const float *gradient = nb_cpu_pointer(a->gradient);
    float *partial = nb_cpu_pointer(a->partial);
    int64_t tiles = (int64_t)(a->count / NB_TILE_ELEMENTS), group = 64;
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)a->count))
    for (int64_t tile = 0; tile < tiles; tile += group)
        sum_tiles(gradient + tile * NB_TILE_ELEMENTS, partial + tile, tiles - tile < group ? tiles - tile : group);
}
