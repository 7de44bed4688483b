/* What is said of a choice is true: the change that is named makes a run fit, the next choices take and cost what they
 * say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "planned.h"
#include "support/files.h"
#include "train/fit_advice.h"

static const uint64_t mebibyte = 1 << 20;

/* The change, taken, fits; and it is the one key that it names. */
static void the_change_that_is_named_fits(void **state)
{
    static const struct {
        const char *more, *change;
        int tokens;
    } cases[] = {
        {"resident_layers: 32\nmemory_budget: 5GB\n", "resident_layers", 4096},
        {"gradient_checkpointing: false\nactivation_offloading: false\n", "gradient_checkpointing", 16384},
        {"mlp_chunk_tokens: 0\nmemory_budget: 4GB\n", "mlp_chunk_tokens", 8192},
        {"embedding_device: device\nmemory_budget: 2.9GB\n", "embedding_device", 1024},
        {"activation_offloading: false\nmemory_budget: 12GB\n", "activation_offloading", 65536},
        {"micro_batch_size: 4\nmemory_budget: 6GB\n", "micro_batch_size", 16384},
        {"memory_budget: 4GB\n", "sequence_len", 65536},
        {"optimizer: adamw_torch\nlora_r: 64\nmemory_budget: 4GB\n", "optimizer", 256},
        {"lora_r: 1024\nmemory_budget: 3GB\n", "lora_r", 256},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *more = nb_format("%s%s", strstr(cases[i].more, "optimizer") ? "" : "optimizer: paged_adamw_8bit\n", cases[i].more);
        struct planned *p = planned_open(*state, "llama-3-8b", "rtx-4090", cases[i].tokens, more);
        struct nb_plan whole;
        char *text = NULL, *wanted = nb_format("; set %s: ", cases[i].change);
        nb_test_must(nb_fit_explain(p->run, &p->measured, NULL, NULL, &text));
        char *set = strstr(text, wanted);
        if (nb_fit_holds(p->run, &p->measured) || !set || !strstr(text, "MiB too few"))
            fail_msg("%s: %s", more, text);
        nb_test_must(nb_plan_make(p->run, &whole));
        nb_test_must(nb_plan_advise(p->run, &whole));
        assert_true(strstr(whole.note[whole.notes - 1], text) && whole.nexts == 0);
        nb_plan_destroy(&whole);
        planned_close(p);
        char *change = set + strlen("; set "), *colon = strstr(change, ": ");
        *colon = '=';
        memmove(colon + 1, colon + 2, strlen(colon + 1));
        p = planned_open_changed(*state, "llama-3-8b", "rtx-4090", cases[i].tokens, more, change);
        if (!nb_fit_holds(p->run, &p->measured))
            fail_msg("%s with %s does not fit", more, change);
        planned_close(p);
        free(wanted);
        free(text);
        free(more);
    }
}

static void what_fits_nowhere_is_said(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-70b", "rtx-3060-12gb", 2048, "memory_budget: 1GB\noptimizer: paged_adamw_8bit\n");
    assert_int_equal(nb_fit_check(p->run, &p->measured, NULL, NULL), NB_MEMORY);
    nb_test_says("within memory_budget, this needs");
    nb_test_says("no single setting changes that");
    planned_close(p);
}

/* A little more memory is faster, a little less slower; each is what it says. */
static void next_choices_are_true(void **state)
{
    struct planned *p = planned_open(*state, "llama-3-8b", "rtx-3060-12gb", 6144, "optimizer: adamw_8bit\nresident_layers: 32\n");
    struct nb_plan whole;
    double missing, seconds;
    nb_test_must(nb_plan_make(p->run, &whole));
    nb_test_must(nb_plan_advise(p->run, &whole));
    assert_true(whole.choices > 0 && whole.nexts >= 2);
    assert_int_equal(sscanf(whole.next[0], "with %lf MiB more: ", &missing), 1);
    const char *last = strrchr(whole.next[0], ',');
    assert_int_equal(sscanf(last, ", which saves %lf s a step", &seconds), 1);
    assert_true(seconds > 0 && seconds < whole.step_seconds && missing > 0);
    assert_non_null(strstr(whole.next[1], " would free "));
    p->run->available_bytes += (uint64_t)((missing + 0.1) * (double)mebibyte);
    planned_again(p);
    assert_true(p->measured.seconds <= whole.step_seconds - 0.99 * seconds); /* of which three digits are said */
    nb_plan_destroy(&whole);
    planned_close(p);
    /* A row of few tokens has its peak while the weights are quantized: no input that leaves makes it smaller. */
    p = planned_open(*state, "llama-3-8b", "h200", 16, "optimizer: adamw_8bit\nlora_r: 8\nresident_layers: 32\nembedding_device: device\n");
    nb_test_must(nb_plan_make(p->run, &whole));
    nb_test_must(nb_plan_advise(p->run, &whole));
    bool said = false;
    for (int i = 0; i < whole.nexts; i++)
        said = said || strstr(whole.next[i], "activation_offloading: true would free nothing");
    assert_true(said);
    nb_plan_destroy(&whole);
    planned_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_change_that_is_named_fits),
        cmocka_unit_test(what_fits_nowhere_is_said),
        cmocka_unit_test(next_choices_are_true),
    };
    return cmocka_run_group_tests(tests, nb_test_make_folder, nb_test_remove_folder);
}
