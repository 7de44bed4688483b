#include "train/fit_advice.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "train/fit_knobs.h"
#include "train/setup_data.h"

static const double mebibyte = 1024.0 * 1024.0;

/* ---- a copy of a run, to try things with ---- */

struct trial {
    struct nb_run run; /* keep is its own; its data too if `rows` */
    nb_fit_measure *measure;
    void *context;
    bool rows;
};

static nb_status begin_trial(const struct nb_run *run, nb_fit_measure *measure, void *context, struct trial *trial)
{
    size_t blocks = (size_t)nb_checkpoint_config(run->checkpoint)->layers;
    *trial = (struct trial){.run = *run, .measure = measure ? measure : nb_fit_measure_training, .context = context};
    if (!run->keep)
        return NB_OK;
    if (!(trial->run.keep = malloc(blocks * sizeof *run->keep)))
        return nb_fail(NB_MEMORY, "no memory to try another choice");
    memcpy(trial->run.keep, run->keep, blocks * sizeof *run->keep);
    return NB_OK;
}

static void end_trial(struct trial *trial)
{
    struct nb_run *run = &trial->run;
    if (trial->rows) {
        nb_batch_plan_destroy(&run->batches);
        nb_dataset_destroy(&run->data);
        free(run->train_rows);
        free(run->eval_rows);
    }
    free(run->keep);
}

static nb_status measure_trial(struct trial *trial, struct nb_measure *measured)
{
    nb_knobs_apply(&trial->run);
    return trial->measure(&trial->run, trial->context, measured);
}

/* ---- what was chosen ---- */

/* "KEY: VALUE". */
static char *say(const struct nb_run *run, int knob, int notch)
{
    char *value = nb_knobs[knob].say(run, notch), *text = nb_format("%s: %s", nb_knobs[knob].key, value);
    free(value);
    return text;
}

/* A block that keeps everything keeps its attention's output as well. */
static bool does_nothing(const struct nb_run *run, int knob)
{
    if (knob == NB_KNOB_ATTENTION)
        return run->notch[NB_KNOB_ATTENTION] > run->notch[NB_KNOB_EVERYTHING];
    return knob == NB_KNOB_FILE || !nb_knob_is_free(run, (enum nb_knob_name)knob);
}

static void list_choices(const struct nb_run *run, struct nb_plan *plan)
{
    for (int k = 0; k < NB_KNOBS; k++) {
        int notch = run->notch[k];
        if (k == NB_KNOB_ATTENTION && notch > run->notch[NB_KNOB_EVERYTHING])
            notch = run->notch[NB_KNOB_EVERYTHING];
        if (notch > 0 && nb_knob_is_free(run, (enum nb_knob_name)k))
            plan->choice[plan->choices++] = say(run, k, notch);
    }
    if (run->layer_major && run->config->accumulation_order == NB_CONFIG_ACCUMULATION_AUTO)
        plan->choice[plan->choices++] = nb_format("accumulation_order: layer_major");
    if (run->chooses_micro_batch)
        plan->choice[plan->choices++] =
            nb_format("micro_batch_size: %d, %d times a step", run->micro_batch_size, run->micro_batches);
}

/* ---- the next choices ---- */

static double bytes_over(const struct nb_run *run, const struct nb_measure *measured)
{
    return (double)measured->peak_bytes - (double)run->available_bytes;
}

/* "TEXT and cost 4.2 s a step". */
static void add_seconds(char **text, const char *between, double seconds)
{
    char *longer = nb_format("%s%s %.3g s a step", *text, between, seconds < 1e-5 ? 0 : seconds);
    free(*text);
    *text = longer;
}

/* Faster, by what it saves for a byte; where no time is known, the first knob, which costs the most. */
static nb_status find_faster(struct trial *trial, const struct nb_plan *plan, char **text)
{
    struct nb_run *run = &trial->run;
    double best = 0;
    for (int k = 0; k < NB_KNOBS; k++) {
        struct nb_measure measured;
        if (does_nothing(run, k) || run->notch[k] == 0)
            continue;
        run->notch[k]--;
        nb_status status = measure_trial(trial, &measured);
        double missing = bytes_over(run, &measured), saved = plan->step_seconds - measured.seconds;
        double gain = plan->step_seconds > 0 ? saved / missing : *text ? 0 : 1;
        if (status == NB_OK && missing > 0 && gain > best && saved >= 1e-4 * plan->step_seconds) {
            char *what = say(run, k, run->notch[k]);
            free(*text);
            *text = nb_format("with %.1f MiB more: %s", missing / mebibyte, what);
            if (plan->step_seconds > 0)
                add_seconds(text, ", which saves", saved);
            free(what);
            best = gain;
        }
        run->notch[k]++;
        NB_TRY(status);
    }
    return NB_OK;
}

