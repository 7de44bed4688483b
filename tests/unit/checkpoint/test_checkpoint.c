/* Models in every form: what is read, what quantize writes, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/bnb.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/family.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "support/files.h"

static const char *const families[] = {"llama", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen3"};

enum { FAMILIES = sizeof families / sizeof families[0] };

/* Both files hold the same tensors, byte for byte, in whatever order. */
static void same_tensors(const struct nb_safetensors *got, const struct nb_safetensors *want)
{
    for (size_t i = 0; i < nb_safetensors_count(want); i++) {
        const struct nb_safetensors_tensor *w = nb_safetensors_at(want, i), *g = nb_safetensors_find(got, w->name);
        if (!g)
            fail_msg("%s is missing", w->name);
        if (g->dtype != w->dtype || g->rank != w->rank || memcmp(g->shape, w->shape, sizeof g->shape) != 0)
            fail_msg("%s: another dtype or shape", w->name);
        if (memcmp(g->data, w->data, w->bytes) != 0)
            fail_msg("%s: other bytes (%.*s)", w->name, (int)(w->bytes < 200 ? w->bytes : 200), (const char *)g->data);
    }
    assert_int_equal(nb_safetensors_count(got), nb_safetensors_count(want));
}

static void check_family(const char *name, const char *folder, uint64_t shard_bytes)
{
    struct nb_checkpoint *source, *written;
    struct nb_safetensors *want;
    char *path = nb_format("tests/golden/models/%s", name), *golden = nb_format("tests/golden/models/%s/bnb4", name);
    char *output = nb_format("%s/%s", folder, name);
    nb_test_must(nb_checkpoint_open(path, &source));
    nb_test_must(nb_bnb_write(&(struct nb_bnb_write){
        .source = source, .folder = output, .type = NB_QUANT_NF4, .nested = true, .shard_bytes = shard_bytes}));
    nb_test_must(nb_safetensors_open_folder(golden, "model", &want));
    nb_test_must(nb_checkpoint_open(output, &written));
    same_tensors(nb_checkpoint_safetensors(written), want);
    assert_true(nb_checkpoint_config(written)->quantized);
    assert_true(nb_checkpoint_config(written)->quantized_nested);
    assert_false(nb_checkpoint_config(written)->quantized_fp4);
    assert_int_equal(nb_checkpoint_config(written)->hidden, nb_checkpoint_config(source)->hidden);
    char *index = nb_path_join(output, "model.safetensors.index.json");
    assert_int_equal(nb_path_exists(index), shard_bytes != 0);
    /* A second time: refused, and the first result stays. */
    assert_int_equal(
        nb_bnb_write(&(struct nb_bnb_write){.source = source, .folder = output, .type = NB_QUANT_NF4}), NB_USAGE);
    nb_test_says("exists already");
    assert_int_equal(
        nb_bnb_write(&(struct nb_bnb_write){.source = written, .folder = "/nonexistent/x", .type = NB_QUANT_NF4}),
        NB_USAGE);
    nb_test_says("quantized already");
    nb_safetensors_close(&want);
    nb_checkpoint_close(&written);
    nb_checkpoint_close(&source);
    free(index);
    free(path);
    free(golden);
    free(output);
}

static void quantize_writes_the_reference_bytes(void **state)
{
    const char *folder = *state;
    for (int i = 0; i < FAMILIES; i++)
        check_family(families[i], folder, 0);
}

static void quantize_writes_them_in_shards(void **state)
{
    const char *folder = *state;
    check_family("qwen2", folder, 40000);
}

