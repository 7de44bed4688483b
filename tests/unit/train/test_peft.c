/* PEFT's folders: what PEFT wrote is read, what is written is read back bit for bit, and what this program cannot compute is refused
 * by its name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/bfloat.h"
#include "base/file.h"
#include "bench.h"
#include "checkpoint/safetensors.h"
#include "tests/support/golden.h"

static const char start[] = "tests/golden/models/llama/adapter_start";

static void golden_values_arrive_in_their_places(void **state)
{
    (void)state;
    struct nb_peft_config *config = NULL;
    struct nb_adapter_options options = bench_options();
    struct bench bench;
    options.target_linear = false;
    bench_ok(nb_peft_config_read(start, &config));
    nb_peft_config_options(config, &options);
    assert_string_equal(nb_peft_config_base_model(config), "llama");
    assert_int_equal(options.rank, 4);
    assert_int_equal(options.target_module_count, 7);
    assert_true(options.alpha == 8 && options.dropout == 0 && !options.rank_stabilized && !options.target_linear);
    bench_open(&bench, &options);
    nb_peft_config_destroy(&config); /* the adapter has copies of its strings */
    bench_ok(nb_peft_load(bench.session.adapter, bench.session.stream, bench.session.staging, start));
    struct nb_golden *golden = nb_golden_open("tests/golden/models/llama/adapter_start/adapter_model.safetensors");
    for (int i = 0; i < nb_adapter_trainable_count(bench.session.adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(bench.session.adapter, i);
        const struct nb_adapter_memory *memory = nb_adapter_memory_of(bench.session.adapter);
        const float *want = nb_golden_f32(golden, "%s", t->name);
        float *master = bench_download(&bench, nb_dptr_at(memory->master, t->offset * 4), t->count * 4);
        float *copy = bench_download(&bench, nb_dptr_at(memory->copy, t->offset * 4), t->count * 4);
        assert_memory_equal(master, want, t->count * 4);
        assert_memory_equal(copy, want, t->count * 4);
        free(master);
        free(copy);
    }
    nb_golden_close(&golden);
    bench_close(&bench);
}

