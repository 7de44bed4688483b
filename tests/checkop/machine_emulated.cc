#include <cstdint>

#include "emulator/cuda_runtime.h"
#include "emulator/emulator.h"

extern "C" {
extern const bool checkop_machine_emulated = true;
void checkop_machine_seed(uint64_t seed);

void checkop_machine_seed(uint64_t seed)
{
    nb_emulator_seed(seed);
}

void checkop_machine_gpu(int compute_capability, int multiprocessors);

void checkop_machine_gpu(int compute_capability, int multiprocessors)
{
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    if (compute_capability != 0) {
        gpu.compute_capability = compute_capability;
        gpu.multiprocessors = multiprocessors;
    }
    nb_emulator_gpu_set(&gpu);
}

bool checkop_machine_revive(void);

bool checkop_machine_revive(void)
{
    bool stopped = nb_emulator_fault() != NB_EMULATOR_NO_FAULT;
    nb_emulator_reset();
    return stopped;
}
}
