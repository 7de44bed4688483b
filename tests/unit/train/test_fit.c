/* What is chosen for models of configs/models on devices of configs/devices: it fits where it can, what the config says
 * stays, and each choice is as fast as it can be. Nothing is computed: every number is a dry run's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "config/device_profile.h"
#include "support/files.h"
#include "train/fit.h"
#include "train/fit_knobs.h"

static const uint64_t mebibyte = 1 << 20;

struct planned {
    struct nb_config config;
    struct nb_run *run;
    struct nb_measure measured;
};

static void plan_again(struct planned *p)
{
    nb_test_must(nb_fit_choose(p->run));
    nb_test_must(nb_plan_measure(p->run, &p->measured));
}

/* One row of `tokens` tokens, rank 16 on every linear. */
static struct planned *plan(const char *folder, const char *model, const char *device, int tokens, const char *more)
{
    struct planned *p = calloc(1, sizeof *p);
    struct nb_device_profile profile;
    assert_non_null(p);
    char *rows = nb_path_join(folder, "rows.jsonl");
    char *yaml = nb_format("base_model: configs/models/%s.json\nadapter: qlora\nlora_r: 16\nlora_target_linear: true\n"
                           "datasets: [{path: %s, type: tokens}]\nlearning_rate: 1e-4\nmax_steps: 2\nsequence_len: %d\n%s",
        model, rows, tokens, more);
    nb_test_must(nb_file_write(rows, "{\"input_ids\": [1, 2, 3]}\n", 25));
    nb_test_must(nb_config_parse(yaml, strlen(yaml), "test.yml", NULL, 0, &p->config));
    nb_test_must(nb_config_validate_train(&p->config));
    if (device)
        nb_test_must(nb_device_profile_read(device, &profile));
    struct nb_run_args args = {
        .config = &p->config, .purpose = NB_PURPOSE_TRAIN, .profile = device ? &profile : NULL};
    nb_test_must(nb_run_open(&args, &p->run));
    nb_test_must(nb_plan_measure(p->run, &p->measured));
    free(yaml);
    free(rows);
    return p;
}

static void close_plan(struct planned *p)
{
    nb_run_destroy(&p->run);
    nb_config_destroy(&p->config);
    free(p);
}

static bool fits(const struct planned *p)
{
    return p->measured.peak_bytes <= p->run->available_bytes;
}

static int kept(const struct nb_run *run, enum nb_keep keep)
{
    int count = 0;
    for (int i = 0; i < nb_checkpoint_config(run->checkpoint)->layers; i++)
        count += run->keep[i] == keep;
    return count;
}

/* ---- */

