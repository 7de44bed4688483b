#include "train/fit.h"

#include "device/cuda/plan.h"
#include "train/fit_knobs.h"

struct search {
    struct nb_run *run;
    nb_fit_measure *measure;
    void *context;
};

static nb_status measure(const struct search *s, struct nb_measure *measured)
{
    nb_knobs_apply(s->run);
    return s->measure(s->run, s->context, measured);
}

static nb_status fits(const struct search *s, bool *fits)
{
    struct nb_measure measured;
    NB_TRY(measure(s, &measured));
    *fits = measured.peak_bytes <= s->run->available_bytes;
    return NB_OK;
}

static void set_all(struct nb_run *run, bool frugal)
{
    for (int k = 0; k < NB_KNOBS; k++)
        run->notch[k] = frugal && nb_knob_is_free(run, (enum nb_knob_name)k) ? nb_knobs[k].notches(run) - 1 : 0;
}

/* The fastest notch that fits, where the one it stands at does. */
static nb_status relax(const struct search *s, enum nb_knob_name knob)
{
    int *notch = &s->run->notch[knob], high = *notch, low = -1;
    if (!nb_knob_is_free(s->run, knob))
        return NB_OK;
    while (high - low > 1) {
        bool enough;
        *notch = low < 0 ? 0 : low + (high - low) / 2;
        NB_TRY(fits(s, &enough));
        *(enough ? &high : &low) = *notch;
    }
    *notch = high;
    return NB_OK;
}

/* Whether a block that keeps its attention's output saves more arithmetic for a byte than one that keeps everything. It
 * depends on how long the rows are. A byte more or fewer makes no difference to whether 1 or 0 of them fit. */
static nb_status attention_first(const struct search *s, bool *first)
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

static nb_status relax_keeping(const struct search *s)
{
    bool attention;
    if (!nb_knob_is_free(s->run, NB_KNOB_EVERYTHING))
        return NB_OK;
    NB_TRY(attention_first(s, &attention));
    NB_TRY(relax(s, attention ? NB_KNOB_ATTENTION : NB_KNOB_EVERYTHING));
    return relax(s, attention ? NB_KNOB_EVERYTHING : NB_KNOB_ATTENTION);
}

static nb_status search(const struct search *s)
{
    bool enough;
    set_all(s->run, false);
    NB_TRY(fits(s, &enough));
    if (enough)
        return NB_OK;
    set_all(s->run, true);
    NB_TRY(fits(s, &enough));
    if (!enough)
        return NB_OK;
    for (int k = 0; k < NB_KNOBS; k++) {
        if (k == NB_KNOB_ATTENTION) /* with NB_KNOB_EVERYTHING */
            continue;
        NB_TRY(k == NB_KNOB_EVERYTHING ? relax_keeping(s) : relax(s, (enum nb_knob_name)k));
    }
    return NB_OK;
}

nb_status nb_fit_search(struct nb_run *run, nb_fit_measure *measured_by, void *context)
{
    const struct search s = {run, measured_by, context};
    nb_status status = search(&s);
    nb_knobs_apply(run);
    return status;
}

void nb_fit_begin(struct nb_run *run)
{
    run->may_dequantize_once = false;
    set_all(run, false);
    nb_knobs_apply(run);
}

static nb_status measure_training(struct nb_run *run, void *context, struct nb_measure *measured)
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

nb_status nb_fit_choose(struct nb_run *run)
{
    nb_fit_begin(run);
    NB_TRY(count_paged(run));
    NB_TRY(may_dequantize_once(run, &run->may_dequantize_once));
    return nb_fit_search(run, measure_training, NULL);
}
