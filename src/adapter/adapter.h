/* The trainable side of a model: a registry of named tensors, and LoRA as the modules that use them.
 *
 * Registry: every trainable tensor has a name, a layer and a count; the tensors of a layer stand one after the other, each at a
 * multiple of NB_TILE_ELEMENTS elements, in one flat slab a layer; and the slabs of all layers one after the other, in one element
 * order that the fp32 masters, fp32 gradients, moments and the compute copies share. An element's index is the same in all of them.
 *
 * Paging: masters and moments, which the update alone reads, may live in pinned host memory instead, all but those of the first
 * tensors: a record a tensor, one behind the other in the registry's order. Gradients and compute copies stay on the device. */
#ifndef NB_ADAPTER_ADAPTER_H
#define NB_ADAPTER_ADAPTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "checkpoint/family.h"
#include "device/device.h"

struct nb_model_config;

enum { NB_TRAINABLE_NAME_BYTES = 192 };

/* One trainable tensor. `name` is PEFT's, e.g. "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight". */
struct nb_trainable {
    char name[NB_TRAINABLE_NAME_BYTES];
    int layer;               /* block; the number of blocks for the head */
    enum nb_tensor_role role;
    bool is_b;               /* lora_B [out, rank], else lora_A [rank, in] */
    int rows, columns;
    uint64_t offset, count;  /* elements in the flat order; offset is a multiple of NB_TILE_ELEMENTS */
    bool moments_8bit;       /* 8-bit optimizer and count >= 4096, as bitsandbytes */
};

/* Where masters and moments live. */
struct nb_adapter_paging {
    bool on;
    uint64_t resident_bytes; /* the first tensors stay on the device, as long as their records are not more than this */
};

/* What an adapter is made of. Strings and lists are not owned and only read during the call. */
struct nb_adapter_options {
    const char *const *target_modules; /* "q_proj", ...; also a module's whole path */
    int target_module_count;
    bool target_linear;      /* every linear of the blocks (not the head), besides target_modules */
    int rank;
    float alpha, dropout;
    bool rank_stabilized;    /* scale alpha / sqrt(rank) instead of alpha / rank (rsLoRA) */
    bool moments_8bit;
    enum nb_dtype activation; /* of the compute copies */
    bool trains;             /* masters, gradients and moments as well; else compute copies alone */
    struct nb_adapter_paging paging; /* of what trains */
    uint64_t seed;           /* of A's initial values */
};

struct nb_adapter;

/* Builds the registry for a model. Touches no memory but its own. Errors: NB_USAGE for a target that names no linear of the model
 * (listing those it has), for a rank out of range, and for no target. */
nb_status nb_adapter_create(const struct nb_model_config *config, const struct nb_adapter_options *options, struct nb_adapter **adapter);
void nb_adapter_destroy(struct nb_adapter **adapter);

const struct nb_adapter_options *nb_adapter_options_of(const struct nb_adapter *adapter); /* its target list is owned here */
int nb_adapter_trainable_count(const struct nb_adapter *adapter);
const struct nb_trainable *nb_adapter_trainable(const struct nb_adapter *adapter, int index);
uint64_t nb_adapter_elements(const struct nb_adapter *adapter);   /* of the flat order, padding included */
uint64_t nb_adapter_parameters(const struct nb_adapter *adapter); /* without padding: what users call trainable parameters */

/* Sets one tensor's values, which the caller has put into `staging` as fp32 [rows, columns]: the compute copy, and where it trains
 * the master, on the device or in its record. Waits for the stream, so that the staging is free again; what it held may be
 * lost. On a dry device nothing of the staging, nor of a record, is touched. */
nb_status nb_adapter_put(struct nb_adapter *adapter, struct nb_stream *stream, void *staging, int trainable);

/* Takes copies, and if it trains masters, gradients and moments, from the arena, the records of what is paged from `pinned` (host
 * memory; may be NULL without paging); and enqueues their initial values: A uniform in
 * +-1/sqrt(in) (PEFT's kaiming-uniform with a = sqrt(5)), a function of (seed, tensor name, element); B, gradients and moments zero;
 * padding zero. On a dry device nothing is computed. `staging` is host memory from device->host_take of at least
 * nb_adapter_staging_bytes; the stream has passed it on return. */
uint64_t nb_adapter_staging_bytes(const struct nb_adapter *adapter);
nb_status nb_adapter_allocate(struct nb_adapter *adapter, struct nb_device *device, struct nb_arena *arena, struct nb_arena *pinned);
nb_status nb_adapter_initialize(struct nb_adapter *adapter, struct nb_stream *stream, void *staging);

/* Device addresses of the flat slabs; valid after nb_adapter_allocate; null where it does not train. Of masters, moments and scales
 * those of the first nb_adapter_resident tensors. */
struct nb_adapter_memory {
    nb_dptr copy;                /* [elements] activation dtype */
    nb_dptr master;              /* [elements of the resident tensors] fp32 */
    nb_dptr gradient;            /* [elements] fp32 */
    nb_dptr m, v;                /* each tensor's fp32 values or U8 codes, one after the other: ask nb_adapter_bind_adamw */
    nb_dptr m_absmax, v_absmax;  /* fp32 scales of the 8-bit ones, the same */
    nb_dptr m_map, v_map;        /* fp32 [256] each; null without 8-bit moments */
};
const struct nb_adapter_memory *nb_adapter_memory_of(const struct nb_adapter *adapter);

/* How many tensors, from the first on, have master and moments in device memory: all without paging. */
int nb_adapter_resident(const struct nb_adapter *adapter);

/* A paged tensor's record: offsets of its parts in bytes, and its size; all multiples of NB_ALIGNMENT. */
struct nb_adapter_record {
    uint64_t master, m, v, m_absmax, v_absmax, bytes; /* without 8-bit moments the scales take nothing */
};
struct nb_adapter_record nb_adapter_record_of(const struct nb_adapter *adapter, int trainable);

/* The record itself, in host memory, aligned as its parts are; the next tensor's follows at once. NULL for a resident tensor. On a
 * dry device an address that must not be touched. Copies to and from the device have to have passed before the host reads. */
unsigned char *nb_adapter_page(const struct nb_adapter *adapter, int trainable);

/* Bytes of all records: 0 where nothing is paged. */
uint64_t nb_adapter_paged_bytes(const struct nb_adapter *adapter);

/* Fills the moments' addresses and format of one tensor into an nb_adamw (m, v, m_absmax, v_absmax, m_map, v_map, moments_8bit,
 * count, master, gradient, copy, copy_dtype); step and hyperparameters are the caller's. Of a paged tensor master, m, v and their
 * scales are null: nb_adapter_bind_page says where its record is on the device at present. */
void nb_adapter_bind_adamw(const struct nb_adapter *adapter, int trainable, struct nb_adamw *args);
void nb_adapter_bind_page(const struct nb_adapter *adapter, int trainable, nb_dptr record, struct nb_adamw *args);

/* Fills a module's a, b, da, db, rank, scale, dropout and module hash; t is the caller's. All null when the module has no adapter
 * or `adapter` is NULL. layer = number of blocks and role = NB_TENSOR_HEAD for the head. da, db are null when it does not train. */
void nb_adapter_bind_lora(const struct nb_adapter *adapter, int layer, enum nb_tensor_role role, struct nb_lora *lora);

/* Rank of a module's adapter, 0 for none: sizes of t. */
int nb_adapter_rank(const struct nb_adapter *adapter, int layer, enum nb_tensor_role role);

#endif
