/* The seed, and the first fault: of a launch, that of the block that comes first in the launch's order, so that
 * the number of OS threads does not choose which is told. */
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <unistd.h>

#include "emulator/machine.h"

static struct {
    std::mutex mutex;
    uint64_t seed, launch;
    enum nb_emulator_fault_kind kind;
    uint64_t order;
    char message[1536];
} faults = {{}, 0, 0, NB_EMULATOR_NO_FAULT, UINT64_MAX, ""};

void nb_emulator_seed(uint64_t seed)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    faults.seed = seed;
    faults.launch = 0;
}

uint64_t nb_emulator_seed_value(void)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    return faults.seed;
}

uint64_t nb_emulator_launch_number(void)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    return faults.launch;
}

void nb_fault_launch(void)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    faults.launch++;
}

enum nb_emulator_fault_kind nb_emulator_fault(void)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    return faults.kind;
}

const char *nb_emulator_fault_message(void)
{
    return faults.message;
}

void nb_emulator_reset(void)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    faults.kind = NB_EMULATOR_NO_FAULT;
    faults.order = UINT64_MAX;
    faults.message[0] = 0;
}

uint64_t nb_fault_order(void)
{
    return __atomic_load_n(&faults.order, __ATOMIC_RELAXED);
}

void nb_fault_record(enum nb_emulator_fault_kind kind, uint64_t order, const char *message)
{
    std::lock_guard<std::mutex> lock(faults.mutex);
    if (order >= faults.order)
        return;
    faults.kind = kind;
    __atomic_store_n(&faults.order, order, __ATOMIC_RELAXED);
    snprintf(faults.message, sizeof faults.message, "%s", message);
}

void nb_emulator_fail(enum nb_emulator_fault_kind kind, const char *format, ...)
{
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    nb_fault_record(kind, 0, message);
}

extern "C" const char __executable_start;

/* The frames of an inlined chain, innermost first: those of the wrappers say nothing. */
static void read_frames(FILE *pipe, char *text, size_t bytes)
{
    char line[256];
    size_t used = 0;
    while (fgets(line, sizeof line, pipe)) {
        line[strcspn(line, " \n")] = 0;
        if (!strncmp(line, "ptx.h", 5) || line[0] == '?' || used + 64 > bytes)
            continue;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s", used ? " < " : " (", line);
    }
    if (used)
        snprintf(text + used, bytes - used, ")");
}

/* The source lines, where binutils is there to tell them; else the offset in the executable. `place`: a return
 * address. */
void nb_fault_describe_place(const void *place, char *text, size_t bytes)
{
    text[0] = 0;
    if (!place)
        return;
    unsigned long offset = (unsigned long)((const char *)place - &__executable_start) - 1; /* the call before it */
    char command[128];
    snprintf(command, sizeof command, "addr2line -ise /proc/%d/exe 0x%lx 2>/dev/null", (int)getpid(), offset);
    FILE *pipe = popen(command, "r");
    if (pipe) {
        read_frames(pipe, text, bytes);
        pclose(pipe);
    }
    if (!text[0])
        snprintf(text, bytes, " (instruction at executable + 0x%lx)", offset);
}
