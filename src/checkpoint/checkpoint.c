#include "checkpoint/checkpoint.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32.h"
#include "base/file.h"
#include "base/log.h"
#include "checkpoint/bnb_read.h"
#include "checkpoint/family.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_read.h"

enum { CONFIG_BYTES_MAX = 16 << 20 };

/* A float part of a 4-bit matrix that lies at an odd address of its file. */
struct aligned_copy {
    struct aligned_copy *next;
    const struct nb_safetensors_tensor *tensor;
    float values[];
};

struct nb_checkpoint {
    char *path;
    bool folder;
    struct nb_model_config config;
    struct nb_gguf *gguf;
    struct nb_safetensors *safetensors;
    struct aligned_copy **copies; /* the head of a list; one more level, so that views can be had of a const checkpoint */
};

void nb_checkpoint_close(struct nb_checkpoint **checkpoint)
{
    struct nb_checkpoint *c = *checkpoint;
    if (!c)
        return;
    for (struct aligned_copy *copy = c->copies ? *c->copies : NULL, *next; copy; copy = next) {
        next = copy->next;
        free(copy);
    }
    free(c->copies);
    nb_gguf_close(&c->gguf);
    nb_safetensors_close(&c->safetensors);
    free(c->path);
    free(c);
    *checkpoint = NULL;
}

static nb_status read_config(const char *path, struct nb_model_config *config,
    nb_status (*parse)(const char *text, size_t bytes, const char *path, struct nb_model_config *config))
{
    char *text = NULL;
    size_t bytes;
    NB_TRY(nb_file_read(path, CONFIG_BYTES_MAX, false, &text, &bytes));
    nb_status status = parse(text, bytes, path, config);
    free(text);
    return status;
}

/* A tensor that the family has no place for, such as a bias, is what another kind of model would compute with. */
static void warn_of_strangers(const struct nb_checkpoint *c)
{
    const char *first = NULL;
    size_t strangers = 0;
    for (size_t i = 0; c->safetensors && i < nb_safetensors_count(c->safetensors); i++) {
        const char *name = nb_safetensors_at(c->safetensors, i)->name;
        if (nb_family_knows_tensor(&c->config, name))
            continue;
        first = first ? first : name;
        strangers++;
    }
    if (strangers)
        nb_warn("%s: %zu tensor%s no part of a %s model and %s left out, the first is %.100s", c->path, strangers,
            strangers == 1 ? " is" : "s are", c->config.family->name, strangers == 1 ? "is" : "are", first);
}

static nb_status open_weights(struct nb_checkpoint *c)
{
    char *whole = nb_path_join(c->path, "model.safetensors");
    char *index = nb_path_join(c->path, "model.safetensors.index.json");
    nb_status status = NB_OK;
    if (nb_path_exists(whole) || nb_path_exists(index))
        status = nb_safetensors_open_folder(c->path, "model", &c->safetensors);
    free(whole);
    free(index);
    return status;
}

static nb_status open_folder(struct nb_checkpoint *c)
{
    char *config = nb_path_join(c->path, "config.json"), *generation = nb_path_join(c->path, "generation_config.json");
    c->folder = true;
    nb_status status;
    if (!nb_path_exists(config))
        status = nb_fail(NB_IO,
            "%s: no config.json in it. A model is a Hugging Face folder, a .gguf file or a config's .json.", c->path);
    else
        status = read_config(config, &c->config, nb_model_config_parse);
    if (status == NB_OK && nb_path_exists(generation))
        status = read_config(generation, &c->config, nb_model_config_parse_generation);
    if (status == NB_OK)
        status = open_weights(c);
    if (status == NB_OK)
        warn_of_strangers(c);
    free(config);
    free(generation);
    return status;
}

static nb_status open_path(struct nb_checkpoint *c)
{
    size_t length = strlen(c->path);
    if (nb_path_is_folder(c->path))
        return open_folder(c);
    if (length > 5 && strcmp(c->path + length - 5, ".json") == 0)
        return read_config(c->path, &c->config, nb_model_config_parse);
    if (!nb_path_exists(c->path))
        return nb_fail_errno("%s: cannot open this model (a Hugging Face folder, a .gguf file or a config's .json)", c->path);
    NB_TRY(nb_gguf_open(c->path, &c->gguf));
    return nb_model_config_from_gguf(c->gguf, &c->config);
}

