#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/peft.h"
#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/family.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "command/inspect.h"
#include "text/tokenizer.h"

static json_t *shape_of(const uint64_t *shape, int rank)
{
    json_t *array = json_array();
    for (int i = 0; i < rank; i++)
        json_array_append_new(array, json_integer((json_int_t)shape[i]));
    return array;
}

static json_t *tensor_of(const char *name, const char *type, const uint64_t *shape, int rank, uint64_t bytes)
{
    return json_pack("{s:s, s:s, s:o, s:I}", "name", name, "type", type, "shape", shape_of(shape, rank), "bytes", (json_int_t)bytes);
}

static json_t *safetensors_tensors(const struct nb_safetensors *file)
{
    json_t *array = json_array();
    for (size_t i = 0; file && i < nb_safetensors_count(file); i++) {
        const struct nb_safetensors_tensor *t = nb_safetensors_at(file, i);
        json_array_append_new(array, tensor_of(t->name, nb_safetensors_dtype_name(t->dtype), t->shape, t->rank, t->bytes));
    }
    return array;
}

static json_t *gguf_tensors(const struct nb_gguf *gguf)
{
    json_t *array = json_array();
    for (size_t i = 0; i < nb_gguf_tensor_count(gguf); i++) {
        const struct nb_gguf_tensor *t = nb_gguf_tensor_at(gguf, i);
        json_array_append_new(array, tensor_of(t->name, nb_gguf_type_name(t->type), t->shape, t->rank, t->bytes));
    }
    return array;
}

/* The tokenizer is a part of the picture, not a condition: a model without one is shown without. */
static void add_tokenizer(const char *path, json_t *object)
{
    struct nb_tokenizer *tokenizer = NULL;
    if (nb_tokenizer_open(path, &tokenizer) != NB_OK) {
        json_object_set_new(object, "tokenizer", json_string(nb_status_message()));
        return;
    }
    const char *chat_template = nb_tokenizer_chat_template(tokenizer);
    json_object_set_new(object, "tokenizer",
                        json_pack("{s:i, s:i, s:i, s:i}", "tokens", nb_tokenizer_vocabulary(tokenizer), "bos",
                                  nb_tokenizer_bos(tokenizer), "eos", nb_tokenizer_eos(tokenizer), "pad", nb_tokenizer_pad(tokenizer)));
    json_object_set_new(object, "chat_template", chat_template ? json_string(chat_template) : json_null());
    nb_tokenizer_destroy(&tokenizer);
}

static json_t *sizes_of(const struct nb_model_config *config)
{
    return json_pack("{s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}", "family", config->family->name, "parameters",
                     (json_int_t)nb_model_config_parameters(config), "layers", config->layers, "hidden", config->hidden, "intermediate",
                     config->intermediate, "heads", config->heads, "kv_heads", config->kv_heads, "head_dim", config->head_dim,
                     "vocabulary", config->vocab, "context", config->max_positions, "sliding_window", config->sliding_window,
                     "tied_embeddings", config->tied);
}

nb_status nb_inspect_model(const char *path, json_t **out)
{
    struct nb_checkpoint *checkpoint = NULL;
    NB_TRY(nb_checkpoint_open(path, &checkpoint));
    const struct nb_model_config *config = nb_checkpoint_config(checkpoint);
    const struct nb_gguf *gguf = nb_checkpoint_gguf(checkpoint);
    json_t *object = json_object();
    json_object_set_new(object, "path", json_string(path));
    json_object_set_new(object, "kind", json_string(gguf ? "GGUF model" : "Hugging Face model"));
    json_object_update_new(object, sizes_of(config));
    if (config->quantized)
        json_object_set_new(object, "quantized", json_string(config->quantized_fp4 ? "bitsandbytes fp4" : "bitsandbytes nf4"));
    add_tokenizer(path, object);
    json_object_set_new(object, "tensors", gguf ? gguf_tensors(gguf) : safetensors_tensors(nb_checkpoint_safetensors(checkpoint)));
    nb_checkpoint_close(&checkpoint);
    *out = object;
    return NB_OK;
}

nb_status nb_inspect_safetensors(const char *path, json_t **out)
{
    struct nb_safetensors *file = NULL;
    NB_TRY(nb_safetensors_open(path, &file));
    *out = json_pack("{s:s, s:s, s:o}", "path", path, "kind", "safetensors file", "tensors", safetensors_tensors(file));
    nb_safetensors_close(&file);
    return NB_OK;
}

nb_status nb_inspect_adapter(const char *path, json_t **out)
{
    struct nb_peft_config *config = NULL;
    struct nb_safetensors *file = NULL;
    struct nb_adapter_options options = {0};
    NB_TRY(nb_peft_config_read(path, &config));
    char *weights = nb_path_join(path, "adapter_model.safetensors");
    nb_status status = nb_safetensors_open(weights, &file);
    free(weights);
    if (status != NB_OK) {
        nb_peft_config_destroy(&config);
        return status;
    }
    nb_peft_config_options(config, &options);
    json_t *targets = json_array();
    for (int i = 0; i < options.target_module_count; i++)
        json_array_append_new(targets, json_string(options.target_modules[i]));
    json_int_t parameters = 0;
    for (size_t i = 0; i < nb_safetensors_count(file); i++)
        parameters += (json_int_t)nb_safetensors_at(file, i)->count;
    *out = json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:b, s:o, s:I, s:o}", "path", path, "kind", "LoRA adapter", "base_model",
                     nb_peft_config_base_model(config), "rank", options.rank, "alpha", (double)options.alpha, "dropout",
                     (double)options.dropout, "rank_stabilized", options.rank_stabilized, "targets", targets, "parameters", parameters,
                     "tensors", safetensors_tensors(file));
    nb_safetensors_close(&file);
    nb_peft_config_destroy(&config);
    return NB_OK;
}

static void print_tensors(const json_t *tensors, FILE *out)
{
    size_t i;
    json_t *tensor;
    json_int_t bytes = 0;
    json_array_foreach((json_t *)tensors, i, tensor)
    {
        char *shape = json_dumps(json_object_get(tensor, "shape"), JSON_COMPACT);
        fprintf(out, "  %-64s %-8s %-16s %14" JSON_INTEGER_FORMAT "\n", json_string_value(json_object_get(tensor, "name")),
                json_string_value(json_object_get(tensor, "type")), shape, json_integer_value(json_object_get(tensor, "bytes")));
        bytes += json_integer_value(json_object_get(tensor, "bytes"));
        free(shape);
    }
    fprintf(out, "  %zu tensors, %" JSON_INTEGER_FORMAT " bytes\n", json_array_size(tensors), bytes);
}

void nb_inspect_print(const json_t *object, FILE *out)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        if (strcmp(key, "tensors") == 0)
            print_tensors(value, out);
        else if (strcmp(key, "shown") == 0) {
            size_t i;
            json_t *row;
            json_array_foreach(value, i, row) fprintf(out, "\n%s\n", json_string_value(row));
        } else if (json_is_string(value)) {
            fprintf(out, "%-20s %s\n", key, json_string_value(value));
        } else {
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
            fprintf(out, "%-20s %s\n", key, text);
            free(text);
        }
    }
}
