#include "harness.h"

const bool checkop_machine_emulated = false;

void checkop_machine_seed(uint64_t seed)
{
    (void)seed;
}
