#include "quant/matrix.h"

#include <inttypes.h>
#include <stddef.h>

enum { PART_ALIGNMENT = 16 };

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
}

/* Appends a part to the slab and returns its place. */
static uint64_t place(struct nb_quant_layout *layout, uint64_t bytes)
{
    uint64_t offset = layout->bytes;
    layout->bytes += aligned(bytes);
    return offset;
}

nb_status nb_quant_matrix_layout(
    enum nb_quant_type type, bool nested, uint64_t rows, uint64_t columns, struct nb_quant_layout *layout)
{
    const uint64_t limit = UINT64_C(1) << 48;
    if (rows == 0 || columns == 0 || rows > limit / columns)
        return nb_fail(NB_UNSUPPORTED,
            "a quantized matrix of %" PRIu64 " x %" PRIu64 " weights; 1 to 2^48 are supported", rows, columns);
    uint64_t count = rows * columns, blocks = nb_quant_blocks(count);
    *layout = (struct nb_quant_layout){
        .type = type,
        .nested = nested,
        .rows = rows,
        .columns = columns,
        .packed_bytes = nb_quant_packed_bytes(count),
        .absmax_bytes = nested ? blocks : blocks * sizeof(float),
        .nested_absmax_bytes = nested ? nb_quant_superblocks(blocks) * sizeof(float) : 0,
        .nested_map_bytes = nested ? 256 * sizeof(float) : 0,
        .codebook_bytes = NB_QUANT_CODES * sizeof(float),
    };
    layout->packed = place(layout, layout->packed_bytes);
    layout->absmax = place(layout, layout->absmax_bytes);
    layout->nested_absmax = place(layout, layout->nested_absmax_bytes);
    layout->nested_map = place(layout, layout->nested_map_bytes);
    layout->codebook = place(layout, layout->codebook_bytes);
    return NB_OK;
}

struct nb_quant_matrix nb_quant_matrix_view(const struct nb_quant_layout *layout, const void *base, float nested_offset)
{
    const uint8_t *slab = base;
    bool nested = layout->nested;
    return (struct nb_quant_matrix){
        .type = layout->type,
        .nested = nested,
        .rows = layout->rows,
        .columns = layout->columns,
        .packed = slab + layout->packed,
        .absmax_codes = nested ? slab + layout->absmax : NULL,
        .absmax = nested ? NULL : (const float *)(const void *)(slab + layout->absmax),
        .nested_absmax = nested ? (const float *)(const void *)(slab + layout->nested_absmax) : NULL,
        .nested_map = nested ? (const float *)(const void *)(slab + layout->nested_map) : NULL,
        .codebook = (const float *)(const void *)(slab + layout->codebook),
        .nested_offset = nested ? nested_offset : 0.0f,
    };
}

struct nb_quant_parts nb_quant_matrix_parts(const struct nb_quant_layout *layout, void *base, float *scratch)
{
    uint8_t *slab = base;
    bool nested = layout->nested;
    return (struct nb_quant_parts){
        .packed = slab + layout->packed,
        .absmax = nested ? scratch : (float *)(void *)(slab + layout->absmax),
        .absmax_codes = nested ? slab + layout->absmax : NULL,
        .nested_absmax = nested ? (float *)(void *)(slab + layout->nested_absmax) : NULL,
        .nested_map = nested ? (float *)(void *)(slab + layout->nested_map) : NULL,
        .codebook = (float *)(void *)(slab + layout->codebook),
    };
}