nb_status nb_checkpoint_open(const char *path, struct nb_checkpoint **checkpoint)
{
    struct nb_checkpoint *c = calloc(1, sizeof *c);
    *checkpoint = c;
    if (c)
        c->copies = calloc(1, sizeof *c->copies);
    nb_status status = c && c->copies ? NB_OK : nb_fail(NB_MEMORY, "%s: no memory to open it", path);
    if (status == NB_OK) {
        c->path = nb_format("%s", path);
        status = open_path(c);
    }
    if (status != NB_OK)
        nb_checkpoint_close(checkpoint);
    return status;
}

const struct nb_model_config *nb_checkpoint_config(const struct nb_checkpoint *checkpoint)
{
    return &checkpoint->config;
}

const char *nb_checkpoint_path(const struct nb_checkpoint *checkpoint)
{
    return checkpoint->path;
}

const char *nb_checkpoint_folder(const struct nb_checkpoint *checkpoint)
{
    return checkpoint->folder ? checkpoint->path : NULL;
}

const struct nb_gguf *nb_checkpoint_gguf(const struct nb_checkpoint *checkpoint)
{
    return checkpoint->gguf;
}

const struct nb_safetensors *nb_checkpoint_safetensors(const struct nb_checkpoint *checkpoint)
{
    return checkpoint->safetensors;
}

bool nb_checkpoint_has_weights(const struct nb_checkpoint *checkpoint)
{
    return checkpoint->gguf || checkpoint->safetensors;
}

/* The tensor of that Hugging Face name in the GGUF file; *role tells what it is for. NULL when it is not there. */
static const struct nb_gguf_tensor *find_gguf(
    const struct nb_checkpoint *c, const char *name, enum nb_tensor_role *role)
{
    struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES], outer;
    char whole[NB_TENSOR_NAME_BYTES];
    static const char prefix[] = "model.layers.";
    for (int i = NB_TENSOR_EMBEDDING; i < NB_TENSOR_ROLES; i++) {
        if (nb_family_outer_tensor(&c->config, (enum nb_tensor_role)i, &outer) &&
            strcmp(outer.tensor->name, name) == 0) {
            *role = outer.role;
            return nb_gguf_tensor_find(c->gguf, outer.tensor->gguf);
        }
    }
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return NULL;
    char *rest;
    long layer = strtol(name + sizeof prefix - 1, &rest, 10);
    if (rest == name + sizeof prefix - 1 || *rest != '.' || layer < 0 || layer >= c->config.layers)
        return NULL;
    int count = nb_family_layer_tensors(&c->config, specs);
    for (int i = 0; i < count; i++) {
        if (strcmp(specs[i].tensor->name, rest + 1) != 0)
            continue;
        *role = specs[i].role;
        return nb_gguf_tensor_find(c->gguf, nb_tensor_gguf_name(&specs[i], (int)layer, whole));
    }
    return NULL;
}

static const struct nb_safetensors_tensor *find_safetensors(const struct nb_checkpoint *c, const char *name)
{
    return c->safetensors ? nb_safetensors_find(c->safetensors, name) : NULL;
}

bool nb_checkpoint_tensor_exists(const struct nb_checkpoint *checkpoint, const char *name)
{
    enum nb_tensor_role role;
    return checkpoint->gguf ? find_gguf(checkpoint, name, &role) != NULL : find_safetensors(checkpoint, name) != NULL;
}

/* The tensors that hold one: a quantized one has up to six. */
static int parts_of(const struct nb_checkpoint *c, const char *name, const struct nb_safetensors_tensor *out[6])
{
    struct nb_bnb_parts parts;
    const struct nb_safetensors_tensor *tensor = find_safetensors(c, name);
    int count = 0;
    if (!tensor)
        return 0;
    out[count++] = tensor;
    if (!nb_bnb_find(c->safetensors, name, &parts))
        return count;
    const struct nb_safetensors_tensor *others[] = {
        parts.absmax, parts.quant_map, parts.nested_absmax, parts.nested_quant_map, parts.state};
    for (int i = 0; i < 5; i++)
        if (others[i])
            out[count++] = others[i];
    return count;
}

uint64_t nb_checkpoint_tensor_bytes(const struct nb_checkpoint *checkpoint, const char *name)
{
    const struct nb_safetensors_tensor *parts[6];
    enum nb_tensor_role role;
    uint64_t bytes = 0;
    if (checkpoint->gguf) {
        const struct nb_gguf_tensor *tensor = find_gguf(checkpoint, name, &role);
        return tensor ? tensor->bytes : 0;
    }
    for (int i = 0, count = parts_of(checkpoint, name, parts); i < count; i++)
        bytes += parts[i]->bytes;
    return bytes;
}

