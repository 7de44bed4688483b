/* Whole models as GGUF: the tiny reference models are put into GGUF files as llama.cpp's converter does it (bf16; q and k of the llama
 * architecture permuted; Llama 3's scaling as divisors), and must read back as the Hugging Face folders they came from. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "checkpoint/bnb.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/family.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "support/files.h"

enum { FILE_BYTES_MAX = 1 << 20, WEIGHTS_MAX = 1 << 16 };

/* A file being put together: its three sections grow side by side. */
struct builder {
    struct nb_test_bytes keys, tensors, data;
    uint64_t key_count, tensor_count;
    const char *architecture;
};

static struct nb_test_bytes new_section(void)
{
    struct nb_test_bytes section = {.data = malloc(FILE_BYTES_MAX), .capacity = FILE_BYTES_MAX};
    assert_non_null(section.data);
    return section;
}

/* A key under the architecture, or a whole one that has a colon before it. */
static void key(struct builder *b, const char *name, uint32_t type)
{
    char *whole = *name == ':' ? nb_format("%s", name + 1) : nb_format("%s.%s", b->architecture, name);
    nb_test_put_text(&b->keys, whole);
    nb_test_put_u32(&b->keys, type);
    b->key_count++;
    free(whole);
}

static void key_u32(struct builder *b, const char *name, int value)
{
    key(b, name, 4);
    nb_test_put_u32(&b->keys, (uint32_t)value);
}

static void key_f32(struct builder *b, const char *name, double value)
{
    float number = (float)value;
    key(b, name, 6);
    nb_test_put(&b->keys, &number, sizeof number);
}

static void key_text(struct builder *b, const char *name, const char *value)
{
    key(b, name, 8);
    nb_test_put_text(&b->keys, value);
}

static void key_texts(struct builder *b, const char *name, const char *const *values, size_t count)
{
    key(b, name, 9);
    nb_test_put_u32(&b->keys, 8);
    nb_test_put_u64(&b->keys, count);
    for (size_t i = 0; i < count; i++)
        nb_test_put_text(&b->keys, values[i]);
}

static void tensor(struct builder *b, const char *name, int64_t rows, int64_t columns, uint32_t type, const void *data, size_t bytes)
{
    static const unsigned char zeros[32];
    nb_test_put_text(&b->tensors, name);
    nb_test_put_u32(&b->tensors, rows == 1 ? 1 : 2);
    nb_test_put_u64(&b->tensors, (uint64_t)columns);
    if (rows > 1)
        nb_test_put_u64(&b->tensors, (uint64_t)rows);
    nb_test_put_u32(&b->tensors, type);
    nb_test_put_u64(&b->tensors, b->data.bytes);
    nb_test_put(&b->data, data, bytes);
    nb_test_put(&b->data, zeros, (32 - b->data.bytes % 32) % 32);
    b->tensor_count++;
}

/* The converter's reshape(heads, 2, rows / heads / 2, columns).swapaxes(1, 2): stored row [h, j, a] is row [h, a, j]. */
static void permute(const nb_bf16 *in, int64_t rows, int64_t columns, int64_t heads, nb_bf16 *out)
{
    int64_t half = rows / heads / 2;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < half; j++)
            for (int64_t a = 0; a < 2; a++)
                memcpy(out + ((h * half + j) * 2 + a) * columns, in + ((h * 2 + a) * half + j) * columns,
                       (size_t)columns * sizeof *out);
}

static void put_weights(struct builder *b, const struct nb_checkpoint *source, const struct nb_tensor_spec *spec, int layer)
{
    static nb_bf16 weights[WEIGHTS_MAX], permuted[WEIGHTS_MAX];
    const struct nb_model_config *c = nb_checkpoint_config(source);
    char name[NB_TENSOR_NAME_BYTES];
    const nb_bf16 *stored = weights;
    nb_test_must(nb_checkpoint_tensor_read_bf16(source, nb_tensor_name(spec, layer, name), spec->rows, spec->columns, weights));
    if (strcmp(b->architecture, "llama") == 0 && (spec->role == NB_TENSOR_Q || spec->role == NB_TENSOR_K)) {
        permute(weights, spec->rows, spec->columns, spec->role == NB_TENSOR_Q ? c->heads : c->kv_heads, permuted);
        stored = permuted;
    }
    tensor(b, nb_tensor_gguf_name(spec, layer, name), spec->rows, spec->columns, NB_GGUF_BF16, stored,
           (size_t)(spec->rows * spec->columns) * sizeof *stored);
}

