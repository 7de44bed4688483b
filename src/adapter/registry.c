#include "adapter/registry.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"

enum { RANK_MAX = 1024, MOMENTS_8BIT_MIN = 4096, NAMES_BYTES = 512 };

/* A linear that could be a target. */
struct linear {
    struct nb_tensor_spec spec;
    int layer;
    const char *target;              /* last part of the path */
    char path[NB_TENSOR_NAME_BYTES]; /* "model.layers.0.self_attn.q_proj" */
};

/* As in PEFT: a target names a module by its whole path or by the end of it, whole parts only. */
static bool path_matches(const char *path, const char *target)
{
    size_t length = strlen(path), wanted = strlen(target);
    if (wanted > length || strcmp(path + length - wanted, target) != 0)
        return false;
    return wanted == length || path[length - wanted - 1] == '.';
}

/* The linears of a layer, or of the place behind the last one: the head, where it is not the embedding. */
static int linears_of(const struct nb_model_config *config, int layer, struct linear out[NB_TENSOR_LAYER_ROLES])
{
    struct nb_tensor_spec spec[NB_TENSOR_LAYER_ROLES];
    int count = 0;
    if (layer == config->layers) {
        if (!nb_family_outer_tensor(config, NB_TENSOR_HEAD, &spec[0]))
            return 0;
        out[0] = (struct linear){.spec = spec[0], .layer = layer, .target = "lm_head", .path = "lm_head"};
        return 1;
    }
    int tensors = nb_family_layer_tensors(config, spec);
    for (int i = 0; i < tensors; i++)
        if (spec[i].linear) {
            out[count] = (struct linear){.spec = spec[i], .layer = layer, .target = spec[i].tensor->target};
            nb_tensor_module(&spec[i], layer, out[count].path);
            count++;
        }
    return count;
}

/* "q_proj, k_proj, ...": what a user may name. */
static void name_linears(const struct nb_model_config *config, char out[NAMES_BYTES])
{
    struct linear linear[NB_TENSOR_LAYER_ROLES];
    size_t used = 0;
    out[0] = 0;
    for (int layer = 0; layer <= config->layers; layer += config->layers) {
        int count = linears_of(config, layer, linear);
        for (int i = 0; i < count && used < NAMES_BYTES; i++)
            used += (size_t)snprintf(out + used, NAMES_BYTES - used, "%s%s", used ? ", " : "", linear[i].target);
    }
}

static bool target_add(struct nb_adapter *adapter, const char *name)
{
    int count = adapter->options.target_module_count;
    for (int i = 0; i < count; i++)
        if (strcmp(adapter->targets[i], name) == 0)
            return true;
    char **grown = realloc(adapter->targets, ((size_t)count + 1) * sizeof *grown);
    if (!grown)
        return false;
    adapter->targets = grown;
    adapter->options.target_modules = (const char *const *)grown;
    if (!(grown[count] = strdup(name)))
        return false;
    adapter->options.target_module_count++;
    return true;
}

/* The targets that will be written to adapter_config.json: target_linear spelled out, as PEFT does with "all-linear". */
static nb_status collect_targets(
    struct nb_adapter *adapter, const struct nb_model_config *config, const struct nb_adapter_options *options)
{
    struct linear linear[NB_TENSOR_LAYER_ROLES];
    adapter->options.target_modules = NULL;
    adapter->options.target_module_count = 0;
    int count = options->target_linear ? linears_of(config, 0, linear) : 0;
    for (int i = 0; i < count; i++)
        if (!target_add(adapter, linear[i].target))
            return nb_fail(NB_MEMORY, "no memory for the adapter's targets");
    for (int i = 0; i < options->target_module_count; i++)
        if (!target_add(adapter, options->target_modules[i]))
            return nb_fail(NB_MEMORY, "no memory for the adapter's targets");
    if (adapter->options.target_module_count)
        return NB_OK;
    char names[NAMES_BYTES];
    name_linears(config, names);
    return nb_fail(
        NB_USAGE, "lora_target_modules: no module is named; set lora_target_linear: true, or name some of %s", names);
}

