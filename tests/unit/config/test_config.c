/* Reading, writing and explaining the configuration: each key of the table, and the words of each refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "config/config_keys.h"

static nb_status parse(const char *text, struct nb_config *config)
{
    return nb_config_parse(text, strlen(text), "file.yml", NULL, 0, config);
}

static void assert_parses(const char *text, struct nb_config *config)
{
    if (parse(text, config) != NB_OK)
        fail_msg("%s: %s", text, nb_status_message());
}

/* The whole message, so that place, key and remedy are all looked at. */
static void assert_refused(const char *text, const char *message)
{
    struct nb_config config;
    assert_int_equal(parse(text, &config), NB_USAGE);
    assert_string_equal(nb_status_message(), message);
    assert_null(config.output_dir);
}

static void assert_override_refused(const char *override, const char *message)
{
    struct nb_config config;
    assert_int_equal(nb_config_parse("", 0, "file.yml", &override, 1, &config), NB_USAGE);
    assert_string_equal(nb_status_message(), message);
}

/* Two values of each key that are not its default, as YAML. */
static const struct {
    const char *key, *values[2];
} samples[] = {
    {"base_model", {"a/b", "null_model"}},
    {"base_model_name", {"'1e5'", "\"\\u00e9 \\\"x\\\" \\n#: y\""}},
    {"chat_template", {"chatml", "smollm2"}},
    {"load_in_4bit", {"true", "on"}},
    {"bnb_4bit_quant_type", {"fp4", "'fp4'"}},
    {"bnb_4bit_use_double_quant", {"false", "No"}},
    {"head_4bit", {"true", "on"}},
    {"bf16", {"true", "off"}},
    {"adapter", {"lora", "qlora"}},
    {"lora_r", {"1", "65536"}},
    {"lora_alpha", {"7", "+64"}},
    {"lora_dropout", {"0.05", "5e-2"}},
    {"lora_target_modules", {"[q_proj, 'null']", "only"}},
    {"lora_target_linear", {"true", "YES"}},
    {"lora_model_dir", {"x", "~/y"}},
    {"peft_use_rslora", {"true", "True"}},
    {"datasets", {"[{path: a.jsonl}, {path: b.json.gz, type: completion, field: body}]",
                     "[{path: c, type: chat_template, field_messages: m, message_field_role: r, message_field_content: c}]"}},
    {"test_datasets", {"[{path: a, type: alpaca, field_instruction: i, field_input: j, field_output: o, field_system: s}]",
                          "[{path: a, type: tokens}]"}},
    {"val_set_size", {"0.1", "50"}},
    {"sequence_len", {"2", "1048576"}},
    {"sample_packing", {"true", "yes"}},
    {"train_on_inputs", {"true", "TRUE"}},
    {"shuffle_merged_datasets", {"false", "OFF"}},
    {"micro_batch_size", {"auto", "65536"}},
    {"gradient_accumulation_steps", {"2", "'3'"}},
    {"accumulation_order", {"batch_major", "layer_major"}},
    {"num_epochs", {"0.3", "3"}},
    {"max_steps", {"1", "1000000000000"}},
    {"optimizer", {"paged_adamw_8bit", "adamw_torch"}},
    {"adam_beta1", {"0.8", "0"}},
    {"adam_beta2", {"0.95", ".99"}},
    {"adam_epsilon", {"1e-6", "1.E-10"}},
    {"resident_optimizer_bytes", {"512 MiB", "0"}},
    {"learning_rate", {"2e-4", "0.1"}},
    {"lr_scheduler", {"constant", "linear"}},
    {"warmup_steps", {"0", "10"}},
    {"warmup_ratio", {"0", "0.1"}},
    {"weight_decay", {"0.01", "1"}},
    {"max_grad_norm", {"0", "0.3333333333333333"}},
    {"gradient_checkpointing", {"attention", "On"}},
    {"activation_offloading", {"true", "Off"}},
    {"mlp_chunk_tokens", {"0", "4096"}},
    {"loss_chunk_rows", {"256", "1024"}},
    {"seed", {"0", "9007199254740992"}},
    {"logging_steps", {"2", "500"}},
    {"eval_steps", {"0.25", "20"}},
    {"evals_per_epoch", {"1", "4"}},
    {"save_steps", {"1", "0.5"}},
    {"saves_per_epoch", {"1", "4"}},
    {"save_total_limit", {"0", "1"}},
    {"early_stopping_patience", {"1", "3"}},
    {"load_best_model_at_end", {"true", "yes"}},
    {"output_dir", {"out", "\"a\\tb\""}},
    {"device", {"cpu", "'cuda'"}},
    {"threads", {"1", "4096"}},
    {"memory_budget", {"24GB", "1.5 GiB"}},
    {"host_memory_budget", {"64GB", "0.5 TiB"}},
    {"pinned", {"true", "No"}},
    {"embedding_device", {"device", "host"}},
    {"quantized_cache", {"cache", "~/.cache/x"}},
    {"resident_layers", {"0", "40"}},
    {"weights_from", {"host", "file"}},
};

