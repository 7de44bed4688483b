/* Model configs: each family's file in the new and the old form, what is refused, and families' tensors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/family.h"
#include "checkpoint/model_config.h"
#include "checkpoint/real.h"
#include "checkpoint/safetensors.h"

static nb_status parse(const char *text, struct nb_model_config *config)
{
    return nb_model_config_parse(text, strlen(text), "config.json", config);
}

static void parse_golden(const char *family, struct nb_model_config *config)
{
    char *path = nb_format("tests/golden/models/%s/config.json", family), *text;
    size_t bytes;
    assert_int_equal(nb_file_read(path, 1 << 20, false, &text, &bytes), NB_OK);
    if (nb_model_config_parse(text, bytes, path, config) != NB_OK)
        fail_msg("%s", nb_status_message());
    free(text);
    free(path);
}

static const struct golden {
    const char *folder, *family;
    int kv_heads, head_dim, window;
    double theta;
    bool tied;
} goldens[] = {
    {"llama", "llama", 2, 16, 0, 1e4, false},       {"llama_tied", "llama", 1, 16, 0, 1e5, true},
    {"llama3_rope", "llama", 2, 16, 0, 5e5, false}, {"mistral", "mistral", 2, 16, 9, 1e4, false},
    {"qwen2", "qwen2", 2, 16, 0, 1e6, false},       {"qwen3", "qwen3", 2, 24, 0, 1e6, false},
};

static void each_family_is_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof goldens / sizeof goldens[0]; i++) {
        const struct golden *g = &goldens[i];
        struct nb_model_config c, again;
        parse_golden(g->folder, &c);
        assert_string_equal(c.family->name, g->family);
        assert_int_equal(c.hidden, 64);
        assert_int_equal(c.intermediate, 128);
        assert_int_equal(c.layers, 2);
        assert_int_equal(c.heads, 4);
        assert_int_equal(c.kv_heads, g->kv_heads);
        assert_int_equal(c.head_dim, g->head_dim);
        assert_int_equal(c.vocab, 259);
        assert_int_equal(c.max_positions, 128);
        assert_true(c.rms_epsilon == 1e-5f);
        assert_true(c.rope.theta == g->theta);
        assert_int_equal(nb_model_config_window(&c, 0), g->window);
        assert_int_equal(nb_model_config_window(&c, 1), g->window);
        assert_int_equal(c.tied, g->tied);
        assert_int_equal(c.attention_bias, strcmp(g->family, "qwen2") == 0);
        assert_int_equal(c.head_norms, strcmp(g->family, "qwen3") == 0);
        assert_int_equal(c.bos, 1);
        assert_int_equal(c.eos_count, 1);
        assert_int_equal(c.eos[0], 2);
        assert_int_equal(c.pad, 0);
        assert_false(c.quantized);
        /* What is written for a GGUF reads back as the same config. */
        char *text = nb_model_config_to_json(&c);
        assert_int_equal(parse(text, &again), NB_OK);
        char *text_again = nb_model_config_to_json(&again);
        assert_string_equal(text_again, text);
        free(text_again);
        free(text);
    }
}

static void llama3_scaling_is_read(void **state)
{
    struct nb_model_config c;
    (void)state;
    parse_golden("llama3_rope", &c);
    assert_int_equal(c.rope.type, NB_ROPE_LLAMA3);
    assert_true(c.rope.factor == 8 && c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
    assert_int_equal(c.rope.original_max_positions, 32);
}

/* Every tensor a family names is in its file, with that shape, and no other is. */
static void families_name_the_files_tensors(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof goldens / sizeof goldens[0]; i++) {
        struct nb_model_config c;
        struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES + 3];
        struct nb_safetensors *file;
        char name[NB_TENSOR_NAME_BYTES];
        size_t found = 0;
        int64_t parameters = 0;
        parse_golden(goldens[i].folder, &c);
        char *folder = nb_format("tests/golden/models/%s", goldens[i].folder);
        assert_int_equal(nb_safetensors_open_folder(folder, "model", &file), NB_OK);
        int count = nb_family_layer_tensors(&c, specs);
        for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
            count += nb_family_outer_tensor(&c, (enum nb_tensor_role)role, &specs[count]);
        for (int j = 0; j < count; j++) {
            assert_true(j == 0 || specs[j].role > specs[j - 1].role);
            for (int layer = 0; layer < (specs[j].role < NB_TENSOR_LAYER_ROLES ? c.layers : 1); layer++) {
                const struct nb_safetensors_tensor *t = nb_safetensors_find(file, nb_tensor_name(&specs[j], layer, name));
                if (!t || t->count != (uint64_t)(specs[j].rows * specs[j].columns) || t->rank != (specs[j].rows == 1 ? 1 : 2))
                    fail_msg("%s: %s", goldens[i].folder, name);
                assert_int_equal(t->shape[t->rank - 1], specs[j].columns);
                found++;
                parameters += specs[j].rows * specs[j].columns;
            }
        }
        assert_int_equal(found, nb_safetensors_count(file));
        assert_int_equal(parameters, nb_model_config_parameters(&c));
        nb_safetensors_close(&file);
        free(folder);
    }
}

