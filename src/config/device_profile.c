#include "config/device_profile.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/nearest.h"
#include "base/shipped.h"
#include "config/config_keys.h"
#include "config/config_yaml.h"
#include "device/cuda/driver_share.h"

enum { TEXT, WHOLE, NUMBER, CAPABILITY };

/* What a file says, as read; a key's value goes to its place here. */
struct device_file {
    const char *name;
    double memory_mib, reserved_mib, driver_mib, compute_capability, multiprocessors, bf16_tflops, memory_gb_per_s, link_gb_per_s,
        cublaslt_version;
};

static const struct device_key {
    const char *name;
    int type;
    bool optional;
    double minimum, maximum;
    size_t offset;
} keys[] = {
    {"name", TEXT, false, 1, sizeof((struct nb_device_profile *)0)->name - 1, offsetof(struct device_file, name)},
    {"memory_mib", WHOLE, false, 64, 1 << 24, offsetof(struct device_file, memory_mib)},
    {"reserved_mib", WHOLE, true, 0, 1 << 24, offsetof(struct device_file, reserved_mib)},
    {"driver_mib", WHOLE, true, 0, 1 << 24, offsetof(struct device_file, driver_mib)},
    {"compute_capability", CAPABILITY, false, 8.0, 99.9, offsetof(struct device_file, compute_capability)},
    {"multiprocessors", WHOLE, false, 1, 4096, offsetof(struct device_file, multiprocessors)},
    {"bf16_tflops", NUMBER, false, 0.1, 1e6, offsetof(struct device_file, bf16_tflops)},
    {"memory_gb_per_s", NUMBER, false, 1, 1e6, offsetof(struct device_file, memory_gb_per_s)},
    {"link_gb_per_s", NUMBER, false, 0.1, 1e5, offsetof(struct device_file, link_gb_per_s)},
    {"cublaslt_version", WHOLE, true, 0, 1e9, offsetof(struct device_file, cublaslt_version)},
};
enum { KEY_COUNT = sizeof keys / sizeof *keys };

static nb_status unknown_key(const struct nb_yaml_source *source, const struct nb_yaml_node *node)
{
    struct nb_nearest nearest = nb_nearest_start(node->key->text);
    for (size_t i = 0; i < KEY_COUNT; i++)
        nb_nearest_offer(&nearest, keys[i].name);
    const char *near = nb_nearest_found(&nearest);
    return nb_yaml_fail(source, node->key, NB_USAGE, "unknown key \"%.64s\"%s%s%s", node->key->text,
        near ? "; did you mean \"" : "", near ? near : "; configs/devices/README.md lists those of a device",
        near ? "\"?" : "");
}

/* "8.9", a digit after the point and no more: as NVIDIA writes it. */
static bool is_capability(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return digits >= 1 && digits <= 2 && text[digits] == '.' && text[digits + 1] >= '0' && text[digits + 1] <= '9' &&
           !text[digits + 2];
}

static nb_status read_value(const struct nb_yaml_source *source, const struct device_key *key,
    const struct nb_yaml_node *node, struct device_file *file)
{
    if (node->kind != NB_YAML_SCALAR || nb_yaml_is_null(node))
        return nb_yaml_fail(source, node, NB_USAGE, "%s: one value is expected", key->name);
    double value;
    int64_t whole;
    if (key->type == TEXT) {
        if (!node->text[0] || strlen(node->text) > (size_t)key->maximum)
            return nb_yaml_fail(source, node, NB_USAGE, "%s: 1 to %.0f bytes are expected", key->name, key->maximum);
        *(const char **)((char *)file + key->offset) = node->text;
        return NB_OK;
    }
    if (key->type == CAPABILITY && !is_capability(node->text))
        return nb_yaml_fail(source, node, NB_USAGE, "%s: \"%.60s\" is not of the form 8.9", key->name, node->text);
    if (!nb_read_float(node->text, &value) || (key->type == WHOLE && !nb_read_integer(node->text, &whole)))
        return nb_yaml_fail(source, node, NB_USAGE, "%s: \"%.60s\" is not a %s", key->name, node->text,
            key->type == WHOLE ? "whole number" : "number");
    if (!(value >= key->minimum && value <= key->maximum))
        return nb_yaml_fail(source, node, NB_USAGE,
            "%s: %.60s is out of range: it must be at least %.10g and at most %.10g", key->name, node->text,
            key->minimum, key->maximum);
    *(double *)((char *)file + key->offset) = value;
    return NB_OK;
}

static nb_status read_keys(
    const struct nb_yaml_source *source, const struct nb_yaml_node *root, struct device_file *file)
{
    bool given[KEY_COUNT] = {false};
    if (!root || root->kind != NB_YAML_MAPPING)
        return nb_yaml_fail(source, root, NB_USAGE, "lines of \"key: value\" are expected");
    for (const struct nb_yaml_node *node = root->first; node; node = node->next) {
        size_t i = 0;
        while (i < KEY_COUNT && strcmp(keys[i].name, node->key->text) != 0)
            i++;
        if (i == KEY_COUNT)
            return unknown_key(source, node);
        NB_TRY(read_value(source, &keys[i], node, file));
        given[i] = true;
    }
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (!given[i] && !keys[i].optional)
            return nb_yaml_fail(source, NULL, NB_USAGE, "the key \"%s\" is missing", keys[i].name);
    return NB_OK;
}

nb_status nb_device_profile_parse(const char *text, size_t bytes, const char *name, struct nb_device_profile *profile)
{
    struct nb_yaml_source source = {.name = name};
    struct device_file file = {.reserved_mib = -1, .driver_mib = -1, .cublaslt_version = NB_DEVICE_PROFILE_CUBLASLT};
    struct nb_yaml_node *root;
    NB_TRY(nb_yaml_parse(&source, text, bytes, &root));
    nb_status status = read_keys(&source, root, &file);
    if (status == NB_OK) {
        uint64_t memory = (uint64_t)file.memory_mib << 20;
        *profile = (struct nb_device_profile){
            .kind = NB_DEVICE_CUDA,
            .memory_bytes = memory,
            .reserved_bytes = file.reserved_mib < 0 ? nb_cuda_reserved_bytes(memory) : (uint64_t)file.reserved_mib << 20,
            .driver_bytes = file.driver_mib < 0 ? nb_cuda_driver_bytes((int)file.multiprocessors)
                                                : (uint64_t)file.driver_mib << 20,
            .compute_capability = (int)(file.compute_capability * 10 + 0.5),
            .multiprocessors = (int)file.multiprocessors,
            .bf16 = true, /* since 8.0 */
            .bf16_tflops = (float)file.bf16_tflops,
            .memory_gb_per_s = (float)file.memory_gb_per_s,
            .link_gb_per_s = (float)file.link_gb_per_s,
            .cublaslt_version = (int)file.cublaslt_version,
        };
        memcpy(profile->name, file.name, strlen(file.name)); /* its length was checked, the rest is zero */
    }
    nb_yaml_destroy(&root);
    return status;
}

nb_status nb_device_profile_read(const char *name, struct nb_device_profile *profile)
{
    char *path, *text = NULL;
    size_t bytes;
    NB_TRY(nb_shipped_file("devices", name, ".yml", &path));
    nb_status status = nb_file_read(path, NB_YAML_BYTES_MAX, false, &text, &bytes);
    if (status == NB_OK)
        status = nb_device_profile_parse(text, bytes, path, profile);
    free(text);
    free(path);
    return status;
}
