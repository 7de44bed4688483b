#include "text/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "text/dataset.h"

struct nb_batch_plan {
    struct nb_batch_plan_options options;
    uint32_t *base;    /* [count] rows in the order given, lengths beside them */
    uint32_t *lengths; /* [count] tokens of base[i] */
    uint32_t count;
    uint32_t *order;     /* [count] the epoch's rows, bin after bin */
    uint32_t *bin_first; /* [bins + 1] */
    uint32_t bins, bin_rows_max, bin_tokens_max;
    uint32_t *position, *bin_of, *tree; /* work of laying out */
    uint64_t epoch;
    bool laid_out;
};

/* Allocates the lists; on an error neither has memory. */
static nb_status start_lists(
    struct nb_row_list *train, uint32_t train_count, struct nb_row_list *held, uint32_t held_count)
{
    *train = (struct nb_row_list){malloc((size_t)train_count * sizeof *train->rows), 0};
    *held = (struct nb_row_list){held_count > 0 ? malloc((size_t)held_count * sizeof *held->rows) : NULL, 0};
    if (train->rows && (held->rows || held_count == 0))
        return NB_OK;
    free(train->rows);
    free(held->rows);
    *train = *held = (struct nb_row_list){0};
    return nb_fail(NB_MEMORY, "no memory to split %u rows", train_count + held_count);
}

nb_status nb_dataset_split(const struct nb_dataset *dataset, double size, uint64_t seed, struct nb_row_list *train,
                           struct nb_row_list *validation)
{
    uint32_t kept = dataset->kept_count, number = 0;
    *train = *validation = (struct nb_row_list){0};
    if (!(size >= 0))
        return nb_fail(NB_USAGE, "val_set_size %g is not a fraction or a number of rows", size);
    double wanted = size < 1 ? floor(size * kept + 0.5) : floor(size);
    if (size > 0 && wanted < 1)
        wanted = 1;
    if (wanted >= kept)
        return nb_fail(NB_USAGE,
            "val_set_size %g takes %.0f rows for evaluation, but the data set has %u usable rows: none would "
            "be left to train on",
            size, wanted, kept);
    uint32_t held = (uint32_t)wanted;
    uint32_t *order = malloc((size_t)kept * sizeof *order);
    bool *is_held = calloc(kept, sizeof *is_held);
    nb_status status = order && is_held ? start_lists(train, kept - held, validation, held)
                                        : nb_fail(NB_MEMORY, "no memory to split %u rows", kept);
    if (status == NB_OK) {
        for (uint32_t i = 0; i < kept; i++)
            order[i] = i;
        nb_random_shuffle(seed, NB_RANDOM_SPLIT, 0, order, kept);
        for (uint32_t i = 0; i < held; i++)
            is_held[order[i]] = true;
        for (uint32_t i = 0; i < dataset->row_count && number < kept; i++) {
            if (dataset->rows[i].dropped != NB_ROW_KEPT)
                continue;
            struct nb_row_list *list = is_held[number++] ? validation : train;
            list->rows[list->count++] = i;
        }
    }
    free(order);
    free(is_held);
    return status;
}

/* A tree over bins whose nodes hold the most room of any bin below them; leaf b is node `leaves` + b. */
static uint32_t leaf_count(uint32_t bins)
{
    uint32_t leaves = 1;
    while (leaves < bins)
        leaves *= 2;
    return leaves;
}

/* The first bin with room for `length` tokens: there is one, as there are as many bins as rows. */
static uint32_t first_fit(uint32_t *tree, uint32_t leaves, uint32_t length)
{
    uint32_t node = 1;
    while (node < leaves)
        node = tree[2 * node] >= length ? 2 * node : 2 * node + 1;
    uint32_t bin = node - leaves;
    tree[node] -= length;
    while ((node /= 2) >= 1)
        tree[node] = tree[2 * node] > tree[2 * node + 1] ? tree[2 * node] : tree[2 * node + 1];
    return bin;
}