static void names_are_those_of_peft_and_gguf(void **state)
{
    struct nb_model_config c;
    struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES];
    char name[NB_TENSOR_NAME_BYTES];
    (void)state;
    parse_golden("qwen3", &c);
    int count = nb_family_layer_tensors(&c, specs);
    assert_int_equal(count, 11);
    assert_string_equal(nb_tensor_module(&specs[1], 17, name), "model.layers.17.self_attn.q_proj");
    assert_string_equal(specs[1].tensor->target, "q_proj");
    assert_string_equal(nb_tensor_gguf_name(&specs[1], 17, name), "blk.17.attn_q.weight");
    assert_int_equal(specs[1].rows, 96);
    assert_int_equal(specs[1].columns, 64);
    assert_true(specs[1].linear);
    assert_false(specs[0].linear);
}

#define SIZES \
    "\"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"vocab_size\": 9"
#define LLAMA "{\"model_type\": \"llama\", " SIZES

static void older_forms_are_read(void **state)
{
    struct nb_model_config c;
    (void)state;
    assert_int_equal(parse(LLAMA ", \"rope_theta\": 500000.0, \"torch_dtype\": \"float16\", \"rope_scaling\": {\"type\": \"llama3\", "
                                 "\"factor\": 32, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
                                 "\"original_max_position_embeddings\": 8192}, \"eos_token_id\": [5, 6, 7], \"pad_token_id\": -1}",
                           &c),
                     NB_OK);
    assert_int_equal(c.rope.type, NB_ROPE_LLAMA3);
    assert_true(c.rope.theta == 500000 && c.rope.factor == 32);
    assert_int_equal(c.eos_count, 3);
    assert_int_equal(c.eos[2], 7);
    assert_int_equal(c.pad, -1);
    assert_int_equal(c.bos, -1);
    /* What the classes of transformers take for a field that is missing. */
    assert_int_equal(c.kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.max_positions, 2048);
    assert_true(c.rms_epsilon == 1e-6f);
    assert_int_equal(parse(LLAMA "}", &c), NB_OK);
    assert_true(c.rope.theta == 10000 && c.rope.type == NB_ROPE_DEFAULT);
    assert_int_equal(parse("{\"model_type\": \"qwen3\", \"num_key_value_heads\": 2, " SIZES "}", &c), NB_OK);
    assert_int_equal(c.head_dim, 128);
}

static void windows_follow_each_familys_rule(void **state)
{
    struct nb_model_config c;
    (void)state;
    assert_int_equal(parse("{\"model_type\": \"mistral\", \"num_key_value_heads\": 4, " SIZES "}", &c), NB_OK);
    assert_int_equal(nb_model_config_window(&c, 0), 4096);
    assert_int_equal(parse("{\"model_type\": \"mistral\", \"num_key_value_heads\": 4, \"sliding_window\": null, " SIZES "}", &c), NB_OK);
    assert_int_equal(nb_model_config_window(&c, 0), 0);
#define QWEN "{\"model_type\": \"qwen2\", \"num_key_value_heads\": 4, " SIZES ", \"sliding_window\": 5, "
    assert_int_equal(parse(QWEN "\"use_sliding_window\": false}", &c), NB_OK);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(parse(QWEN "\"use_sliding_window\": true, \"max_window_layers\": 3}", &c), NB_OK);
    assert_int_equal(nb_model_config_window(&c, 2), 0);
    assert_int_equal(nb_model_config_window(&c, 3), 5);
    assert_int_equal(parse(QWEN "\"use_sliding_window\": true, \"layer_types\": [\"sliding_attention\", \"full_attention\", "
                                "\"sliding_attention\", \"full_attention\"]}",
                           &c),
                     NB_OK);
    assert_int_equal(nb_model_config_window(&c, 0), 5);
    assert_int_equal(nb_model_config_window(&c, 1), 0);
    assert_int_equal(parse(LLAMA ", \"sliding_window\": 5}", &c), NB_OK);
    assert_int_equal(nb_model_config_window(&c, 3), 0);
}