/* A 4-bit matrix as a view, and as bf16, is what quantizing the bf16 model gives. */
static void quantized_files_are_read(void **state)
{
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        struct nb_checkpoint *source, *quantized;
        struct nb_quant_matrix view;
        struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES];
        char name[NB_TENSOR_NAME_BYTES];
        static nb_bf16 got[1 << 16], want[1 << 16], original[1 << 16];
        char *path = nb_format("tests/golden/models/%s", families[i]), *golden = nb_format("%s/bnb4", path);
        nb_test_must(nb_checkpoint_open(path, &source));
        nb_test_must(nb_checkpoint_open(golden, &quantized));
        int count = nb_family_layer_tensors(nb_checkpoint_config(source), specs);
        for (int j = 0; j < count; j++) {
            nb_tensor_name(&specs[j], 1, name);
            nb_test_must(nb_checkpoint_tensor_read_bf16(source, name, specs[j].rows, specs[j].columns, original));
            nb_test_must(nb_checkpoint_tensor_read_bf16(quantized, name, specs[j].rows, specs[j].columns, got));
            size_t weights = (size_t)(specs[j].rows * specs[j].columns);
            assert_int_equal(nb_checkpoint_tensor_is_quantized(quantized, name), specs[j].linear);
            assert_false(nb_checkpoint_tensor_is_quantized(source, name));
            if (!specs[j].linear) {
                assert_memory_equal(got, original, weights * sizeof *got);
                continue;
            }
            nb_test_must(nb_checkpoint_matrix_quantized(quantized, name, specs[j].rows, specs[j].columns, &view));
            nb_dequantize_bf16(&view, 0, weights, want);
            assert_memory_equal(got, want, weights * sizeof *got);
            assert_int_equal(
                nb_checkpoint_matrix_quantized(quantized, name, specs[j].rows, specs[j].columns + 1, &view), NB_FORMAT);
            nb_checkpoint_forget(quantized, name);
            assert_true(nb_checkpoint_tensor_bytes(quantized, name) > weights / 2);
        }
        nb_checkpoint_close(&source);
        nb_checkpoint_close(&quantized);
        free(path);
        free(golden);
    }
}

static void plain_and_fp4_forms_round_trip(void **state)
{
    const char *folder = *state;
    struct nb_checkpoint *source, *written;
    struct nb_quant_matrix view;
    nb_test_must(nb_checkpoint_open("tests/golden/models/qwen3", &source));
    for (int nested = 0; nested < 2; nested++) {
        char *output = nb_format("%s/fp4-%d", folder, nested);
        nb_test_must(nb_bnb_write(
            &(struct nb_bnb_write){.source = source, .folder = output, .type = NB_QUANT_FP4, .nested = nested}));
        nb_test_must(nb_checkpoint_open(output, &written));
        assert_true(nb_checkpoint_config(written)->quantized_fp4);
        assert_int_equal(nb_checkpoint_config(written)->quantized_nested, nested);
        nb_test_must(nb_checkpoint_matrix_quantized(written, "model.layers.0.mlp.down_proj.weight", 64, 128, &view));
        assert_int_equal(view.type, NB_QUANT_FP4);
        assert_int_equal(view.nested, nested);
        /* Loaders map fp32 tensors in place: each must lie at a multiple of 4. */
        const struct nb_safetensors *file = nb_checkpoint_safetensors(written);
        for (size_t i = 0; i < nb_safetensors_count(file); i++)
            if (nb_safetensors_at(file, i)->dtype == NB_SAFETENSORS_F32)
                assert_int_equal(nb_safetensors_at(file, i)->offset % 4, 0);
        nb_checkpoint_close(&written);
        free(output);
    }
    nb_checkpoint_close(&source);
}

static void a_config_alone_opens(void **state)
{
    const char *folder = *state;
    struct nb_checkpoint *c;
    nb_bf16 out[4];
    nb_test_must(nb_checkpoint_open("tests/golden/models/llama/config.json", &c));
    assert_false(nb_checkpoint_has_weights(c));
    assert_null(nb_checkpoint_folder(c));
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 4, out), NB_IO);
    nb_test_says("no weights");
    char *output = nb_format("%s/none", folder);
    assert_int_equal(nb_bnb_write(&(struct nb_bnb_write){.source = c, .folder = output, .type = NB_QUANT_NF4}), NB_IO);
    assert_false(nb_path_exists(output));
    free(output);
    nb_checkpoint_close(&c);
    assert_int_equal(nb_checkpoint_open("tests/golden/models/no_such_model", &c), NB_IO);
    assert_null(c);
    assert_int_equal(nb_checkpoint_open(folder, &c), NB_IO);
    nb_test_says("no config.json");
}

