#include "train/device.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/threads.h"
#include "device/cuda/cuda.h"
#include "train/host_slab.h"
#include "train/product_table.h"

/* What the user measured on this machine, if anything. */
static nb_status read_user_table(struct nb_run *run)
{
    char *path = nb_product_table_user_path(&run->profile);
    nb_status status = path && nb_path_exists(path) ? nb_product_table_read(path, &run->products) : NB_OK;
    free(path);
    run->profile.products = run->products;
    return status;
}

/* What may be taken of `bytes`: no more than the config allows. */
static uint64_t within_budget(const struct nb_run *run, uint64_t bytes)
{
    int64_t budget = run->config->memory_budget;
    return budget >= 0 && (uint64_t)budget < bytes ? (uint64_t)budget : bytes;
}

/* What may be taken of this machine's memory at the moment; of an assumed device's, all that the config allows. */
static void measure_host(struct nb_run *run, bool is_here)
{
    int64_t budget = run->config->host_memory_budget;
    uint64_t allowed = budget >= 0 ? (uint64_t)budget : UINT64_MAX;
    run->host_limit = NB_HOST_LIMIT_NONE;
    run->host_available_bytes = is_here ? nb_host_memory_available(&run->host_limit) : UINT64_MAX;
    if (allowed <= run->host_available_bytes) {
        run->host_available_bytes = allowed;
        run->host_limit = NB_HOST_LIMIT_NONE;
    }
}

/* The arena's and the driver's parts of what a run may take of a device from which `own` bytes are the driver's for it. `free` is what is
 * left beside them. */
static void share_memory(struct nb_run *run, uint64_t own, uint64_t free)
{
    uint64_t allowed = within_budget(run, own + free);
    run->available_bytes = allowed > own ? allowed - own : 0;
    run->driver_bytes = within_budget(run, run->profile.reserved_bytes + own + free) - run->available_bytes;
}

/* For the GPU that run->profile describes. */
static nb_status use_cuda(struct nb_run *run)
{
    if (run->config->bf16 == NB_CONFIG_BF16_FALSE)
        return nb_fail(NB_USAGE,
            "bf16: false: %s computes in bf16 alone; remove the key, or set device: cpu for fp32", run->profile.name);
    run->model.activation = NB_DTYPE_BF16;
    if (run->config->pinned == NB_CONFIG_PINNED_FALSE && run->profile.link_gb_per_s > nb_host_pageable_rate())
        run->profile.link_gb_per_s = nb_host_pageable_rate();
    const struct nb_device_profile *p = &run->profile;
    uint64_t lost = p->reserved_bytes + p->driver_bytes;
    share_memory(run, p->driver_bytes, p->memory_bytes > lost ? p->memory_bytes - lost : 0);
    return read_user_table(run);
}

static nb_status choose_cuda(struct nb_run *run)
{
    const struct nb_cuda_options options = {0};
    NB_TRY(nb_cuda_probe(&options, &run->profile));
    return use_cuda(run);
}

nb_status nb_run_assume_device(struct nb_run *run, const struct nb_device_profile *profile)
{
    run->profile = *profile;
    measure_host(run, false);
    return use_cuda(run);
}

static void choose_cpu(struct nb_run *run)
{
    run->cpu = (struct nb_cpu_options){.threads = (int)run->config->threads};
    nb_threads_set_default(run->cpu.threads);
    nb_cpu_profile(&run->cpu, &run->profile);
    bool bf16 =
        run->config->bf16 == NB_CONFIG_BF16_TRUE || (run->config->bf16 == NB_CONFIG_BF16_AUTO && run->profile.bf16);
    run->model.activation = bf16 ? NB_DTYPE_BF16 : NB_DTYPE_F32;
    share_memory(run, 0, run->profile.memory_bytes);
}

nb_status nb_run_choose_device(struct nb_run *run)
{
    enum nb_config_device wanted = run->config->device;
    measure_host(run, true);
    if (wanted == NB_CONFIG_DEVICE_CUDA)
        return choose_cuda(run);
    /* fp32 is what the CPU alone can do, so asking for it is asking for the CPU. */
    if (wanted == NB_CONFIG_DEVICE_AUTO && nb_cuda_built() && run->config->bf16 != NB_CONFIG_BF16_FALSE) {
        nb_status status = choose_cuda(run);
        if (status != NB_UNSUPPORTED)
            return status;
        if (!(run->device_note = strdup(nb_status_message())))
            return nb_fail(NB_MEMORY, "no memory for a message");
    }
    choose_cpu(run);
    return NB_OK;
}

static enum nb_host_memory host_memory_of(enum nb_config_pinned pinned)
{
    return pinned == NB_CONFIG_PINNED_TRUE    ? NB_HOST_PINNED
           : pinned == NB_CONFIG_PINNED_FALSE ? NB_HOST_PAGEABLE
                                              : NB_HOST_PINNED_IF_GRANTED;
}

static nb_status open_cuda(struct nb_run *run, bool own_products, const struct nb_product_site *sites, int count)
{
    const struct nb_cuda_options options = {.own_products = own_products, .products = run->products};
    NB_TRY(nb_cuda_device_create(&options, &run->device));
    run->device->host_memory = host_memory_of(run->config->pinned);
    NB_TRY(nb_device_require_all(run->device));
    return run->device->prepare(run->device, sites, count);
}

nb_status nb_run_open_device(struct nb_run *run, const struct nb_product_site *sites, int count)
{
    if (run->device)
        return NB_OK;
    if (run->profile.kind == NB_DEVICE_CPU) {
        measure_host(run, true);
        return nb_cpu_device_create(&run->cpu, &run->device);
    }
    nb_status status = open_cuda(run, false, sites, count);
    if (status == NB_UNSUPPORTED && run->device && run->profile.cublaslt_version != 0) {
        nb_warn("%s; products run on nibble's own kernels instead", nb_status_message());
        nb_device_destroy(&run->device);
        run->profile.cublaslt_version = 0;
        status = open_cuda(run, true, sites, count);
    }
    NB_TRY(status);
    measure_host(run, true); /* the driver took some of it */
    uint64_t available;
    NB_TRY(run->device->memory_available(run->device, &available));
    run->free_bytes = available;
    /* The driver's own share, taken by now, counts as the run's; what is gone beyond that share is other programs'. */
    uint64_t taken = run->profile.memory_bytes > available ? run->profile.memory_bytes - available : 0;
    share_memory(run, taken < run->profile.driver_bytes ? taken : run->profile.driver_bytes, available);
    return NB_OK;
}

nb_status nb_run_take_products(struct nb_run *run, const char *path)
{
    struct nb_product_table *recorded = NULL;
    if (run->profile.kind == NB_DEVICE_CPU)
        return NB_OK;
    NB_TRY(nb_product_table_read(path, &recorded));
    if (strcmp(recorded->device, run->profile.name) != 0 || recorded->cublaslt_version != run->profile.cublaslt_version) {
        nb_warn("%s: this run began on %s with cuBLASLt %d and goes on with %s and %d: its sums may differ in the last bits",
            path, recorded->device, recorded->cublaslt_version, run->profile.name, run->profile.cublaslt_version);
        nb_product_table_destroy(&recorded);
        return NB_OK;
    }
    nb_product_table_destroy(&run->products);
    run->products = recorded;
    run->profile.products = recorded;
    return NB_OK;
}