static void what_can_fit_fits(void **state)
{
    static const struct {
        const char *model, *device, *more;
        int tokens;
        bool streams, offloads, recomputes;
    } cases[] = {
        {"llama-3-8b", "h200", "", 2048, false, false, false},
        {"llama-3-8b", "rtx-4090", "", 2048, false, false, false},
        {"llama-3-8b", "rtx-3060-12gb", "", 4096, false, false, true},
        {"llama-3-8b", "rtx-4090", "", 65536, false, true, true},
        {"llama-3-70b", "a40", "optimizer: adamw_8bit\n", 2048, false, false, true},
        {"llama-3-70b", "rtx-4090", "optimizer: adamw_8bit\n", 2048, true, true, true},
        {"llama-3-70b", "rtx-3060-12gb", "optimizer: paged_adamw_8bit\n", 2048, true, true, true},
        {"qwen3-32b", "rtx-4090", "optimizer: paged_adamw_8bit\n", 4096, false, false, true},
        {"smollm2-135m", "rtx-3060-12gb", "", 2048, false, false, false},
        {"mistral-7b", "rtx-3060-12gb", "memory_budget: 6GB\n", 1024, false, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct planned *p = plan(*state, cases[i].model, cases[i].device, cases[i].tokens, cases[i].more);
        if (!fits(p) || (p->run->model.streamed_blocks > 0) != cases[i].streams ||
            (p->run->offloaded > 0) != cases[i].offloads ||
            (kept(p->run, NB_KEEP_INPUT) > 0) != cases[i].recomputes)
            fail_msg("%s on %s with %d tokens: %llu of %llu bytes, %d streamed, %d offloaded, %d recomputed",
                cases[i].model, cases[i].device, cases[i].tokens, (unsigned long long)p->measured.peak_bytes,
                (unsigned long long)p->run->available_bytes, p->run->model.streamed_blocks, p->run->offloaded,
                kept(p->run, NB_KEEP_INPUT));
        close_plan(p);
    }
}

/* A notch less of any knob would not fit: nothing is slower than it must be. */
static void nothing_is_slower_than_it_must_be(void **state)
{
    static const struct {
        const char *model, *device, *more;
        int tokens;
    } cases[] = {
        {"llama-3-8b", "rtx-3060-12gb", "", 4096},
        {"llama-3-70b", "rtx-4090", "optimizer: paged_adamw_8bit\n", 2048},
        {"llama-3-70b", "a40", "", 8192},
        {"qwen3-8b", "rtx-3080-10gb", "optimizer: paged_adamw_32bit\n", 16384},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct planned *p = plan(*state, cases[i].model, cases[i].device, cases[i].tokens, cases[i].more);
        int chosen[NB_KNOBS];
        assert_true(fits(p));
        memcpy(chosen, p->run->notch, sizeof chosen);
        for (int k = 0; k < NB_KNOBS; k++) {
            if (chosen[k] == 0 || (k == NB_KNOB_ATTENTION && chosen[k] > chosen[NB_KNOB_EVERYTHING]))
                continue;
            p->run->notch[k]--;
            nb_knobs_apply(p->run);
            nb_test_must(nb_plan_measure(p->run, &p->measured));
            if (fits(p))
                fail_msg("%s on %s: knob %d fits at %d too", cases[i].model, cases[i].device, k, chosen[k] - 1);
            p->run->notch[k]++;
        }
        close_plan(p);
    }
}

/* What is given is taken, in however little memory; the rest is chosen around it. */
static void what_is_given_is_never_changed(void **state)
{
    struct planned *p = plan(*state, "llama-3-8b", "rtx-4090", 2048,
        "gradient_checkpointing: false\nactivation_offloading: false\nresident_layers: 32\noptimizer: paged_adamw_8bit\n"
        "resident_optimizer_bytes: 64MiB\n");
    for (uint64_t bytes = 20000 * mebibyte; bytes > 0; bytes = bytes > 4000 * mebibyte ? bytes - 4000 * mebibyte : 0) {
        p->run->available_bytes = bytes;
        plan_again(p);
        assert_true(p->run->model.streamed_blocks == 0 && p->run->offloaded == 0);
        assert_int_equal(kept(p->run, NB_KEEP_EVERYTHING), 32);
        assert_int_equal(p->run->adapter.paging.resident_bytes, 64 * mebibyte);
    }
    close_plan(p);
    p = plan(*state, "llama-3-8b", "rtx-4090", 2048, "optimizer: adamw_8bit\nresident_layers: 4\nactivation_offloading: true\n");
    assert_true(p->run->model.streamed_blocks == 28 && p->run->offloaded == nb_pass_offloaded_max(32, 1));
    assert_int_equal(kept(p->run, NB_KEEP_EVERYTHING), 32);
    p->run->available_bytes = 4000 * mebibyte;
    plan_again(p);
    assert_true(p->run->model.streamed_blocks == 28 && p->run->offloaded == nb_pass_offloaded_max(32, 1));
    assert_true(fits(p) && kept(p->run, NB_KEEP_EVERYTHING) < 32);
    close_plan(p);
}

/* With more memory nothing is used more than with less, and whatever fits stays so. */
static void more_memory_is_never_slower(void **state)
{
    struct planned *p = plan(*state, "llama-3-8b", "h200", 4096, "optimizer: paged_adamw_8bit\n");
    double flops = 1e30;
    int streamed = 32, offloaded = 32;
    bool fitted = false;
    for (uint64_t bytes = 2000 * mebibyte; bytes < 40000 * mebibyte; bytes += bytes / 8) {
        p->run->available_bytes = bytes;
        plan_again(p);
        assert_true(fits(p) || !fitted);
        fitted = fits(p);
        assert_true(p->run->model.streamed_blocks <= streamed);
        if (p->run->model.streamed_blocks == streamed)
            assert_true(p->run->offloaded <= offloaded);
        if (p->run->offloaded == offloaded)
            assert_true(p->measured.flops <= flops);
        flops = p->measured.flops;
        streamed = p->run->model.streamed_blocks;
        offloaded = p->run->offloaded;
    }
    assert_true(fitted && streamed == 0 && offloaded == 0 && kept(p->run, NB_KEEP_EVERYTHING) == 32);
    assert_int_equal(p->run->adapter.paging.resident_bytes, p->run->paged_bytes);
    assert_int_equal(p->measured.pinned_bytes, 0);
    close_plan(p);
}

/* What fits nowhere is left at the least it can take. */
static void what_cannot_fit_takes_the_least(void **state)
{
    struct planned *p = plan(*state, "llama-3-70b", "rtx-3060-12gb", 2048, "memory_budget: 1GB\noptimizer: paged_adamw_8bit\n");
    assert_true(!fits(p));
    assert_true(p->run->model.streamed_blocks == 80 && p->run->offloaded == nb_pass_offloaded_max(80, 1));
    assert_int_equal(kept(p->run, NB_KEEP_INPUT), 80);
    assert_int_equal(p->run->adapter.paging.resident_bytes, 0);
    close_plan(p);
}

/* Short rows save more by keeping whole blocks, long ones by keeping attention's output. */
static void rows_decide_what_is_kept(void **state)
{
    struct planned *p = plan(*state, "llama-3-8b", "rtx-3060-12gb", 3072, "");
    assert_true(fits(p) && kept(p->run, NB_KEEP_EVERYTHING) > 0 && kept(p->run, NB_KEEP_INPUT) > 0);
    close_plan(p);
    p = plan(*state, "llama-3-8b", "rtx-4090", 32768, "");
    assert_true(fits(p) && kept(p->run, NB_KEEP_EVERYTHING) == 0 && kept(p->run, NB_KEEP_ATTENTION) > 0);
    close_plan(p);
}

/* A CPU's device memory is the host's: without a budget, what is computed again is all that may be chosen. */
static void nothing_leaves_a_cpu_by_itself(void **state)
{
    struct planned *p = plan(*state, "smollm2-135m", NULL, 512, "device: cpu\noptimizer: paged_adamw_8bit\n");
    assert_int_equal(p->run->adapter.paging.resident_bytes, 0); /* paged, as its name says */
    p->run->available_bytes = mebibyte;
    plan_again(p);
    assert_true(p->run->model.streamed_blocks == 0 && p->run->offloaded == 0);
    assert_int_equal(kept(p->run, NB_KEEP_INPUT), 30);
    close_plan(p);
    p = plan(*state, "smollm2-135m", NULL, 512, "device: cpu\nmemory_budget: 1MiB\n");
    assert_true(p->run->model.streamed_blocks == 30 && p->run->offloaded == nb_pass_offloaded_max(30, 1));
    close_plan(p);
}

/* Micro-batches are counted from the first two. */
static void a_measure_is_the_plan(void **state)
{
    static const char *const more[] = {"", "gradient_accumulation_steps: 2\n", "gradient_accumulation_steps: 7\nresident_layers: 5\n",
        "gradient_accumulation_steps: 3\noptimizer: paged_adamw_8bit\nactivation_offloading: true\n"};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        struct planned *p = plan(*state, "llama-3-8b", "rtx-4090", 1024, more[i]);
        struct nb_plan whole;
        nb_test_must(nb_plan_make(p->run, &whole));
        assert_int_equal(whole.peak_bytes, p->measured.peak_bytes);
        assert_int_equal(whole.pinned_bytes, p->measured.pinned_bytes);
        assert_int_equal(whole.host_bytes, p->measured.host_bytes);
        assert_true(whole.step_flops == p->measured.flops);
        nb_plan_destroy(&whole);
        close_plan(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_can_fit_fits),
        cmocka_unit_test(nothing_is_slower_than_it_must_be),
        cmocka_unit_test(what_is_given_is_never_changed),
        cmocka_unit_test(more_memory_is_never_slower),
        cmocka_unit_test(what_cannot_fit_takes_the_least),
        cmocka_unit_test(rows_decide_what_is_kept),
        cmocka_unit_test(nothing_leaves_a_cpu_by_itself),
        cmocka_unit_test(a_measure_is_the_plan),
    };
    return cmocka_run_group_tests(tests, nb_test_make_folder, nb_test_remove_folder);
}
