/* Kernels with one mistake each, and their right twins: the same template with and without it. The emulator must
 * find the mistake under every seed, and nothing in the twin. */
#ifndef NB_TESTS_EMULATOR_BROKEN_H
#define NB_TESTS_EMULATOR_BROKEN_H

#include "cuda/ptx.cuh"
#include "emulator/emulator.h"

enum { NB_BROKEN_FLOATS = 1024 };

/* What every kernel gets. Device memory but for `host`, an address that is neither device nor pinned memory. */
struct nb_broken_memory {
    const float *in;        /* [NB_BROKEN_FLOATS], written */
    float *out;             /* [NB_BROKEN_FLOATS], not written */
    const float *forgotten; /* [NB_BROKEN_FLOATS], not written by anybody */
    uint32_t *counter;      /* [4], zero */
    float *host;
};

struct nb_broken_case {
    const char *name;
    void (*broken)(struct nb_broken_memory), (*right)(struct nb_broken_memory);
    enum nb_emulator_fault_kind kind;
    enum nb_emulator_fault_kind or_kind; /* where the order of threads decides which is seen first; or the same */
    int blocks, threads, shared_bytes;
};

extern const struct nb_broken_case nb_broken_barriers[], nb_broken_waits[], nb_broken_copies[], nb_broken_shared[],
    nb_broken_global[];
extern const int nb_broken_barriers_count, nb_broken_waits_count, nb_broken_copies_count, nb_broken_shared_count,
    nb_broken_global_count;

#define NB_BROKEN(name, kind, or_kind, blocks, threads, shared_bytes)                                                \
    {                                                                                                                \
#name, name < true>, name < false>, NB_EMULATOR_##kind, NB_EMULATOR_##or_kind, blocks, threads, shared_bytes \
    }

#endif
