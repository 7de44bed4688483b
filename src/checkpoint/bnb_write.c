#include "checkpoint/bnb.h"

#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoint/bnb_folder.h"
#include "checkpoint/bnb_shard.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/family.h"
#include "checkpoint/real.h"

enum {
    STATE_BYTES = 256, /* more than any quant_state's text */
    PART_NAME_BYTES = NB_TENSOR_NAME_BYTES + 64,
};

#define SHARD_BYTES_DEFAULT UINT64_C(5000000000)

struct item {
    struct nb_tensor_spec spec;
    char name[NB_TENSOR_NAME_BYTES];
    uint64_t bytes;  /* at most, in the output */
    uint64_t header; /* at most, in the output's header */
    int shard;
};

struct job {
    const struct nb_bnb_write *args;
    const struct nb_model_config *config;
    char *folder; /* the temporary one */
    struct item *items;
    size_t count;
    int shards;
    nb_bf16 *weights; /* room for the largest tensor */
    void *slab;       /* room for the largest quantized matrix */
    float *scratch;   /* and for its unquantized scales */
    json_t *weight_map;
    uint64_t written, done, total; /* bytes of tensors written; of the source, done and in all */
};

static void plan_item(struct job *job, const struct nb_tensor_spec *spec, int layer)
{
    struct item *item = &job->items[job->count++];
    struct nb_quant_layout layout;
    item->spec = *spec;
    nb_tensor_name(spec, layer, item->name);
    job->total += nb_checkpoint_tensor_bytes(job->args->source, item->name);
    item->bytes = (uint64_t)(spec->rows * spec->columns) * sizeof(nb_bf16);
    item->header = nb_bnb_shard_header_bytes(item->name, 2);
    if (!spec->linear)
        return;
    if (nb_quant_matrix_layout(
            job->args->type, job->args->nested, (uint64_t)spec->rows, (uint64_t)spec->columns, &layout) == NB_OK)
        item->bytes = layout.bytes + STATE_BYTES;
    item->header += 5 * (item->header + 32); /* the parts' suffixes are at most 32 bytes */
}

static nb_status plan_items(struct job *job)
{
    struct nb_tensor_spec specs[NB_TENSOR_LAYER_ROLES], outer;
    int count = nb_family_layer_tensors(job->config, specs);
    job->items = calloc((size_t)count * (size_t)job->config->layers + 3, sizeof *job->items);
    if (!job->items)
        return nb_fail(NB_MEMORY, "%s: no memory for the list of tensors", job->args->folder);
    for (int i = NB_TENSOR_EMBEDDING; i < NB_TENSOR_ROLES; i++) {
        if (nb_family_outer_tensor(job->config, (enum nb_tensor_role)i, &outer))
            plan_item(job, &outer, 0);
        for (int layer = 0; i == NB_TENSOR_EMBEDDING && layer < job->config->layers; layer++)
            for (int j = 0; j < count; j++)
                plan_item(job, &specs[j], layer);
    }
    uint64_t limit = job->args->shard_bytes ? job->args->shard_bytes : SHARD_BYTES_DEFAULT, filled = 0;
    for (size_t i = 0; i < job->count; i++) {
        if (filled > 0 && filled + job->items[i].bytes > limit) {
            job->shards++;
            filled = 0;
        }
        filled += job->items[i].bytes;
        job->items[i].shard = job->shards;
    }
    job->shards++;
    return NB_OK;
}

static nb_status take_memory(struct job *job)
{
    uint64_t weights = 1, slab = 16, scales = 1;
    for (size_t i = 0; i < job->count; i++) {
        const struct nb_tensor_spec *spec = &job->items[i].spec;
        uint64_t count = (uint64_t)(spec->rows * spec->columns);
        weights = count > weights ? count : weights;
        if (spec->linear) {
            slab = job->items[i].bytes > slab ? job->items[i].bytes : slab;
            scales = nb_quant_blocks(count) > scales ? nb_quant_blocks(count) : scales;
        }
    }
    job->weights = malloc(weights * sizeof *job->weights);
    job->slab = aligned_alloc(64, (slab + 63) / 64 * 64);
    job->scratch = malloc(scales * sizeof *job->scratch);
    job->weight_map = json_object();
    if (!job->weights || !job->slab || !job->scratch || !job->weight_map)
        return nb_fail(NB_MEMORY, "%s: no memory for a tensor of %" PRIu64 " weights", job->args->folder, weights);
    return NB_OK;
}

