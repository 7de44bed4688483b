#include "train/fit.h"

#include <string.h>

#include "device/cuda/plan.h"
#include "train/fit_knobs.h"

/* What was chosen, and what the run takes so. */
struct choice {
    int notch[NB_KNOBS];
    struct nb_measure measured;
};

enum { REMEMBERED = 128 };

/* The same is asked for again and again: where one knob's bisection ends, the next one's begins. */
struct search {
    struct nb_run *run;
    nb_fit_measure *measure;
    void *context;
    int choices;
    struct choice choice[REMEMBERED];
};

static nb_status measure(struct search *s, struct nb_measure *measured)
{
    for (int i = 0; i < s->choices; i++)
        if (memcmp(s->choice[i].notch, s->run->notch, sizeof s->run->notch) == 0) {
            *measured = s->choice[i].measured;
            return NB_OK;
        }
    nb_knobs_apply(s->run);
    NB_TRY(s->measure(s->run, s->context, measured));
    if (s->choices == REMEMBERED)
        return NB_OK;
    struct choice *choice = &s->choice[s->choices++];
    memcpy(choice->notch, s->run->notch, sizeof choice->notch);
    choice->measured = *measured;
    return NB_OK;
}

/* A CPU's is the host's too. */
static bool fits_device(const struct nb_run *run, const struct nb_measure *measured)
{
    uint64_t most = run->available_bytes, host = run->host_available_bytes, staging = measured->host.staging_bytes;
    if (run->profile.kind == NB_DEVICE_CPU && host < UINT64_MAX)
        most = host < staging ? 0 : host - staging < most ? host - staging : most;
    return measured->peak_bytes <= most;
}

bool nb_fit_holds(const struct nb_run *run, const struct nb_measure *measured)
{
    return fits_device(run, measured) && nb_host_need_fits(run, &measured->host, measured->peak_bytes);
}

static nb_status measure_choice(struct search *s, struct choice *choice)
{
    memcpy(choice->notch, s->run->notch, sizeof choice->notch);
    return measure(s, &choice->measured);
}

static bool is_free(struct search *s, enum nb_knob_name knob)
{
    return nb_knob_is_free(s->run, knob);
}

/* But for NB_KNOB_FILE, which saves nothing of the device's memory. */
static void set_all(struct nb_run *run, bool frugal)
{
    for (int k = 0; k < NB_KNOBS; k++)
        if (k != NB_KNOB_FILE)
            run->notch[k] = frugal && nb_knob_is_free(run, (enum nb_knob_name)k) ? nb_knobs[k].notches(run) - 1 : 0;
}

/* ---- one knob after the other ---- */

/* The fastest notch from `least` on that fits, where the one it stands at does. */
static nb_status relax_to(struct search *s, enum nb_knob_name knob, int least)
{
    int *notch = &s->run->notch[knob], high = *notch, low = least - 1;
    if (!is_free(s, knob))
        return NB_OK;
    while (high - low > 1) {
        struct nb_measure measured;
        *notch = low < least ? least : low + (high - low) / 2;
        NB_TRY(measure(s, &measured));
        *(fits_device(s->run, &measured) ? &high : &low) = *notch;
    }
    *notch = high;
    return NB_OK;
}

static nb_status relax(struct search *s, enum nb_knob_name knob)
{
    return relax_to(s, knob, 0);
}

/* Whether a block that keeps its attention's output saves more arithmetic for a byte than one that keeps everything. It
 * depends on how long the rows are. */
static nb_status attention_first(struct search *s, bool *first)
{
    static const enum nb_knob_name knob[2] = {NB_KNOB_EVERYTHING, NB_KNOB_ATTENTION};
    struct nb_measure none, one[2];
    double rate[2];
    NB_TRY(measure(s, &none));
    for (int i = 0; i < 2; i++) {
        s->run->notch[knob[i]]--;
        nb_status status = measure(s, &one[i]);
        s->run->notch[knob[i]]++;
        NB_TRY(status);
        double bytes = (double)one[i].peak_bytes - (double)none.peak_bytes;
        rate[i] = (none.flops - one[i].flops) / (bytes > 1 ? bytes : 1);
    }
    *first = rate[1] > rate[0];
    return NB_OK;
}

static nb_status relax_keeping(struct search *s)
{
    bool attention;
    if (!is_free(s, NB_KNOB_EVERYTHING))
        return NB_OK;
    NB_TRY(attention_first(s, &attention));
    NB_TRY(relax(s, attention ? NB_KNOB_ATTENTION : NB_KNOB_EVERYTHING));
    return relax(s, attention ? NB_KNOB_EVERYTHING : NB_KNOB_ATTENTION);
}

/* ---- orders ---- */

/* Knobs that are relaxed before the others, which follow in the table's order. NB_KNOB_EVERYTHING stands for
 * NB_KNOB_ATTENTION as well. */
struct order {
    int count;
    enum nb_knob_name first[4];
};

