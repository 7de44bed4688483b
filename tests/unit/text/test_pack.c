/* Batch plans: every row once an epoch, no bin too full, the same for the same seed. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/dataset.h"
#include "text/pack.h"

enum { ROWS = 500, LENGTH = 128 };

/* A data set of lengths alone: plans look at nothing else. */
static struct nb_dataset *make_dataset(uint32_t count)
{
    struct nb_dataset *dataset = calloc(1, sizeof *dataset);
    assert_non_null(dataset);
    dataset->rows = calloc(count, sizeof *dataset->rows);
    assert_non_null(dataset->rows);
    uint32_t random = 7;
    for (uint32_t i = 0; i < count; i++) {
        random = random * 1664525u + 1013904223u;
        dataset->rows[i].count = i % 50 == 49 ? 0 : 2 + (random >> 20) % (LENGTH - 1); /* 2 to LENGTH */
        dataset->rows[i].dropped = dataset->rows[i].count ? NB_ROW_KEPT : NB_ROW_TOO_LONG;
        dataset->kept_count += dataset->rows[i].count > 0;
    }
    dataset->row_count = count;
    return dataset;
}

static void assert_epoch(const struct nb_dataset *dataset, struct nb_batch_plan *plan, uint64_t epoch, uint32_t rows,
    uint32_t bins_a_step, uint32_t capacity)
{
    uint32_t seen = 0, bins = 0;
    bool *once = calloc(dataset->row_count, sizeof *once);
    assert_non_null(once);
    for (uint32_t step = 0; step < nb_batch_plan_steps(plan); step++) {
        struct nb_step_rows s;
        assert_int_equal(nb_batch_plan_step(plan, epoch, step, &s), NB_OK);
        assert_true(s.bin_count == bins_a_step ||
                    (step + 1 == nb_batch_plan_steps(plan) && s.bin_count > 0 && s.bin_count < bins_a_step));
        assert_int_equal(s.row_count, s.bin_first[s.bin_count] - s.bin_first[0]);
        for (uint32_t b = 0; b < s.bin_count; b++) {
            uint32_t tokens = 0, bin_rows = s.bin_first[b + 1] - s.bin_first[b];
            assert_true(bin_rows > 0 && bin_rows <= nb_batch_plan_bin_rows_max(plan));
            for (uint32_t i = s.bin_first[b]; i < s.bin_first[b + 1]; i++) {
                assert_false(once[s.rows[i]]);
                once[s.rows[i]] = true;
                tokens += dataset->rows[s.rows[i]].count;
                seen++;
            }
            assert_true(tokens <= capacity && tokens <= nb_batch_plan_bin_tokens_max(plan));
        }
        bins += s.bin_count;
    }
    assert_int_equal(seen, rows);
    assert_int_equal(bins, nb_batch_plan_bins(plan));
    free(once);
}

static void split_all(const struct nb_dataset *dataset, uint32_t **rows, uint32_t *count)
{
    struct nb_row_list all, none;
    assert_int_equal(nb_dataset_split(dataset, 0, 1, &all, &none), NB_OK);
    assert_null(none.rows);
    assert_int_equal(all.count, dataset->kept_count);
    *rows = all.rows;
    *count = all.count;
}

static void free_dataset(struct nb_dataset *dataset)
{
    free(dataset->rows);
    free(dataset);
}

static void every_row_once_in_bins_that_fit(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        for (uint32_t total = 1; total <= ROWS; total = total * 2 + 1) {
            struct nb_dataset *dataset = make_dataset(total);
            struct nb_batch_plan *plan;
            uint32_t *rows, count;
            struct nb_batch_plan_options options = {.seed = 11,
                .sequence_len = LENGTH,
                .bins_per_step = 4,
                .sample_packing = variant & 1,
                .shuffle = variant & 2};
            split_all(dataset, &rows, &count);
            assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &plan), NB_OK);
            for (uint64_t epoch = 0; epoch < 3; epoch++)
                assert_epoch(dataset, plan, epoch, count, 4, LENGTH);
            free(rows);
            nb_batch_plan_destroy(&plan);
            free_dataset(dataset);
        }
    }
}

static uint64_t hash_epoch(struct nb_batch_plan *plan, uint64_t epoch)
{
    uint64_t hash = 1469598103934665603u;
    for (uint32_t step = 0; step < nb_batch_plan_steps(plan); step++) {
        struct nb_step_rows s;
        assert_int_equal(nb_batch_plan_step(plan, epoch, step, &s), NB_OK);
        for (uint32_t b = 0; b < s.bin_count; b++, hash *= 31)
            for (uint32_t i = s.bin_first[b]; i < s.bin_first[b + 1]; i++)
                hash = (hash ^ s.rows[i]) * 1099511628211u;
    }
    return hash;
}