enum { SAMPLE_COUNT = sizeof samples / sizeof *samples };

static void reread(const struct nb_config *config, struct nb_config *again)
{
    char *text;
    size_t bytes;
    assert_int_equal(nb_config_format(config, &text, &bytes), NB_OK);
    if (nb_config_parse(text, bytes, "written", NULL, 0, again) != NB_OK)
        fail_msg("%s in:\n%s", nb_status_message(), text);
    const char *difference = nb_config_first_difference(config, again);
    if (difference)
        fail_msg("%s is read back otherwise from:\n%s", difference, text);
    free(text);
}

static void every_key_reads_writes_and_overrides(void **state)
{
    (void)state;
    assert_int_equal(SAMPLE_COUNT, nb_key_count);
    struct nb_config defaults;
    assert_int_equal(nb_config_defaults(&defaults), NB_OK);
    for (size_t i = 0; i < SAMPLE_COUNT; i++) {
        assert_string_equal(samples[i].key, nb_keys[i].name);
        assert_false(nb_config_was_set(&defaults, samples[i].key));
        for (int v = 0; v < 2; v++) {
            struct nb_config config, again, overridden;
            char *text = nb_format("%s: %s\n", samples[i].key, samples[i].values[v]);
            char *override = nb_format("%s=%s", samples[i].key, samples[i].values[v]);
            assert_parses(text, &config);
            assert_true(nb_config_was_set(&config, samples[i].key));
            const char *difference = nb_config_first_difference(&config, &defaults);
            bool unset_looks_alike = nb_keys[i].type == NB_KEY_INTEGER && strcmp(samples[i].values[v], "0") == 0;
            if (!difference && !unset_looks_alike)
                fail_msg("%s has the default's value", text);
            assert_true(!difference || strcmp(difference, samples[i].key) == 0);
            reread(&config, &again);
            const char *overrides[] = {override};
            assert_int_equal(nb_config_parse("", 0, "none", overrides, 1, &overridden), NB_OK);
            assert_null(nb_config_first_difference(&config, &overridden));
            nb_config_destroy(&config);
            nb_config_destroy(&again);
            nb_config_destroy(&overridden);
            free(text);
            free(override);
        }
    }
    nb_config_destroy(&defaults);
}

static void all_keys_together_read_back_equal(void **state)
{
    (void)state;
    for (int v = 0; v < 2; v++) {
        char *text;
        size_t bytes;
        FILE *stream = open_memstream(&text, &bytes);
        assert_non_null(stream);
        for (size_t i = 0; i < SAMPLE_COUNT; i++)
            fprintf(stream, "%s: %s\n", samples[i].key, samples[i].values[v]);
        fputs("special_tokens: {bos_token: <s>, eos_token: '</s>', additional_special_tokens: ['a: b', \"\\x07\"]}\n", stream);
        fclose(stream);
        struct nb_config config, again;
        assert_parses(text, &config);
        reread(&config, &again);
        assert_string_equal(again.special_tokens.bos_token, "<s>");
        assert_string_equal(again.special_tokens.additional.items[1], "\a");
        nb_config_destroy(&config);
        nb_config_destroy(&again);
        free(text);
    }
}

