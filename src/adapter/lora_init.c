#include <math.h>
#include <string.h>

#include "adapter/registry.h"
#include "base/bfloat.h"
#include "base/random.h"
#include "quant/dynamic_map.h"

enum { MAP_BYTES = 256 * sizeof(float) };

static bool has_8bit(const struct nb_adapter *adapter)
{
    return adapter->options.trains && adapter->absmax_bytes > 0;
}

static nb_status take(struct nb_arena *arena, enum nb_category category, const char *name, uint64_t bytes, nb_dptr *out)
{
    return nb_arena_take(arena, category, name, bytes, &out->address);
}

/* Of the slabs that hold the resident tensors: the registry's first, and so the first bytes of each slab. */
struct extent {
    uint64_t master_bytes, moment_bytes, absmax_bytes;
};

static struct extent resident_extent(const struct nb_adapter *adapter)
{
    int resident = adapter->resident;
    if (resident == adapter->trainables)
        return (struct extent){adapter->elements * sizeof(float), adapter->moment_bytes, adapter->absmax_bytes};
    return (struct extent){adapter->trainable[resident].offset * sizeof(float), adapter->moment_offset[resident],
        adapter->absmax_offset[resident]};
}

static nb_status take_pages(struct nb_adapter *adapter, struct nb_arena *pinned)
{
    uint64_t address, bytes = nb_adapter_paged_bytes(adapter);
    if (bytes == 0)
        return NB_OK;
    NB_TRY(nb_arena_take(pinned, NB_CATEGORY_MOMENTS, "masters and moments", bytes, &address));
    adapter->pages = (unsigned char *)(uintptr_t)address;
    return NB_OK;
}

nb_status nb_adapter_allocate(
    struct nb_adapter *adapter, struct nb_device *device, struct nb_arena *arena, struct nb_arena *pinned)
{
    struct nb_adapter_memory *memory = &adapter->memory;
    uint64_t elements = adapter->elements;
    struct extent extent = resident_extent(adapter);
    adapter->device = device;
    NB_TRY(take(
        arena, NB_CATEGORY_ADAPTER, "adapter", elements * nb_dtype_bytes(adapter->options.activation), &memory->copy));
    if (!adapter->options.trains)
        return NB_OK;
    NB_TRY(take_pages(adapter, pinned));
    NB_TRY(take(arena, NB_CATEGORY_MASTERS, "masters", extent.master_bytes, &memory->master));
    NB_TRY(take(arena, NB_CATEGORY_GRADIENTS, "gradients", elements * sizeof(float), &memory->gradient));
    NB_TRY(take(arena, NB_CATEGORY_MOMENTS, "first moments", extent.moment_bytes, &memory->m));
    NB_TRY(take(arena, NB_CATEGORY_MOMENTS, "second moments", extent.moment_bytes, &memory->v));
    if (!has_8bit(adapter))
        return NB_OK;
    NB_TRY(take(arena, NB_CATEGORY_MOMENTS, "first moments' scales", extent.absmax_bytes, &memory->m_absmax));
    NB_TRY(take(arena, NB_CATEGORY_MOMENTS, "second moments' scales", extent.absmax_bytes, &memory->v_absmax));
    NB_TRY(take(arena, NB_CATEGORY_MOMENTS, "first moments' map", MAP_BYTES, &memory->m_map));
    return take(arena, NB_CATEGORY_MOMENTS, "second moments' map", MAP_BYTES, &memory->v_map);
}

uint64_t nb_adapter_staging_bytes(const struct nb_adapter *adapter)
{
    uint64_t bytes = MAP_BYTES; /* the least: a map is uploaded through it too */
    for (int i = 0; i < adapter->trainables; i++)
        if (adapter->trainable[i].count * sizeof(float) > bytes)
            bytes = adapter->trainable[i].count * sizeof(float);
    return bytes;
}