/* "model.safetensors", or "model-00001-of-00002.safetensors". */
static char *shard_name(const struct job *job, int shard)
{
    return job->shards == 1 ? nb_format("model.safetensors")
                            : nb_format("model-%05d-of-%05d.safetensors", shard + 1, job->shards);
}

static nb_status add(
    struct job *job, struct nb_bnb_shard *shard, const struct nb_safetensors_entry *entry, const void *data)
{
    const char *file = strrchr(shard->path, '/') + 1;
    job->written += nb_safetensors_entry_bytes(entry);
    if (json_object_set_new(job->weight_map, entry->name, json_string(file)) != 0)
        return nb_fail(NB_MEMORY, "%s: no memory for the index", shard->path);
    return nb_bnb_shard_add(shard, entry, data);
}

/* A vector beside a quantized matrix. */
struct part {
    const char *suffix; /* of its name, after the matrix's */
    enum nb_safetensors_dtype dtype;
    uint64_t bytes;
    const void *data;
};

static nb_status add_part(struct job *job, struct nb_bnb_shard *shard, const char *matrix, const struct part *part)
{
    char name[PART_NAME_BYTES];
    struct nb_safetensors_entry entry = {name, part->dtype, 1, {part->bytes / nb_safetensors_dtype_bytes(part->dtype)}};
    snprintf(name, sizeof name, "%s.%s", matrix, part->suffix);
    return add(job, shard, &entry, part->data);
}

/* As Python's json.dumps writes QuantState.as_dict. The offset was widened from fp32, and prints all digits of that double. */
static int state_text(const struct nb_quant_layout *layout, float offset, char text[STATE_BYTES])
{
    char real[NB_REAL_BYTES];
    int length = snprintf(text, STATE_BYTES,
        "{\"quant_type\": \"%s\", \"blocksize\": %d, \"dtype\": \"bfloat16\", \"shape\": [%" PRIu64 ", %" PRIu64 "]",
        nb_quant_type_name(layout->type), NB_QUANT_BLOCK, layout->rows, layout->columns);
    if (layout->nested)
        length += snprintf(text + length, (size_t)(STATE_BYTES - length),
            ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %s", NB_QUANT_SUPERBLOCK,
            nb_real_format((double)offset, false, real));
    return length + snprintf(text + length, (size_t)(STATE_BYTES - length), "}");
}

static nb_status write_quantized(struct job *job, const struct item *item, struct nb_bnb_shard *shard)
{
    const struct nb_tensor_spec *spec = &item->spec;
    struct nb_quant_layout layout;
    NB_TRY(nb_quant_matrix_layout(
        job->args->type, job->args->nested, (uint64_t)spec->rows, (uint64_t)spec->columns, &layout));
    struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, job->slab, job->scratch);
    nb_status status = nb_quantize(layout.type, layout.nested, job->weights, layout.rows, layout.columns, &parts);
    if (status != NB_OK)
        return nb_fail_within(status, "%s", item->name);
    struct nb_safetensors_entry packed = {item->name, NB_SAFETENSORS_U8, 2, {layout.packed_bytes, 1}};
    NB_TRY(add(job, shard, &packed, parts.packed));
    char state[STATE_BYTES];
    uint64_t state_bytes = (uint64_t)state_text(&layout, parts.nested_offset, state);
    bool nested = layout.nested;
    const struct part list[] = {
        {"absmax", nested ? NB_SAFETENSORS_U8 : NB_SAFETENSORS_F32, layout.absmax_bytes,
            nested ? (const void *)parts.absmax_codes : parts.absmax},
        {"quant_map", NB_SAFETENSORS_F32, layout.codebook_bytes, parts.codebook},
        {"nested_absmax", NB_SAFETENSORS_F32, layout.nested_absmax_bytes, parts.nested_absmax},
        {"nested_quant_map", NB_SAFETENSORS_F32, layout.nested_map_bytes, parts.nested_map},
        {layout.type == NB_QUANT_NF4 ? "quant_state.bitsandbytes__nf4" : "quant_state.bitsandbytes__fp4", NB_SAFETENSORS_U8,
            state_bytes, state},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        if (list[i].bytes > 0) /* a plain matrix has no nested parts */
            NB_TRY(add_part(job, shard, item->name, &list[i]));
    return NB_OK;
}

