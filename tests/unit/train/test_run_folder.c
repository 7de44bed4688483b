/* The output folder: who may use it, what is removed from it, which checkpoints are kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "bench.h"
#include "train/metrics.h"
#include "train/run_folder.h"

static void put(const char *folder, const char *name)
{
    char *path = nb_path_join(folder, name), *slash = strrchr(path, '/');
    *slash = 0;
    bench_ok(nb_make_folder(path));
    *slash = '/';
    bench_ok(nb_file_write(path, "x", 1));
    free(path);
}

static bool holds(const char *folder, const char *name)
{
    char *path = nb_path_join(folder, name);
    bool exists = nb_path_exists(path);
    free(path);
    return exists;
}

static void remove_and_free(char *path)
{
    bench_ok(nb_remove_folder(path));
    free(path);
}

static void a_folder_with_a_run_is_refused_without_resume(void **state)
{
    (void)state;
    const char *const signs[] = {
        "config.yml", "metrics.jsonl", "adapter_model.safetensors", "checkpoint-12/trainer_state.json"};
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        struct nb_run_folder *folder = NULL;
        char *path = bench_folder();
        put(path, signs[i]);
        bench_fails(nb_run_folder_open(path, false, &folder), NB_USAGE, "already holds a run");
        assert_null(folder);
        bench_ok(nb_run_folder_open(path, true, &folder));
        nb_run_folder_close(&folder);
        assert_true(holds(path, signs[i]));
        remove_and_free(path);
    }
}

static void other_files_do_not_matter(void **state)
{
    (void)state;
    const char *const others[] = {
        "notes.txt", "checkpoint-/x", "checkpoint-0/x", "checkpoint-12b/x", "checkpoint--3/x", ".tmp-/x"};
    struct nb_run_folder *folder = NULL;
    char *path = bench_folder();
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        put(path, others[i]);
    bench_ok(nb_run_folder_open(path, false, &folder));
    nb_run_folder_close(&folder);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        assert_true(holds(path, others[i]));
    remove_and_free(path);
}

static void a_folder_it_made_goes_when_nothing_was_written(void **state)
{
    (void)state;
    struct nb_run_folder *folder = NULL;
    char *path = bench_folder(), *inner = nb_path_join(path, "a/b");
    bench_ok(nb_run_folder_open(inner, false, &folder));
    assert_true(nb_path_is_folder(inner));
    nb_run_folder_close(&folder);
    assert_false(nb_path_exists(inner));
    bench_ok(nb_run_folder_open(inner, true, &folder));
    put(inner, "config.yml");
    nb_run_folder_close(&folder);
    assert_true(holds(inner, "config.yml"));
    free(inner);
    remove_and_free(path);
}

static void two_runs_do_not_share_a_folder(void **state)
{
    (void)state;
    struct nb_run_folder *first = NULL, *second = NULL;
    char *path = bench_folder();
    bench_ok(nb_run_folder_open(path, false, &first));
    bench_fails(nb_run_folder_open(path, true, &second), NB_USAGE, "another run");
    nb_run_folder_close(&first);
    bench_ok(nb_run_folder_open(path, true, &second));
    nb_run_folder_close(&second);
    remove_and_free(path);
}

static void what_cannot_be_written_is_said_at_once(void **state)
{
    (void)state;
    struct nb_run_folder *folder = NULL;
    char *path = bench_folder();
    put(path, "file");
    char *file = nb_path_join(path, "file");
    bench_fails(nb_run_folder_open(file, false, &folder), NB_IO, "file");
    bench_fails(nb_run_folder_open("/proc/nibble", false, &folder), NB_IO, "/proc/nibble");
    free(file);
    remove_and_free(path);
}

static void leftovers_are_removed(void **state)
{
    (void)state;
    const char *const left[] = {
        "checkpoint-3.tmp/optimizer.safetensors", "checkpoint-2.old.tmp/config.yml", "config.yml.tmp-4711"};
    struct nb_run_folder *folder = NULL;
    char *path = bench_folder();
    put(path, "metrics.jsonl");
    put(path, "checkpoint-2/config.yml");
    for (size_t i = 0; i < 3; i++)
        put(path, left[i]);
    bench_ok(nb_run_folder_open(path, true, &folder));
    for (size_t i = 0; i < 3; i++)
        assert_false(holds(path, left[i]));
    assert_true(holds(path, "metrics.jsonl") && holds(path, "checkpoint-2/config.yml"));
    nb_run_folder_close(&folder);
    remove_and_free(path);
}

static void checkpoints_are_published_listed_and_pruned(void **state)
{
    (void)state;
    struct nb_run_folder *folder = NULL;
    int64_t *steps = NULL;
    int count = 0;
    char *path = bench_folder();
    bench_ok(nb_run_folder_open(path, false, &folder));
    bench_ok(nb_run_folder_checkpoints(folder, &steps, &count));
    assert_int_equal(count, 0);
    free(steps);
    for (int64_t step = 2; step <= 12; step += 2) {
        char *unfinished = nb_run_folder_unfinished(folder, step);
        put(unfinished, "trainer_state.json");
        bench_ok(nb_run_folder_publish(folder, step));
        assert_false(nb_path_exists(unfinished));
        free(unfinished);
    }
    bench_ok(nb_run_folder_checkpoints(folder, &steps, &count));
    assert_int_equal(count, 6);
    for (int i = 0; i < count; i++)
        assert_int_equal(steps[i], 2 * (i + 1)); /* by number: 2, 4, ... 10, 12 */
    free(steps);
    bench_ok(nb_run_folder_prune(folder, 0, 0));
    bench_ok(nb_run_folder_prune(folder, 2, 4));
    bench_ok(nb_run_folder_checkpoints(folder, &steps, &count));
    assert_int_equal(count, 3);
    assert_true(steps[0] == 4 && steps[1] == 10 && steps[2] == 12);
    free(steps);
    /* A checkpoint of the same step replaces the one that was there. */
    char *unfinished = nb_run_folder_unfinished(folder, 12);
    put(unfinished, "new");
    bench_ok(nb_run_folder_publish(folder, 12));
    char *published = nb_run_folder_checkpoint(folder, 12);
    assert_true(holds(published, "new") && !holds(published, "trainer_state.json"));
    free(published);
    free(unfinished);
    nb_run_folder_close(&folder);
    remove_and_free(path);
}