static const struct order of_the_table = {0};
static const struct order orders[] = {
    {2, {NB_KNOB_DEQUANTIZING, NB_KNOB_EVERYTHING}},                    /* the least arithmetic */
    {3, {NB_KNOB_STREAMING, NB_KNOB_DEQUANTIZING, NB_KNOB_EVERYTHING}}, /* inputs leave so that more is kept */
};
static const struct order of_the_host = {3, {NB_KNOB_OFFLOADING, NB_KNOB_RESIDENCY, NB_KNOB_EMBEDDING}};

static bool is_first(const struct order *order, int knob)
{
    for (int i = 0; i < order->count; i++)
        if ((int)order->first[i] == knob)
            return true;
    return false;
}

static nb_status relax_knob(struct search *s, int knob)
{
    if (knob == NB_KNOB_ATTENTION || knob == NB_KNOB_FILE)
        return NB_OK;
    return knob == NB_KNOB_EVERYTHING ? relax_keeping(s) : relax(s, (enum nb_knob_name)knob);
}

/* From everything at its most frugal, which fits the device; first to where a knob begins to cost something. */
static nb_status relax_in(struct search *s, const struct order *order, struct choice *choice)
{
    set_all(s->run, true);
    for (int k = 0; k < NB_KNOBS; k++)
        if (nb_knobs[k].cheap)
            NB_TRY(relax_to(s, (enum nb_knob_name)k, nb_knobs[k].cheap(s->run)));
    for (int i = 0; i < order->count; i++)
        NB_TRY(relax_knob(s, order->first[i]));
    for (int k = 0; k < NB_KNOBS; k++)
        if (!is_first(order, k))
            NB_TRY(relax_knob(s, k));
    return measure_choice(s, choice);
}

/* Whether `b` is worth a change. */
static bool is_better(const struct nb_run *run, const struct choice *a, const struct choice *b)
{
    bool a_fits = nb_fit_holds(run, &a->measured), b_fits = nb_fit_holds(run, &b->measured);
    if (a_fits != b_fits)
        return b_fits;
    return a_fits && b->measured.seconds < 0.995 * a->measured.seconds;
}

static nb_status try_order(struct search *s, const struct order *order, struct choice *best)
{
    struct choice choice;
    NB_TRY(relax_in(s, order, &choice));
    if (is_better(s->run, best, &choice))
        *best = choice;
    return NB_OK;
}

/* Other orders can only gain where something is computed again. */
static nb_status relax_all(struct search *s, struct choice *best)
{
    NB_TRY(relax_in(s, &of_the_table, best));
    bool again = is_free(s, NB_KNOB_EVERYTHING) && best->notch[NB_KNOB_EVERYTHING] > 0;
    for (size_t i = 0; again && best->measured.seconds > 0 && i < sizeof orders / sizeof *orders; i++)
        NB_TRY(try_order(s, &orders[i], best));
    return nb_fit_holds(s->run, &best->measured) ? NB_OK : try_order(s, &of_the_host, best);
}

/* A checkpoint may hold the weights in another form than they are used in, and there may be no cache. */
static nb_status relax_with_file(struct search *s, struct choice *best)
{
    struct choice choice;
    s->run->notch[NB_KNOB_FILE] = 1;
    set_all(s->run, true);
    nb_status status = measure_choice(s, &choice);
    if (status != NB_OK)
        return status == NB_UNSUPPORTED ? NB_OK : status;
    NB_TRY(relax_all(s, &choice));
    if (is_better(s->run, best, &choice))
        *best = choice;
    return NB_OK;
}

static nb_status search(struct search *s, struct choice *best)
{
    s->run->notch[NB_KNOB_FILE] = 0;
    set_all(s->run, false);
    NB_TRY(measure_choice(s, best));
    if (nb_fit_holds(s->run, &best->measured))
        return NB_OK;
    set_all(s->run, true);
    NB_TRY(measure_choice(s, best));
    if (!fits_device(s->run, &best->measured))
        return NB_OK;
    NB_TRY(relax_all(s, best));
    bool short_of_host = !nb_fit_holds(s->run, &best->measured) && is_free(s, NB_KNOB_FILE);
    return short_of_host ? relax_with_file(s, best) : NB_OK;
}

static void take(struct nb_run *run, const struct choice *choice)
{
    memcpy(run->notch, choice->notch, sizeof run->notch);
    nb_knobs_apply(run);
}

nb_status nb_fit_search(struct nb_run *run, nb_fit_measure *measured_by, void *context)
{
    struct search s = {.run = run, .measure = measured_by, .context = context};
    struct choice best;
    NB_TRY(search(&s, &best));
    take(run, &best);
    return NB_OK;
}

/* ---- a training run ---- */

void nb_fit_begin(struct nb_run *run)
{
    run->may_dequantize_once = false;
    run->notch[NB_KNOB_FILE] = 0;
    set_all(run, false);
    nb_knobs_apply(run);
}

nb_status nb_fit_measure_training(struct nb_run *run, void *context, struct nb_measure *measured)
{
    (void)context;
    return nb_plan_measure(run, measured);
}