static nb_status check_options(const struct nb_adapter_options *options)
{
    if (options->rank < 1 || options->rank > RANK_MAX)
        return nb_fail(NB_USAGE, "lora_r: %d; an adapter's rank is 1 to %d", options->rank, RANK_MAX);
    if (!(options->dropout >= 0 && options->dropout < 1))
        return nb_fail(NB_USAGE, "lora_dropout: %g; it is at least 0 and less than 1", (double)options->dropout);
    if (!isfinite(options->alpha) || options->alpha == 0)
        return nb_fail(NB_USAGE, "lora_alpha: %g; with it the adapter would do nothing", (double)options->alpha);
    return NB_OK;
}

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static bool trainable_add(struct nb_adapter *adapter, const struct linear *linear, bool is_b)
{
    if (adapter->trainables == adapter->trainable_capacity) {
        int capacity = adapter->trainable_capacity ? 2 * adapter->trainable_capacity : 64;
        struct nb_trainable *grown = realloc(adapter->trainable, (size_t)capacity * sizeof *grown);
        if (!grown)
            return false;
        adapter->trainable = grown;
        adapter->trainable_capacity = capacity;
    }
    struct nb_trainable *t = &adapter->trainable[adapter->trainables++];
    *t = (struct nb_trainable){
        .layer = linear->layer,
        .role = linear->spec.role,
        .is_b = is_b,
        .rows = is_b ? (int)linear->spec.rows : adapter->options.rank,
        .columns = is_b ? adapter->options.rank : (int)linear->spec.columns,
        .offset = adapter->elements,
    };
    snprintf(t->name, sizeof t->name, "base_model.model.%s.lora_%c.weight", linear->path, is_b ? 'B' : 'A');
    t->count = (uint64_t)t->rows * (uint64_t)t->columns;
    t->moments_8bit = adapter->options.moments_8bit && t->count >= MOMENTS_8BIT_MIN;
    adapter->parameters += t->count;
    adapter->elements += round_up(t->count, NB_TILE_ELEMENTS);
    return true;
}

static nb_status collect_trainables(struct nb_adapter *adapter, const struct nb_model_config *config, bool *target_used)
{
    struct linear linear[NB_TENSOR_LAYER_ROLES];
    for (int layer = 0; layer <= config->layers; layer++) {
        int count = linears_of(config, layer, linear);
        for (int i = 0; i < count; i++) {
            bool wanted = false;
            for (int k = 0; k < adapter->options.target_module_count; k++)
                if (path_matches(linear[i].path, adapter->targets[k]))
                    wanted = target_used[k] = true;
            if (!wanted)
                continue;
            struct nb_adapter_module *module = &adapter->module[layer * NB_TENSOR_ROLES + linear[i].spec.role];
            *module = (struct nb_adapter_module){.first = adapter->trainables, .hash = nb_name_hash(linear[i].path)};
            if (!trainable_add(adapter, &linear[i], false) || !trainable_add(adapter, &linear[i], true))
                return nb_fail(NB_MEMORY, "no memory for the adapter's registry");
        }
    }
    for (int k = 0; k < adapter->options.target_module_count; k++)
        if (!target_used[k]) {
            char names[NAMES_BYTES];
            name_linears(config, names);
            return nb_fail(NB_USAGE, "lora_target_modules: %s: this %s model has no such linear; it has %s%s",
                adapter->targets[k], config->family->name, names,
                config->tied ? " (its head is the embedding, which takes no adapter)" : "");
        }
    return NB_OK;
}

struct nb_adapter_record nb_adapter_record_of(const struct nb_adapter *adapter, int trainable)
{
    const struct nb_trainable *t = &adapter->trainable[trainable];
    uint64_t padded = round_up(t->count, NB_TILE_ELEMENTS);
    uint64_t moment = t->moments_8bit ? padded : padded * sizeof(float);
    uint64_t scales = t->moments_8bit ? nb_aligned(padded / NB_TILE_ELEMENTS * sizeof(float)) : 0;
    struct nb_adapter_record record = {.m = padded * sizeof(float)};
    record.v = record.m + moment;
    record.m_absmax = record.v + moment;
    record.v_absmax = record.m_absmax + scales;
    record.bytes = record.v_absmax + scales;
    return record;
}

