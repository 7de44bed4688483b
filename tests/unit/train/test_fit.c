/* What is chosen for models of configs/models on devices of configs/devices: it fits where it can, what the config says
 * stays, and each choice is as fast as it can be. Nothing is computed: every number is a dry run's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "planned.h"
#include "support/files.h"
#include "train/fit_advice.h"
#include "train/fit_knobs.h"

static const uint64_t mebibyte = 1 << 20;

static int kept(const struct nb_run *run, enum nb_keep keep)
{
    int count = 0;
    for (int i = 0; i < nb_checkpoint_config(run->checkpoint)->layers; i++)
        count += run->keep[i] == keep;
    return count;
}

/* ---- */

static bool is_fastest(const struct nb_run *run)
{
    for (int k = 0; k < NB_KNOBS; k++)
        if (run->notch[k] > 0)
            return false;
    return true;
}

static void what_can_fit_fits(void **state)
{
    static const struct {
        const char *model, *device, *more;
        int tokens;
        bool fastest;
    } cases[] = {
        {"llama-3-8b", "h200", "", 2048, true},
        {"llama-3-8b", "rtx-4090", "", 2048, true},
        {"llama-3-8b", "rtx-3060-12gb", "", 4096, false},
        {"llama-3-8b", "rtx-4090", "", 65536, false},
        {"llama-3-70b", "h200", "optimizer: paged_adamw_8bit\n", 2048, true},
        {"llama-3-70b", "a40", "optimizer: adamw_8bit\n", 2048, false},
        {"llama-3-70b", "rtx-4090", "optimizer: adamw_8bit\n", 2048, false},
        {"llama-3-70b", "rtx-3060-12gb", "optimizer: paged_adamw_8bit\n", 2048, false},
        {"qwen3-32b", "rtx-4090", "optimizer: paged_adamw_8bit\n", 4096, false},
        {"smollm2-135m", "rtx-3060-12gb", "", 2048, true},
        {"mistral-7b", "rtx-3060-12gb", "memory_budget: 6GB\n", 1024, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct planned *p = planned_open(*state, cases[i].model, cases[i].device, cases[i].tokens, cases[i].more);
        if (!planned_fits(p) || is_fastest(p->run) != cases[i].fastest)
            fail_msg("%s on %s with %d tokens: %llu of %llu bytes, %d streamed, %d offloaded, %d recomputed",
                cases[i].model, cases[i].device, cases[i].tokens, (unsigned long long)p->measured.peak_bytes,
                (unsigned long long)p->run->available_bytes, p->run->model.streamed_blocks, p->run->offloaded,
                kept(p->run, NB_KEEP_INPUT));
        planned_close(p);
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
        struct planned *p = planned_open(*state, cases[i].model, cases[i].device, cases[i].tokens, cases[i].more);
        int chosen[NB_KNOBS];
        assert_true(planned_fits(p));
        memcpy(chosen, p->run->notch, sizeof chosen);
        for (int k = 0; k < NB_KNOBS; k++) {
            if (chosen[k] == 0 || (k == NB_KNOB_ATTENTION && chosen[k] > chosen[NB_KNOB_EVERYTHING]))
                continue;
            p->run->notch[k]--;
            nb_knobs_apply(p->run);
            nb_test_must(nb_plan_measure(p->run, &p->measured));
            if (planned_fits(p))
                fail_msg("%s on %s: knob %d fits at %d too", cases[i].model, cases[i].device, k, chosen[k] - 1);
            p->run->notch[k]++;
        }
        planned_close(p);
    }
}

/* What is given is taken, in however little memory; the rest is chosen around it. */
static void what_is_given_is_never_changed(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-8b", "rtx-4090", 2048,
        "gradient_checkpointing: false\nactivation_offloading: false\nresident_layers: 32\noptimizer: paged_adamw_8bit\n"
        "resident_optimizer_bytes: 64MiB\n");
    for (uint64_t bytes = 20000 * mebibyte; bytes > 0; bytes = bytes > 4000 * mebibyte ? bytes - 4000 * mebibyte : 0) {
        p->run->available_bytes = bytes;
        planned_again(p);
        assert_true(p->run->model.streamed_blocks == 0 && p->run->offloaded == 0);
        assert_int_equal(kept(p->run, NB_KEEP_EVERYTHING), 32);
        assert_int_equal(p->run->adapter.paging.resident_bytes, 64 * mebibyte);
    }
    planned_close(p);
    p = planned_open(*state, "llama-3-8b", "rtx-4090", 2048, "optimizer: adamw_8bit\nresident_layers: 4\nactivation_offloading: true\n");
    assert_true(p->run->model.streamed_blocks == 28 && p->run->offloaded == nb_pass_offloaded_max(32, 1));
    assert_int_equal(kept(p->run, NB_KEEP_EVERYTHING), 32);
    p->run->available_bytes = 4000 * mebibyte;
    planned_again(p);
    assert_true(p->run->model.streamed_blocks == 28 && p->run->offloaded == nb_pass_offloaded_max(32, 1));
    assert_true(planned_fits(p) && kept(p->run, NB_KEEP_EVERYTHING) < 32);
    planned_close(p);
}

