#include "model/unit_cache.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/random.h"

static void describe_tensor(
    const struct nb_tensor_spec *spec, const struct nb_unit_view *view, uint64_t base, FILE *out)
{
    const struct nb_weight *matrix = &view->matrix[spec->role];
    const uint64_t part[] = {spec->rows == 1 ? view->vector[spec->role].address : matrix->data.address,
        matrix->absmax.address, matrix->nested_absmax.address, matrix->nested_map.address,
        matrix->nested_offset.address, matrix->codebook.address};
    fprintf(out, " %s %" PRId64 " %" PRId64 " %d", spec->tensor->name, spec->rows, spec->columns, (int)matrix->format);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        fprintf(out, " %" PRIu64, part[i] ? part[i] - base : 0);
}

/* What lies where in the units: formats, shapes and offsets of all tensors. */
static void describe_units(const struct nb_model *model, struct nb_unit_cache *cache, FILE *out)
{
    const nb_dptr base = {NB_UNIT_FILE_ALIGNMENT};
    for (int unit = 0; unit < cache->shape.units; unit++) {
        const struct nb_tensor_spec *spec;
        struct nb_unit_view view;
        int tensors = nb_weight_store_tensors(model->store, unit, &spec);
        cache->bytes[unit] = nb_weight_store_layout(model->store, unit, base, &view);
        fprintf(out, "unit %d:", unit);
        for (int i = 0; i < tensors; i++)
            describe_tensor(&spec[i], &view, base.address, out);
        fputc('\n', out);
    }
}

/* One line each: the sources, whose sizes, times and headers tell their state; the choices, the hash of the layout, and
 * the file's version, so that programs of two versions have a file each. */
static nb_status make_key(const struct nb_model *model, struct nb_unit_cache *cache)
{
    static const char *const formats[] = {[NB_WEIGHT_BF16] = "bf16", [NB_WEIGHT_NF4] = "nf4", [NB_WEIGHT_FP4] = "fp4"};
    const struct nb_model_options *options = &model->options;
    char *layout = NULL;
    size_t bytes;
    FILE *out = open_memstream(&layout, &bytes);
    if (!out)
        return nb_fail_errno("the cache's key");
    describe_units(model, cache, out);
    if (fclose(out) != 0 || !(out = open_memstream(&cache->key, &bytes))) {
        free(layout);
        return nb_fail_errno("the cache's key");
    }
    nb_checkpoint_describe_files(model->checkpoint, out);
    fprintf(out, "linears %s%s, layout %016" PRIx64 ", version %d\n", formats[options->linear_format],
        options->nested ? " double-quantized" : "", nb_name_hash(layout), NB_UNIT_FILE_VERSION);
    free(layout);
    return fclose(out) == 0 ? NB_OK : nb_fail_errno("the cache's key");
}

/* The last part of the model's path, for who looks into the folder; the rest of the name tells it from others. */
static char *name_file(const struct nb_model *model, const struct nb_unit_cache *cache)
{
    const char *path = nb_checkpoint_path(model->checkpoint);
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    int length = end - begin < 100 ? (int)(end - begin) : 100;
    return nb_format("%s/%.*s-%016" PRIx64 ".units", cache->folder, length, path + begin, nb_name_hash(cache->key));
}

nb_status nb_unit_cache_describe(const struct nb_model *model, struct nb_unit_cache *cache)
{
    *cache = (struct nb_unit_cache){.shape.units = nb_weight_store_units(model->store)};
    cache->bytes = calloc((size_t)cache->shape.units, sizeof *cache->bytes);
    if (!cache->bytes)
        return nb_fail(NB_MEMORY, "no memory for the cache's header");
    NB_TRY(make_key(model, cache));
    cache->folder = nb_format("%s", model->options.cache_folder);
    cache->path = name_file(model, cache);
    cache->shape.key = cache->key;
    cache->shape.bytes = cache->bytes;
    return NB_OK;
}

void nb_unit_cache_free(struct nb_unit_cache *cache)
{
    free(cache->folder);
    free(cache->path);
    free(cache->key);
    free(cache->bytes);
    *cache = (struct nb_unit_cache){0};
}

static const char no_use[] = "the cached weights are of no use, and are made anew";

struct nb_unit_file *nb_unit_cache_open(const struct nb_unit_cache *cache)
{
    struct nb_unit_file *file;
    if (!nb_path_exists(cache->path))
        return NULL;
    nb_status status = nb_unit_file_open(cache->path, &cache->shape, &file);
    if (status == NB_OK)
        return file;
    nb_warn("%s: %s", no_use, nb_status_message());
    if (status == NB_FORMAT)
        unlink(cache->path);
    return NULL;
}

void nb_unit_cache_reject(struct nb_unit_file **file)
{
    nb_warn("%s: %s", no_use, nb_status_message());
    nb_unit_file_unlink(*file);
    nb_unit_file_close(file);
}

static void give_up(struct nb_unit_file_writer **writer)
{
    nb_warn("quantized_cache: the weights are not kept for the next start: %s", nb_status_message());
    nb_unit_file_abandon(writer);
}

/* What a start that was killed has left of this file: as large as the model, and of no use to anyone. */
static void remove_leftovers(const struct nb_unit_cache *cache)
{
    static const char mark[] = ".tmp-"; /* nb_writer's */
    const char *name = strrchr(cache->path, '/') + 1;
    const size_t length = strlen(name);
    DIR *folder = opendir(cache->folder);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        const char *rest = entry->d_name + length;
        if (strncmp(entry->d_name, name, length) != 0 || strncmp(rest, mark, sizeof mark - 1) != 0)
            continue;
        char *path = nb_path_join(cache->folder, entry->d_name);
        nb_writer_remove_leftover(path);
        free(path);
    }
    if (folder)
        closedir(folder);
}

struct nb_unit_file_writer *nb_unit_cache_create(const struct nb_unit_cache *cache)
{
    struct nb_unit_file_writer *writer = NULL;
    nb_status status = nb_make_folder(cache->folder);
    if (status == NB_OK)
        remove_leftovers(cache);
    if (status == NB_OK)
        status = nb_unit_file_create(cache->path, &cache->shape, &writer);
    if (status != NB_OK)
        give_up(&writer);
    return writer;
}

void nb_unit_cache_append(struct nb_unit_file_writer **writer, const void *data, uint64_t bytes)
{
    if (*writer && nb_unit_file_append(*writer, data, bytes) != NB_OK)
        give_up(writer);
}

void nb_unit_cache_finish(struct nb_unit_file_writer **writer)
{
    if (*writer && nb_unit_file_finish(writer) != NB_OK)
        give_up(writer);
}