/* One record behind the other, and how many of them are left out because their tensors stay on the device. */
static nb_status lay_out_records(struct nb_adapter *adapter)
{
    const struct nb_adapter_paging *paging = &adapter->options.paging;
    if (!(adapter->record_offset = calloc((size_t)adapter->trainables + 1, sizeof *adapter->record_offset)))
        return nb_fail(NB_MEMORY, "no memory for the adapter's registry");
    for (int i = 0; i < adapter->trainables; i++)
        adapter->record_offset[i + 1] = adapter->record_offset[i] + nb_adapter_record_of(adapter, i).bytes;
    bool pages = adapter->options.trains && paging->on;
    while (adapter->resident < adapter->trainables &&
           (!pages || adapter->record_offset[adapter->resident + 1] <= paging->resident_bytes))
        adapter->resident++;
    return NB_OK;
}

/* Moments stand in slabs of their own, because 8-bit ones take a quarter of the space. */
static nb_status lay_out_moments(struct nb_adapter *adapter)
{
    adapter->moment_offset = calloc((size_t)adapter->trainables, sizeof *adapter->moment_offset);
    adapter->absmax_offset = calloc((size_t)adapter->trainables, sizeof *adapter->absmax_offset);
    if (!adapter->moment_offset || !adapter->absmax_offset)
        return nb_fail(NB_MEMORY, "no memory for the adapter's registry");
    for (int i = 0; i < adapter->trainables; i++) {
        const struct nb_trainable *t = &adapter->trainable[i];
        uint64_t padded = round_up(t->count, NB_TILE_ELEMENTS);
        adapter->moment_offset[i] = adapter->moment_bytes;
        adapter->absmax_offset[i] = adapter->absmax_bytes;
        adapter->moment_bytes += t->moments_8bit ? padded : padded * sizeof(float);
        if (t->moments_8bit)
            adapter->absmax_bytes += round_up(padded / NB_TILE_ELEMENTS * sizeof(float), 16);
    }
    return NB_OK;
}

nb_status nb_adapter_create(
    const struct nb_model_config *config, const struct nb_adapter_options *options, struct nb_adapter **adapter)
{
    *adapter = NULL;
    NB_TRY(check_options(options));
    struct nb_adapter *a = calloc(1, sizeof *a);
    if (!a)
        return nb_fail(NB_MEMORY, "no memory for the adapter");
    a->options = *options;
    a->layers = config->layers;
    size_t places = ((size_t)config->layers + 1) * NB_TENSOR_ROLES;
    bool *used = NULL;
    nb_status status = collect_targets(a, config, options);
    if (status == NB_OK) {
        a->module = malloc(places * sizeof *a->module);
        used = calloc((size_t)a->options.target_module_count, sizeof *used);
        if (!a->module || !used)
            status = nb_fail(NB_MEMORY, "no memory for the adapter's registry");
    }
    if (status == NB_OK) {
        for (size_t i = 0; i < places; i++)
            a->module[i].first = -1;
        status = collect_trainables(a, config, used);
    }
    if (status == NB_OK)
        status = lay_out_moments(a);
    if (status == NB_OK)
        status = lay_out_records(a);
    free(used);
    if (status != NB_OK)
        nb_adapter_destroy(&a);
    *adapter = a;
    return status;
}

void nb_adapter_destroy(struct nb_adapter **adapter)
{
    struct nb_adapter *a = *adapter;
    if (!a)
        return;
    for (int i = 0; i < a->options.target_module_count; i++)
        free(a->targets[i]);
    free(a->targets);
    free(a->trainable);
    free(a->moment_offset);
    free(a->absmax_offset);
    free(a->record_offset);
    free(a->module);
    free(a);
    *adapter = NULL;
}

const struct nb_adapter_options *nb_adapter_options_of(const struct nb_adapter *adapter)
{
    return &adapter->options;
}

int nb_adapter_trainable_count(const struct nb_adapter *adapter)
{
    return adapter->trainables;
}

const struct nb_trainable *nb_adapter_trainable(const struct nb_adapter *adapter, int index)
{
    return &adapter->trainable[index];
}

uint64_t nb_adapter_elements(const struct nb_adapter *adapter)
{
    return adapter->elements;
}

uint64_t nb_adapter_parameters(const struct nb_adapter *adapter)
{
    return adapter->parameters;
}

const struct nb_adapter_memory *nb_adapter_memory_of(const struct nb_adapter *adapter)
{
    return &adapter->memory;
}

int nb_adapter_resident(const struct nb_adapter *adapter)
{
    return adapter->resident;
}

uint64_t nb_adapter_paged_bytes(const struct nb_adapter *adapter)
{
    return adapter->record_offset[adapter->trainables] - adapter->record_offset[adapter->resident];
}

