/* Checked builds: memory of the arenas that is not taken is poison to the address sanitizer, and what is taken starts as NaN. */
#include <string.h>

#include "device/device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

void nb_cpu_memory_mark(void *context, uint64_t address, uint64_t bytes, bool usable)
{
    void *memory = (void *)(uintptr_t)address;
    (void)context;
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
    memset(memory, 0xff, bytes); /* a NaN as fp32 and as bf16 */
    if (!usable)
        ASAN_POISON_MEMORY_REGION(memory, bytes);
}
