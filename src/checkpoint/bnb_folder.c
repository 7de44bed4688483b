#include "checkpoint/bnb_folder.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoint/checkpoint.h"

enum { SMALL_FILE_BYTES_MAX = 512 << 20 };

/* The end of a config.json: the same keys in the same order as transformers' BitsAndBytesConfig writes them. */
static char *quantization_text(const struct nb_bnb_write *args)
{
    return nb_format("  \"quantization_config\": {\n"
                     "    \"_load_in_4bit\": true,\n"
                     "    \"_load_in_8bit\": false,\n"
                     "    \"bnb_4bit_compute_dtype\": \"bfloat16\",\n"
                     "    \"bnb_4bit_quant_storage\": \"uint8\",\n"
                     "    \"bnb_4bit_quant_type\": \"%s\",\n"
                     "    \"bnb_4bit_use_double_quant\": %s,\n"
                     "    \"llm_int8_enable_fp32_cpu_offload\": false,\n"
                     "    \"llm_int8_has_fp16_weight\": false,\n"
                     "    \"llm_int8_skip_modules\": null,\n"
                     "    \"llm_int8_threshold\": 6.0,\n"
                     "    \"load_in_4bit\": true,\n"
                     "    \"load_in_8bit\": false,\n"
                     "    \"quant_method\": \"bitsandbytes\"\n"
                     "  }",
        nb_quant_type_name(args->type), args->nested ? "true" : "false");
}

/* The weights written are bf16 whatever the source's were. A text that needs no change is kept to the letter, numbers above all. */
static char *adjust_dtype(char *text)
{
    json_t *root = json_loads(text, 0, NULL);
    const char *keys[] = {"dtype", "torch_dtype"};
    bool changed = json_object_del(root, "quantization_config") == 0;
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(root, keys[i]);
        if (value && !(json_is_string(value) && strcmp(json_string_value(value), "bfloat16") == 0))
            changed |= json_object_set_new(root, keys[i], json_string("bfloat16")) == 0;
    }
    if (changed) {
        free(text);
        text = json_dumps(root, JSON_INDENT(2));
    }
    json_decref(root);
    return text;
}

/* Puts the quantization before the object's closing brace. */
static nb_status write_config_text(const struct nb_bnb_write *args, const char *path, const char *text)
{
    const char *brace = strrchr(text, '}');
    size_t length = brace ? (size_t)(brace - text) : 0;
    while (length > 0 && strchr(" \t\r\n", text[length - 1]))
        length--;
    char *quantization = quantization_text(args), *whole = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&whole, &bytes);
    if (out)
        fprintf(out, "%.*s,\n%s\n}\n", (int)length, text, quantization);
    free(quantization);
    nb_status status = out && fclose(out) == 0 ? nb_file_write(path, whole, bytes)
                                               : nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    free(whole);
    return status;
}

static nb_status write_config(const struct nb_bnb_write *args, const char *folder)
{
    const char *source = nb_checkpoint_folder(args->source);
    char *text = NULL, *path = nb_path_join(folder, "config.json");
    size_t bytes;
    nb_status status = NB_OK;
    if (source) {
        char *from = nb_path_join(source, "config.json");
        status = nb_file_read(from, SMALL_FILE_BYTES_MAX, false, &text, &bytes);
        free(from);
        if (status == NB_OK)
            text = adjust_dtype(text);
    } else {
        text = nb_model_config_to_json(nb_checkpoint_config(args->source));
    }
    if (status == NB_OK)
        status = text ? write_config_text(args, path, text) : nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    free(text);
    free(path);
    return status;
}

static nb_status write_generation_config(const struct nb_model_config *config, const char *path)
{
    json_t *root = json_object(), *eos = config->eos_count > 1 ? json_array() : NULL;
    json_object_set_new(root, "_from_model_config", json_true());
    if (config->bos >= 0)
        json_object_set_new(root, "bos_token_id", json_integer(config->bos));
    for (int i = 0; i < config->eos_count && eos; i++)
        json_array_append_new(eos, json_integer(config->eos[i]));
    if (config->eos_count == 1)
        eos = json_integer(config->eos[0]);
    if (eos)
        json_object_set_new(root, "eos_token_id", eos);
    if (config->pad >= 0)
        json_object_set_new(root, "pad_token_id", json_integer(config->pad));
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    nb_status status =
        text ? nb_file_write(path, text, strlen(text)) : nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    free(text);
    return status;
}

/* Copies a file that is there. */
static nb_status copy_file(const char *source, const char *folder, const char *name, bool *copied)
{
    char *from = nb_path_join(source, name), *to = nb_path_join(folder, name), *data = NULL;
    size_t bytes = 0;
    nb_status status = NB_OK;
    *copied = nb_path_exists(from);
    if (*copied) {
        status = nb_file_read(from, SMALL_FILE_BYTES_MAX, false, &data, &bytes);
        if (status == NB_OK)
            status = nb_file_write(to, data, bytes);
    }
    free(data);
    free(from);
    free(to);
    return status;
}

nb_status nb_bnb_write_small_files(const struct nb_bnb_write *args, const char *folder)
{
    static const char *const names[] = {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
    };
    const char *source = nb_checkpoint_folder(args->source);
    bool copied = false;
    NB_TRY(write_config(args, folder));
    if (source)
        NB_TRY(copy_file(source, folder, "generation_config.json", &copied));
    if (!copied) {
        char *path = nb_path_join(folder, "generation_config.json");
        nb_status status = write_generation_config(nb_checkpoint_config(args->source), path);
        free(path);
        NB_TRY(status);
    }
    for (size_t i = 0; source && i < sizeof names / sizeof names[0]; i++)
        NB_TRY(copy_file(source, folder, names[i], &copied));
    return source ? NB_OK : nb_bnb_write_tokenizer(nb_checkpoint_gguf(args->source), folder);
}
