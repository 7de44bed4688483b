/* checkop from the inside: what its files share. Checks include checkop.h alone. */
#ifndef NB_TESTS_CHECKOP_HARNESS_H
#define NB_TESTS_CHECKOP_HARNESS_H

#include <stddef.h>

#include "checkop.h"
#include "device/cuda/plan.h"

enum { CHECKOP_TARGETS_MAX = 12, CHECKOP_BUFFERS_MAX = 96, CHECKOP_BINDINGS_MAX = 48, CHECKOP_STREAMS = 3, CHECKOP_MESSAGES_MAX = 12 };

struct checkop_buffer {
    const char *name;
    enum nb_dtype dtype;
    uint64_t count, bytes;
    bool written;           /* an output */
    bool in_use;            /* bound to the op's args: the others stay on the host */
    unsigned char *image;   /* before the run */
    unsigned char *result;  /* after it, on the reference device */
    unsigned char *tested[CHECKOP_TARGETS_MAX]; /* after it, on a device under test; NULL where it did not run or is none */
    unsigned char *claimed; /* [count], 1: an expectation looked at it */
};

/* A device that runs the op. The first is the reference. */
struct checkop_target {
    char name[64];
    char where[72];           /* " (name)": for messages */
    struct nb_device *device; /* owned */
    struct nb_stream *stream[CHECKOP_STREAMS];
    struct nb_event *event[CHECKOP_STREAMS];
    bool under_test;          /* compared by tolerance; the others by bytes */
    int same_as;              /* whose bytes it must give: the reference's, or those of an earlier one under test; -1: nobody's */
    uint64_t machine_seed;    /* checkop_machine_seed's before each run; 0: none */
    bool library_products;    /* cuBLASLt multiplies there */
    bool attention_alone;     /* serves attention alone, whose tiles are others on its GPU */
    bool products_alone;      /* serves only the ops that multiply by matrices: for the others it is another target once more */
    bool forces_path;         /* of every matrix, by a table that is written anew before each run */
    enum nb_product_path path;
    struct nb_product_table products;
    struct nb_product_choice choice[NB_LINEAR_PARTS];
    double copy_bytes_per_second; /* 0: not measured yet */
    uint64_t ran, in_f32, too_large; /* cases of the op at work: run, and not run for want of fp32, or over work_max */
};

struct checkop_binding {
    nb_dptr *field;
    struct checkop_buffer *buffer;
    uint64_t at;
};

struct checkop {
    uint64_t seed;
    bool bench, quiet;
    int bench_threads;
    double work_max; /* multiply-adds of a case that a target under test runs; 0: any */
    struct checkop_target target[CHECKOP_TARGETS_MAX];
    int targets;

    enum checkop_op op;
    char case_name[160];
    bool in_case, has_run;
    uint64_t case_number, random_index;
    uint64_t cases, failures, messages; /* of the op at work */
    uint64_t runs[CHECKOP_OPS];
    struct checkop_buffer buffer[CHECKOP_BUFFERS_MAX];
    int buffers;
    struct checkop_binding binding[CHECKOP_BINDINGS_MAX];
    int bindings;
    struct nb_scratch *scratch_field;
    double *scratch[CHECKOP_BUFFERS_MAX];
    int scratches;
};

/* The devices under test that ran the case. */
#define CHECKOP_EACH_TESTED(c, b, k)       \
    for (int k = 0; k < (c)->targets; k++) \
        if ((b)->tested[k])

/* What an expectation did with an element of checkop_buffer.claimed. */
enum { CHECKOP_UNCLAIMED, CHECKOP_CLAIMED, CHECKOP_LEFT_OPEN };

/* An op of the table, with its args' type erased. */
struct checkop_entry {
    const char *name;
    void (*check)(struct checkop *c); /* NULL: nobody wrote one */
    nb_status (*accept)(const void *args);
    bool (*has)(const struct nb_device *device);
    nb_status (*call)(struct nb_device *device, struct nb_stream *stream, const void *args);
    uint64_t (*scratch_bytes)(struct nb_device *device, const void *args);
};

