#include "train/host_slab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"

static const double mebibyte = 1024.0 * 1024.0;

enum { TEXT_BYTES = 512 };

/* ---- what is needed, and what there is ---- */

void nb_host_need_of(const struct nb_arena *pinned, const struct nb_arena *pageable, const struct nb_device *dry,
    struct nb_host_need *need)
{
    for (int c = 0; c < NB_CATEGORY_COUNT; c++)
        need->kept_bytes[c] = nb_arena_high_water_of(pinned, (enum nb_category)c);
    need->pageable_bytes = nb_arena_high_water(pageable);
    need->staging_bytes = nb_dry_device_counts(dry)->host_bytes_max;
}

static uint64_t kept_bytes(const struct nb_host_need *need)
{
    uint64_t sum = need->pageable_bytes;
    for (int c = 0; c < NB_CATEGORY_COUNT; c++)
        sum += need->kept_bytes[c];
    return sum;
}

/* Appends ", 12.5 MiB for moments"; `used` stays below the text's size. */
static void name_share(char text[TEXT_BYTES], size_t *used, uint64_t bytes, const char *what)
{
    if (bytes == 0 || *used >= TEXT_BYTES)
        return;
    *used += (size_t)snprintf(
        text + *used, TEXT_BYTES - *used, "%s%.1f MiB for %s", *used ? ", " : "", (double)bytes / mebibyte, what);
}

static void name_shares(const struct nb_host_need *need, uint64_t device_bytes, char text[TEXT_BYTES])
{
    size_t used = 0;
    text[0] = 0;
    name_share(text, &used, device_bytes, "the CPU device");
    for (int c = 0; c < NB_CATEGORY_COUNT; c++)
        name_share(text, &used, need->kept_bytes[c], nb_category_name((enum nb_category)c));
    name_share(text, &used, need->pageable_bytes, "the embedding");
    name_share(text, &used, need->staging_bytes, "batches and copies");
}

/* The settings that put less on the host, of those that put something there. */
static void name_remedies(const struct nb_run *run, char text[TEXT_BYTES])
{
    const struct {
        bool applies;
        const char *text;
    } remedies[] = {
        {run->model.streamed_blocks > 0, "a higher resident_layers"},
        {run->model.streamed_blocks > 0 && !run->model.streams_from_file, "weights_from: file"},
        {run->offloaded > 0, "activation_offloading: false"},
        {run->model.embedding_on_host, "embedding_device: device"},
        {run->adapter.paging.on, "a higher resident_optimizer_bytes, or an optimizer that is not paged"},
        {run->profile.kind == NB_DEVICE_CPU, "lower sequence_len, micro_batch_size or lora_r"},
    };
    size_t used = 0;
    for (size_t i = 0; i < sizeof remedies / sizeof *remedies; i++)
        if (remedies[i].applies && used < TEXT_BYTES)
            used += (size_t)snprintf(text + used, TEXT_BYTES - used, "%s%s", used ? "; " : "", remedies[i].text);
    if (used == 0)
        snprintf(text, TEXT_BYTES, "lower sequence_len or micro_batch_size");
}

/* Of the device's bytes those that are the host's. */
static uint64_t shared_bytes(const struct nb_run *run, uint64_t device_bytes)
{
    return run->profile.kind == NB_DEVICE_CPU ? device_bytes : 0;
}

bool nb_host_need_fits(const struct nb_run *run, const struct nb_host_need *need, uint64_t device_bytes)
{
    return shared_bytes(run, device_bytes) + kept_bytes(need) + need->staging_bytes <= run->host_available_bytes;
}

nb_status nb_host_need_check(const struct nb_run *run, const struct nb_host_need *need, uint64_t device_bytes)
{
    uint64_t shared = shared_bytes(run, device_bytes), bytes = shared + kept_bytes(need) + need->staging_bytes;
    if (nb_host_need_fits(run, need, device_bytes))
        return NB_OK;
    char shares[TEXT_BYTES], remedies[TEXT_BYTES];
    name_shares(need, shared, shares);
    name_remedies(run, remedies);
    return nb_fail(NB_MEMORY,
        "this needs %.1f MiB of the host's memory (%s), and %s leaves %.1f MiB; what takes less: %s",
        (double)bytes / mebibyte, shares,
        run->host_limit == NB_HOST_LIMIT_NONE ? "host_memory_budget" : nb_host_limit_name(run->host_limit),
        (double)run->host_available_bytes / mebibyte, remedies);
}

/* ---- pageable memory ---- */

/* Host to device in copies of 64 MiB to 1 GiB, 8.3 GB/s over a link that moves pinned memory at 12: one processor
 * copies them into the driver's own buffers first, so that no faster link helps. Measured by a user of
 * https://forums.developer.nvidia.com/t/how-to-understand-cpu-memory-transfer-data-to-gpu-memory-speed-problem/56270 */
float nb_host_pageable_rate(void)
{
    return 8.3f;
}