static void every_default_fits_its_key(void **state)
{
    (void)state;
    struct nb_config defaults, config;
    assert_int_equal(nb_config_defaults(&defaults), NB_OK);
    for (size_t i = 0; i < nb_key_count; i++) {
        const struct nb_key *key = &nb_keys[i];
        assert_true(key->help[0] && key->help[strlen(key->help) - 1] == '.');
        assert_true(key->fallback || key->fallback_words);
        if (!key->fallback)
            continue;
        char *text = nb_format("%s: %s\n", key->name, key->fallback);
        assert_parses(text, &config);
        const char *difference = nb_config_first_difference(&config, &defaults);
        if (difference)
            fail_msg("the default of %s is not what \"%s\" reads as", difference, key->fallback);
        nb_config_destroy(&config);
        free(text);
    }
    nb_config_destroy(&defaults);
}

static void null_and_empty_are_unset(void **state)
{
    (void)state;
    static const char *const forms[] = {"", " ~", " null", " Null", " NULL", " ''", " \"\"", " !!null null"};
    struct nb_config defaults, config;
    assert_int_equal(nb_config_defaults(&defaults), NB_OK);
    for (size_t i = 0; i < nb_key_count; i++)
        for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
            char *text = nb_format("%s:%s\n", nb_keys[i].name, forms[f]);
            assert_parses(text, &config);
            assert_false(nb_config_was_set(&config, nb_keys[i].name));
            assert_null(nb_config_first_difference(&config, &defaults));
            nb_config_destroy(&config);
            free(text);
        }
    nb_config_destroy(&defaults);
    const char *overrides[] = {"output_dir=null", "lora_r=", "datasets=[]"};
    const char *text = "output_dir: x\nlora_r: 3\ndatasets: [{path: x}]\nbase_model: 'null'\n";
    assert_int_equal(nb_config_parse(text, strlen(text), "file.yml", overrides, 3, &config), NB_OK);
    assert_false(nb_config_was_set(&config, "output_dir") || nb_config_was_set(&config, "lora_r"));
    assert_string_equal(config.output_dir, "./model-out");
    assert_int_equal(config.lora_r, 16);
    assert_int_equal(config.datasets.count, 0);
    assert_string_equal(config.base_model, "null");
    nb_config_destroy(&config);
}

static void refusals_name_place_key_and_remedy(void **state)
{
    (void)state;
    assert_refused("lora_r: 8\nlora_rank: 8\n", "file.yml:2:1: unknown key \"lora_rank\"; did you mean \"lora_r\"?");
    assert_refused("learning_rte: 1", "file.yml:1:1: unknown key \"learning_rte\"; did you mean \"learning_rate\"?");
    assert_refused("num_epoch: 1", "file.yml:1:1: unknown key \"num_epoch\"; did you mean \"num_epochs\"?");
    assert_refused("sharded_optimizer_state: 1", "file.yml:1:1: unknown key \"sharded_optimizer_state\"; the nearest is "
        "\"resident_optimizer_bytes\", and `nibble help config` lists all");
    assert_refused("a_name_that_is_longer_than_anyone_would_ever_give_to_a_key_of_a_config: 1", "file.yml:1:1: unknown key "
        "\"a_name_that_is_longer_than_anyone_would_ever_give_to_a_key_of_a_...\"; `nibble help config` lists all");
    assert_refused("lora_rank:\n", "file.yml:1:1: unknown key \"lora_rank\"; did you mean \"lora_r\"?");
    assert_refused("seed: 1\n\nseed: 2\n", "file.yml:3:1: duplicate key \"seed\": it stands in line 1 already");
    assert_refused("  seed: x\n", "file.yml:1:9: seed: \"x\" is not a whole number");
    assert_refused("seed: 1_000\n", "file.yml:1:7: seed: \"1_000\" is not a whole number");
    assert_refused("seed: 0x10\n", "file.yml:1:7: seed: \"0x10\" is not a whole number");
    assert_refused("seed: 010\n", "file.yml:1:7: seed: \"010\" is not a whole number");
    assert_refused("seed: 1.0\n", "file.yml:1:7: seed: \"1.0\" is not a whole number");
    assert_refused("seed: 99999999999999999999\n", "file.yml:1:7: seed: \"99999999999999999999\" is not a whole number");
    assert_refused("seed: [1]\n", "file.yml:1:7: seed: a list is not a single value");
    assert_refused("learning_rate: .inf\n", "file.yml:1:16: learning_rate: \".inf\" is not a finite number");
    assert_refused("learning_rate: nan\n", "file.yml:1:16: learning_rate: \"nan\" is not a finite number");
    assert_refused("learning_rate: 1e999\n", "file.yml:1:16: learning_rate: \"1e999\" is not a finite number");
    assert_refused("learning_rate: 1e\n", "file.yml:1:16: learning_rate: \"1e\" is not a finite number");
    assert_refused("learning_rate: 0x1p3\n", "file.yml:1:16: learning_rate: \"0x1p3\" is not a finite number");
    assert_refused("learning_rate: 0\n", "file.yml:1:16: learning_rate: 0 is out of range: it must be above 0 and at most 100");
    assert_refused("learning_rate: -1e-4\n",
        "file.yml:1:16: learning_rate: -1e-4 is out of range: it must be above 0 and at most 100");
    assert_refused("lora_r: 0\n", "file.yml:1:9: lora_r: 0 is out of range: it must be at least 1 and at most 65536");
    assert_refused("save_steps: 1.5\n", "file.yml:1:13: save_steps: 1.5: from 1 on it must be a whole number");
    assert_refused("sample_packing: 1\n", "file.yml:1:17: sample_packing: \"1\" is not true or false");
    assert_refused("sample_packing: tRUE\n", "file.yml:1:17: sample_packing: \"tRUE\" is not true or false");
    assert_refused("device: cuda:0\n", "file.yml:1:9: device: \"cuda:0\" is none of: auto, cpu, cuda");
    assert_refused("chat_template: gemma\n",
        "file.yml:1:16: chat_template: \"gemma\" is none of: tokenizer_default, chatml, llama3, smollm2");
    assert_refused("lora_target_modules: [q_proj, [x]]\n", "file.yml:1:31: lora_target_modules: a list is not a name");
    assert_refused("- a\n", "file.yml:1:1: a config is a mapping of keys to values, such as \"lora_r: 16\"");
    assert_refused("lora_r\n", "file.yml:1:1: a config is a mapping of keys to values, such as \"lora_r: 16\"");
}

