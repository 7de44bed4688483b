/* Memory and copies of the emulated runtime. */
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "emulator/runtime.h"

using namespace nb_runtime;

enum { GAP = 512 }; /* bytes of no allocation behind each */

void nb_runtime::set_access(bool open)
{
    for (auto &[address, a] : the_machine().device)
        mprotect(a.map + PAGE, a.map_bytes - 2 * PAGE, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

/* What neither this process nor another has taken. */
static size_t free_bytes()
{
    const machine &m = the_machine();
    size_t taken = m.used_bytes + m.gpu.others_bytes;
    return m.gpu.memory_bytes - std::min(taken, m.gpu.memory_bytes);
}

/* Aligned to 256 bytes and, on the device, to no more, so that nobody counts on more. */
static bool map_memory(size_t bytes, bool device, allocation *a, uintptr_t *address)
{
    size_t shift = device ? 256 * (1 + 2 * draw(8)) : 0;
    a->bytes = bytes;
    a->map_bytes = (bytes + shift + GAP + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
    void *map = mmap(nullptr, a->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return false;
    a->map = (unsigned char *)map;
    *address = (uintptr_t)map + PAGE + shift;
    mprotect(a->map + PAGE, a->map_bytes - 2 * PAGE, PROT_READ | PROT_WRITE);
    if (device)
        memset((void *)*address, 0xff, bytes); /* NaN in every dtype */
    nb_emulator_memory_add((void *)*address, bytes, device);
    if (device)
        mprotect(a->map + PAGE, a->map_bytes - 2 * PAGE, PROT_NONE);
    return true;
}

static void unmap_memory(std::map<uintptr_t, allocation> &from, std::map<uintptr_t, allocation>::iterator at)
{
    mprotect(at->second.map + PAGE, at->second.map_bytes - 2 * PAGE, PROT_READ | PROT_WRITE);
    nb_emulator_memory_remove((void *)at->first);
    munmap(at->second.map, at->second.map_bytes);
    from.erase(at);
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    ENTER_OUTSIDE_CAPTURE();
    machine &m = the_machine();
    allocation a;
    uintptr_t address;
    *memory = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    if (bytes > free_bytes() || !map_memory(bytes, true, &a, &address))
        return fail(cudaErrorMemoryAllocation);
    m.device[address] = a;
    m.used_bytes += bytes;
    *memory = (void *)address;
    return cudaSuccess;
}

/* Gives the memory back even after a fault, when nothing else works. */
cudaError_t cudaFree(void *memory)
{
    machine &m = the_machine();
    if (!memory)
        return cudaSuccess;
    cudaError_t error = enter(__func__);
    if (error == cudaSuccess)
        error = run_all(); /* the real one waits for the device, too */
    auto at = m.device.find((uintptr_t)memory);
    if (at == m.device.end())
        return fail(cudaErrorInvalidValue);
    m.used_bytes -= at->second.bytes;
    unmap_memory(m.device, at);
    return error;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
    ENTER_OUTSIDE_CAPTURE();
    allocation a;
    uintptr_t address;
    *memory = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    machine &m = the_machine();
    if (bytes > m.gpu.pinned_bytes - std::min(m.pinned_bytes, m.gpu.pinned_bytes) || !map_memory(bytes, false, &a, &address))
        return fail(cudaErrorMemoryAllocation);
    m.pinned[address] = a;
    m.pinned_bytes += bytes;
    *memory = (void *)address;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    machine &m = the_machine();
    if (!memory)
        return cudaSuccess;
    cudaError_t error = enter(__func__);
    if (error == cudaSuccess)
        error = run_all();
    auto at = m.pinned.find((uintptr_t)memory);
    if (at == m.pinned.end())
        return fail(cudaErrorInvalidValue);
    m.pinned_bytes -= at->second.bytes;
    unmap_memory(m.pinned, at);
    return error;
}

bool nb_runtime::is_within(const std::map<uintptr_t, allocation> &allocations, const void *memory)
{
    auto after = allocations.upper_bound((uintptr_t)memory);
    if (after == allocations.begin())
        return false;
    --after;
    return (uintptr_t)memory < after->first + after->second.bytes;
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    ENTER();
    *device = host;
    return is_within(the_machine().pinned, host) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    ENTER();
    const machine &m = the_machine();
    *total = m.gpu.memory_bytes;
    *available = free_bytes();
    return cudaSuccess;
}

static cudaError_t enqueue_upload(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    bool pinned = is_within(the_machine().pinned, from);
    if (!pinned && stream->capture)
        return stream->capture->invalid = true, fail(cudaErrorStreamCaptureUnsupported);
    std::shared_ptr<std::vector<unsigned char>> staged;
    if (!pinned)
        staged = std::make_shared<std::vector<unsigned char>>((const unsigned char *)from, (const unsigned char *)from + bytes);
    return nb_emulator_enqueue(stream, [=] {
        if ((pinned && !nb_emulator_memory_touch(from, bytes, false)) || !nb_emulator_memory_touch(to, bytes, true))
            return false;
        memcpy(to, pinned ? from : staged->data(), bytes);
        return true;
    });
}

static cudaError_t enqueue_download(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    bool pinned = is_within(the_machine().pinned, to);
    if (!pinned && stream->capture)
        return stream->capture->invalid = true, fail(cudaErrorStreamCaptureUnsupported);
    auto done = std::make_shared<bool>(false);
    cudaError_t error = nb_emulator_enqueue(stream, [=] {
        if (!nb_emulator_memory_touch(from, bytes, false) || (pinned && !nb_emulator_memory_touch(to, bytes, true)))
            return false;
        memcpy(to, from, bytes);
        *done = true;
        return true;
    });
    return error != cudaSuccess || pinned ? error : run_until([=] { return *done; });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER();
    if (!stream)
        return fail(cudaErrorInvalidResourceHandle);
    if (bytes == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyHostToDevice)
        return enqueue_upload(to, from, bytes, stream);
    if (kind == cudaMemcpyDeviceToHost)
        return enqueue_download(to, from, bytes, stream);
    return nb_emulator_enqueue(stream, [=] {
        if (!nb_emulator_memory_copied(to, from, bytes))
            return false;
        memmove(to, from, bytes);
        return true;
    });
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    ENTER();
    if (bytes == 0)
        return cudaSuccess;
    return nb_emulator_enqueue(stream, [=] {
        if (!nb_emulator_memory_touch(to, bytes, true))
            return false;
        memset(to, value, bytes);
        return true;
    });
}