static void generation_config_names_the_ends(void **state)
{
    struct nb_model_config c;
    const char text[] = "{\"eos_token_id\": [2, 3], \"pad_token_id\": null}";
    (void)state;
    parse_golden("llama", &c);
    assert_int_equal(nb_model_config_parse_generation(text, strlen(text), "generation_config.json", &c), NB_OK);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos[1], 3);
    assert_int_equal(c.pad, 0);
    assert_int_equal(c.bos, 1);
    assert_int_equal(nb_model_config_parse_generation("[]", 2, "generation_config.json", &c), NB_FORMAT);
}

static void quantization_is_read(void **state)
{
    struct nb_model_config c;
    (void)state;
#define QUANTIZATION ", \"quantization_config\": "
    assert_int_equal(parse(LLAMA QUANTIZATION "{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}}", &c), NB_OK);
    assert_true(c.quantized && c.quantized_fp4 && !c.quantized_nested);
    assert_int_equal(parse(LLAMA QUANTIZATION "{\"load_in_4bit\": true, \"bnb_4bit_quant_type\": \"nf4\", "
                                              "\"bnb_4bit_use_double_quant\": true}}",
                           &c),
                     NB_OK);
    assert_true(c.quantized && !c.quantized_fp4 && c.quantized_nested);
}