/* But for what the few orders in which knobs are relaxed miss of the best choice. */
static void more_memory_is_never_slower(void **state)
{
    static const struct {
        const char *model, *device;
        int tokens;
    } cases[] = {{"llama-3-8b", "h200", 4096}, {"llama-3-8b", "rtx-3060-12gb", 256}, {"llama-3-8b", "rtx-4090", 32768},
        {"qwen3-32b", "a40", 1024}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct planned *p =
            planned_open(*state, cases[i].model, cases[i].device, cases[i].tokens, "optimizer: paged_adamw_8bit\n");
        double seconds = 1e30;
        bool fitted = false;
        for (uint64_t bytes = 2000 * mebibyte; bytes < 400000 * mebibyte; bytes += bytes / 8) {
            p->run->available_bytes = bytes;
            planned_again(p);
            assert_true(planned_fits(p) || !fitted);
            fitted = planned_fits(p);
            if (fitted && p->measured.seconds > 1.03 * seconds)
                fail_msg("%s on %s: %.4f s a step with %llu bytes, %.4f s with fewer", cases[i].model, cases[i].device,
                    p->measured.seconds, (unsigned long long)bytes, seconds);
            if (fitted && p->measured.seconds < seconds)
                seconds = p->measured.seconds;
        }
        assert_true(fitted && is_fastest(p->run));
        assert_int_equal(p->run->adapter.paging.resident_bytes, p->run->paged_bytes);
        assert_int_equal(p->measured.pinned_bytes, 0);
        planned_close(p);
    }
}

/* Where no rate is known, the order of the knobs alone decides. */
static void without_rates_the_dearest_is_used_least(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-8b", "h200", 4096, "optimizer: paged_adamw_8bit\n");
    double flops = 1e30;
    int streamed = 32, offloaded = 32;
    p->run->profile.bf16_tflops = p->run->profile.memory_gb_per_s = p->run->profile.link_gb_per_s = 0;
    for (uint64_t bytes = 2000 * mebibyte; bytes < 40000 * mebibyte; bytes += bytes / 8) {
        p->run->available_bytes = bytes;
        planned_again(p);
        assert_true(p->measured.seconds == 0);
        assert_true(p->run->model.streamed_blocks <= streamed);
        if (p->run->model.streamed_blocks == streamed)
            assert_true(p->run->offloaded <= offloaded);
        if (p->run->model.streamed_blocks == streamed && p->run->offloaded == offloaded)
            assert_true(p->measured.flops <= flops);
        flops = p->measured.flops;
        streamed = p->run->model.streamed_blocks;
        offloaded = p->run->offloaded;
    }
    assert_true(planned_fits(p) && is_fastest(p->run));
    planned_close(p);
}

/* What fits nowhere is left at the least it can take. */
static void what_cannot_fit_takes_the_least(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-70b", "rtx-3060-12gb", 2048, "memory_budget: 1GB\noptimizer: paged_adamw_8bit\n");
    assert_true(!planned_fits(p));
    assert_true(p->run->model.streamed_blocks == 80 && p->run->offloaded == nb_pass_offloaded_max(80, 1));
    assert_int_equal(kept(p->run, NB_KEEP_INPUT), 80);
    assert_int_equal(p->run->adapter.paging.resident_bytes, 0);
    planned_close(p);
}