static void saved_is_read_back_bit_for_bit(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    struct bench bench, other;
    char *folder = bench_folder();
    options.rank_stabilized = true;
    options.dropout = 0.05f;
    bench_open(&bench, &options);
    uint64_t elements = nb_adapter_elements(bench.session.adapter);
    bench_scramble(&bench, nb_adapter_memory_of(bench.session.adapter)->master, elements, 3);
    bench_ok(nb_peft_save(bench.session.adapter, bench.session.stream, bench.session.staging, folder, "org/base"));

    struct nb_peft_config *config = NULL;
    struct nb_adapter_options read = bench_options();
    read.target_linear = false;
    bench_ok(nb_peft_config_read(folder, &config));
    nb_peft_config_options(config, &read);
    assert_string_equal(nb_peft_config_base_model(config), "org/base");
    assert_true(read.rank == 4 && read.alpha == 8 && read.dropout == 0.05f && read.rank_stabilized);
    assert_int_equal(read.target_module_count, 7); /* target_linear is written as names */
    bench_open(&other, &read);
    bench_ok(nb_peft_load(other.session.adapter, other.session.stream, other.session.staging, folder));
    for (int i = 0; i < nb_adapter_trainable_count(bench.session.adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(bench.session.adapter, i);
        float *wrote = bench_download(
            &bench, nb_dptr_at(nb_adapter_memory_of(bench.session.adapter)->master, t->offset * 4), t->count * 4);
        float *got = bench_download(
            &other, nb_dptr_at(nb_adapter_memory_of(other.session.adapter)->master, t->offset * 4), t->count * 4);
        assert_memory_equal(wrote, got, t->count * 4);
        free(wrote);
        free(got);
    }
    nb_peft_config_destroy(&config);
    bench_close(&bench);
    bench_close(&other);
    bench_ok(nb_remove_folder(folder));
    free(folder);
}

/* The file PEFT wrote and the file written here from the same values: the same names, order, types, shapes and bytes. */
static void the_file_is_the_one_peft_writes(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    struct nb_safetensors *ours = NULL, *theirs = NULL;
    struct bench bench;
    char *folder = bench_folder();
    bench_open(&bench, &options);
    bench_ok(nb_peft_load(bench.session.adapter, bench.session.stream, bench.session.staging, start));
    bench_ok(nb_peft_save(bench.session.adapter, bench.session.stream, bench.session.staging, folder, "llama"));
    char *path = nb_path_join(folder, "adapter_model.safetensors");
    bench_ok(nb_safetensors_open(path, &ours));
    bench_ok(nb_safetensors_open("tests/golden/models/llama/adapter_start/adapter_model.safetensors", &theirs));
    assert_int_equal(nb_safetensors_count(ours), nb_safetensors_count(theirs));
    for (size_t i = 0; i < nb_safetensors_count(ours); i++) {
        const struct nb_safetensors_tensor *a = nb_safetensors_at(ours, i), *b = nb_safetensors_at(theirs, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->dtype, b->dtype);
        assert_true(a->rank == 2 && b->rank == 2 && a->shape[0] == b->shape[0] && a->shape[1] == b->shape[1]);
        assert_memory_equal(a->data, b->data, a->bytes);
    }
    nb_safetensors_close(&ours);
    nb_safetensors_close(&theirs);
    free(path);
    bench_close(&bench);
    bench_ok(nb_remove_folder(folder));
    free(folder);
}

static void an_adapter_that_only_computes_holds_rounded_copies(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    struct bench bench;
    options.trains = false;
    options.activation = NB_DTYPE_BF16;
    bench_open(&bench, &options);
    assert_true(nb_dptr_is_null(nb_adapter_memory_of(bench.session.adapter)->master));
    bench_ok(nb_peft_load(bench.session.adapter, bench.session.stream, bench.session.staging, start));
    struct nb_golden *golden = nb_golden_open("tests/golden/models/llama/adapter_start/adapter_model.safetensors");
    for (int i = 0; i < nb_adapter_trainable_count(bench.session.adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(bench.session.adapter, i);
        const float *want = nb_golden_f32(golden, "%s", t->name);
        nb_bf16 *copy = bench_download(
            &bench, nb_dptr_at(nb_adapter_memory_of(bench.session.adapter)->copy, t->offset * 2), t->count * 2);
        for (uint64_t k = 0; k < t->count; k++)
            assert_int_equal(copy[k], nb_bf16_from_float(want[k]));
        free(copy);
    }
    nb_golden_close(&golden);
    bench_fails(nb_peft_save(bench.session.adapter, bench.session.stream, bench.session.staging, "/nowhere", "x"),
        NB_USAGE, "does not train");
    bench_close(&bench);
}

struct refusal {
    const char *fields; /* in place of the %s of a config that is fine otherwise */
    nb_status status;
    const char *words;
};

static void read_with(const char *fields, nb_status want, const char *words)
{
    struct nb_peft_config *config = NULL;
    char *folder = bench_folder();
    char *text =
        nb_format("{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": [\"q_proj\"]%s%s}",
            *fields ? ", " : "", fields);
    bench_write(folder, "adapter_config.json", text);
    nb_status status = nb_peft_config_read(folder, &config);
    if (want == NB_OK)
        bench_ok(status);
    else
        bench_fails(status, want, words);
    nb_peft_config_destroy(&config);
    bench_ok(nb_remove_folder(folder));
    free(folder);
    free(text);
}

static void what_changes_the_arithmetic_is_refused_by_name(void **state)
{
    (void)state;
    const struct refusal cases[] = {
        {"\"use_dora\": true", NB_UNSUPPORTED, "use_dora: true: DoRA"},
        {"\"bias\": \"lora_only\"", NB_UNSUPPORTED, "bias: \"lora_only\""},
        {"\"lora_bias\": true", NB_UNSUPPORTED, "lora_bias: true"},
        {"\"modules_to_save\": [\"lm_head\"]", NB_UNSUPPORTED, "modules_to_save: [\"lm_head\"]"},
        {"\"rank_pattern\": {\"q_proj\": 8}", NB_UNSUPPORTED, "rank_pattern"},
        {"\"alpha_pattern\": {\"q_proj\": 8}", NB_UNSUPPORTED, "alpha_pattern"},
        {"\"layers_to_transform\": [0]", NB_UNSUPPORTED, "layers_to_transform: [0]"},
        {"\"layer_replication\": [[0, 1]]", NB_UNSUPPORTED, "layer_replication"},
        {"\"fan_in_fan_out\": true", NB_UNSUPPORTED, "fan_in_fan_out"},
        {"\"trainable_token_indices\": [5]", NB_UNSUPPORTED, "trainable_token_indices"},
        {"\"target_parameters\": [\"experts.down\"]", NB_UNSUPPORTED, "target_parameters"},
        {"\"use_qalora\": true", NB_UNSUPPORTED, "use_qalora"},
        {"\"alora_invocation_tokens\": [1]", NB_UNSUPPORTED, "alora_invocation_tokens"},
        {"\"task_type\": \"SEQ_CLS\"", NB_UNSUPPORTED, "task_type: \"SEQ_CLS\""},
        {"\"init_lora_weights\": \"pissa\"", NB_UNSUPPORTED, "init_lora_weights: \"pissa\""},
        {"\"a_field_of_next_year\": {\"k\": 1}", NB_UNSUPPORTED, "a_field_of_next_year"},
        {"\"lora_dropout\": 2", NB_FORMAT, "lora_dropout"},
        {"\"r\": 8", NB_FORMAT, "duplicate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        read_with(cases[i].fields, cases[i].status, cases[i].words);
}

static void what_changes_nothing_is_accepted(void **state)
{
    (void)state;
    read_with("", NB_OK, NULL);
    read_with(
        "\"bias\": \"none\", \"task_type\": \"CAUSAL_LM\", \"init_lora_weights\": \"gaussian\", \"use_dora\": false",
        NB_OK, NULL);
    read_with(
        "\"a_field_of_next_year\": null, \"rank_pattern\": {}, \"modules_to_save\": null, \"inference_mode\": true",
        NB_OK, NULL);
}

static void damaged_configs_are_errors(void **state)
{
    (void)state;
    const char *const texts[] = {
        "",
        "{",
        "[]",
        "{\"peft_type\": \"LORA\"}",
        "{\"peft_type\": \"LORA\", \"r\": 0, \"lora_alpha\": 1, \"target_modules\": [\"q\"]}",
        "{\"peft_type\": \"LORA\", \"r\": 1e9, \"lora_alpha\": 1, \"target_modules\": [\"q\"]}",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 1, \"target_modules\": [7]}",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 1, \"target_modules\": []}",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": [\"q\"]}",
    };
    char *folder = bench_folder();
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct nb_peft_config *config = NULL;
        bench_write(folder, "adapter_config.json", texts[i]);
        nb_status status = nb_peft_config_read(folder, &config);
        assert_true(status == NB_FORMAT || status == NB_UNSUPPORTED);
        assert_null(config);
    }
    struct nb_peft_config *config = NULL;
    bench_fails(nb_peft_config_read("tests/golden/models/llama/no_such", &config), NB_IO, "no such adapter folder");
    bench_ok(nb_remove_folder(folder));
    free(folder);
}

static void all_linear_and_expressions_are_understood(void **state)
{
    (void)state;
    struct nb_adapter_options options = bench_options();
    struct bench bench;
    char *folder = bench_folder();
    const char *const only[] = {"q_proj", "down_proj"};
    options.target_linear = false;
    options.target_modules = only;
    options.target_module_count = 2;
    bench_open(&bench, &options);
    bench_ok(nb_peft_save(bench.session.adapter, bench.session.stream, bench.session.staging, folder, "x"));
    bench_close(&bench);
    bench_write(folder, "adapter_config.json",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": \".*(q|down)_proj\"}");
    struct nb_peft_config *config = NULL;
    bench_ok(nb_peft_config_read(folder, &config)); /* the tensors' names say which modules an expression meant */
    nb_peft_config_options(config, &options);
    assert_int_equal(options.target_module_count, 4);
    bench_open(&bench, &options);
    bench_ok(nb_peft_load(bench.session.adapter, bench.session.stream, bench.session.staging, folder));
    bench_close(&bench);
    nb_peft_config_destroy(&config);
    bench_write(folder, "adapter_config.json",
        "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": \"all-linear\"}");
    bench_ok(nb_peft_config_read(folder, &config));
    nb_peft_config_options(config, &options);
    assert_true(options.target_linear);
    nb_peft_config_destroy(&config);
    bench_ok(nb_remove_folder(folder));
    free(folder);
}

/* One tensor of a file, zeros. */
static void write_tensor(
    const char *folder, const char *name, enum nb_safetensors_dtype dtype, uint64_t rows, uint64_t columns)
{
    struct nb_safetensors_entry entry = {.name = name, .dtype = dtype, .rank = 2, .shape = {rows, columns}};
    struct nb_safetensors_writer *writer = NULL;
    char *path = nb_path_join(folder, "adapter_model.safetensors");
    size_t bytes = nb_safetensors_entry_bytes(&entry);
    char *zeros = calloc(bytes, 1);
    bench_ok(nb_safetensors_writer_open(path, &entry, 1, &writer));
    bench_ok(nb_safetensors_writer_write(writer, zeros, bytes));
    bench_ok(nb_safetensors_writer_finish(&writer, NULL));
    free(zeros);
    free(path);
}

static void adapters_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const char q_a[] = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const char *const one[] = {"model.layers.0.self_attn.q_proj"};
    struct nb_adapter_options options = bench_options();
    struct bench bench;
    char *folder = bench_folder();
    options.target_linear = false;
    options.target_modules = one;
    options.target_module_count = 1;
    bench_open(&bench, &options);
    struct nb_session *s = &bench.session;
    write_tensor(folder, q_a, NB_SAFETENSORS_F32, 4, 32);
    bench_fails(nb_peft_load(s->adapter, s->stream, s->staging, folder), NB_USAGE, "this base model needs 4 x 64");
    write_tensor(folder, q_a, NB_SAFETENSORS_F64, 4, 64);
    bench_fails(nb_peft_load(s->adapter, s->stream, s->staging, folder), NB_UNSUPPORTED, "F64");
    write_tensor(folder, q_a, NB_SAFETENSORS_BF16, 4, 64);
    bench_fails(nb_peft_load(s->adapter, s->stream, s->staging, folder), NB_USAGE, "q_proj.lora_B.weight is missing");
    bench_fails(nb_peft_load(s->adapter, s->stream, s->staging, start), NB_USAGE, "has no place in this base model");
    bench_fails(nb_peft_load(s->adapter, s->stream, s->staging, "tests/golden/models/llama"), NB_IO,
        "adapter_model.safetensors");
    bench_close(&bench);
    bench_ok(nb_remove_folder(folder));
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_values_arrive_in_their_places),
        cmocka_unit_test(saved_is_read_back_bit_for_bit),
        cmocka_unit_test(the_file_is_the_one_peft_writes),
        cmocka_unit_test(an_adapter_that_only_computes_holds_rounded_copies),
        cmocka_unit_test(what_changes_the_arithmetic_is_refused_by_name),
        cmocka_unit_test(what_changes_nothing_is_accepted),
        cmocka_unit_test(damaged_configs_are_errors),
        cmocka_unit_test(all_linear_and_expressions_are_understood),
        cmocka_unit_test(adapters_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