static void metrics_are_cut_to_the_stored_length(void **state)
{
    (void)state;
    struct nb_metrics *metrics = NULL;
    struct nb_metrics_step step = {.step = 1,
        .steps = 2,
        .epoch = 0.5,
        .loss = 2.25,
        .grad_norm = 0.5,
        .learning_rate = 1e-3,
        .tokens = 10,
        .trained_tokens = 4,
        .tokens_per_second = 99,
        .memory_bytes = 4096};
    uint64_t first = 0, second = 0, again = 0;
    char *folder = bench_folder(), *path = nb_path_join(folder, "metrics.jsonl");
    bench_ok(nb_metrics_open(path, 0, 0, &metrics));
    bench_ok(nb_metrics_step(metrics, &step));
    bench_ok(nb_metrics_sync(metrics, &first));
    bench_ok(nb_metrics_evaluation(metrics, 1, 0.5, 2.0, 7));
    bench_ok(nb_metrics_sync(metrics, &second));
    assert_true(first > 0 && second > first);
    nb_metrics_close(&metrics);
    bench_ok(nb_metrics_open(path, first, 1, &metrics));
    bench_ok(nb_metrics_sync(metrics, &again));
    assert_int_equal(again, first);
    nb_metrics_close(&metrics);
    char *text = NULL;
    size_t bytes = 0;
    bench_ok(nb_file_read(path, 4096, false, &text, &bytes));
    assert_int_equal(bytes, first);
    assert_non_null(
        strstr(text, "{\"step\":1,\"epoch\":0.5,\"loss\":2.25,\"grad_norm\":0.5,\"learning_rate\":0.001,\"tokens\":10,"
                     "\"trained_tokens\":4,\"tokens_per_second\":99.0,\"seconds\":"));
    assert_non_null(strstr(text, "\"memory_bytes\":4096}\n"));
    free(text);
    free(path);
    remove_and_free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_with_a_run_is_refused_without_resume),
        cmocka_unit_test(other_files_do_not_matter),
        cmocka_unit_test(a_folder_it_made_goes_when_nothing_was_written),
        cmocka_unit_test(two_runs_do_not_share_a_folder),
        cmocka_unit_test(what_cannot_be_written_is_said_at_once),
        cmocka_unit_test(leftovers_are_removed),
        cmocka_unit_test(checkpoints_are_published_listed_and_pruned),
        cmocka_unit_test(metrics_are_cut_to_the_stored_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