/* Short rows save more by keeping whole blocks, long ones by keeping attention's output. */
static void rows_decide_what_is_kept(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-8b", "rtx-3060-12gb", 3072,
        "optimizer: adamw_8bit\nresident_layers: 32\nactivation_offloading: false\n");
    assert_true(planned_fits(p) && kept(p->run, NB_KEEP_EVERYTHING) > 0 && kept(p->run, NB_KEEP_INPUT) > 0);
    planned_close(p);
    p = planned_open(*state, "llama-3-8b", "rtx-4090", 32768,
        "optimizer: adamw_8bit\nresident_layers: 32\nactivation_offloading: false\n");
    assert_true(planned_fits(p) && kept(p->run, NB_KEEP_EVERYTHING) == 0 && kept(p->run, NB_KEEP_ATTENTION) > 0);
    planned_close(p);
}

/* Many tokens hide the weights that stream in, so that less is computed again for that; few do not. */
static void tokens_decide_what_is_streamed(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-8b", "rtx-3060-12gb", 4096, "optimizer: adamw_8bit\n");
    assert_true(planned_fits(p) && p->run->model.streamed_blocks > 0);
    double seconds = p->measured.seconds;
    planned_close(p);
    p = planned_open(*state, "llama-3-8b", "rtx-3060-12gb", 4096, "optimizer: adamw_8bit\nresident_layers: 32\n");
    assert_true(planned_fits(p) && seconds < 0.99 * p->measured.seconds);
    planned_close(p);
    p = planned_open(*state, "llama-3-8b", "h200", 256, "optimizer: adamw_8bit\nembedding_device: device\nmemory_budget: 7.2GB\n");
    assert_true(planned_fits(p) && p->run->model.streamed_blocks == 0 && kept(p->run, NB_KEEP_EVERYTHING) < 32);
    planned_close(p);
}

/* A CPU's device memory is the host's: without a budget, what is computed again is all that may be chosen. */
static void nothing_leaves_a_cpu_by_itself(void **state)
{
    struct planned *p = planned_open(*state, "smollm2-135m", NULL, 512, "device: cpu\noptimizer: paged_adamw_8bit\n");
    assert_int_equal(p->run->adapter.paging.resident_bytes, 0); /* paged, as its name says */
    p->run->available_bytes = mebibyte;
    planned_again(p);
    assert_true(p->run->model.streamed_blocks == 0 && p->run->offloaded == 0);
    assert_int_equal(kept(p->run, NB_KEEP_INPUT), 30);
    planned_close(p);
    p = planned_open(*state, "smollm2-135m", NULL, 512, "device: cpu\nmemory_budget: 1MiB\n");
    assert_true(p->run->model.streamed_blocks == 30 && p->run->offloaded == nb_pass_offloaded_max(30, 1));
    planned_close(p);
}

/* Of 4096 tokens, or a row: none, 2048, 1024, 512, 256. */
static void chunks_are_powers_of_two(void **state)
{
    struct planned *p = planned_open(*state, "llama-2-7b", "rtx-4090", 4096, "");
    static const int tokens[] = {0, 2048, 1024, 512, 256}, rows[] = {1024, 512, 256};
    assert_int_equal(nb_knobs[NB_KNOB_MLP_CHUNK].notches(p->run), 5);
    for (int i = 0; i < 5; i++) {
        nb_knobs[NB_KNOB_MLP_CHUNK].set(p->run, i);
        assert_int_equal(p->run->mlp_chunk_tokens, tokens[i]);
    }
    assert_int_equal(nb_knobs[NB_KNOB_LOSS_CHUNK].notches(p->run), 3);
    for (int i = 0; i < 3; i++) {
        p->run->notch[NB_KNOB_LOSS_CHUNK] = i;
        nb_knobs_apply(p->run);
        assert_int_equal(p->run->limits.loss_rows, rows[i]);
    }
    planned_close(p);
    p = planned_open(*state, "llama-2-7b", "rtx-4090", 200, "mlp_chunk_tokens: 512\nloss_chunk_rows: 512\n");
    assert_int_equal(nb_knobs[NB_KNOB_MLP_CHUNK].notches(p->run), 1);
    assert_true(p->run->limits.mlp_chunk_tokens == 512 && p->run->limits.loss_rows == 512);
    planned_close(p);
}

