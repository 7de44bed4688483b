/* A device profile from anywhere. What is accepted is within the bounds that planning counts on. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/device_profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct nb_device_profile profile;
    if (nb_device_profile_parse((const char *)data, bytes, "input", &profile) != NB_OK)
        return 0;
    bool bounded = profile.memory_bytes >= 64ull << 20 && profile.memory_bytes <= 16ull << 40 &&
                   profile.multiprocessors >= 1 && profile.multiprocessors <= 4096 &&
                   profile.compute_capability >= 80 && profile.compute_capability < 1000 && profile.bf16_tflops > 0 &&
                   profile.memory_gb_per_s > 0 && profile.link_gb_per_s > 0 && profile.cublaslt_version >= 0;
    if (!bounded || !profile.name[0] || !memchr(profile.name, 0, sizeof profile.name))
        abort();
    return 0;
}
