/* What holds for every device. */
#include "device/device.h"

#include <stddef.h>

void nb_device_destroy(struct nb_device **device)
{
    if (*device)
        (*device)->destroy(*device);
    *device = NULL;
}

nb_status nb_device_require_all(const struct nb_device *device)
{
    const char *missing = NULL;
#define REQUIRE(op)                                 \
    if (!device->op || !device->op##_scratch_bytes) \
        missing = missing ? missing : #op;
    NB_OPS(REQUIRE)
#undef REQUIRE
    if (!missing)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "the device \"%s\" lacks the op %s; choose another with the key device",
        device->profile.name, missing);
}