nb_status nb_adapter_put(struct nb_adapter *adapter, struct nb_stream *stream, void *staging, int trainable)
{
    struct nb_device *device = adapter->device;
    const struct nb_trainable *t = &adapter->trainable[trainable];
    nb_dptr copy = nb_dptr_at(adapter->memory.copy, t->offset * nb_dtype_bytes(adapter->options.activation));
    if (adapter->options.trains && trainable < adapter->resident) {
        nb_dptr master = nb_dptr_at(adapter->memory.master, t->offset * sizeof(float));
        struct nb_cast cast = {
            .x = master, .y = copy, .from = NB_DTYPE_F32, .to = adapter->options.activation, .count = t->count};
        NB_TRY(device->upload(device, stream, master, staging, t->count * sizeof(float)));
        NB_TRY(device->cast(device, stream, &cast));
        return device->stream_wait(device, stream);
    }
    if (adapter->options.trains && !device->dry)
        memcpy(nb_adapter_page(adapter, trainable), staging, t->count * sizeof(float));
    if (adapter->options.activation == NB_DTYPE_BF16 && !device->dry) {
        unsigned char *bytes = staging; /* rounded in place: element i's two bytes lie before element i's four */
        for (uint64_t i = 0; i < t->count; i++) {
            float value;
            memcpy(&value, bytes + i * sizeof value, sizeof value);
            nb_bf16 rounded = nb_bf16_from_float(value);
            memcpy(bytes + i * sizeof rounded, &rounded, sizeof rounded);
        }
    }
    NB_TRY(device->upload(device, stream, copy, staging, t->count * nb_dtype_bytes(adapter->options.activation)));
    return device->stream_wait(device, stream);
}

static void draw(const struct nb_adapter *adapter, const struct nb_trainable *t, float *values)
{
    if (t->is_b) {
        memset(values, 0, t->count * sizeof *values);
        return;
    }
    uint64_t name = nb_name_hash(t->name);
    float bound = 1.0f / sqrtf((float)t->columns);
    for (uint64_t i = 0; i < t->count; i++)
        values[i] = (2.0f * nb_random_uniform(adapter->options.seed, NB_RANDOM_ADAPTER_INIT, name, i) - 1.0f) * bound;
}

static nb_status put_map(
    struct nb_adapter *adapter, struct nb_stream *stream, void *staging, bool is_signed, nb_dptr to)
{
    struct nb_device *device = adapter->device;
    if (!device->dry)
        nb_dynamic_map(is_signed, staging);
    NB_TRY(device->upload(device, stream, to, staging, MAP_BYTES));
    return device->stream_wait(device, stream);
}

/* Zeroes all slabs, padding included: sums over them, such as the gradient's norm, run over whole tiles. */
static nb_status clear(struct nb_adapter *adapter, struct nb_stream *stream)
{
    struct nb_device *device = adapter->device;
    const struct nb_adapter_memory *memory = &adapter->memory;
    uint64_t elements = adapter->elements;
    struct extent extent = resident_extent(adapter);
    NB_TRY(device->fill_zero(device, stream, memory->copy, elements * nb_dtype_bytes(adapter->options.activation)));
    if (!adapter->options.trains)
        return NB_OK;
    if (adapter->pages && !device->dry)
        memset(adapter->pages, 0, nb_adapter_paged_bytes(adapter));
    NB_TRY(device->fill_zero(device, stream, memory->master, extent.master_bytes));
    NB_TRY(device->fill_zero(device, stream, memory->gradient, elements * sizeof(float)));
    NB_TRY(device->fill_zero(device, stream, memory->m, extent.moment_bytes));
    NB_TRY(device->fill_zero(device, stream, memory->v, extent.moment_bytes));
    if (!has_8bit(adapter))
        return NB_OK;
    NB_TRY(device->fill_zero(device, stream, memory->m_absmax, extent.absmax_bytes));
    return device->fill_zero(device, stream, memory->v_absmax, extent.absmax_bytes);
}

nb_status nb_adapter_initialize(struct nb_adapter *adapter, struct nb_stream *stream, void *staging)
{
    NB_TRY(clear(adapter, stream));
    if (has_8bit(adapter)) {
        NB_TRY(put_map(adapter, stream, staging, true, adapter->memory.m_map));
        NB_TRY(put_map(adapter, stream, staging, false, adapter->memory.v_map));
    }
    for (int i = 0; i < adapter->trainables; i++) {
        if (!adapter->device->dry)
            draw(adapter, &adapter->trainable[i], staging);
        NB_TRY(nb_adapter_put(adapter, stream, staging, i));
    }
    return NB_OK;
}