static void entries_of_datasets_are_checked(void **state)
{
    (void)state;
    assert_refused("datasets: x.jsonl\n",
        "file.yml:1:11: datasets: a list is expected, such as [{path: rows.jsonl, type: alpaca}]");
    assert_refused("datasets: [x.jsonl]\n",
        "file.yml:1:12: datasets: an entry is a mapping such as {path: rows.jsonl, type: alpaca}");
    assert_refused("datasets:\n  - type: alpaca\n", "file.yml:2:5: datasets: an entry without path");
    assert_refused("datasets:\n  - path: x\n    tipe: alpaca\n",
        "file.yml:3:5: datasets: unknown field \"tipe\"; did you mean \"type\"?");
    assert_refused("datasets:\n  - path: x\n    temperature: 1\n",
        "file.yml:3:5: datasets: unknown field \"temperature\"; `nibble help config` lists the fields");
    assert_refused("datasets:\n  - path: x\n    type: sharegpt\n",
        "file.yml:3:11: type: \"sharegpt\" is none of: chat_template, alpaca, completion, tokens");
    assert_refused("datasets:\n  - path: x\n    path: y\n", "file.yml:3:5: duplicate key \"path\": it stands in line 2 already");
    assert_refused("datasets:\n  - {path: x, split: test}\n",
        "file.yml:2:15: split: \"test\" is not supported: give a file of the rows to use");
    assert_refused("datasets:\n  - {path: x, message_property_mappings: {name: n}}\n",
        "file.yml:2:43: message_property_mappings: \"name\" is not supported, only role and content");
    assert_refused("datasets: [{path: json, data_files: [a, b]}]\n", "file.yml:1:37: data_files: goes with path: json and names one "
        "file; give each file an entry of its own, with its name as path");
    struct nb_config config;
    assert_parses("datasets:\n"
                  "  - {data_files: [rows.jsonl], path: json, ds_type: json, split: train, type: null, roles_to_train: [assistant]}\n"
                  "  - {path: talk.jsonl, message_property_mappings: {role: from, content: value}, train_on_eos: turn}\n", &config);
    assert_int_equal(config.datasets.count, 2);
    assert_string_equal(config.datasets.items[0].path, "rows.jsonl");
    assert_null(config.datasets.items[0].type);
    assert_string_equal(config.datasets.items[1].message_field_role, "from");
    assert_string_equal(config.datasets.items[1].message_field_content, "value");
    nb_config_destroy(&config);
}