char *nb_host_slab_note(const struct nb_run *run, uint64_t bytes)
{
    if (run->config->pinned != NB_CONFIG_PINNED_FALSE || bytes == 0 || run->profile.kind == NB_DEVICE_CPU)
        return NULL;
    return nb_format(
        "pinned: false: %.1f MiB stand in pageable host memory: copies of it run at some %.3g GB/s, and not "
        "beside the arithmetic",
        (double)bytes / mebibyte, (double)nb_host_pageable_rate());
}

/* Writes to every page, by all threads: a kernel clears a gibibyte in a quarter of a second. */
static void touch(char *memory, uint64_t bytes)
{
    enum { CHUNK_BYTES = 2 << 20 };
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    int64_t chunks = (int64_t)((bytes + CHUNK_BYTES - 1) / CHUNK_BYTES);
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < chunks; c++) {
        uint64_t first = (uint64_t)c * CHUNK_BYTES, last = first + CHUNK_BYTES < bytes ? first + CHUNK_BYTES : bytes;
        for (uint64_t at = first; at < last; at += page)
            *(volatile char *)(memory + at) = 0;
    }
}

nb_status nb_host_slab_take_pageable(uint64_t bytes, struct nb_host_slab *slab)
{
    void *map =
        bytes <= SIZE_MAX ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (map == MAP_FAILED)
        return nb_fail(NB_MEMORY, "the machine has no %.1f MiB of memory for what the plan keeps off the device",
            (double)bytes / mebibyte);
    (void)madvise(map, bytes, MADV_HUGEPAGE);
    touch(map, bytes);
    *slab = (struct nb_host_slab){.memory = map, .bytes = bytes, .pageable = true};
    return NB_OK;
}

/* ---- pinned memory ---- */

/* Of a refusal, for both messages: how much was refused, why, and where the limit may lie. Locked memory's limit is
 * named where it is the smaller one, though NVIDIA's driver for Linux pins pages without asking for it
 * (os_lock_user_pages in its open kernel modules): others may. The reason stands as this thread's message. */
static char *describe_refusal(uint64_t bytes)
{
    enum nb_host_limit limit;
    char *why = nb_format("%s", nb_status_message()), locked[64] = "";
    uint64_t available = nb_host_memory_available(&limit), lockable = nb_host_memory_lockable();
    if (lockable < bytes)
        snprintf(locked, sizeof locked, ", `ulimit -l` %.1f MiB", (double)lockable / mebibyte);
    char *text =
        nb_format("%.1f MiB of pinned host memory, for what the plan keeps off the device, were refused: %s (%s "
                  "leaves %.1f MiB%s; driver and container may set less)",
            (double)bytes / mebibyte, why, nb_host_limit_name(limit), (double)available / mebibyte, locked);
    free(why);
    return text;
}

static nb_status explain_refusal(const struct nb_run *run, uint64_t bytes)
{
    char *refusal = describe_refusal(bytes), remedies[TEXT_BYTES];
    name_remedies(run, remedies);
    nb_fail(NB_MEMORY, "%s; pinned: auto does with pageable memory and slower copies, and what takes less: %s", refusal,
        remedies);
    free(refusal);
    return NB_MEMORY;
}

static nb_status fall_back(uint64_t bytes, struct nb_host_slab *slab)
{
    char *refusal = describe_refusal(bytes);
    nb_status status = nb_host_slab_take_pageable(bytes, slab);
    if (status == NB_OK)
        nb_warn("%s; pageable memory serves instead: copies run at some %.3g GB/s, however fast the link, and not "
                "beside the "
                "arithmetic",
            refusal, (double)nb_host_pageable_rate());
    free(refusal);
    return status;
}

nb_status nb_host_slab_take(
    const struct nb_run *run, struct nb_device *device, uint64_t bytes, struct nb_host_slab *slab)
{
    *slab = (struct nb_host_slab){0};
    if (bytes == 0)
        return NB_OK;
    if (run->config->pinned == NB_CONFIG_PINNED_FALSE)
        return nb_host_slab_take_pageable(bytes, slab);
    enum nb_host_memory kind = device->host_memory;
    device->host_memory = NB_HOST_PINNED; /* what is said of a refusal here says more */
    nb_status status = device->host_take(device, bytes, &slab->memory);
    device->host_memory = kind;
    if (status == NB_OK)
        slab->bytes = bytes;
    if (status != NB_MEMORY)
        return status;
    if (run->config->pinned != NB_CONFIG_PINNED_AUTO)
        return explain_refusal(run, bytes);
    device->host_memory = NB_HOST_PAGEABLE;
    return fall_back(bytes, slab);
}

void nb_host_slab_give_back(struct nb_device *device, struct nb_host_slab *slab)
{
    if (slab->memory && slab->pageable)
        munmap(slab->memory, slab->bytes);
    else if (slab->memory)
        device->host_give_back(device, slab->memory);
    *slab = (struct nb_host_slab){0};
}
