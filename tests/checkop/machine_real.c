#include "harness.h"

const bool checkop_machine_emulated = false;

void checkop_machine_seed(uint64_t seed)
{
    (void)seed;
}

void checkop_machine_gpu(int compute_capability, int multiprocessors)
{
    (void)compute_capability;
    (void)multiprocessors;
}

bool checkop_machine_revive(void)
{
    return false;
}
