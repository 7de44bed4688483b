/* Work of a pass that repeats, recorded as the device's graphs. */
#include <stdio.h>

#include "model/pass.h"

/* Records the work, once. Where the driver has no memory for that, it is enqueued each time: the same bits, a little later. Of two errors
 * the work's own is told, from which recording only suffers. */
static nb_status record(struct nb_pass *pass, struct nb_pass_recording *recording, nb_status (*enqueue)(void *context), void *context)
{
    struct nb_device *device = pass->work.device;
    struct nb_graph *graph = NULL;
    char why[1024];
    NB_TRY(device->graph_begin(device, pass->work.stream));
    nb_status status = enqueue(context);
    if (status != NB_OK)
        snprintf(why, sizeof why, "%s", nb_status_message());
    nb_status ended = device->graph_end(device, pass->work.stream, &graph);
    if (status != NB_OK) {
        if (graph)
            device->graph_destroy(device, &graph);
        return nb_fail(status, "%s", why);
    }
    recording->graph = graph;
    recording->refused = ended == NB_MEMORY;
    return recording->refused ? NB_OK : ended;
}

/* The slot's recording at its tokens_max, a new one if there is room, or NULL. */
static struct nb_pass_recording *find_recording(struct nb_pass *pass, int slot)
{
    int tokens_max = pass->slot[slot].tokens_max;
    for (int i = 0; i < pass->recordings; i++)
        if (pass->recording[i].slot == slot && pass->recording[i].tokens_max == tokens_max)
            return &pass->recording[i];
    if (pass->recordings == NB_PASS_RECORDINGS_MAX)
        return NULL;
    struct nb_pass_recording *recording = &pass->recording[pass->recordings++];
    *recording = (struct nb_pass_recording){.slot = slot, .tokens_max = tokens_max};
    return recording;
}

int nb_pass_repeats_from(const struct nb_pass *pass)
{
    return pass->model->options.embedding_on_host ? 1 : 0;
}

nb_status nb_pass_repeat(struct nb_pass *pass, int slot, nb_status (*enqueue)(void *context), void *context)
{
    struct nb_device *device = pass->work.device;
    struct nb_stream *stream = pass->work.stream;
    bool records = device->graph_begin && !pass->inputs.stream && nb_weight_store_is_settled(pass->model->store);
    struct nb_pass_recording *recording = records ? find_recording(pass, slot) : NULL;
    if (nb_pass_repeats_from(pass) > 0)
        NB_TRY(nb_pass_forward(pass, slot, 0, nb_pass_repeats_from(pass) - 1));
    if (!recording || !recording->has_run || recording->refused) {
        if (recording)
            recording->has_run = true;
        return enqueue(context);
    }
    if (!recording->graph)
        NB_TRY(record(pass, recording, enqueue, context));
    return recording->graph ? device->graph_launch(device, stream, recording->graph) : enqueue(context);
}