/* More frugal, by what a byte costs; a knob that would save nothing even at its end is told apart. */
static nb_status find_frugal(struct trial *trial, const struct nb_plan *plan, char **text, char **nothing)
{
    struct nb_run *run = &trial->run;
    double best = 0;
    for (int k = NB_KNOBS - 1; k >= 0; k--) {
        struct nb_measure measured;
        int last = nb_knobs[k].notches(run) - 1, at = run->notch[k];
        if (does_nothing(run, k) || at == last)
            continue;
        run->notch[k] = at + 1;
        nb_status status = measure_trial(trial, &measured);
        double freed = (double)plan->peak_bytes - (double)measured.peak_bytes;
        double cost = measured.seconds > plan->step_seconds ? measured.seconds - plan->step_seconds : 0;
        if (status == NB_OK && freed > 0 && (!*text || cost / freed < best)) {
            char *what = say(run, k, at + 1);
            free(*text);
            *text = nb_format("%s would free %.1f MiB", what, freed / mebibyte);
            if (measured.seconds > 0)
                add_seconds(text, " and cost", cost);
            free(what);
            best = cost / freed;
        }
        if (status == NB_OK && freed <= 0 && nb_knobs[k].leaves && !*nothing) {
            run->notch[k] = last;
            status = measure_trial(trial, &measured);
            if (status == NB_OK && measured.peak_bytes >= plan->peak_bytes) {
                char *what = say(run, k, last);
                *nothing = nb_format("%s would free nothing: the peak is elsewhere", what);
                free(what);
            }
        }
        run->notch[k] = at;
        NB_TRY(status);
    }
    return NB_OK;
}

static nb_status list_next(const struct nb_run *run, struct nb_plan *plan)
{
    struct trial trial;
    char *text[NB_PLAN_NEXT_MAX] = {NULL};
    NB_TRY(begin_trial(run, NULL, NULL, &trial));
    nb_status status = find_faster(&trial, plan, &text[0]);
    if (status == NB_OK)
        status = find_frugal(&trial, plan, &text[1], &text[2]);
    end_trial(&trial);
    for (int i = 0; i < NB_PLAN_NEXT_MAX; i++)
        if (text[i])
            plan->next[plan->nexts++] = text[i];
    return status;
}

/* ---- what would make it fit ---- */

/* "KEY: VALUE" of the choice that the trial's run has come to, without what follows "auto". */
static char *say_value(const struct nb_run *run, int knob)
{
    char *value = nb_knobs[knob].say(run, run->notch[knob]);
    value[strcspn(value, ",")] = 0;
    char *text = nb_format("%s: %s", nb_knobs[knob].key, value);
    free(value);
    return text;
}

/* A run that does not fit. */
struct ask {
    const struct nb_run *run;
    nb_fit_measure *measure;
    void *context;
};

static nb_status try_trial(const struct ask *ask, struct trial *trial, bool *fits)
{
    struct nb_measure measured;
    NB_TRY(ask->measure ? nb_fit_search(&trial->run, ask->measure, ask->context) : nb_fit_choose(&trial->run));
    NB_TRY(trial->measure(&trial->run, trial->context, &measured));
    *fits = nb_fit_holds(&trial->run, &measured);
    return NB_OK;
}

/* The knob opened, and all that the config leaves open chosen again around it. */
static nb_status open_knob(const struct ask *ask, int knob, char **change)
{
    struct trial trial;
    bool fits = false;
    if (nb_knob_is_free(ask->run, (enum nb_knob_name)knob) || !nb_knob_applies(ask->run, (enum nb_knob_name)knob))
        return NB_OK;
    NB_TRY(begin_trial(ask->run, ask->measure, ask->context, &trial));
    trial.run.opened_knobs |= 1u << knob;
    if (knob == NB_KNOB_EVERYTHING)
        trial.run.opened_knobs |= 1u << NB_KNOB_ATTENTION;
    nb_status status = try_trial(ask, &trial, &fits);
    if (status == NB_OK && fits)
        *change = say_value(&trial.run, knob);
    end_trial(&trial);
    return status;
}

/* The cheapest first. NB_KNOB_EVERYTHING stands for NB_KNOB_ATTENTION as well. */
static nb_status open_knobs(const struct ask *ask, char **change)
{
    for (int k = NB_KNOBS - 1; k >= 0 && !*change; k--)
        if (k != NB_KNOB_ATTENTION)
            NB_TRY(open_knob(ask, k, change));
    return NB_OK;
}

static nb_status page_optimizer(const struct ask *ask, char **change)
{
    struct trial trial;
    bool fits = false;
    if (ask->run->adapter.paging.on)
        return NB_OK;
    NB_TRY(begin_trial(ask->run, NULL, NULL, &trial));
    trial.run.adapter.paging.on = true;
    nb_status status = try_trial(ask, &trial, &fits);
    if (status == NB_OK && fits)
        *change = nb_format("optimizer: paged_adamw_%s", ask->run->adapter.moments_8bit ? "8bit" : "32bit");
    end_trial(&trial);
    return status;
}