/* A head that is the embedding keeps it on the device, unless it has a matrix of its own in 4 bits. */
static void a_tied_embedding_stays(void **state)
{
    static const struct {
        const char *model, *more;
        bool leaves;
    } cases[] = {{"smollm2-135m", "", false}, {"smollm2-135m", "head_4bit: true\n", true}, {"llama-3-8b", "", true},
        {"llama-3-8b", "embedding_device: device\n", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct planned *p = planned_open(*state, cases[i].model, "rtx-4090", 512, cases[i].more);
        assert_false(p->run->model.embedding_on_host);
        p->run->available_bytes = 1;
        planned_again(p);
        assert_true(p->run->model.embedding_on_host == cases[i].leaves);
        planned_close(p);
    }
}

/* What leaves the device has to arrive: where host memory is short, weights come from their file, or less leaves. */
static void the_host_has_a_limit_too(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-70b", "rtx-4090", 2048, "optimizer: paged_adamw_8bit\n");
    assert_true(planned_fits(p) && !p->run->model.streams_from_file && p->measured.pinned_bytes > 20000 * mebibyte);
    static const uint64_t limits[] = {64000, 24000, 12000, 6000, 4000};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        p->run->host_available_bytes = limits[i] * mebibyte;
        planned_again(p);
        assert_true(nb_fit_holds(p->run, &p->measured));
        assert_int_equal(p->run->model.streams_from_file, limits[i] < 20000);
    }
    planned_close(p);
    p = planned_open(*state, "llama-3-70b", "rtx-4090", 2048, "host_memory_budget: 8GB\nweights_from: host\n");
    assert_true(planned_fits(p) && !p->run->model.streams_from_file && !nb_fit_holds(p->run, &p->measured));
    assert_int_equal(p->run->host_available_bytes, 8000000000);
    char *text = NULL;
    nb_test_must(nb_fit_explain(p->run, &p->measured, NULL, NULL, &text));
    assert_non_null(strstr(text, "; set weights_from: file"));
    free(text);
    planned_close(p);
}

/* Rows of a step, cut into as many micro-batches as is fastest, or into as few as fit with all at its fastest. */
static void micro_batches_are_chosen(void **state)
{
    static const char more[] = "optimizer: adamw_8bit\nmicro_batch_size: auto\ngradient_accumulation_steps: 12\n"
                               "accumulation_order: batch_major\n";
    struct planned *p = planned_open(*state, "llama-3-8b", "h200", 512, more);
    assert_int_equal(p->run->micro_batch_size * p->run->micro_batches, 12);
    assert_true(planned_fits(p) && p->run->micro_batch_size > 1);
    double seconds = p->measured.seconds;
    p->run->chooses_micro_batch = false;
    for (int size = 1; size <= 12; size++) {
        if (12 % size != 0)
            continue;
        nb_run_resize(p->run, 512, size, 12 / size);
        planned_again(p);
        assert_true(seconds <= 1.005 * p->measured.seconds);
    }
    p->run->chooses_micro_batch = true;
    p->run->available_bytes = 6000 * mebibyte;
    planned_again(p);
    assert_true(planned_fits(p));
    assert_int_equal(p->run->micro_batch_size * p->run->micro_batches, 12);
    planned_close(p);
    p = planned_open(*state, "smollm2-135m", NULL, 512, "device: cpu\nmicro_batch_size: auto\ngradient_accumulation_steps: 12\n");
    assert_true(p->run->micro_batch_size == 12 && is_fastest(p->run));
    uint64_t most = p->measured.peak_bytes;
    p->run->available_bytes = most - 1;
    planned_again(p);
    assert_true(p->run->micro_batch_size == 6 && is_fastest(p->run) && p->measured.peak_bytes < most);
    planned_close(p);
}