/* What convert_hf_to_gguf.py computes for rope_type llama3, in single precision. */
static void put_divisors(struct builder *b, const struct nb_model_config *c, float spoil)
{
    float divisors[64];
    for (int i = 0; i < c->head_dim / 2; i++) {
        double wavelength = 2 * 3.14159265358979323846 * pow(c->rope.theta, 2.0 * i / c->head_dim);
        double original = c->rope.original_max_positions;
        double smooth = (original / wavelength - c->rope.low_freq_factor) / (c->rope.high_freq_factor - c->rope.low_freq_factor);
        if (wavelength < original / c->rope.high_freq_factor)
            divisors[i] = 1;
        else if (wavelength > original / c->rope.low_freq_factor)
            divisors[i] = (float)c->rope.factor;
        else
            divisors[i] = (float)(1 / ((1 - smooth) / c->rope.factor + smooth));
    }
    divisors[0] += spoil;
    tensor(b, "rope_freqs.weight", 1, c->head_dim / 2, NB_GGUF_F32, divisors, (size_t)c->head_dim / 2 * sizeof *divisors);
    key_u32(b, "rope.scaling.original_context_length", c->rope.original_max_positions);
}

static void put_config(struct builder *b, const struct nb_model_config *c)
{
    static const char *const tokens[] = {"a", "b", "\xc4\xa0", "ab", "<end>"};
    static const char *const merges[] = {"a b"};
    key_text(b, ":general.architecture", b->architecture);
    key_u32(b, "block_count", c->layers);
    key_u32(b, "context_length", c->max_positions);
    key_u32(b, "embedding_length", c->hidden);
    key_u32(b, "feed_forward_length", c->intermediate);
    key_u32(b, "attention.head_count", c->heads);
    key_u32(b, "attention.head_count_kv", c->kv_heads);
    key_u32(b, "attention.key_length", c->head_dim);
    key_u32(b, "attention.value_length", c->head_dim);
    key_f32(b, "attention.layer_norm_rms_epsilon", (double)c->rms_epsilon);
    key_f32(b, "rope.freq_base", c->rope.theta);
    if (c->sliding_window > 0)
        key_u32(b, "attention.sliding_window", c->sliding_window);
    key_u32(b, ":tokenizer.ggml.bos_token_id", c->bos);
    key_u32(b, ":tokenizer.ggml.eos_token_id", c->eos[0]);
    key_u32(b, ":tokenizer.ggml.padding_token_id", c->pad);
    key_text(b, ":tokenizer.ggml.model", "gpt2");
    key_text(b, ":tokenizer.ggml.pre", "llama-bpe");
    key_text(b, ":tokenizer.chat_template", "{{ messages }}");
    key_texts(b, ":tokenizer.ggml.tokens", tokens, 5);
    key_texts(b, ":tokenizer.ggml.merges", merges, 1);
    key(b, ":tokenizer.ggml.token_type", 9);
    nb_test_put_u32(&b->keys, 5);
    nb_test_put_u64(&b->keys, 5);
    for (int i = 0; i < 5; i++)
        nb_test_put_u32(&b->keys, i == 4 ? 3 : 1);
}

static void write_file(struct builder *b, const char *path)
{
    struct nb_test_bytes whole = new_section();
    nb_test_put(&whole, "GGUF", 4);
    nb_test_put_u32(&whole, 3);
    nb_test_put_u64(&whole, b->tensor_count);
    nb_test_put_u64(&whole, b->key_count);
    nb_test_put(&whole, b->keys.data, b->keys.bytes);
    nb_test_put(&whole, b->tensors.data, b->tensors.bytes);
    while (whole.bytes % 32)
        nb_test_put(&whole, "", 1);
    nb_test_put(&whole, b->data.data, b->data.bytes);
    nb_test_must(nb_file_write(path, whole.data, whole.bytes));
    free(whole.data);
    free(b->keys.data);
    free(b->tensors.data);
    free(b->data.data);
}

