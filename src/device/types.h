/* What every device agrees on: pointers, element types, profiles, the two structs in device memory that carry a step's changing
 * values, and a weight matrix as an op sees it. */
#ifndef NB_DEVICE_TYPES_H
#define NB_DEVICE_TYPES_H

#include <stdbool.h>
#include <stdint.h>

enum nb_dtype { NB_DTYPE_F32, NB_DTYPE_BF16, NB_DTYPE_U8, NB_DTYPE_I32 };

/* Bytes of one element. */
static inline uint64_t nb_dtype_bytes(enum nb_dtype dtype)
{
    return dtype == NB_DTYPE_U8 ? 1 : dtype == NB_DTYPE_BF16 ? 2 : 4;
}

/* An address in a device's memory. A type of its own, so that the host cannot dereference it by mistake; 0 is "none". */
typedef struct nb_dptr {
    uint64_t address;
} nb_dptr;

static inline nb_dptr nb_dptr_at(nb_dptr base, uint64_t offset_bytes)
{
    nb_dptr pointer = {base.address ? base.address + offset_bytes : 0};
    return pointer;
}

static inline bool nb_dptr_is_null(nb_dptr pointer)
{
    return pointer.address == 0;
}

/* To how many bytes a device's slabs, the buffers within them and scratch are aligned. */
enum { NB_ALIGNMENT = 256 };

/* `bytes` up to a multiple of it. */
static inline uint64_t nb_aligned(uint64_t bytes)
{
    return (bytes + NB_ALIGNMENT - 1) / NB_ALIGNMENT * NB_ALIGNMENT;
}

enum nb_device_kind { NB_DEVICE_CPU, NB_DEVICE_CUDA };

struct nb_product_table; /* device/cuda/plan.h */
struct nb_product_site;

/* What planning needs to know of a device, without the device (configs/devices/NAME.yml, or read off the running machine). */
struct nb_device_profile {
    char name[64];
    enum nb_device_kind kind;
    uint64_t memory_bytes;   /* all of it; where the runtime was asked, what it shows to programs */
    uint64_t reserved_bytes; /* of that, what the driver keeps from every program */
    uint64_t driver_bytes;   /* and what it takes for this one: context, code, libraries, graphs. Both are 0 on a CPU */
    int compute_capability; /* 80, 86, 89, 90, 120; 0 on a CPU */
    int multiprocessors;    /* threads on a CPU: the scratch of some ops grows with it */
    bool bf16;              /* multiplies bf16 in hardware */
    float bf16_tflops, memory_gb_per_s, link_gb_per_s;
    int cublaslt_version;   /* cublasLtGetVersion's number; 0: products run on nibble's own kernels alone */
    const struct nb_product_table *products; /* which path each matrix takes; NULL: the defaults. Must outlive the device; not owned */
};

/* Fixed tiles, in tokens, of every sum over tokens: partial sums over absolute tiles, added in order, so that neither chunking nor
 * the number of threads changes a bit. Chunks of tokens are whole tiles. */
enum { NB_TILE_TOKENS = 256 };

/* Elements to which every registered tensor is aligned, and the tile of the gradient norm's partial sums. */
enum { NB_TILE_ELEMENTS = 256 };

/* Values that change from step to step. Lives in device memory, 256-byte aligned; the host uploads the first part before a step,
 * ops write the second, the host reads it after the step. */
struct nb_step {
    uint32_t step;        /* 1 for the first optimizer step: the exponent of Adam's bias corrections */
    uint32_t random_step; /* counter word of dropout */
    float learning_rate;
    float max_grad_norm;  /* 0: no clipping */
    float inverse_count;  /* 1 / trained tokens of the whole step */
    uint32_t seed[2];     /* key of the dropout counters */
    uint32_t reserved;
    /* written by ops */
    double loss_sum;      /* by nb_loss_sum: over the step's trained tokens */
    float gradient_norm;  /* by nb_clip_scale: of gradient * inverse_count, before clipping */
    float clip_scale;     /* min(1, max_grad_norm / (gradient_norm + 1e-6)) */
    uint32_t finite;      /* 1 if loss_sum and gradient_norm are finite; the optimizer does nothing otherwise */
    uint32_t padding;
};

/* Values that change from micro-batch to micro-batch. One for each slot, in device memory. */
struct nb_slot {
    uint32_t tokens;       /* of this micro-batch: rows that are valid in every [tokens, ...] buffer */
    uint32_t sequences;    /* cu_seqlens holds sequences + 1 values */
    uint32_t trained_rows; /* tokens that carry a loss */
    uint32_t token_offset; /* index of this micro-batch's first token within the whole step: dropout counters use it */
    uint32_t key_tokens;   /* keys that attention sees; == tokens but with a KV cache */
    uint32_t cache_tokens; /* tokens already in the KV cache before this micro-batch */
    uint32_t sample_index; /* counter of nb_sample: tokens generated so far */
    uint32_t reserved;
};

/* How a weight matrix is stored. */
enum nb_weight_format { NB_WEIGHT_BF16, NB_WEIGHT_NF4, NB_WEIGHT_FP4 };

/* A matrix [rows, columns] = [out, in] as it lies in a weight unit; all pointers into the unit's slab, owned by the weight store.
 * bf16: only `data`. 4 bits: bitsandbytes' parts, as quant/matrix.h names them; nested: double quantization, where `absmax` is
 * U8 codes and the nested_ parts are set; otherwise `absmax` is F32. An op may multiply by a slice of rows of it (forward) or of
 * columns (dX); the codes are addressed by flat index, so a slice needs no copy. */
struct nb_weight {
    enum nb_weight_format format;
    enum nb_weight_format dequantized; /* bf16 that a 4-bit matrix was turned into: its format. Products with it give the bits of products
                                          with that matrix, where those multiply from scratch. NB_WEIGHT_BF16: none */
    bool nested;
    int rows, columns;
    nb_dptr data;
    nb_dptr absmax;
    nb_dptr nested_absmax; /* F32 [ceil(rows * columns / 16384)] */
    nb_dptr nested_map;    /* F32 [256] */
    nb_dptr nested_offset; /* F32 [1] */
    nb_dptr codebook;      /* F32 [16] */
};

/* Memory an op may use while it runs; at least what its scratch_bytes said, 256-byte aligned, contents undefined before and after. */
struct nb_scratch {
    nb_dptr base;
    uint64_t bytes;
};

#endif
