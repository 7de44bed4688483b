#include "train/step.h"

#include <stdlib.h>

#include "train/batch.h"
#include "train/pager.h"

struct nb_stepper {
    struct nb_session *session; /* not owned */
    struct nb_stepper_options options;
    int slots; /* micro-batches that go through a layer before the next */
    uint64_t frame; /* of the arena, before everything here */
    nb_dptr partial;
    struct nb_pass *pass;
    struct nb_pager *pager; /* NULL where masters and moments stay on the device */
    struct nb_batch *batch;
    struct nb_step *up, *down; /* host memory that copies reach */
};

static nb_status create(struct nb_stepper *s)
{
    struct nb_session *session = s->session;
    struct nb_device *device = session->device;
    struct nb_pass_options pass = {
        .limits = session->run->limits,
        .keep = NB_KEEP_INPUT,
        .layer_keep = session->run->keep,
        .slots = s->slots,
        .layer_major = s->slots > 1,
        .batches = s->options.micro_batches,
        .step = session->step,
        .offloaded = session->run->offloaded,
        .pinned = session->pinned,
    };
    uint64_t partials = nb_adapter_elements(session->adapter) / NB_TILE_ELEMENTS;
    void *up = NULL, *down = NULL;
    NB_TRY(device->host_take(device, sizeof *s->up, &up));
    s->up = up;
    NB_TRY(device->host_take(device, sizeof *s->down, &down));
    s->down = down;
    NB_TRY(nb_batch_create(&session->run->limits, &s->batch));
    NB_TRY(nb_pager_create(session, &s->pager));
    NB_TRY(nb_arena_take(session->arena, NB_CATEGORY_SCRATCH, "squares of the gradients", partials * sizeof(float),
        &s->partial.address));
    return nb_pass_create(session->model, session->adapter, &pass, session->arena, session->stream, &s->pass);
}

struct nb_stepper_options nb_stepper_options_of(const struct nb_run *run)
{
    const struct nb_config *config = run->config;
    return (struct nb_stepper_options){
        .micro_batch_size = run->micro_batch_size,
        .micro_batches = run->micro_batches,
        .beta1 = config->adam_beta1,
        .beta2 = config->adam_beta2,
        .epsilon = config->adam_epsilon,
        .weight_decay = config->weight_decay,
        .max_grad_norm = (float)config->max_grad_norm,
        .seed = (uint64_t)config->seed,
    };
}

nb_status nb_stepper_create(
    struct nb_session *session, const struct nb_stepper_options *options, struct nb_stepper **stepper)
{
    struct nb_stepper *s = calloc(1, sizeof *s);
    *stepper = NULL;
    if (!s)
        return nb_fail(NB_MEMORY, "no memory for a training step");
    s->session = session;
    s->options = *options;
    s->slots = nb_run_slots(session->run);
    s->frame = nb_arena_frame(session->arena);
    nb_status status = create(s);
    if (status != NB_OK)
        nb_stepper_destroy(&s);
    *stepper = s;
    return status;
}

void nb_stepper_destroy(struct nb_stepper **stepper)
{
    struct nb_stepper *s = *stepper;
    if (!s)
        return;
    struct nb_device *device = s->session->device;
    /* After an error there may be work left that reads what goes away here. */
    device->stream_wait(device, s->session->stream);
    nb_pager_destroy(&s->pager);
    nb_pass_destroy(&s->pass);
    nb_batch_destroy(&s->batch);
    if (s->up)
        device->host_give_back(device, s->up);
    if (s->down)
        device->host_give_back(device, s->down);
    nb_arena_release_to(s->session->arena, s->frame);
    free(s);
    *stepper = NULL;
}

/* Tokens of a step, and how many of them train. */
static void count_rows(const struct nb_dataset *dataset, const struct nb_step_rows *rows, struct nb_step_result *result)
{
    for (uint32_t i = rows->bin_first[0]; i < rows->bin_first[rows->bin_count]; i++) {
        const struct nb_row *row = &dataset->rows[rows->rows[i]];
        result->tokens += row->count;
        result->trained_tokens += row->trained_count;
    }
}

static nb_status upload_step(struct nb_stepper *s, int64_t step, double learning_rate, uint64_t trained_tokens)
{
    struct nb_session *session = s->session;
    if (!session->dry)
        *s->up = (struct nb_step){
            .step = (uint32_t)step,
            .random_step = (uint32_t)step,
            .learning_rate = (float)learning_rate,
            .max_grad_norm = s->options.max_grad_norm,
            .inverse_count = (float)(1.0 / (double)trained_tokens),
            .seed = {(uint32_t)s->options.seed, (uint32_t)(s->options.seed >> 32)},
        };
    return session->device->upload(session->device, session->stream, session->step, s->up, sizeof *s->up);
}