static nb_status write_item(struct job *job, const struct item *item, struct nb_bnb_shard *shard)
{
    const struct nb_checkpoint *source = job->args->source;
    const struct nb_tensor_spec *spec = &item->spec;
    NB_TRY(nb_checkpoint_tensor_read_bf16(source, item->name, spec->rows, spec->columns, job->weights));
    nb_checkpoint_forget(source, item->name);
    if (spec->linear) {
        NB_TRY(write_quantized(job, item, shard));
    } else {
        struct nb_safetensors_entry entry = {
            item->name, NB_SAFETENSORS_BF16, 2, {(uint64_t)spec->rows, (uint64_t)spec->columns}};
        if (spec->tensor->rows == NB_EXTENT_ONE) {
            entry.rank = 1;
            entry.shape[0] = (uint64_t)spec->columns;
        }
        NB_TRY(add(job, shard, &entry, job->weights));
    }
    job->done += nb_checkpoint_tensor_bytes(source, item->name);
    if (job->args->progress)
        job->args->progress(job->args->context, job->done, job->total);
    return NB_OK;
}

static nb_status write_shard(struct job *job, int number)
{
    struct nb_bnb_shard shard = {0};
    uint64_t header = 0;
    for (size_t i = 0; i < job->count; i++)
        header += job->items[i].shard == number ? job->items[i].header : 0;
    char *name = shard_name(job, number), *path = nb_path_join(job->folder, name);
    nb_status status = nb_bnb_shard_open(&shard, path, header);
    for (size_t i = 0; status == NB_OK && i < job->count; i++)
        if (job->items[i].shard == number)
            status = write_item(job, &job->items[i], &shard);
    if (status == NB_OK)
        status = nb_bnb_shard_finish(&shard);
    nb_bnb_shard_abandon(&shard);
    free(name);
    free(path);
    return status;
}

static nb_status write_index(const struct job *job)
{
    if (job->shards == 1)
        return NB_OK;
    json_t *index =
        json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)job->written, "weight_map", job->weight_map);
    char *text = index ? json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    char *path = nb_path_join(job->folder, "model.safetensors.index.json");
    nb_status status =
        text ? nb_file_write(path, text, strlen(text)) : nb_fail(NB_MEMORY, "%s: no memory for the index", path);
    json_decref(index);
    free(text);
    free(path);
    return status;
}

static nb_status write_all(struct job *job)
{
    NB_TRY(plan_items(job));
    NB_TRY(take_memory(job));
    NB_TRY(nb_make_folder(job->folder));
    NB_TRY(nb_bnb_write_small_files(job->args, job->folder));
    for (int i = 0; i < job->shards; i++)
        NB_TRY(write_shard(job, i));
    NB_TRY(write_index(job));
    NB_TRY(nb_sync_folder(job->folder));
    if (rename(job->folder, job->args->folder) != 0)
        return nb_fail_errno("%s: renaming to %s", job->folder, job->args->folder);
    return NB_OK;
}

static bool is_empty_folder(const char *path)
{
    DIR *folder = opendir(path);
    int names = 0;
    while (folder && names <= 2 && readdir(folder)) /* "." and ".." */
        names++;
    if (folder)
        closedir(folder);
    return folder && names <= 2;
}

/* Renaming replaces an empty folder, and fails on any other. The temporary folder stands beside the final one, so that the rename
 * stays within one file system. */
static char *temporary_folder(const char *folder)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--;
    return nb_format("%.*s.tmp-%d", (int)length, folder, (int)getpid());
}

nb_status nb_bnb_write(const struct nb_bnb_write *args)
{
    const struct nb_model_config *config = nb_checkpoint_config(args->source);
    if (nb_path_exists(args->folder) && !is_empty_folder(args->folder))
        return nb_fail(NB_USAGE, "%s: exists already; name another output folder or remove it", args->folder);
    if (config->quantized)
        return nb_fail(NB_USAGE, "%s: is quantized already; start from the full-precision model",
            nb_checkpoint_path(args->source));
    if (!nb_checkpoint_has_weights(args->source))
        return nb_fail(NB_IO, "%s: holds no weights to quantize", nb_checkpoint_path(args->source));
    struct job job = {.args = args, .config = config, .folder = temporary_folder(args->folder)};
    nb_status status = write_all(&job);
    if (status != NB_OK) {
        /* Clearing up must not replace the message of what went wrong. */
        char *message = nb_format("%s", nb_status_message());
        nb_remove_folder(job.folder);
        status = nb_fail(status, "%s", message);
        free(message);
    }
    json_decref(job.weight_map);
    free(job.scratch);
    free(job.slab);
    free(job.weights);
    free(job.items);
    free(job.folder);
    return status;
}