static void wrong_tensors_are_refused(void **state)
{
    (void)state;
    struct nb_checkpoint *c;
    static nb_bf16 out[1 << 16];
    nb_test_must(nb_checkpoint_open("tests/golden/models/llama", &c));
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.layers.2.mlp.up_proj.weight", 128, 64, out), NB_FORMAT);
    nb_test_says("model.layers.2.mlp.up_proj.weight is missing");
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.layers.1.mlp.up_proj.weight", 64, 128, out), NB_FORMAT);
    nb_test_says("[128, 64]");
    assert_false(nb_checkpoint_tensor_exists(c, "model.layers.2.mlp.up_proj.weight"));
    assert_true(nb_checkpoint_tensor_exists(c, "model.layers.1.mlp.up_proj.weight"));
    nb_checkpoint_close(&c);
}

/* A folder with llama_tied's config and one tensor. */
static void write_tensor(const char *folder, const struct nb_safetensors_entry *entry, const void *data, size_t bytes)
{
    struct nb_safetensors_writer *writer;
    char *path = nb_path_join(folder, "model.safetensors"), *config = nb_path_join(folder, "config.json"), *text;
    size_t length;
    nb_test_must(nb_file_read("tests/golden/models/llama_tied/config.json", 1 << 20, false, &text, &length));
    nb_test_must(nb_file_write(config, text, length));
    nb_test_must(nb_safetensors_writer_open(path, entry, 1, &writer));
    nb_test_must(nb_safetensors_writer_write(writer, data, bytes));
    nb_test_must(nb_safetensors_writer_finish(&writer, NULL));
    free(text);
    free(path);
    free(config);
}

static void write_one_tensor(const char *folder, enum nb_safetensors_dtype dtype, const void *data, size_t bytes)
{
    const struct nb_safetensors_entry entry = {"model.norm.weight", dtype, 1, {4}};
    write_tensor(folder, &entry, data, bytes);
}

