#include <cstdint>

#include "emulator/emulator.h"

extern "C" {
extern const bool checkop_machine_emulated = true;
void checkop_machine_seed(uint64_t seed);

void checkop_machine_seed(uint64_t seed)
{
    nb_emulator_seed(seed);
}
}
