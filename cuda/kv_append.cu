/* New rows of k and v to the end of the cache. Bound by memory: 8 bytes an element of a row (k and v, each read and
 * written); at one token by the launch. The grid's second dimension is k or v, each rows.cuh's copied rows. */
#include "cuda/rows.cuh"

/* As many new rows as the cache has room for. */
NB_KERNEL_FUNCTION int rows_of(const struct nb_kv_append &a, const struct nb_slot *slot)
{
    int64_t room = (int64_t)a.capacity - slot->cache_tokens;
    int tokens = nb_valid_tokens(slot, a.tokens_max);
    return room < 0 ? 0 : room < tokens ? (int)room : tokens;
}

__global__ void __launch_bounds__(NB_COPY_THREADS) kv_append_kernel(struct nb_kv_append a, int shift)
{
    struct nb_row_place place = nb_copy_place_of_thread(shift);
    const struct nb_slot *slot = nb_slot_at(a.slot);
    if (place.row >= rows_of(a, slot))
        return;
    bool of_v = blockIdx.y == 1;
    int packs = a.width / NB_PACK;
    const uint4 *from = nb_row_packs(of_v ? a.v : a.k, place.row, (of_v ? a.v_stride : a.k_stride) / NB_PACK);
    uint4 *to = nb_row_packs(of_v ? a.v_cache : a.k_cache, slot->cache_tokens + place.row, packs);
    nb_copy_row(from, to, packs, place);
}

nb_status nb_cuda_kv_append(struct nb_device *device, struct nb_stream *stream, const struct nb_kv_append *a)
{
    (void)device;
    NB_TRY(nb_check_kv_append(a));
    NB_TRY(nb_cuda_refuse_f32("kv_append", a->activation));
    int shift = nb_copy_shift(a->width);
    return nb_cuda_launch(
        "kv_append", kv_append_kernel, nb_launch_copy(a->tokens_max, shift, 2), stream->stream, *a, shift);
}

nb_status nb_cuda_prepare_kv_append(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("kv_append", kv_append_kernel, 0);
}