/* Positions sorted by length, longest first; those of one length stay in order. A radix sort: two passes of 16 bits. */
static void sort_by_length(const struct nb_batch_plan *plan, uint32_t *positions, uint32_t *scratch)
{
    for (int shift = 0; shift < 32; shift += 16) {
        uint32_t *start = plan->tree; /* at least 65,537 entries; free while sorting */
        memset(start, 0, 65537 * sizeof *start);
        for (uint32_t i = 0; i < plan->count; i++)
            start[(0xffffu - (plan->lengths[positions[i]] >> shift & 0xffffu)) + 1]++;
        for (uint32_t i = 0; i < 65536; i++)
            start[i + 1] += start[i];
        for (uint32_t i = 0; i < plan->count; i++)
            scratch[start[0xffffu - (plan->lengths[positions[i]] >> shift & 0xffffu)]++] = positions[i];
        memcpy(positions, scratch, plan->count * sizeof *positions);
    }
}

/* First-fit decreasing (Johnson 1973): at most 11/9 of the fewest bins, plus one. Fills bin_of by position. */
static void pack_decreasing(struct nb_batch_plan *plan)
{
    uint32_t leaves = leaf_count(plan->count), bins = 0;
    sort_by_length(plan, plan->position, plan->order);
    for (uint32_t i = 1; i < 2 * leaves; i++)
        plan->tree[i] = plan->options.sequence_len;
    for (uint32_t i = 0; i < plan->count; i++) {
        uint32_t bin = first_fit(plan->tree, leaves, plan->lengths[plan->position[i]]);
        plan->bin_of[plan->position[i]] = bin;
        bins = bin >= bins ? bin + 1 : bins;
    }
    plan->bins = bins;
}

/* Keeps the order: a bin is closed when the next row does not fit. */
static void pack_in_order(struct nb_batch_plan *plan)
{
    uint64_t used = 0;
    plan->bins = 1;
    for (uint32_t i = 0; i < plan->count; i++) {
        uint32_t length = plan->lengths[plan->position[i]];
        if (used + length > plan->options.sequence_len) {
            plan->bins++;
            used = 0;
        }
        used += length;
        plan->bin_of[plan->position[i]] = plan->bins - 1;
    }
}

static void one_row_a_bin(struct nb_batch_plan *plan)
{
    plan->bins = plan->count;
    for (uint32_t i = 0; i < plan->count; i++)
        plan->bin_of[plan->position[i]] = i;
}

/* From bin_of to `order` and `bin_first`, bins renamed by the epoch's shuffle, rows within a bin in the order of
 * `position`. */
static void gather(struct nb_batch_plan *plan, uint64_t epoch)
{
    uint32_t *name = plan->tree, *first = plan->bin_first;
    for (uint32_t b = 0; b < plan->bins; b++)
        name[b] = b;
    if (plan->options.shuffle && plan->options.sample_packing)
        nb_random_shuffle(plan->options.seed, NB_RANDOM_PACK, epoch, name, plan->bins);
    memset(first, 0, ((size_t)plan->bins + 1) * sizeof *first);
    for (uint32_t i = 0; i < plan->count; i++)
        first[name[plan->bin_of[i]] + 1]++;
    for (uint32_t b = 0; b < plan->bins; b++)
        first[b + 1] += first[b];
    for (uint32_t i = 0; i < plan->count; i++) {
        uint32_t at = plan->position[i];
        plan->order[first[name[plan->bin_of[at]]]++] = plan->base[at];
    }
    /* Each start has moved to its end, which is the next one's start. */
    memmove(first + 1, first, plan->bins * sizeof *first);
    first[0] = 0;
}

static void lay_out(struct nb_batch_plan *plan, uint64_t epoch)
{
    for (uint32_t i = 0; i < plan->count; i++)
        plan->position[i] = i;
    if (plan->options.shuffle)
        nb_random_shuffle(plan->options.seed, NB_RANDOM_SHUFFLE, epoch, plan->position, plan->count);
    if (!plan->options.sample_packing)
        one_row_a_bin(plan);
    else if (plan->options.shuffle)
        pack_decreasing(plan);
    else
        pack_in_order(plan);
    gather(plan, epoch);
    plan->epoch = epoch;
    plan->laid_out = true;
}

