/* The CUDA device as the device under test: as it comes, and with each way of multiplying by a matrix forced. */
#include <inttypes.h>
#include <stdio.h>

#include "device/cuda/cuda.h"
#include "harness.h"

struct cuda_target {
    const char *name;
    bool library, forces_path, attention;
    enum nb_product_path path;
    int compute_capability; /* of an emulated GPU; 0: the usual one */
    int same_as;            /* the number of the target whose bytes it must give; -1: of none */
};

/* Returns the target's number. */
static int add_cuda(struct checkop *c, const struct cuda_target *from, uint64_t machine_seed)
{
    struct checkop_target *t = &c->target[c->targets];
    struct nb_cuda_options options = {.own_products = !from->library, .products = from->forces_path ? &t->products : NULL};
    struct nb_device *device = NULL;
    char name[64];
    if (machine_seed)
        checkop_machine_seed(machine_seed);
    checkop_machine_gpu(from->compute_capability, 1);
    nb_status status = nb_cuda_device_create(&options, &device);
    if (status == NB_OK)
        status = device->prepare(device, NULL, 0);
    if (status != NB_OK)
        checkop_abort(c, "cuda device: %s", nb_status_message());
    checkop_machine_gpu(0, 0);
    if (machine_seed)
        snprintf(name, sizeof name, "%s, machine seed %" PRIu64, from->name, machine_seed);
    else
        snprintf(name, sizeof name, "%s", from->name);
    checkop_add_target(c, name, device, true);
    t->machine_seed = machine_seed;
    t->same_as = from->same_as;
    t->library_products = from->library;
    t->attention_alone = from->attention;
    t->products_alone = from->library || from->forces_path || from->compute_capability != 0;
    t->forces_path = from->forces_path;
    t->path = from->path;
    return c->targets - 1;
}

/* Nibble's own kernels give the same bits on every run, in whatever order their blocks and threads ran, on every path and with every tile.
 * The library's sums are in another order on another version; the emulated one's follow the seed. */
nb_status checkop_add_cuda_targets(struct checkop *c)
{
    struct nb_device_profile profile;
    NB_TRY(nb_cuda_probe(&(struct nb_cuda_options){0}, &profile));
    uint64_t seed = checkop_machine_emulated ? c->seed * 8 : 0;
    if (!c->bench)
        checkop_add_reference(c);
    int own = add_cuda(c, &(struct cuda_target){.name = "cuda", .same_as = -1}, seed ? seed + 1 : 0);
    const struct cuda_target others[] = {
        {.name = "cuda again", .same_as = own},
        {.name = "cuda, fused", .forces_path = true, .path = NB_PRODUCT_FUSED, .same_as = own},
        {.name = "cuda, scratch", .forces_path = true, .path = NB_PRODUCT_SCRATCH, .same_as = own},
        {.name = "cuda, overlapped", .forces_path = true, .path = NB_PRODUCT_OVERLAPPED, .same_as = own},
        {.name = "cuda, 8.0", .compute_capability = 80, .same_as = own},
        {.name = "cuda, 9.0", .attention = true, .compute_capability = 90, .same_as = -1},
        {.name = "cuda, cuBLASLt", .library = true, .same_as = -1},
        {.name = "cuda, cuBLASLt, scratch", .library = true, .forces_path = true, .path = NB_PRODUCT_SCRATCH, .same_as = -1},
        {.name = "cuda, cuBLASLt, overlapped", .library = true, .forces_path = true, .path = NB_PRODUCT_OVERLAPPED, .same_as = -1},
    };
    for (int i = 0; i < (int)(sizeof others / sizeof *others); i++) {
        const struct cuda_target *other = &others[i];
        bool emulated_alone = other->compute_capability != 0 && !checkop_machine_emulated;
        bool missing = other->library && profile.cublaslt_version == 0;
        bool timed = other->library && !other->forces_path;
        if (!emulated_alone && !missing && (!c->bench || timed))
            add_cuda(c, other, seed ? seed + 2 + (uint64_t)i % 6 : 0);
    }
    return NB_OK;
}

static int sites_of(enum checkop_op op, const void *args, struct nb_product_site sites[NB_LINEAR_PARTS])
{
    const struct nb_linear *linear = args;
    if (op == CHECKOP_linear_backward)
        sites[0] = nb_linear_backward_site(args);
    for (int p = 0; op == CHECKOP_linear && p < linear->parts; p++)
        sites[p] = nb_linear_site(linear, p);
    return op == CHECKOP_linear ? linear->parts : op == CHECKOP_linear_backward ? 1 : 0;
}

void checkop_choose_paths(struct checkop *c, enum checkop_op op, const void *args)
{
    struct nb_product_site sites[NB_LINEAR_PARTS];
    if (op != CHECKOP_linear && op != CHECKOP_linear_backward)
        return;
    int count = sites_of(op, args, sites);
    for (int k = 0; k < c->targets; k++) {
        struct checkop_target *t = &c->target[k];
        if (!t->forces_path)
            continue;
        const struct nb_device_profile *profile = &t->device->profile;
        t->products = (struct nb_product_table){
            .cublaslt_version = profile->cublaslt_version, .count = count, .choice = t->choice};
        snprintf(t->products.device, sizeof t->products.device, "%s", profile->name);
        for (int i = 0; i < count; i++)
            t->choice[i] = (struct nb_product_choice){.out = sites[i].out, .in = sites[i].in, .tokens = sites[i].tokens,
                .backward = sites[i].backward, .path = t->path};
    }
}
