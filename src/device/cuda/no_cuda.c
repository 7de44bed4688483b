/* The CUDA device of a program that was built without one. */
#include "device/cuda/cuda.h"

#include <stddef.h>

static nb_status absent(void)
{
    return nb_fail(NB_UNSUPPORTED,
        "this nibble was built without CUDA: build it where nvcc 12.8 or newer is found (-Dcuda=enabled says why it is not), or use "
        "device: cpu");
}

bool nb_cuda_built(void)
{
    return false;
}

nb_status nb_cuda_probe(const struct nb_cuda_options *options, struct nb_device_profile *profile)
{
    (void)options;
    (void)profile;
    return absent();
}

nb_status nb_cuda_device_create(const struct nb_cuda_options *options, struct nb_device **device)
{
    (void)options;
    *device = NULL;
    return absent();
}

const char *nb_cuda_backend_description(const struct nb_device *device)
{
    (void)device;
    return "built without CUDA";
}

nb_status nb_cuda_timer_begin(struct nb_device *device, struct nb_stream *stream)
{
    (void)device;
    (void)stream;
    return absent();
}

nb_status nb_cuda_timer_end(struct nb_device *device, struct nb_stream *stream, double *seconds)
{
    (void)device;
    (void)stream;
    *seconds = 0;
    return absent();
}