static void float_types_are_rounded_to_bf16(void **state)
{
    const char *folder = *state;
    struct nb_checkpoint *c;
    nb_bf16 out[4];
    const float singles[4] = {1.0f, 0x1.01p0f, -0x1.03p0f, 0x1p-130f}; /* the middle two lie halfway: to even */
    const nb_bf16 want_singles[4] = {0x3f80, 0x3f80, 0xbf82, 0x0008};
    const uint16_t halves[4] = {0x3c00, 0x0001, 0x8000, 0x7bff}; /* 1, 2^-24, -0, 65504 */
    const nb_bf16 want_halves[4] = {0x3f80, 0x3380, 0x8000, 0x4780};
    const float damaged[4] = {1, 2, 3.4e38f * 10, 4};
    const float overflowing[4] = {1, 0x1.ffffp127f, 3, 4};
    const uint64_t words[4] = {0};
    write_one_tensor(folder, NB_SAFETENSORS_F32, singles, sizeof singles);
    nb_test_must(nb_checkpoint_open(folder, &c));
    nb_test_must(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 4, out));
    assert_memory_equal(out, want_singles, sizeof out);
    nb_checkpoint_close(&c);
    write_one_tensor(folder, NB_SAFETENSORS_F16, halves, sizeof halves);
    nb_test_must(nb_checkpoint_open(folder, &c));
    nb_test_must(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 4, out));
    assert_memory_equal(out, want_halves, sizeof out);
    nb_checkpoint_close(&c);
    write_one_tensor(folder, NB_SAFETENSORS_F32, damaged, sizeof damaged);
    nb_test_must(nb_checkpoint_open(folder, &c));
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 4, out), NB_FORMAT);
    nb_test_says("model.norm.weight: the weight at [0, 2]");
    nb_checkpoint_close(&c);
    write_one_tensor(folder, NB_SAFETENSORS_F32, overflowing, sizeof overflowing);
    nb_test_must(nb_checkpoint_open(folder, &c));
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 4, out), NB_FORMAT);
    nb_test_says("[0, 1]");
    nb_checkpoint_close(&c);
    write_one_tensor(folder, NB_SAFETENSORS_I64, words, sizeof words);
    nb_test_must(nb_checkpoint_open(folder, &c));
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 4, out), NB_FORMAT);
    nb_test_says("I64");
    /* Quantizing it fails at the first missing tensor and leaves nothing, not even the temporary folder. */
    char *output = nb_format("%s/gone", folder), *temporary = nb_format("%s.tmp-%d", output, (int)getpid());
    assert_int_equal(
        nb_bnb_write(&(struct nb_bnb_write){.source = c, .folder = output, .type = NB_QUANT_NF4}), NB_FORMAT);
    nb_test_says("model.embed_tokens.weight is missing");
    assert_false(nb_path_exists(output));
    assert_false(nb_path_exists(temporary));
    nb_checkpoint_close(&c);
    free(output);
    free(temporary);
}

/* What a failing disk does to a mapping, a file cut short does too: the first access to a page would end the program. */
static void files_that_are_cut_short_are_errors(void **state)
{
    const char *folder = *state;
    static const float values[1 << 15];
    static nb_bf16 out[1 << 15];
    struct nb_checkpoint *c;
    char *path = nb_path_join(folder, "model.safetensors");
    struct nb_safetensors_entry entry = {"model.norm.weight", NB_SAFETENSORS_F32, 1, {1 << 15}};
    write_tensor(folder, &entry, values, sizeof values);
    nb_test_must(nb_checkpoint_open(folder, &c));
    nb_test_must(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 1 << 15, out));
    assert_int_equal(truncate(path, 1 << 14), 0);
    assert_int_equal(nb_checkpoint_tensor_read_bf16(c, "model.norm.weight", 1, 1 << 15, out), NB_IO);
    nb_test_says(path);
    nb_test_says("offset 0");
    nb_checkpoint_close(&c);
    free(path);
}

static void strangers_are_told_from_a_models_own(void **state)
{
    (void)state;
    struct nb_checkpoint *c = NULL;
    assert_int_equal(nb_checkpoint_open("tests/golden/models/llama_tied", &c), NB_OK);
    const struct nb_model_config *config = nb_checkpoint_config(c);
    static const char *const own[] = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
        "model.layers.0.self_attn.rotary_emb.inv_freq"};
    static const char *const strange[] = {"model.layers.0.self_attn.q_proj.bias", "model.layers.2.self_attn.q_proj.weight",
        "model.layers.-1.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weights", "model.layers.0",
        "model.layers.0.self_attn.q_norm.weight", "lm_head.bias", ""};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        assert_true(nb_family_knows_tensor(config, own[i]));
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++)
        assert_false(nb_family_knows_tensor(config, strange[i]));
    nb_checkpoint_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(quantize_writes_the_reference_bytes, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(quantize_writes_them_in_shards, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test(quantized_files_are_read),
        cmocka_unit_test_setup_teardown(plain_and_fp4_forms_round_trip, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(a_config_alone_opens, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test(wrong_tensors_are_refused),
        cmocka_unit_test(strangers_are_told_from_a_models_own),
        cmocka_unit_test_setup_teardown(files_that_are_cut_short_are_errors, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(float_types_are_rounded_to_bf16, nb_test_make_folder, nb_test_remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