/* Which lengths share a bin is the same in every epoch, so the first one's bins give the limits. */
static void measure(struct nb_batch_plan *plan, uint32_t *bin_tokens)
{
    memset(bin_tokens, 0, plan->bins * sizeof *bin_tokens);
    for (uint32_t i = 0; i < plan->count; i++)
        bin_tokens[plan->bin_of[i]] += plan->lengths[i];
    for (uint32_t b = 0; b < plan->bins; b++) {
        uint32_t rows = plan->bin_first[b + 1] - plan->bin_first[b];
        plan->bin_rows_max = rows > plan->bin_rows_max ? rows : plan->bin_rows_max;
        plan->bin_tokens_max = bin_tokens[b] > plan->bin_tokens_max ? bin_tokens[b] : plan->bin_tokens_max;
    }
}

nb_status nb_batch_plan_open(const struct nb_dataset *dataset, const uint32_t *rows, uint32_t count,
                             const struct nb_batch_plan_options *options, struct nb_batch_plan **plan)
{
    *plan = NULL;
    if (count == 0 || count > UINT32_MAX / 4 || options->bins_per_step == 0)
        return nb_fail(NB_USAGE, "%u rows in steps of %u cannot be planned", count, options->bins_per_step);
    for (uint32_t i = 0; options->sample_packing && i < count; i++)
        if (dataset->rows[rows[i]].count > options->sequence_len)
            return nb_fail(NB_USAGE, "row %u has %u tokens, more than a bin of sequence_len %u", rows[i],
                           dataset->rows[rows[i]].count, options->sequence_len);
    struct nb_batch_plan *p = calloc(1, sizeof *p);
    if (!p)
        return nb_fail(NB_MEMORY, "no memory to plan %u rows", count);
    size_t tree = 2 * (size_t)leaf_count(count), n = count;
    p->options = *options;
    p->count = count;
    p->base = malloc(n * sizeof *p->base);
    p->lengths = malloc(n * sizeof *p->lengths);
    p->order = malloc(n * sizeof *p->order);
    p->bin_first = malloc((n + 1) * sizeof *p->bin_first);
    p->position = malloc(n * sizeof *p->position);
    p->bin_of = malloc(n * sizeof *p->bin_of);
    p->tree = malloc((tree > 65537 ? tree : 65537) * sizeof *p->tree);
    if (!p->base || !p->lengths || !p->order || !p->bin_first || !p->position || !p->bin_of || !p->tree) {
        nb_batch_plan_destroy(&p);
        return nb_fail(NB_MEMORY, "no memory to plan %u rows", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        p->base[i] = rows[i];
        p->lengths[i] = dataset->rows[rows[i]].count;
    }
    lay_out(p, 0);
    measure(p, p->tree);
    *plan = p;
    return NB_OK;
}

void nb_batch_plan_destroy(struct nb_batch_plan **plan)
{
    struct nb_batch_plan *p = *plan;
    if (!p)
        return;
    free(p->base);
    free(p->lengths);
    free(p->order);
    free(p->bin_first);
    free(p->position);
    free(p->bin_of);
    free(p->tree);
    free(p);
    *plan = NULL;
}

uint32_t nb_batch_plan_bins(const struct nb_batch_plan *plan)
{
    return plan->bins;
}

uint32_t nb_batch_plan_steps(const struct nb_batch_plan *plan)
{
    return (uint32_t)(((uint64_t)plan->bins + plan->options.bins_per_step - 1) / plan->options.bins_per_step);
}

uint32_t nb_batch_plan_bin_rows_max(const struct nb_batch_plan *plan)
{
    return plan->bin_rows_max;
}

uint32_t nb_batch_plan_bin_tokens_max(const struct nb_batch_plan *plan)
{
    return plan->bin_tokens_max;
}

nb_status nb_batch_plan_step(struct nb_batch_plan *plan, uint64_t epoch, uint32_t step, struct nb_step_rows *rows)
{
    if (step >= nb_batch_plan_steps(plan))
        return nb_fail(NB_USAGE, "step %u of an epoch that has %u", step, nb_batch_plan_steps(plan));
    if (!plan->laid_out || plan->epoch != epoch)
        lay_out(plan, epoch);
    uint32_t first = step * plan->options.bins_per_step, left = plan->bins - first;
    rows->rows = plan->order;
    rows->bin_first = plan->bin_first + first;
    rows->bin_count = left < plan->options.bins_per_step ? left : plan->options.bins_per_step;
    rows->row_count = rows->bin_first[rows->bin_count] - rows->bin_first[0];
    return NB_OK;
}
