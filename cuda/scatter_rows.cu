/* y[rows[i]] = x[i] for a chunk of the trained rows. Bound by memory: 4 bytes an element (read and written), besides 4
 * bytes a row. A thread has up to 64 bytes under way. */
#include "cuda/rows.cuh"

__global__ void __launch_bounds__(NB_COPY_THREADS) scatter_rows_kernel(struct nb_scatter_rows a, int shift)
{
    struct nb_row_place place = nb_copy_place_of_thread(shift);
    if (place.row >= nb_valid_trained_rows(nb_slot_at(a.slot), a.row_begin, a.rows_max))
        return;
    int packs = a.width / NB_PACK, index = ((const int32_t *)(uintptr_t)a.rows.address)[a.row_begin + place.row];
    nb_copy_row(nb_row_packs(a.x, place.row, packs), nb_row_packs(a.y, index, packs), packs, place);
}

nb_status nb_cuda_scatter_rows(struct nb_device *device, struct nb_stream *stream, const struct nb_scatter_rows *a)
{
    (void)device;
    NB_TRY(nb_check_scatter_rows(a));
    NB_TRY(nb_cuda_refuse_f32("scatter_rows", a->activation));
    int shift = nb_copy_shift(a->width);
    return nb_cuda_launch(
        "scatter_rows", scatter_rows_kernel, nb_launch_copy(a->rows_max, shift, 1), stream->stream, *a, shift);
}

nb_status nb_cuda_prepare_scatter_rows(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("scatter_rows", scatter_rows_kernel, 0);
}