nb_status nb_checkpoint_fetch(const struct nb_checkpoint *checkpoint, const char *name)
{
    const struct nb_safetensors_tensor *parts[6];
    enum nb_tensor_role role;
    if (checkpoint->gguf) {
        const struct nb_gguf_tensor *tensor = find_gguf(checkpoint, name, &role);
        return tensor ? nb_gguf_fetch(checkpoint->gguf, tensor) : NB_OK;
    }
    for (int i = 0, count = parts_of(checkpoint, name, parts); i < count; i++)
        NB_TRY(nb_safetensors_fetch(checkpoint->safetensors, parts[i]));
    return NB_OK;
}

void nb_checkpoint_forget(const struct nb_checkpoint *checkpoint, const char *name)
{
    const struct nb_safetensors_tensor *parts[6];
    enum nb_tensor_role role;
    if (checkpoint->gguf) {
        const struct nb_gguf_tensor *tensor = find_gguf(checkpoint, name, &role);
        if (tensor)
            nb_gguf_forget(checkpoint->gguf, tensor);
        return;
    }
    for (int i = 0, count = parts_of(checkpoint, name, parts); i < count; i++)
        nb_safetensors_forget(checkpoint->safetensors, parts[i]);
}

static void describe_file(const struct nb_mapped_file *file, uint64_t header_bytes, FILE *out)
{
    const char *slash = strrchr(file->path, '/');
    fprintf(out, "%s: %" PRIu64 " bytes, written %" PRId64 ".%09" PRId64 ", header %08" PRIx32 "\n",
        slash ? slash + 1 : file->path, file->bytes, file->stamp.seconds, file->stamp.nanoseconds,
        nb_crc32(0, file->data, header_bytes));
}

void nb_checkpoint_describe_files(const struct nb_checkpoint *checkpoint, FILE *out)
{
    const struct nb_mapped_file *file = checkpoint->gguf ? nb_gguf_file(checkpoint->gguf) : NULL;
    if (file) {
        uint64_t header = file->bytes;
        for (size_t i = 0; i < nb_gguf_tensor_count(checkpoint->gguf); i++) {
            uint64_t offset = nb_gguf_tensor_at(checkpoint->gguf, i)->offset;
            header = offset < header ? offset : header;
        }
        describe_file(file, header, out);
    }
    for (size_t i = 0; checkpoint->safetensors && (file = nb_safetensors_file_at(checkpoint->safetensors, i)); i++) {
        uint64_t header;
        memcpy(&header, file->data, sizeof header);
        describe_file(file, sizeof header + header, out);
    }
}

static nb_status missing(const struct nb_checkpoint *c, const char *name)
{
    if (!nb_checkpoint_has_weights(c))
        return nb_fail(NB_IO,
            "%s: holds no weights: neither model.safetensors nor model.safetensors.index.json is there; other files, such as "
            "pytorch_model.bin, are not read: save the model as safetensors",
            c->path);
    return nb_fail(NB_FORMAT, "%s: tensor %s is missing", c->path, name);
}

static bool shape_is(const uint64_t *shape, int rank, int64_t rows, int64_t columns)
{
    if (rank == 1)
        return rows == 1 && shape[0] == (uint64_t)columns;
    return rank == 2 && shape[0] == (uint64_t)rows && shape[1] == (uint64_t)columns;
}

static nb_status wrong_shape(
    const char *path, const char *name, const uint64_t *shape, int rank, int64_t rows, int64_t columns)
{
    return nb_fail(NB_FORMAT,
        "%s: tensor %s: its shape has %d dimensions and begins [%" PRIu64 ", %" PRIu64 "]; the config needs [%" PRId64
        ", %" PRId64 "]",
        path, name, rank, rank > 0 ? shape[0] : 1, rank > 1 ? shape[1] : 1, rows, columns);
}

static nb_status check_finite(const char *path, const char *name, int64_t index, int64_t columns)
{
    if (index < 0)
        return NB_OK;
    return nb_fail(NB_FORMAT,
        "%s: tensor %s: the weight at [%" PRId64 ", %" PRId64 "] is infinite or not a number. The file is damaged, "
        "or the model diverged.",
        path, name, index / columns, index % columns);
}