/* The keys of a published Axolotl example that have no meaning here. */
static void harmless_foreign_keys_are_listed_once(void **state)
{
    (void)state;
    struct nb_config config;
    assert_parses("model_type: MistralForCausalLM\nload_in_8bit: false\nstrict: false\nlora_fan_in_fan_out:\nwandb_project: me\n"
                  "wandb_watch:\ngroup_by_length: false\nfp16: false\ntf32: true\nlocal_rank:\nflash_attention: true\n"
                  "loss_watchdog_threshold: 5.0\ndeepspeed:\nfsdp: []\nfsdp_config: {}\nneftune_noise_alpha: 0.0\n"
                  "eval_sample_packing: false\nsave_strategy: epoch\npeft_init_lora_weights: yes\nresume_from_checkpoint:\n"
                  "plugins:\n  - axolotl.integrations.liger.LigerPlugin\nliger_rope: true\n", &config);
    static const char *const want[] = {"model_type", "load_in_8bit", "strict", "wandb_project", "group_by_length", "fp16", "tf32",
        "flash_attention", "loss_watchdog_threshold", "fsdp", "fsdp_config", "neftune_noise_alpha", "eval_sample_packing",
        "save_strategy", "peft_init_lora_weights", "plugins", "liger_rope"};
    assert_int_equal(config.ignored.count, sizeof want / sizeof *want);
    for (size_t i = 0; i < config.ignored.count; i++)
        assert_string_equal(config.ignored.items[i], want[i]);
    nb_config_destroy(&config);
    const char *overrides[] = {"tf32=true", "tf32=false"};
    assert_int_equal(nb_config_parse("tf32: 1", 7, "file.yml", overrides, 2, &config), NB_OK);
    assert_int_equal(config.ignored.count, 1);
    nb_config_destroy(&config);
}

static void foreign_keys_that_change_the_training_are_refused(void **state)
{
    (void)state;
    static const char *const lines[] = {"load_in_8bit: true", "peft_use_dora: true", "neftune_noise_alpha: 5",
        "lora_modules_to_save: [embed_tokens]", "deepspeed: zero2.json", "fsdp: [full_shard]", "fp16: true", "rl: dpo",
        "resume_from_checkpoint: x", "peft_init_lora_weights: gaussian", "save_strategy: 'no'", "plugins: [other.Plugin]",
        "plugins: {a: b}", "batch_size: 8", "sequence_parallel_degree: 2", "group_by_length: true", "tokens: [<a>]",
        "lora_bias: all", "cosine_min_lr_ratio: 0.1", "save_safetensors: false", "relora_steps: 100", "metric_for_best_model: f1"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct nb_config config;
        char *key = nb_format("file.yml:1:1: %.*s: ", (int)strcspn(lines[i], ":"), lines[i]);
        assert_int_equal(parse(lines[i], &config), NB_USAGE);
        assert_int_equal(strncmp(nb_status_message(), key, strlen(key)), 0);
        assert_non_null(strstr(nb_status_message(), " is not supported: "));
        free(key);
    }
}

static void overrides_win_in_their_order_and_name_themselves(void **state)
{
    (void)state;
    struct nb_config config;
    const char *text = "lora_r: 8\ndatasets: [{path: a}]\n";
    const char *overrides[] = {"lora_r=4", "lora_r=2", "datasets=[{path: x=y.jsonl, type: alpaca}]", "output_dir=a=b"};
    assert_int_equal(nb_config_parse(text, strlen(text), "file.yml", overrides, 4, &config), NB_OK);
    assert_int_equal(config.lora_r, 2);
    assert_int_equal(config.datasets.count, 1);
    assert_string_equal(config.datasets.items[0].path, "x=y.jsonl");
    assert_string_equal(config.output_dir, "a=b");
    nb_config_destroy(&config);
    assert_override_refused("lora_rank=3", "--set lora_rank: unknown key \"lora_rank\"; did you mean \"lora_r\"?");
    assert_override_refused("lora_r=x", "--set lora_r: \"x\" is not a whole number");
    assert_override_refused("lora_r", "--set lora_r: key=value is expected");
    assert_override_refused("=3", "--set =3: key=value is expected");
    assert_override_refused("lora_r={", "--set lora_r: not YAML: while parsing a flow node, did not find expected node content");
    assert_override_refused("datasets=[{path: x, path: y}]", "--set datasets: duplicate key \"path\": it stands in line 1 already");
}