unsigned char *nb_adapter_page(const struct nb_adapter *adapter, int trainable)
{
    if (trainable < adapter->resident)
        return NULL;
    return adapter->pages + (adapter->record_offset[trainable] - adapter->record_offset[adapter->resident]);
}

const struct nb_adapter_module *nb_adapter_module_at(
    const struct nb_adapter *adapter, int layer, enum nb_tensor_role role)
{
    if (!adapter || layer < 0 || layer > adapter->layers)
        return NULL;
    const struct nb_adapter_module *module = &adapter->module[layer * NB_TENSOR_ROLES + (int)role];
    return module->first < 0 ? NULL : module;
}

int nb_adapter_rank(const struct nb_adapter *adapter, int layer, enum nb_tensor_role role)
{
    return nb_adapter_module_at(adapter, layer, role) ? adapter->options.rank : 0;
}

void nb_adapter_bind_adamw(const struct nb_adapter *adapter, int trainable, struct nb_adamw *args)
{
    const struct nb_trainable *t = &adapter->trainable[trainable];
    const struct nb_adapter_memory *memory = &adapter->memory;
    uint64_t moment = adapter->moment_offset[trainable], absmax = adapter->absmax_offset[trainable];
    bool codes = t->moments_8bit, resident = trainable < adapter->resident;
    args->gradient = nb_dptr_at(memory->gradient, t->offset * sizeof(float));
    args->copy = nb_dptr_at(memory->copy, t->offset * nb_dtype_bytes(adapter->options.activation));
    args->copy_dtype = adapter->options.activation;
    args->master = resident ? nb_dptr_at(memory->master, t->offset * sizeof(float)) : (nb_dptr){0};
    args->m = resident ? nb_dptr_at(memory->m, moment) : (nb_dptr){0};
    args->v = resident ? nb_dptr_at(memory->v, moment) : (nb_dptr){0};
    args->m_absmax = resident && codes ? nb_dptr_at(memory->m_absmax, absmax) : (nb_dptr){0};
    args->v_absmax = resident && codes ? nb_dptr_at(memory->v_absmax, absmax) : (nb_dptr){0};
    args->m_map = codes ? memory->m_map : (nb_dptr){0};
    args->v_map = codes ? memory->v_map : (nb_dptr){0};
    args->moments_8bit = codes;
    args->count = t->count;
}

void nb_adapter_bind_page(const struct nb_adapter *adapter, int trainable, nb_dptr record, struct nb_adamw *args)
{
    struct nb_adapter_record part = nb_adapter_record_of(adapter, trainable);
    bool codes = adapter->trainable[trainable].moments_8bit;
    args->master = nb_dptr_at(record, part.master);
    args->m = nb_dptr_at(record, part.m);
    args->v = nb_dptr_at(record, part.v);
    args->m_absmax = codes ? nb_dptr_at(record, part.m_absmax) : (nb_dptr){0};
    args->v_absmax = codes ? nb_dptr_at(record, part.v_absmax) : (nb_dptr){0};
}

void nb_adapter_bind_lora(const struct nb_adapter *adapter, int layer, enum nb_tensor_role role, struct nb_lora *lora)
{
    const struct nb_adapter_module *module = nb_adapter_module_at(adapter, layer, role);
    nb_dptr t = lora->t;
    *lora = (struct nb_lora){.t = t};
    if (!module)
        return;
    const struct nb_trainable *a = &adapter->trainable[module->first], *b = a + 1;
    const struct nb_adapter_memory *memory = &adapter->memory;
    uint64_t bytes = nb_dtype_bytes(adapter->options.activation);
    float rank = (float)adapter->options.rank;
    lora->a = nb_dptr_at(memory->copy, a->offset * bytes);
    lora->b = nb_dptr_at(memory->copy, b->offset * bytes);
    lora->da = nb_dptr_at(memory->gradient, a->offset * sizeof(float));
    lora->db = nb_dptr_at(memory->gradient, b->offset * sizeof(float));
    lora->rank = adapter->options.rank;
    lora->scale = adapter->options.alpha / (adapter->options.rank_stabilized ? sqrtf(rank) : rank);
    lora->dropout = adapter->options.trains ? adapter->options.dropout : 0;
    lora->module = module->hash;
}