static nb_status read_gguf(const struct nb_checkpoint *c, const char *name, int64_t rows, int64_t columns, nb_bf16 *out)
{
    enum nb_tensor_role role;
    const struct nb_gguf_tensor *tensor = find_gguf(c, name, &role);
    if (!tensor)
        return missing(c, name);
    if (!shape_is(tensor->shape, tensor->rank, rows, columns))
        return wrong_shape(c->path, name, tensor->shape, tensor->rank, rows, columns);
    NB_TRY(nb_checkpoint_fetch(c, name));
    int64_t heads = 0;
    if (c->config.family->gguf_permuted && (role == NB_TENSOR_Q || role == NB_TENSOR_K))
        heads = role == NB_TENSOR_Q ? c->config.heads : c->config.kv_heads;
    return check_finite(c->path, name, nb_tensor_read_gguf(tensor, rows, columns, heads, out), columns);
}

nb_status nb_checkpoint_tensor_read_bf16(
    const struct nb_checkpoint *checkpoint, const char *name, int64_t rows, int64_t columns, nb_bf16 *out)
{
    if (checkpoint->gguf)
        return read_gguf(checkpoint, name, rows, columns, out);
    const struct nb_safetensors_tensor *tensor = find_safetensors(checkpoint, name);
    if (!tensor)
        return missing(checkpoint, name);
    if (nb_checkpoint_tensor_is_quantized(checkpoint, name)) {
        struct nb_quant_matrix view;
        NB_TRY(nb_checkpoint_fetch(checkpoint, name));
        NB_TRY(nb_checkpoint_matrix_quantized(checkpoint, name, rows, columns, &view));
        return check_finite(tensor->path, name, nb_tensor_read_quantized(&view, out), columns);
    }
    if (!shape_is(tensor->shape, tensor->rank, rows, columns))
        return wrong_shape(tensor->path, name, tensor->shape, tensor->rank, rows, columns);
    if (tensor->dtype != NB_SAFETENSORS_BF16 && tensor->dtype != NB_SAFETENSORS_F16 &&
        tensor->dtype != NB_SAFETENSORS_F32)
        return nb_fail(NB_FORMAT,
            "%s: tensor %s at offset %" PRIu64 ": weights of dtype %s are not read; BF16, F16, F32 are", tensor->path,
            name, tensor->offset, nb_safetensors_dtype_name(tensor->dtype));
    NB_TRY(nb_checkpoint_fetch(checkpoint, name));
    return check_finite(
        tensor->path, name, nb_tensor_read_plain(tensor->dtype, tensor->data, rows, columns, out), columns);
}

const struct nb_safetensors_tensor *nb_checkpoint_tensor_in_bf16(
    const struct nb_checkpoint *checkpoint, const char *name, int64_t rows, int64_t columns)
{
    const struct nb_safetensors_tensor *tensor = find_safetensors(checkpoint, name);
    bool plain = tensor && tensor->dtype == NB_SAFETENSORS_BF16 && !nb_checkpoint_tensor_is_quantized(checkpoint, name);
    return plain && shape_is(tensor->shape, tensor->rank, rows, columns) ? tensor : NULL;
}

bool nb_checkpoint_tensor_is_quantized(const struct nb_checkpoint *checkpoint, const char *name)
{
    struct nb_bnb_parts parts;
    return checkpoint->safetensors && nb_bnb_find(checkpoint->safetensors, name, &parts);
}

static const float *aligned(void *context, const struct nb_safetensors_tensor *tensor)
{
    struct aligned_copy **copies = context;
    if ((uintptr_t)tensor->data % _Alignof(float) == 0)
        return (const float *)(const void *)tensor->data;
    for (const struct aligned_copy *copy = *copies; copy; copy = copy->next)
        if (copy->tensor == tensor)
            return copy->values;
    struct aligned_copy *copy = malloc(sizeof *copy + tensor->bytes);
    if (!copy)
        return NULL;
    memcpy(copy->values, tensor->data, tensor->bytes);
    copy->tensor = tensor;
    copy->next = *copies;
    *copies = copy;
    return copy->values;
}

nb_status nb_checkpoint_matrix_quantized(const struct nb_checkpoint *checkpoint, const char *name, int64_t rows,
    int64_t columns, struct nb_quant_matrix *view)
{
    struct nb_bnb_parts parts;
    if (!find_safetensors(checkpoint, name))
        return missing(checkpoint, name);
    if (!nb_bnb_find(checkpoint->safetensors, name, &parts))
        return nb_fail(NB_FORMAT, "%s: tensor %s is not in bitsandbytes' 4-bit layout", checkpoint->path, name);
    const struct nb_safetensors_tensor *read[6]; /* all but the packed values, which come first */
    for (int i = 1, count = parts_of(checkpoint, name, read); i < count; i++)
        NB_TRY(nb_safetensors_fetch(checkpoint->safetensors, read[i]));
    return nb_bnb_view(&parts, rows, columns, aligned, checkpoint->copies, view);
}