static void write_model(const struct nb_checkpoint *source, const char *path, float spoil)
{
    const struct nb_model_config *c = nb_checkpoint_config(source);
    struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES], outer;
    struct builder b = {
        .keys = new_section(), .tensors = new_section(), .data = new_section(), .architecture = c->family->gguf};
    put_config(&b, c);
    if (c->rope.type == NB_ROPE_LLAMA3)
        put_divisors(&b, c, spoil);
    int count = nb_family_layer_tensors(c, specs);
    for (int layer = 0; layer < c->layers; layer++)
        for (int i = 0; i < count; i++)
            put_weights(&b, source, &specs[i], layer);
    for (int role = NB_TENSOR_EMBEDDING; role < NB_TENSOR_ROLES; role++)
        if (nb_family_outer_tensor(c, (enum nb_tensor_role)role, &outer))
            put_weights(&b, source, &outer, 0);
    write_file(&b, path);
}

static void same_weights(const struct nb_checkpoint *gguf, const struct nb_checkpoint *folder)
{
    static nb_bf16 got[WEIGHTS_MAX], want[WEIGHTS_MAX];
    const struct nb_safetensors *file = nb_checkpoint_safetensors(folder);
    for (size_t i = 0; i < nb_safetensors_count(file); i++) {
        const struct nb_safetensors_tensor *t = nb_safetensors_at(file, i);
        int64_t rows = t->rank == 1 ? 1 : (int64_t)t->shape[0], columns = (int64_t)t->shape[t->rank - 1];
        assert_true(nb_checkpoint_tensor_exists(gguf, t->name));
        assert_true(nb_checkpoint_tensor_bytes(gguf, t->name) == t->bytes);
        nb_test_must(nb_checkpoint_tensor_read_bf16(gguf, t->name, rows, columns, got));
        nb_test_must(nb_checkpoint_tensor_read_bf16(folder, t->name, rows, columns, want));
        if (memcmp(got, want, t->bytes) != 0)
            fail_msg("%s differs", t->name);
        nb_checkpoint_forget(gguf, t->name);
    }
}

static void check_quantized(const struct nb_checkpoint *gguf, const char *family, const char *output)
{
    struct nb_safetensors *got, *want;
    struct nb_checkpoint *written;
    char *golden = nb_format("tests/golden/models/%s/bnb4", family);
    nb_test_must(nb_bnb_write(&(struct nb_bnb_write){.source = gguf, .folder = output, .type = NB_QUANT_NF4, .nested = true}));
    nb_test_must(nb_safetensors_open_folder(output, "model", &got));
    nb_test_must(nb_safetensors_open_folder(golden, "model", &want));
    assert_int_equal(nb_safetensors_count(got), nb_safetensors_count(want));
    for (size_t i = 0; i < nb_safetensors_count(want); i++) {
        const struct nb_safetensors_tensor *w = nb_safetensors_at(want, i), *g = nb_safetensors_find(got, w->name);
        assert_non_null(g);
        assert_int_equal(g->bytes, w->bytes);
        assert_memory_equal(g->data, w->data, w->bytes);
    }
    nb_test_must(nb_checkpoint_open(output, &written));
    assert_true(nb_checkpoint_config(written)->quantized);
    assert_ptr_equal(nb_checkpoint_config(written)->family, nb_checkpoint_config(gguf)->family);
    nb_checkpoint_close(&written);
    nb_safetensors_close(&got);
    nb_safetensors_close(&want);
    free(golden);
}

