/* Every instruction of cuda/ptx.cuh on the emulated GPU, in several orders of threads. */
#include <cstdio>

#include "device/cuda/cuda.h"
#include "emulator/emulator.h"
#include "emulator/instructions.h"

int main(void)
{
    struct nb_cuda_options options = {};
    struct nb_device *device = NULL;
    if (nb_cuda_device_create(&options, &device) != NB_OK) {
        printf("%s\n", nb_status_message());
        return 1;
    }
    int failures = 0;
    for (uint64_t seed = 0; seed < 40 && !failures; seed++) {
        nb_emulator_seed(seed);
        failures = nb_instruction_tests(device);
        if (failures)
            printf("seed %llu: %s\n", (unsigned long long)seed, failures < 0 ? nb_status_message() : "wrong");
    }
    device->destroy(device);
    return failures != 0;
}
