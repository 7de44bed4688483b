/* What more than one key decides: the checks before training, and the values that follow from several keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "config/config.h"

static const char enough[] = "base_model: m\nadapter: qlora\ndatasets: [{path: d}]\nlearning_rate: 2e-4\nlora_target_linear: true\n";

static void read_more(const char *more, struct nb_config *config)
{
    char *text = nb_format("%s%s", enough, more);
    if (nb_config_parse(text, strlen(text), "f.yml", NULL, 0, config) != NB_OK)
        fail_msg("%s: %s", more, nb_status_message());
    free(text);
}

/* `overrides` undo or add to what is enough; the message must hold `part`. */
static void assert_invalid(const char *const *overrides, size_t count, const char *part)
{
    struct nb_config config;
    assert_int_equal(nb_config_parse(enough, strlen(enough), "f.yml", overrides, count, &config), NB_OK);
    assert_int_equal(nb_config_validate_train(&config), NB_USAGE);
    if (strncmp(nb_status_message(), "f.yml: ", 7) != 0 || !strstr(nb_status_message(), part))
        fail_msg("\"%s\" does not name f.yml and \"%s\"", nb_status_message(), part);
    nb_config_destroy(&config);
}

#define ASSERT_INVALID(part, ...) \
    assert_invalid((const char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), part)

static void training_needs_a_few_keys(void **state)
{
    (void)state;
    ASSERT_INVALID("base_model is missing", "base_model=");
    ASSERT_INVALID("adapter is missing", "adapter=");
    ASSERT_INVALID("adapter is missing", "adapter=none");
    ASSERT_INVALID("datasets is missing", "datasets=");
    ASSERT_INVALID("learning_rate is missing", "learning_rate=");
    ASSERT_INVALID("nothing would be trained", "lora_target_linear=false");
}

static void keys_that_contradict_each_other_are_refused(void **state)
{
    (void)state;
    ASSERT_INVALID("load_in_4bit cannot be false", "load_in_4bit=false");
    ASSERT_INVALID("eval_steps and evals_per_epoch", "val_set_size=0.1", "eval_steps=5", "evals_per_epoch=2");
    ASSERT_INVALID("save_steps and saves_per_epoch", "save_steps=5", "saves_per_epoch=2");
    ASSERT_INVALID("warmup_steps and warmup_ratio", "warmup_steps=5", "warmup_ratio=0.1");
    ASSERT_INVALID("test_datasets and val_set_size", "test_datasets=[{path: t}]", "val_set_size=0.1");
    ASSERT_INVALID("load_best_model_at_end needs", "load_best_model_at_end=true");
    ASSERT_INVALID("memory_budget is that many bytes: give the unit", "memory_budget=24");
    ASSERT_INVALID("host_memory_budget is that many bytes", "host_memory_budget=64");
    ASSERT_INVALID("resident_optimizer_bytes needs optimizer: paged_adamw_8bit", "resident_optimizer_bytes=1GB");
    ASSERT_INVALID("early_stopping_patience needs", "early_stopping_patience=3");
    ASSERT_INVALID("eval_steps needs", "eval_steps=3");
    ASSERT_INVALID("lora_target_linear: true", "lora_target_modules=all-linear");
}

static void what_belongs_together_is_accepted(void **state)
{
    (void)state;
    static const char *const more[] = {"", "load_in_4bit: true", "val_set_size: 0.1\neval_steps: 5", "evals_per_epoch: 4",
        "test_datasets: [{path: t}]\nload_best_model_at_end: true\nearly_stopping_patience: 2", "warmup_steps: 5\nwarmup_ratio: 0",
        "lora_target_modules: [q_proj]", "eval_steps: 0\nevals_per_epoch: 3\nval_set_size: 5", "lora_model_dir: x"};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        struct nb_config config;
        read_more(more[i], &config);
        if (nb_config_validate_train(&config) != NB_OK)
            fail_msg("%s: %s", more[i], nb_status_message());
        nb_config_destroy(&config);
    }
    const char *overrides[] = {"lora_target_linear=", "lora_model_dir=x"};
    struct nb_config config;
    assert_int_equal(nb_config_parse(enough, strlen(enough), "f.yml", overrides, 2, &config), NB_OK);
    assert_int_equal(nb_config_validate_train(&config), NB_OK);
    nb_config_destroy(&config);
}

