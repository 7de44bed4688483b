/* What the adapter's files share: the registry's inside. */
#ifndef NB_ADAPTER_REGISTRY_H
#define NB_ADAPTER_REGISTRY_H

#include "adapter/adapter.h"
#include "checkpoint/model_config.h"

/* The adapter of one linear: two trainables, A at `first` and B behind it. */
struct nb_adapter_module {
    int first;     /* index of A in the registry */
    uint64_t hash; /* nb_name_hash of the module's path: its identity in the dropout counters */
};

struct nb_adapter {
    struct nb_adapter_options options; /* target_modules points to `targets` */
    char **targets;
    struct nb_trainable *trainable;
    int trainables, trainable_capacity;
    uint64_t *moment_offset, *absmax_offset; /* of each trainable, in bytes of the slabs m and v, and m_absmax and v_absmax */
    uint64_t moment_bytes, absmax_bytes;
    uint64_t *record_offset; /* [trainables + 1] in bytes, as if all were paged */
    int resident;            /* the tensors that are not */
    unsigned char *pages;    /* record_offset[resident] stands here; NULL where nothing is paged */
    uint64_t elements, parameters;
    int layers;
    struct nb_adapter_module *module; /* [layers + 1][NB_TENSOR_ROLES]; first is -1 where there is none */
    struct nb_device *device;         /* from nb_adapter_allocate on; not owned */
    struct nb_adapter_memory memory;
};

/* The module of a place, or NULL. */
const struct nb_adapter_module *nb_adapter_module_at(const struct nb_adapter *adapter, int layer, enum nb_tensor_role role);

#endif