const struct checkop_entry *checkop_entry(enum checkop_op op);

/* Counts a failure and prints it with op, case and seed. */
void checkop_fail(struct checkop *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A mistake of the check or of the machine, not of the op: prints and exits 2. */
_Noreturn void checkop_abort(const struct checkop *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes the tables of the targets that force a path, for the sites of the run to come. */
void checkop_choose_paths(struct checkop *c, enum checkop_op op, const void *args);

/* The args of the ops whose rows come in chunks. */
union checkop_cut {
    struct nb_rmsnorm rmsnorm;
    struct nb_rmsnorm_backward rmsnorm_backward;
    struct nb_layernorm layernorm;
    struct nb_layernorm_backward layernorm_backward;
    struct nb_linear linear;
    struct nb_linear_backward linear_backward;
    struct nb_swiglu swiglu;
    struct nb_swiglu_backward swiglu_backward;
    struct nb_geglu geglu;
    struct nb_geglu_backward geglu_backward;
    struct nb_add add;
};

/* *cut = the bound args for rows [begin, begin + rows) of an op's, as many as there are. False: the op's rows do not come in chunks. */
bool checkop_cut(enum checkop_op op, const void *args, int begin, int rows, union checkop_cut *cut);

/* The rows of an op that they come in chunks of; 0 of the others. */
int checkop_rows_max(enum checkop_op op, const void *args);

/* A clock that only goes forward. */
double checkop_seconds(void);

/* A device's call that has to succeed; otherwise the run ends, naming target and `what`. */
void checkop_must(struct checkop *c, const struct checkop_target *t, nb_status status, const char *what);

/* malloc that does not return without memory; zeroed. */
void *checkop_allocate(uint64_t bytes);

/* Element i of an array, as a double. */
double checkop_element(const void *from, enum nb_dtype dtype, uint64_t i);

/* Takes over `device`. The target's other members are zero. */
struct checkop_target *checkop_add_target(struct checkop *c, const char *name, struct nb_device *device, bool under_test);
void checkop_remove_targets(struct checkop *c);

/* The cpu device with one thread, before all others. */
void checkop_add_reference(struct checkop *c);

/* The cpu devices of an ordinary run. */
void checkop_add_cpu_targets(struct checkop *c);

/* --device cuda: the cpu device with one thread as the reference, and the CUDA device with and without cuBLASLt,
 * each of them more than once. Where there is no GPU to be had: the status and message of nb_cuda_probe. */
nb_status checkop_add_cuda_targets(struct checkop *c);

/* Whether the target has a part in the checks of this op. */
bool checkop_takes_part(const struct checkop_target *t, enum checkop_op op);

/* Whether the args' activations are fp32. */
bool checkop_in_f32(enum checkop_op op, const void *args);

/* Multiply-adds of the op with these args, about: those of linear and attention; 0 for the others. */
double checkop_work(enum checkop_op op, const void *args);

/* The machine under the CUDA device, machine_real.c or machine_emulated.cc. On the emulated one the order of what
 * nothing orders follows the seed, and fresh memory holds bytes 0xff that count as never written. */
extern const bool checkop_machine_emulated;
void checkop_machine_seed(uint64_t seed);
/* The GPU that is emulated from now on, by its compute capability; 0: the usual one. */
void checkop_machine_gpu(int compute_capability, int multiprocessors);

/* After a fault of a kernel, which stops the machine: makes the emulated one run again, without what was queued.
 * False: there was none, or it is real. */
bool checkop_machine_revive(void);

/* Deliberately broken ops must be caught, on the cpu devices or on CUDA ones. Returns the number that were not; -1:
 * there is no GPU. */
int checkop_self_test(uint64_t seed, bool cuda);

#endif