static void four_bits_follow_the_verb_and_the_adapter(void **state)
{
    (void)state;
    static const struct {
        const char *overrides[2];
        bool training, elsewhere;
    } cases[] = {
        {{"adapter=qlora", "seed=1"}, true, true},
        {{"adapter=lora", "seed=1"}, false, true},
        {{"adapter=lora", "load_in_4bit=true"}, true, true},
        {{"adapter=lora", "load_in_4bit=false"}, false, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nb_config config;
        assert_int_equal(nb_config_parse(enough, strlen(enough), "f.yml", cases[i].overrides, 2, &config), NB_OK);
        assert_int_equal(nb_config_opens_in_4bit(&config, true), cases[i].training);
        assert_int_equal(nb_config_opens_in_4bit(&config, false), cases[i].elsewhere);
        assert_int_equal(nb_config_validate_train(&config), NB_OK);
        assert_true(nb_config_was_set(&config, "load_in_4bit"));
        assert_int_equal(config.load_in_4bit, cases[i].training);
        nb_config_destroy(&config);
    }
}

/* A validated config, written and read, needs no default any more and is still valid. */
static void a_written_run_is_the_same_run(void **state)
{
    (void)state;
    static const char *const more[] = {"", "val_set_size: 3", "sequence_len: 99"};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        struct nb_config config, again;
        char *text;
        size_t bytes;
        read_more(more[i], &config);
        assert_int_equal(nb_config_validate_train(&config), NB_OK);
        assert_int_equal(nb_config_format(&config, &text, &bytes), NB_OK);
        assert_non_null(strstr(text, "\nload_in_4bit: true\n"));
        assert_non_null(strstr(text, i == 2 ? "\nsequence_len: 99\n" : "\nsequence_len: 512\n"));
        assert_int_equal(nb_config_parse(text, bytes, "config.yml", NULL, 0, &again), NB_OK);
        assert_int_equal(nb_config_validate_train(&again), NB_OK);
        assert_null(nb_config_first_difference(&config, &again));
        again.seed++;
        assert_string_equal(nb_config_first_difference(&config, &again), "seed");
        nb_config_destroy(&config);
        nb_config_destroy(&again);
        free(text);
    }
}

/* What the adapter in lora_model_dir decides must not come back from the written file as the user's wish. */
static void an_adapter_to_go_on_from_keeps_its_say(void **state)
{
    (void)state;
    struct nb_config config, again;
    char *text;
    size_t bytes;
    read_more("lora_model_dir: x\nlora_alpha: 8\n", &config);
    assert_int_equal(nb_config_format(&config, &text, &bytes), NB_OK);
    assert_int_equal(nb_config_parse(text, bytes, "config.yml", NULL, 0, &again), NB_OK);
    assert_false(nb_config_was_set(&again, "lora_r") || nb_config_was_set(&again, "lora_dropout"));
    assert_false(nb_config_was_set(&again, "peft_use_rslora"));
    assert_true(nb_config_was_set(&again, "lora_alpha"));
    nb_config_destroy(&config);
    nb_config_destroy(&again);
    free(text);
}

static void warm_up_follows_its_keys(void **state)
{
    (void)state;
    static const struct {
        const char *more;
        int64_t total, want;
    } cases[] = {
        {"", 50, 1}, {"", 1000, 30}, {"", 10000, 100}, {"", 10, 0}, {"warmup_steps: 7", 5, 7}, {"warmup_steps: 0", 1000, 0},
        {"warmup_ratio: 0.1", 99, 10}, {"warmup_ratio: 0.1", 100, 10}, {"warmup_ratio: 0.001", 12, 1},
        {"warmup_ratio: 0", 99, 0}, {"warmup_steps: 0\nwarmup_ratio: 0.5", 10, 5},
        {"lr_scheduler: constant\nwarmup_steps: 5", 10, 0}, {"lr_scheduler: constant_with_warmup\nwarmup_steps: 5", 10, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nb_config config;
        read_more(cases[i].more, &config);
        assert_int_equal(nb_config_warmup_steps(&config, cases[i].total), cases[i].want);
        nb_config_destroy(&config);
    }
}

static void intervals_are_steps_or_fractions(void **state)
{
    (void)state;
    assert_int_equal(nb_config_interval_steps(1, 100), 1);
    assert_int_equal(nb_config_interval_steps(20, 10), 20);
    assert_int_equal(nb_config_interval_steps(0.25, 100), 25);
    assert_int_equal(nb_config_interval_steps(0.25, 101), 26);
    assert_int_equal(nb_config_interval_steps(0.001, 10), 1);
    assert_int_equal(nb_config_interval_steps(0.5, 0), 1);
}

static void choices_have_names(void **state)
{
    (void)state;
    struct nb_config config;
    read_more("optimizer: paged_adamw_8bit\n", &config);
    assert_string_equal(nb_config_choice_name(&config, "optimizer"), "paged_adamw_8bit");
    assert_int_equal(config.optimizer, NB_CONFIG_OPTIMIZER_PAGED_ADAMW_8BIT);
    assert_string_equal(nb_config_choice_name(&config, "lr_scheduler"), "cosine");
    assert_null(nb_config_choice_name(&config, "seed"));
    assert_null(nb_config_choice_name(&config, "nonsense"));
    nb_config_destroy(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_needs_a_few_keys),
        cmocka_unit_test(keys_that_contradict_each_other_are_refused),
        cmocka_unit_test(what_belongs_together_is_accepted),
        cmocka_unit_test(four_bits_follow_the_verb_and_the_adapter),
        cmocka_unit_test(a_written_run_is_the_same_run),
        cmocka_unit_test(an_adapter_to_go_on_from_keeps_its_say),
        cmocka_unit_test(warm_up_follows_its_keys),
        cmocka_unit_test(intervals_are_steps_or_fractions),
        cmocka_unit_test(choices_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