/* Also when the epochs are asked for in another order, as a resumed run does. */
static void same_seed_same_bins(void **state)
{
    (void)state;
    struct nb_dataset *dataset = make_dataset(ROWS);
    uint32_t *rows, count;
    split_all(dataset, &rows, &count);
    for (int packing = 0; packing < 2; packing++) {
        struct nb_batch_plan_options options = {
            .seed = 5, .sequence_len = LENGTH, .bins_per_step = 3, .sample_packing = packing, .shuffle = true};
        struct nb_batch_plan *a, *b, *other;
        assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &a), NB_OK);
        assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &b), NB_OK);
        options.seed = 6;
        assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &other), NB_OK);
        uint64_t zero = hash_epoch(a, 0), one = hash_epoch(a, 1), two = hash_epoch(a, 2);
        assert_true(zero != one && one != two && zero != two);
        assert_true(hash_epoch(b, 2) == two && hash_epoch(b, 0) == zero && hash_epoch(b, 1) == one);
        assert_true(hash_epoch(other, 0) != zero);
        nb_batch_plan_destroy(&a);
        nb_batch_plan_destroy(&b);
        nb_batch_plan_destroy(&other);
    }
    free(rows);
    free_dataset(dataset);
}

static void without_shuffling_rows_stay_in_file_order(void **state)
{
    (void)state;
    struct nb_dataset *dataset = make_dataset(ROWS);
    uint32_t *rows, count;
    split_all(dataset, &rows, &count);
    for (int packing = 0; packing < 2; packing++) {
        struct nb_batch_plan_options options = {.sequence_len = LENGTH, .bins_per_step = 1, .sample_packing = packing};
        struct nb_batch_plan *plan;
        struct nb_step_rows s;
        assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &plan), NB_OK);
        uint32_t at = 0;
        for (uint32_t step = 0; step < nb_batch_plan_steps(plan); step++) {
            assert_int_equal(nb_batch_plan_step(plan, 3, step, &s), NB_OK);
            for (uint32_t i = s.bin_first[0]; i < s.bin_first[1]; i++)
                assert_int_equal(s.rows[i], rows[at++]);
        }
        assert_int_equal(at, count);
        assert_int_equal(nb_batch_plan_step(plan, 0, nb_batch_plan_steps(plan), &s), NB_USAGE);
        nb_batch_plan_destroy(&plan);
    }
    free(rows);
    free_dataset(dataset);
}

/* First-fit decreasing needs at most 11/9 of the least number of bins, plus one, and no fewer than the tokens fill. */
static void packing_is_tight(void **state)
{
    (void)state;
    struct nb_dataset *dataset = make_dataset(ROWS);
    uint32_t *rows, count;
    uint64_t tokens = 0;
    split_all(dataset, &rows, &count);
    for (uint32_t i = 0; i < count; i++)
        tokens += dataset->rows[rows[i]].count;
    uint32_t least = (uint32_t)((tokens + LENGTH - 1) / LENGTH);
    struct nb_batch_plan_options options = {
        .seed = 1, .sequence_len = LENGTH, .bins_per_step = 2, .sample_packing = true, .shuffle = true};
    struct nb_batch_plan *plan;
    assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &plan), NB_OK);
    assert_in_range(nb_batch_plan_bins(plan), least, least * 11 / 9 + 1);
    nb_batch_plan_destroy(&plan);
    dataset->rows[rows[0]].count = LENGTH + 1;
    assert_int_equal(nb_batch_plan_open(dataset, rows, count, &options, &plan), NB_USAGE);
    assert_int_equal(nb_batch_plan_open(dataset, rows, 0, &options, &plan), NB_USAGE);
    assert_null(plan);
    free(rows);
    free_dataset(dataset);
}

static void splits_part_the_rows(void **state)
{
    (void)state;
    struct nb_dataset *dataset = make_dataset(ROWS);
    static const struct {
        double size;
        uint32_t held;
    } cases[] = {{0.1, 49}, {0.0001, 1}, {1, 1}, {20, 20}, {0.999, 490 - 1}};
    for (size_t c = 0; c < 5; c++) {
        struct nb_row_list train, held, again, unused;
        bool seen[ROWS] = {false};
        nb_status status = nb_dataset_split(dataset, cases[c].size, 3, &train, &held);
        if (c == 4) { /* 0.999 of 490 rounds to 490: nothing left */
            assert_int_equal(status, NB_USAGE);
            continue;
        }
        assert_int_equal(status, NB_OK);
        assert_int_equal(held.count, cases[c].held);
        assert_int_equal(train.count + held.count, dataset->kept_count);
        for (uint32_t i = 0; i < train.count; i++) {
            assert_true(i == 0 || train.rows[i] > train.rows[i - 1]);
            seen[train.rows[i]] = true;
        }
        for (uint32_t i = 0; i < held.count; i++) {
            uint32_t row = held.rows[i];
            assert_true((i == 0 || row > held.rows[i - 1]) && !seen[row] && dataset->rows[row].count > 0);
            seen[row] = true;
        }
        assert_int_equal(nb_dataset_split(dataset, cases[c].size, 3, &unused, &again), NB_OK);
        assert_memory_equal(again.rows, held.rows, held.count * sizeof *held.rows);
        free(train.rows);
        free(held.rows);
        free(unused.rows);
        free(again.rows);
    }
    struct nb_row_list train, held;
    assert_int_equal(nb_dataset_split(dataset, -1, 3, &train, &held), NB_USAGE);
    assert_int_equal(nb_dataset_split(dataset, NAN, 3, &train, &held), NB_USAGE);
    assert_int_equal(nb_dataset_split(dataset, 490, 3, &train, &held), NB_USAGE);
    free_dataset(dataset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_once_in_bins_that_fit),
        cmocka_unit_test(same_seed_same_bins),
        cmocka_unit_test(without_shuffling_rows_stay_in_file_order),
        cmocka_unit_test(packing_is_tight),
        cmocka_unit_test(splits_part_the_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
