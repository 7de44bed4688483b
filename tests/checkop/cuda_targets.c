/* The CUDA device as the device under test. */
#include <inttypes.h>
#include <stdio.h>

#include "device/cuda/cuda.h"
#include "harness.h"

/* Returns the target's number. */
static int add_cuda(struct checkop *c, bool own_products, uint64_t machine_seed, int same_as)
{
    struct nb_cuda_options options = {.own_products = own_products};
    struct nb_device *device = NULL;
    char name[64];
    if (machine_seed)
        checkop_machine_seed(machine_seed);
    nb_status status = nb_cuda_device_create(&options, &device);
    if (status == NB_OK)
        status = device->prepare(device, NULL, 0);
    if (status != NB_OK)
        checkop_abort(c, "cuda device: %s", nb_status_message());
    snprintf(name, sizeof name, "cuda%s, machine seed %" PRIu64, own_products ? "" : " with cuBLASLt", machine_seed);
    struct checkop_target *t = checkop_add_target(c, name, device, true);
    t->machine_seed = machine_seed;
    t->same_as = same_as;
    t->library_products = !own_products;
    return c->targets - 1;
}

/* Nibble's own kernels give the same bits on every run, in whatever order their blocks and threads ran. The library's sums are in another order
 * on another version; the emulated one's follow the seed. */
nb_status checkop_add_cuda_targets(struct checkop *c)
{
    struct nb_device_profile profile;
    NB_TRY(nb_cuda_probe(&(struct nb_cuda_options){0}, &profile));
    uint64_t seed = checkop_machine_emulated ? c->seed * 4 : 0;
    if (!c->bench)
        checkop_add_reference(c);
    int own = add_cuda(c, true, seed ? seed + 1 : 0, -1);
    if (!c->bench)
        add_cuda(c, true, seed ? seed + 2 : 0, own);
    if (profile.cublaslt_version == 0)
        return NB_OK;
    int library = add_cuda(c, false, seed ? seed + 3 : 0, -1);
    if (!c->bench)
        add_cuda(c, false, seed ? seed + 4 : 0, checkop_machine_emulated ? -1 : library);
    return NB_OK;
}
