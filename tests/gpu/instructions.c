/* Every instruction of cuda/ptx.cuh on this machine's GPU (tests/emulator/instructions.h). Exit 77 where there is none. */
#include "emulator/instructions.h"

#include <stdio.h>

#include "device/cuda/cuda.h"

int main(void)
{
    const struct nb_cuda_options options = {0};
    struct nb_device *device = NULL;
    nb_status status = nb_cuda_device_create(&options, &device);
    if (status == NB_UNSUPPORTED) {
        printf("skipped: %s\n", nb_status_message());
        return 77;
    }
    int failures = status == NB_OK ? nb_instruction_tests(device) : -1;
    if (failures < 0)
        printf("%s\n", nb_status_message());
    nb_device_destroy(&device);
    return failures != 0;
}
