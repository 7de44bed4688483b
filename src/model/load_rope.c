/* The tables of the model's rotations into device memory, a few rows at a time. */
#include <stdlib.h>

#include "model/decoder.h"
#include "model/rope_table.h"
#include "model/work.h"

static const uint64_t staging_bytes_max = UINT64_C(4) << 20;

struct rope_loader {
    const struct nb_model *model;
    const struct nb_work *work;
    const float *inverse_frequency; /* [head_dim / 2] */
    float *staging;                 /* cosines, then sines; not to be touched on a dry device */
};

/* Both parts of positions begin .. begin + count. */
static nb_status load_rows(const struct rope_loader *l, const struct nb_rope_table *table, int begin, int count)
{
    struct nb_device *device = l->work->device;
    int half = l->model->config.head_dim / 2;
    uint64_t row_bytes = (uint64_t)half * sizeof(float), bytes = (uint64_t)count * row_bytes;
    uint64_t offset = (uint64_t)begin * row_bytes;
    float *cosine = l->staging, *sine = cosine + (size_t)count * (size_t)half;
    if (!device->dry)
        nb_rope_angles(l->inverse_frequency, half, begin, count, cosine, sine);
    NB_TRY(device->upload(device, l->work->stream, nb_dptr_at(table->cosine, offset), cosine, bytes));
    NB_TRY(device->upload(device, l->work->stream, nb_dptr_at(table->sine, offset), sine, bytes));
    return device->stream_wait(device, l->work->stream);
}

nb_status nb_model_load_ropes(const struct nb_model *model, const struct nb_work *work)
{
    struct nb_device *device = work->device;
    const int half = model->config.head_dim / 2, positions = model->positions_max;
    const uint64_t row_bytes = 2 * (uint64_t)half * sizeof(float);
    int rows = (int)(staging_bytes_max / row_bytes);
    void *staging = NULL;
    rows = rows < positions ? rows : positions;
    float *inverse_frequency = malloc((size_t)half * sizeof *inverse_frequency);
    if (!inverse_frequency)
        return nb_fail(NB_MEMORY, "no memory for the rotation's tables");
    nb_rope_inverse_frequencies(&model->config.rope, model->config.head_dim, inverse_frequency);
    nb_status status = device->host_take(device, (uint64_t)rows * row_bytes, &staging);
    const struct rope_loader l = {model, work, inverse_frequency, staging};
    for (int i = 0; i < NB_ROPE_TABLES; i++)
        for (int begin = 0; status == NB_OK && begin < positions; begin += rows)
            status = load_rows(&l, &model->rope[i], begin, positions - begin < rows ? positions - begin : rows);
    /* After an error too: what is enqueued reads the staging. */
    if (status != NB_OK)
        device->stream_wait(device, work->stream);
    if (staging)
        device->host_give_back(device, staging);
    free(inverse_frequency);
    return status;
}