static void what_is_not_done_is_refused(void **state)
{
    static const struct {
        const char *text, *words;
        nb_status status;
    } cases[] = {
        {"{\"model_type\": \"gemma2\"}", "model_type = \"gemma2\"", NB_UNSUPPORTED},
        {"{}", "model_type", NB_FORMAT},
        {"{\"model_type\": 3}", "model_type = 3", NB_FORMAT},
        {"[]", "not a JSON object", NB_FORMAT},
        {"{", "config.json:1:", NB_FORMAT},
        {LLAMA ", \"hidden_act\": \"gelu\"}", "hidden_act = \"gelu\"", NB_UNSUPPORTED},
        {LLAMA ", \"attention_bias\": true}", "attention_bias = true", NB_UNSUPPORTED},
        {LLAMA ", \"mlp_bias\": true}", "mlp_bias", NB_UNSUPPORTED},
        {LLAMA ", \"pretraining_tp\": 2}", "pretraining_tp = 2", NB_UNSUPPORTED},
        {LLAMA ", \"partial_rotary_factor\": 0.5}", "partial_rotary_factor = 0.5", NB_UNSUPPORTED},
        {LLAMA ", \"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}}",
         "partial_rotary_factor", NB_UNSUPPORTED},
        {LLAMA ", \"attention_multiplier\": 0.01}", "attention_multiplier", NB_UNSUPPORTED},
        {LLAMA ", \"final_logit_softcapping\": 30.0}", "final_logit_softcapping", NB_UNSUPPORTED},
        {LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}", "rope_scaling.type = \"linear\"", NB_UNSUPPORTED},
        {LLAMA ", \"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2.0}}", "\"dynamic\"", NB_UNSUPPORTED},
        {LLAMA ", \"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 2.0}}",
         "rope_parameters.rope_type = \"yarn\"", NB_UNSUPPORTED},
        {LLAMA ", \"rope_parameters\": {\"rope_type\": \"default\"}, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}",
            "says otherwise", NB_UNSUPPORTED},
        {LLAMA ", \"rope_scaling\": {\"rope_type\": \"longrope\"}}", "\"longrope\"", NB_UNSUPPORTED},
        {LLAMA ", \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}}", "layer to layer", NB_UNSUPPORTED},
        {LLAMA ", \"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8.0}}", "low_freq_factor", NB_FORMAT},
        {LLAMA ", \"rope_theta\": -1}", "rope_theta = -1", NB_FORMAT},
        {LLAMA ", \"rope_theta\": \"big\"}", "rope_theta", NB_FORMAT},
        {LLAMA ", \"layer_types\": [\"chunked_attention\"]}", "layer_types", NB_FORMAT},
        {LLAMA ", \"layer_types\": [\"a\", \"a\", \"a\", \"a\"]}", "layer_types = \"a\"", NB_UNSUPPORTED},
        {LLAMA ", \"quantization_config\": {\"quant_method\": \"gptq\"}}", "\"gptq\"", NB_UNSUPPORTED},
        {LLAMA ", \"quantization_config\": {\"load_in_8bit\": true}}", "4-bit", NB_UNSUPPORTED},
        {LLAMA ", \"num_key_value_heads\": 3}", "4 heads are not a multiple of 3", NB_FORMAT},
        {LLAMA ", \"head_dim\": 15}", "head size of 15", NB_FORMAT},
        {LLAMA ", \"head_dim\": 1000000000}", "2^40", NB_FORMAT},
        {LLAMA ", \"rms_norm_eps\": 0}", "rms_norm_eps = 0", NB_FORMAT},
        {LLAMA ", \"rms_norm_eps\": 1e-50}", "rms_norm_eps = ", NB_FORMAT},
        {LLAMA ", \"eos_token_id\": \"</s>\"}", "eos_token_id", NB_FORMAT},
        {LLAMA ", \"tie_word_embeddings\": 1}", "tie_word_embeddings", NB_FORMAT},
        {"{\"model_type\": \"llama\", \"hidden_size\": 64}", "\"intermediate_size\" is missing", NB_FORMAT},
        {"{\"model_type\": \"llama\", \"hidden_size\": 0}", "hidden_size = 0", NB_FORMAT},
        {"{\"model_type\": \"llama\", \"hidden_size\": 99999999999999999999}", "too big", NB_FORMAT},
        {"{\"model_type\": \"llama\", \"hidden_size\": 8, \"intermediate_size\": 8, \"num_hidden_layers\": 1000, "
         "\"num_attention_heads\": 1, \"vocab_size\": 1}",
         "1000 layers", NB_UNSUPPORTED},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nb_model_config c;
        nb_status status = parse(cases[i].text, &c);
        if (status != cases[i].status || !strstr(nb_status_message(), cases[i].words))
            fail_msg("%s: %d, %s", cases[i].text, status, nb_status_message());
    }
}

/* Python's repr of the same numbers. */
static void reals_print_as_in_python(void **state)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {0.1, "0.1"}, {1e-05, "1e-05"}, {10000.0, "10000.0"}, {0.128326416015625, "0.128326416015625"}, {1e16, "1e+16"},
        {123456789012345680.0, "1.2345678901234568e+17"}, {0.0001, "0.0001"}, {-2.5, "-2.5"}, {5e-324, "5e-324"},
        {1e15, "1000000000000000.0"},
        {0.13628387451171875, "0.13628387451171875"}, {1.0 / 3, "0.3333333333333333"}, {0.0, "0.0"}, {100.25, "100.25"},
        {0.00012345, "0.00012345"}, {1e22, "1e+22"},
    };
    char out[NB_REAL_BYTES];
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_string_equal(nb_real_format(cases[i].value, false, out), cases[i].text);
    assert_string_equal(nb_real_format((double)1e-05f, true, out), "1e-05");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_family_is_read),
        cmocka_unit_test(llama3_scaling_is_read),
        cmocka_unit_test(families_name_the_files_tensors),
        cmocka_unit_test(names_are_those_of_peft_and_gguf),
        cmocka_unit_test(older_forms_are_read),
        cmocka_unit_test(windows_follow_each_familys_rule),
        cmocka_unit_test(generation_config_names_the_ends),
        cmocka_unit_test(quantization_is_read),
        cmocka_unit_test(what_is_not_done_is_refused),
        cmocka_unit_test(reals_print_as_in_python),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