/* What a paged optimizer would page with nothing resident. */
static nb_status count_paged(struct nb_run *run)
{
    struct nb_adapter *adapter = NULL;
    struct nb_adapter_options options = run->adapter;
    run->paged_bytes = 0;
    if (!options.paging.on)
        return NB_OK;
    options.paging.resident_bytes = 0;
    NB_TRY(nb_adapter_create(nb_checkpoint_config(run->checkpoint), &options, &adapter));
    run->paged_bytes = nb_adapter_paged_bytes(adapter);
    nb_adapter_destroy(&adapter);
    return NB_OK;
}

/* Only where every product with 4-bit weights multiplies from scratch, and so to the same bits from a matrix that was
 * dequantized before. The few-token kernel's, which the plan does not list, do not. */
static nb_status may_dequantize_once(struct nb_run *run, bool *may)
{
    struct nb_measure measured;
    *may = false;
    if (run->profile.kind != NB_DEVICE_CUDA || run->model.linear_format == NB_WEIGHT_BF16 ||
        run->limits.tokens <= NB_CUDA_FEW_TOKENS)
        return NB_OK;
    NB_TRY(nb_plan_measure(run, &measured));
    *may = !measured.fuses;
    return NB_OK;
}

/* What is not a matter of memory alone: how many rows go at a time, and in which order micro-batches pass the
 * layers. */
struct variant {
    int micro_batch_size;
    bool layer_major;
};

static nb_status set_variant(struct nb_run *run, const struct variant *variant)
{
    int rows = run->micro_batch_size * run->micro_batches;
    run->layer_major = variant->layer_major;
    nb_run_resize(run, run->sequence_len, variant->micro_batch_size, rows / variant->micro_batch_size);
    nb_fit_begin(run);
    return may_dequantize_once(run, &run->may_dequantize_once);
}

static bool is_fastest(const struct choice *choice)
{
    for (int k = 0; k < NB_KNOBS; k++)
        if (choice->notch[k] > 0)
            return false;
    return true;
}

struct variants {
    struct variant chosen;
    struct choice best;
    bool any;
};

/* Where the rates are unknown, as many rows as fit with everything at its fastest are taken, or else one. */
static nb_status try_variant(struct nb_run *run, const struct variant *variant, struct variants *v)
{
    struct search s = {.run = run, .measure = nb_fit_measure_training};
    struct choice choice;
    NB_TRY(set_variant(run, variant));
    NB_TRY(search(&s, &choice));
    bool is_more = choice.measured.seconds == 0 && nb_fit_holds(run, &choice.measured) && is_fastest(&choice);
    if (v->any && !is_more && !is_better(run, &v->best, &choice))
        return NB_OK;
    *v = (struct variants){.chosen = *variant, .best = choice, .any = true};
    return NB_OK;
}

/* Only several micro-batches have an order; layer by layer, each layer's weights are fetched and dequantized once for
 * all of them, and the inputs of all are stored. */
static nb_status try_orders(struct nb_run *run, int size, struct variants *v)
{
    enum nb_config_accumulation order = run->config->accumulation_order;
    bool several = run->micro_batch_size * run->micro_batches > size;
    if (order != NB_CONFIG_LAYER_MAJOR)
        NB_TRY(try_variant(run, &(struct variant){size, false}, v));
    bool helps = v->best.measured.seconds > 0 && (run->may_dequantize_once || v->best.measured.streamed_bytes > 0);
    bool open = order == NB_CONFIG_ACCUMULATION_AUTO && several && helps;
    return open || order == NB_CONFIG_LAYER_MAJOR ? try_variant(run, &(struct variant){size, true}, v) : NB_OK;
}

/* Larger micro-batches read, dequantize and stream the weights more seldom. */
static nb_status try_sizes(struct nb_run *run, struct variants *v)
{
    int rows = run->micro_batch_size * run->micro_batches;
    for (int size = 1; size <= rows; size++)
        if (rows % size == 0 && (int64_t)size * run->sequence_len <= NB_RUN_TOKENS_MAX)
            NB_TRY(try_orders(run, size, v));
    return NB_OK;
}

nb_status nb_fit_choose(struct nb_run *run)
{
    struct variants v = {.any = false};
    nb_fit_begin(run);
    NB_TRY(count_paged(run));
    NB_TRY(run->chooses_micro_batch ? try_sizes(run, &v) : try_orders(run, run->micro_batch_size, &v));
    NB_TRY(set_variant(run, &v.chosen));
    take(run, &v.best);
    return NB_OK;
}

/* With all frugal the device takes the least, but the host the most. */
nb_status nb_fit_can(struct nb_run *run, bool *can)
{
    struct search s = {.run = run, .measure = nb_fit_measure_training};
    struct nb_measure measured;
    run->layer_major = run->config->accumulation_order == NB_CONFIG_LAYER_MAJOR;
    nb_fit_begin(run);
    set_all(run, true);
    NB_TRY(measure(&s, &measured));
    *can = nb_fit_holds(run, &measured);
    if (*can)
        return NB_OK;
    if (fits_device(run, &measured))
        NB_TRY(nb_fit_choose(run));
    else
        nb_fit_begin(run);
    NB_TRY(nb_plan_measure(run, &measured));
    *can = nb_fit_holds(run, &measured);
    return NB_OK;
}
