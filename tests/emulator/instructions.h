/* Small kernels, one for each function of cuda/ptx.cuh, on a real GPU and on the emulated one alike: whether the
 * instruction does there what ptx.cuh says. */
#ifndef NB_TESTS_EMULATOR_INSTRUCTIONS_H
#define NB_TESTS_EMULATOR_INSTRUCTIONS_H

#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs all on an open CUDA device and prints a line for each that fails, and one with the count. Takes and gives
 * back 64 KiB of device memory. Returns how many failed; -1 when the device did (nb_status_message says how). */
int nb_instruction_tests(struct nb_device *device);

#ifdef __cplusplus
}
#endif

#endif