/* A number that the memory grows with. */
struct size {
    const char *key;
    int unit, most; /* tried are its multiples below `most` */
    void (*set)(struct nb_run *run, int value);
};

static void set_rows(struct nb_run *run, int value)
{
    run->chooses_micro_batch = false;
    nb_run_resize(run, run->sequence_len, value, run->micro_batches);
}

static void set_length(struct nb_run *run, int value)
{
    nb_run_resize(run, value, run->micro_batch_size, run->micro_batches);
}

static void set_rank(struct nb_run *run, int value)
{
    run->adapter.rank = value;
}

/* Rows shorter than the data's would not hold them: two tokens do as well. */
static nb_status make_rows(struct trial *trial)
{
    struct nb_run *run = &trial->run;
    run->data = run->test_data = NULL;
    run->train_rows = run->eval_rows = NULL;
    run->batches = NULL;
    run->random_rows = 1;
    run->random_tokens = 2;
    trial->rows = true;
    return nb_setup_training_data(run);
}

/* The largest value that fits. */
static nb_status search_size(const struct ask *ask, const struct size *size, char **change)
{
    struct trial trial;
    int low = 0, high = (size->most + size->unit - 1) / size->unit;
    NB_TRY(begin_trial(ask->run, NULL, NULL, &trial));
    nb_status status = make_rows(&trial);
    while (status == NB_OK && high - low > 1) {
        int middle = low + (high - low) / 2;
        bool fits = false;
        size->set(&trial.run, middle * size->unit);
        status = nb_fit_can(&trial.run, &fits);
        *(fits ? &low : &high) = middle;
    }
    if (status == NB_OK && low > 0)
        *change = nb_format("%s: %d", size->key, low * size->unit);
    end_trial(&trial);
    return status;
}

static nb_status search_sizes(const struct ask *ask, char **change)
{
    const struct nb_run *run = ask->run;
    const struct size sizes[] = {
        {"micro_batch_size", 1, run->micro_batch_size, set_rows},
        {"sequence_len", NB_TILE_TOKENS, run->sequence_len, set_length},
        {"lora_r", 1, run->start_folder ? 0 : run->adapter.rank, set_rank},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && !*change; i++)
        NB_TRY(search_size(ask, &sizes[i], change));
    return NB_OK;
}

static nb_status find_change(const struct ask *ask, char **change)
{
    *change = NULL;
    NB_TRY(open_knobs(ask, change));
    if (*change || ask->measure)
        return NB_OK;
    NB_TRY(page_optimizer(ask, change));
    return *change ? NB_OK : search_sizes(ask, change);
}

/* "the device has 64.0 MiB within memory_budget, this needs 120.0 MiB: 56.0 MiB too few". */
static char *say_lack(const struct nb_run *run, const struct nb_measure *measured)
{
    double needed = (double)measured->peak_bytes, there = (double)run->available_bytes;
    if (needed <= there) {
        nb_host_need_check(run, &measured->host, measured->peak_bytes);
        return nb_format("%s", nb_status_message());
    }
    bool shared = run->available_bytes + run->driver_bytes < run->profile.memory_bytes;
    const char *within = run->config->memory_budget >= 0 ? " within memory_budget" : shared ? " free" : "";
    return nb_format("%s has %.1f MiB%s, this needs %.1f MiB: %.1f MiB too few", run->profile.name, there / mebibyte,
        within, needed / mebibyte, (needed - there) / mebibyte);
}

nb_status nb_fit_explain(
    const struct nb_run *run, const struct nb_measure *measured, nb_fit_measure *measure, void *context, char **text)
{
    const struct ask ask = {run, measure, context};
    char *lack = say_lack(run, measured), *change = NULL;
    nb_status status = find_change(&ask, &change);
    if (status == NB_OK)
        *text = change ? nb_format("%s; set %s", lack, change) : nb_format("%s; no single setting changes that", lack);
    free(lack);
    free(change);
    return status;
}

nb_status nb_fit_check(
    const struct nb_run *run, const struct nb_measure *measured, nb_fit_measure *measure, void *context)
{
    char *text = NULL;
    if (nb_fit_holds(run, measured))
        return NB_OK;
    NB_TRY(nb_fit_explain(run, measured, measure, context, &text));
    nb_fail(NB_MEMORY, "%s", text);
    free(text);
    return NB_MEMORY;
}

nb_status nb_plan_advise(const struct nb_run *run, struct nb_plan *plan)
{
    const struct nb_measure measured = {.peak_bytes = plan->peak_bytes, .host = plan->host};
    char *text = NULL;
    list_choices(run, plan);
    if (nb_fit_holds(run, &measured))
        return list_next(run, plan);
    NB_TRY(nb_fit_explain(run, &measured, NULL, NULL, &text));
    nb_plan_note(plan, nb_format("the run does not fit: %s", text));
    free(text);
    return NB_OK;
}
