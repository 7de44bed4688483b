#include "train/product_table.h"

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { FILE_BYTES_MAX = 4 << 20, CHOICES_MAX = 1 << 16 };

/* A table and its lines, in one piece of memory. */
static struct nb_product_table *allocate(int count)
{
    struct nb_product_table *table = calloc(1, sizeof *table + (size_t)count * sizeof *table->choice);
    if (table)
        table->choice = (const struct nb_product_choice *)(table + 1);
    return table;
}

static struct nb_product_choice *lines_of(struct nb_product_table *table)
{
    return (struct nb_product_choice *)(table + 1);
}

nb_status nb_product_table_record(const struct nb_device_profile *profile, const struct nb_product_site *sites, int count,
    struct nb_product_table **table)
{
    struct nb_product_table *t = allocate(count);
    *table = t;
    if (!t)
        return nb_fail(NB_MEMORY, "no memory for a table of %d products", count);
    snprintf(t->device, sizeof t->device, "%s", profile->name);
    t->cublaslt_version = profile->cublaslt_version;
    for (int i = 0; i < count; i++)
        if (sites[i].format != NB_WEIGHT_BF16)
            lines_of(t)[t->count++] = (struct nb_product_choice){sites[i].out, sites[i].in, sites[i].tokens,
                sites[i].backward, nb_product_path_of(profile, &sites[i])};
    return NB_OK;
}

/* ---- reading ---- */

static bool is_count(json_int_t value)
{
    return value > 0 && value <= INT32_MAX;
}

static nb_status read_choice(const char *path, int index, json_t *entry, struct nb_product_choice *choice)
{
    json_int_t out, in, tokens;
    int backward;
    const char *name;
    json_error_t error;
    if (json_unpack_ex(entry, &error, JSON_STRICT, "{s:I, s:I, s:I, s:b, s:s}", "out", &out, "in", &in, "tokens", &tokens,
            "backward", &backward, "path", &name) != 0)
        return nb_fail(NB_FORMAT, "%s: products, entry %d: %s", path, index + 1, error.text);
    if (!is_count(out) || !is_count(in) || !is_count(tokens))
        return nb_fail(NB_FORMAT, "%s: products, entry %d: out, in and tokens are positive whole numbers", path, index + 1);
    *choice = (struct nb_product_choice){(int)out, (int)in, (int)tokens, backward != 0, NB_PRODUCT_FUSED};
    if (!nb_product_path_parse(name, &choice->path))
        return nb_fail(
            NB_FORMAT, "%s: products, entry %d: path is fused, scratch or overlapped, not \"%s\"", path, index + 1, name);
    return NB_OK;
}

static nb_status read_table(const char *path, json_t *root, struct nb_product_table **table)
{
    const char *device;
    int version;
    json_t *list;
    json_error_t error;
    if (json_unpack_ex(root, &error, JSON_STRICT, "{s:s, s:i, s:o}", "device", &device, "cublaslt", &version, "products", &list) != 0)
        return nb_fail(NB_FORMAT, "%s: %s", path, error.text);
    if (!json_is_array(list) || json_array_size(list) > CHOICES_MAX)
        return nb_fail(NB_FORMAT, "%s: products is no list of at most %d entries", path, CHOICES_MAX);
    struct nb_product_table *t = allocate((int)json_array_size(list));
    *table = t;
    if (!t)
        return nb_fail(NB_MEMORY, "%s: no memory for its table", path);
    snprintf(t->device, sizeof t->device, "%s", device);
    t->cublaslt_version = version;
    for (; t->count < (int)json_array_size(list); t->count++)
        NB_TRY(read_choice(path, t->count, json_array_get(list, (size_t)t->count), &lines_of(t)[t->count]));
    return NB_OK;
}

nb_status nb_product_table_read(const char *path, struct nb_product_table **table)
{
    char *text = NULL;
    size_t bytes;
    json_error_t error;
    *table = NULL;
    NB_TRY(nb_file_read(path, FILE_BYTES_MAX, false, &text, &bytes));
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!root)
        return nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", path, error.line, error.column, error.text);
    nb_status status = read_table(path, root, table);
    json_decref(root);
    if (status != NB_OK)
        nb_product_table_destroy(table);
    return status;
}

/* ---- writing ---- */

nb_status nb_product_table_write(const char *path, const struct nb_product_table *table)
{
    json_t *list = json_array();
    for (int i = 0; i < table->count; i++) {
        const struct nb_product_choice *c = &table->choice[i];
        json_array_append_new(list, json_pack("{s:i, s:i, s:i, s:b, s:s}", "out", c->out, "in", c->in, "tokens", c->tokens,
                                        "backward", (int)c->backward, "path", nb_product_path_name(c->path)));
    }
    json_t *root = json_pack("{s:s, s:i, s:o}", "device", table->device, "cublaslt", table->cublaslt_version, "products", list);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text)
        return nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    nb_status status = nb_file_write(path, text, strlen(text));
    free(text);
    return status;
}

char *nb_product_table_user_path(const struct nb_device_profile *profile)
{
    const char *configuration = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    char name[sizeof profile->name];
    snprintf(name, sizeof name, "%s", profile->name);
    for (char *c = name; *c; c++)
        *c = isalnum((unsigned char)*c) ? *c : '-';
    if (configuration && *configuration)
        return nb_format("%s/nibble/products-%s-%d.json", configuration, name, profile->cublaslt_version);
    return home && *home ? nb_format("%s/.config/nibble/products-%s-%d.json", home, name, profile->cublaslt_version) : NULL;
}

void nb_product_table_destroy(struct nb_product_table **table)
{
    free(*table);
    *table = NULL;
}