static void verbs_without_a_file_take_their_keys_only(void **state)
{
    (void)state;
    struct nb_config config;
    const char *good[] = {"load_in_4bit=false", "bf16=false", "device=cpu", "threads=2", "sequence_len=64", "seed=3"};
    assert_int_equal(nb_config_from_overrides(good, sizeof good / sizeof *good, &config), NB_OK);
    assert_false(config.load_in_4bit);
    assert_int_equal(config.bf16, NB_CONFIG_BF16_FALSE);
    assert_int_equal(config.sequence_len, 64);
    nb_config_destroy(&config);
    const char *bad[] = {"lora_r=3"};
    assert_int_equal(nb_config_from_overrides(bad, 1, &config), NB_USAGE);
    assert_string_equal(nb_status_message(), "--set lora_r: the key applies to train and plan only");
}

static void a_file_is_read_by_its_path(void **state)
{
    (void)state;
    char path[] = "/tmp/nibble-config-XXXXXX";
    int descriptor = mkstemp(path);
    struct nb_config config;
    assert_true(descriptor >= 0);
    close(descriptor);
    assert_int_equal(nb_file_write(path, "lora_r: 5\n", 10), NB_OK);
    assert_int_equal(nb_config_read(path, NULL, 0, &config), NB_OK);
    assert_int_equal(config.lora_r, 5);
    assert_string_equal(config.source, path);
    nb_config_destroy(&config);
    unlink(path);
    assert_int_equal(nb_config_read(path, NULL, 0, &config), NB_IO);
    assert_non_null(strstr(nb_status_message(), path));
    nb_config_destroy(&config);
}

/* What `write` is given, as text. The caller frees it. */
static char *captured(void (*write)(FILE *))
{
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    assert_non_null(stream);
    write(stream);
    fclose(stream);
    return text;
}

static void help_and_manual_name_every_key(void **state)
{
    (void)state;
    char *help = captured(nb_config_help_text), *manual = captured(nb_config_man);
    for (size_t i = 0; i < nb_key_count; i++) {
        char *heading = nb_format("\n  %s%s\n      %s\n", nb_keys[i].name, nb_keys[i].everywhere ? " *" : "", nb_keys[i].help);
        char *item = nb_format("\n.TP\n.B %s", nb_keys[i].name);
        assert_non_null(strstr(help, heading));
        assert_non_null(strstr(manual, item));
        free(heading);
        free(item);
    }
    for (size_t f = 0; f < nb_dataset_field_count; f++) {
        assert_non_null(strstr(help, nb_dataset_fields[f].name));
        assert_non_null(strstr(manual, nb_dataset_fields[f].name));
    }
    for (const char *line = help; *line; line = strchr(line, '\n') + 1)
        assert_true(strcspn(line, "\n") <= 140);
    free(help);
    free(manual);
    assert_int_equal(nb_config_help_key(stderr, "lora_rr"), NB_USAGE);
    assert_non_null(strstr(nb_status_message(), "\"lora_r\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_key_reads_writes_and_overrides),
        cmocka_unit_test(all_keys_together_read_back_equal),
        cmocka_unit_test(every_default_fits_its_key),
        cmocka_unit_test(null_and_empty_are_unset),
        cmocka_unit_test(refusals_name_place_key_and_remedy),
        cmocka_unit_test(entries_of_datasets_are_checked),
        cmocka_unit_test(harmless_foreign_keys_are_listed_once),
        cmocka_unit_test(foreign_keys_that_change_the_training_are_refused),
        cmocka_unit_test(overrides_win_in_their_order_and_name_themselves),
        cmocka_unit_test(verbs_without_a_file_take_their_keys_only),
        cmocka_unit_test(a_file_is_read_by_its_path),
        cmocka_unit_test(help_and_manual_name_every_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
