/* What an op asks of a device: operations and traffic, for the time it takes. Private to src/device/dry/. */
#ifndef NB_DEVICE_DRY_WORK_H
#define NB_DEVICE_DRY_WORK_H

#include "device/device.h"

/* With tokens_max valid rows. */
struct nb_dry_work {
    double flops;          /* 2 for each multiplication and addition of a matrix product or of attention */
    double bytes;          /* of device memory that it reads and writes, each operand once: at the same time */
    double prepared_bytes; /* read and written before, by a kernel of its own: matrices dequantized into scratch */
};

/* nb_dry_work_of_linear, ...: each op's. */
#define NB_DRY_WORK(name) \
    struct nb_dry_work nb_dry_work_of_##name(const struct nb_device_profile *profile, const struct nb_##name *args);
NB_OPS(NB_DRY_WORK)
#undef NB_DRY_WORK

#endif