/* The micro-batch that begins with bin `first`, into a slot. */
static nb_status set_micro_batch(struct nb_stepper *s, const struct nb_dataset *dataset,
    const struct nb_step_rows *rows, uint32_t first, int slot, uint32_t *token_offset)
{
    uint32_t bins = (uint32_t)s->options.micro_batch_size;
    uint32_t last = rows->bin_count - first < bins ? rows->bin_count : first + bins;
    nb_batch_clear(s->batch, *token_offset);
    for (uint32_t i = rows->bin_first[first]; i < rows->bin_first[last]; i++)
        NB_TRY(nb_batch_add(s->batch, dataset, rows->rows[i]));
    *token_offset += nb_batch_view(s->batch)->counts.tokens;
    return nb_pass_set_batch(s->pass, slot, nb_batch_view(s->batch));
}

static nb_status train(struct nb_stepper *s, int slots)
{
    return s->slots > 1 ? nb_pass_train_layer_major(s->pass, slots) : nb_pass_train(s->pass, 0);
}

/* All bins, forward and back. */
static nb_status run_micro_batches(
    struct nb_stepper *s, const struct nb_dataset *dataset, const struct nb_step_rows *rows)
{
    uint32_t offset = 0;
    int filled = 0;
    for (uint32_t first = 0; first < rows->bin_count; first += (uint32_t)s->options.micro_batch_size) {
        NB_TRY(set_micro_batch(s, dataset, rows, first, filled++, &offset));
        if (filled < s->slots)
            continue;
        NB_TRY(train(s, filled));
        filled = 0;
    }
    return filled ? train(s, filled) : NB_OK;
}

/* `record` is where a paged tensor's is at present; null for a resident one. */
static nb_status update_tensor(struct nb_stepper *s, int trainable, nb_dptr record)
{
    struct nb_device *device = s->session->device;
    struct nb_adamw adamw = {
        .step = s->session->step,
        .beta1 = s->options.beta1,
        .beta2 = s->options.beta2,
        .epsilon = s->options.epsilon,
        .weight_decay = s->options.weight_decay,
    };
    nb_adapter_bind_adamw(s->session->adapter, trainable, &adamw);
    if (!nb_dptr_is_null(record))
        nb_adapter_bind_page(s->session->adapter, trainable, record, &adamw);
    return device->adamw(device, s->session->stream, &adamw);
}

static nb_status update_paged(struct nb_stepper *s)
{
    for (int chunk = 0; chunk < nb_pager_layout_of(s->pager)->chunks; chunk++) {
        struct nb_pager_chunk at;
        uint64_t offset = 0;
        NB_TRY(nb_pager_acquire(s->pager, chunk, &at));
        for (int i = at.first; i < at.last; i++) {
            NB_TRY(update_tensor(s, i, nb_dptr_at(at.records, offset)));
            offset += nb_adapter_record_of(s->session->adapter, i).bytes;
        }
        NB_TRY(nb_pager_release(s->pager, chunk));
    }
    return nb_pager_end(s->pager);
}

/* The norm, the scale and whether all is finite come first: every tensor's update reads them on the device. */
static nb_status update(struct nb_stepper *s)
{
    struct nb_session *session = s->session;
    struct nb_device *device = session->device;
    uint64_t elements = nb_adapter_elements(session->adapter);
    struct nb_square_sum squares = {
        .gradient = nb_adapter_memory_of(session->adapter)->gradient, .partial = s->partial, .count = elements};
    struct nb_clip_scale clip = {.partial = s->partial, .step = session->step, .count = elements / NB_TILE_ELEMENTS};
    if (s->pager)
        NB_TRY(nb_pager_begin(s->pager));
    NB_TRY(device->square_sum(device, session->stream, &squares));
    NB_TRY(device->clip_scale(device, session->stream, &clip));
    for (int i = 0; i < nb_adapter_resident(session->adapter); i++)
        NB_TRY(update_tensor(s, i, (nb_dptr){0}));
    return s->pager ? update_paged(s) : NB_OK;
}

const struct nb_pager *nb_stepper_pager(const struct nb_stepper *stepper)
{
    return stepper->pager;
}

nb_status nb_stepper_run(struct nb_stepper *stepper, const struct nb_dataset *dataset, const struct nb_step_rows *rows,
    int64_t step, double learning_rate, struct nb_step_result *result)
{
    struct nb_session *session = stepper->session;
    struct nb_device *device = session->device;
    *result = (struct nb_step_result){0};
    count_rows(dataset, rows, result);
    if (result->trained_tokens == 0)
        return nb_fail(
            NB_USAGE, "step %lld: none of its %u rows has a token that trains", (long long)step, rows->row_count);
    NB_TRY(upload_step(stepper, step, learning_rate, result->trained_tokens));
    NB_TRY(run_micro_batches(stepper, dataset, rows));
    NB_TRY(update(stepper));
    NB_TRY(device->download(device, session->stream, stepper->down, session->step, sizeof *stepper->down));
    NB_TRY(device->stream_wait(device, session->stream));
    if (session->dry)
        return NB_OK;
    result->loss = stepper->down->loss_sum / (double)result->trained_tokens;
    result->grad_norm = stepper->down->gradient_norm;
    result->finite = stepper->down->finite != 0;
    return NB_OK;
}