static void models_read_back(void **state)
{
    static const char *const families[] = {"llama", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen3"};
    const char *place = *state;
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        struct nb_checkpoint *folder, *gguf;
        char *source = nb_format("tests/golden/models/%s", families[i]), *path = nb_format("%s/%s.gguf", place, families[i]);
        char *output = nb_format("%s/%s", place, families[i]);
        nb_test_must(nb_checkpoint_open(source, &folder));
        write_model(folder, path, 0);
        nb_test_must(nb_checkpoint_open(path, &gguf));
        assert_non_null(nb_checkpoint_gguf(gguf));
        assert_null(nb_checkpoint_folder(gguf));
        char *got = nb_model_config_to_json(nb_checkpoint_config(gguf)), *want = nb_model_config_to_json(nb_checkpoint_config(folder));
        assert_string_equal(got, want);
        free(got);
        free(want);
        same_weights(gguf, folder);
        assert_false(nb_checkpoint_tensor_exists(gguf, "model.layers.2.mlp.up_proj.weight"));
        assert_false(nb_checkpoint_tensor_exists(gguf, "model.layers.x.mlp.up_proj.weight"));
        check_quantized(gguf, families[i], output);
        nb_checkpoint_close(&folder);
        nb_checkpoint_close(&gguf);
        free(source);
        free(path);
        free(output);
    }
}

static void another_rope_scaling_is_refused(void **state)
{
    const char *place = *state;
    struct nb_checkpoint *folder, *gguf;
    char *path = nb_format("%s/spoiled.gguf", place);
    nb_test_must(nb_checkpoint_open("tests/golden/models/llama3_rope", &folder));
    write_model(folder, path, 0.01f);
    assert_int_equal(nb_checkpoint_open(path, &gguf), NB_UNSUPPORTED);
    assert_non_null(strstr(nb_status_message(), "rope_freqs.weight: divisor 0"));
    nb_checkpoint_close(&folder);
    free(path);
}

static json_t *read_json(const char *folder, const char *name)
{
    char *path = nb_path_join(folder, name);
    json_t *root = json_load_file(path, 0, NULL);
    free(path);
    assert_non_null(root);
    return root;
}

/* The tokenizer's files as tokenizers reads them: vocabulary, merges, added tokens, Llama 3's expression, bos by template. */
static void the_tokenizer_is_written(void **state)
{
    const char *place = *state;
    struct nb_checkpoint *folder, *gguf;
    char *path = nb_format("%s/t.gguf", place), *output = nb_format("%s/t", place);
    nb_test_must(nb_checkpoint_open("tests/golden/models/llama", &folder));
    write_model(folder, path, 0);
    nb_test_must(nb_checkpoint_open(path, &gguf));
    nb_test_must(nb_bnb_write(&(struct nb_bnb_write){.source = gguf, .folder = output, .type = NB_QUANT_NF4}));
    json_t *root = read_json(output, "tokenizer.json"), *model = json_object_get(root, "model");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(model, "vocab"), "ab")), 3);
    assert_int_equal(json_object_size(json_object_get(model, "vocab")), 5);
    assert_string_equal(json_string_value(json_array_get(json_object_get(model, "merges"), 0)), "a b");
    assert_true(json_is_true(json_object_get(model, "ignore_merges")));
    json_t *added = json_object_get(root, "added_tokens");
    assert_int_equal(json_array_size(added), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(added, 0), "content")), "<end>");
    assert_true(json_is_true(json_object_get(json_array_get(added, 0), "special")));
    json_t *split = json_array_get(json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers"), 0);
    assert_string_equal(json_string_value(json_object_get(json_object_get(split, "pattern"), "Regex")),
                        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
                        "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
                        "\\s+(?!\\S)|\\s+");
    json_t *processors = json_object_get(json_object_get(root, "post_processor"), "processors");
    json_t *first = json_array_get(json_object_get(json_array_get(processors, 1), "single"), 0);
    assert_string_equal(json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id")), "b");
    json_decref(root);
    root = read_json(output, "tokenizer_config.json");
    assert_string_equal(json_string_value(json_object_get(root, "chat_template")), "{{ messages }}");
    assert_string_equal(json_string_value(json_object_get(root, "eos_token")), "\xc4\xa0");
    json_decref(root);
    nb_checkpoint_close(&folder);
    nb_checkpoint_close(&gguf);
    free(path);
    free(output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(models_read_back, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(another_rope_scaling_is_refused, nb_test_make_folder, nb_test_remove_folder),
        cmocka_unit_test_setup_teardown(the_tokenizer_is_written, nb_test_make_folder, nb_test_remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