/* Layer by layer, weights stream in once for all micro-batches: worth it where the link is what a step waits for. */
static void few_tokens_go_layer_by_layer(void **state)
{
    static const char more[] = "optimizer: adamw_8bit\ngradient_accumulation_steps: 8\nresident_layers: 0\n";
    struct planned *p = planned_open(*state, "llama-3-8b", "h200", 256, more);
    assert_true(p->run->layer_major);
    double seconds = p->measured.seconds;
    struct planned *q = planned_open_changed(*state, "llama-3-8b", "h200", 256, more, "accumulation_order=batch_major");
    assert_true(!q->run->layer_major && seconds < 0.5 * q->measured.seconds);
    assert_true(p->measured.streamed_bytes < q->measured.streamed_bytes / 7);
    planned_close(q);
    /* Where the inputs of all do not fit, each goes alone. */
    p->run->available_bytes = 3000 * mebibyte;
    planned_again(p);
    assert_true(planned_fits(p));
    planned_close(p);
    p = planned_open(*state, "llama-3-70b", "rtx-4090", 2048, "optimizer: adamw_8bit\ngradient_accumulation_steps: 8\n");
    assert_true(planned_fits(p) && !p->run->layer_major);
    planned_close(p);
}

/* Micro-batches are counted from the first two. */
static void a_measure_is_the_plan(void **state)
{
    static const char *const more[] = {"", "gradient_accumulation_steps: 2\n", "gradient_accumulation_steps: 7\nresident_layers: 5\n",
        "gradient_accumulation_steps: 3\noptimizer: paged_adamw_8bit\nactivation_offloading: true\n"};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        struct planned *p = planned_open(*state, "llama-3-8b", "rtx-4090", 1024, more[i]);
        struct nb_plan whole;
        nb_test_must(nb_plan_make(p->run, &whole));
        assert_int_equal(whole.peak_bytes, p->measured.peak_bytes);
        assert_int_equal(whole.pinned_bytes, p->measured.pinned_bytes);
        assert_memory_equal(&whole.host, &p->measured.host, sizeof whole.host);
        assert_true(whole.step_flops == p->measured.flops);
        nb_plan_destroy(&whole);
        planned_close(p);
    }
}

/* Though the rows that a plan has are short. */
static void what_crosses_the_link_is_counted_in_full(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-8b", "rtx-4090", 1024,
        "optimizer: adamw_8bit\ngradient_checkpointing: true\nactivation_offloading: true\nresident_layers: 32\n"
        "embedding_device: device\ngradient_accumulation_steps: 3\n");
    uint64_t inputs = (uint64_t)3 * 1024 * 4096 * 2 * (uint64_t)nb_pass_offloaded_max(32, 1);
    assert_true(p->measured.downloaded_bytes >= inputs && p->measured.downloaded_bytes < inputs + mebibyte);
    assert_true(p->measured.uploaded_bytes >= inputs && p->measured.uploaded_bytes < inputs + mebibyte);
    planned_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_can_fit_fits),
        cmocka_unit_test(nothing_is_slower_than_it_must_be),
        cmocka_unit_test(what_is_given_is_never_changed),
        cmocka_unit_test(more_memory_is_never_slower),
        cmocka_unit_test(without_rates_the_dearest_is_used_least),
        cmocka_unit_test(tokens_decide_what_is_streamed),
        cmocka_unit_test(what_cannot_fit_takes_the_least),
        cmocka_unit_test(rows_decide_what_is_kept),
        cmocka_unit_test(nothing_leaves_a_cpu_by_itself),
        cmocka_unit_test(chunks_are_powers_of_two),
        cmocka_unit_test(a_tied_embedding_stays),
        cmocka_unit_test(the_host_has_a_limit_too),
        cmocka_unit_test(micro_batches_are_chosen),
        cmocka_unit_test(few_tokens_go_layer_by_layer),
        cmocka_unit_test(a_measure_is_the_plan),
        cmocka_unit_test(what_crosses_the_link_is_counted_in_full),
    };
    return cmocka_run_group_tests(tests, nb_test_make_folder, nb_test_remove_folder);
}
