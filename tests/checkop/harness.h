/* checkop from the inside: what its files share. Checks include checkop.h alone. */
#ifndef NB_TESTS_CHECKOP_HARNESS_H
#define NB_TESTS_CHECKOP_HARNESS_H

#include <stddef.h>

#include "checkop.h"

enum { CHECKOP_TARGETS_MAX = 8, CHECKOP_BUFFERS_MAX = 96, CHECKOP_BINDINGS_MAX = 48, CHECKOP_STREAMS = 3, CHECKOP_MESSAGES_MAX = 12 };

struct checkop_buffer {
    const char *name;
    enum nb_dtype dtype;
    uint64_t count, bytes;
    bool written;           /* an output */
    bool in_use;            /* bound to the op's args: the others stay on the host */
    unsigned char *image;   /* before the run */
    unsigned char *result;  /* after it, on the reference device */
    unsigned char *tested;  /* after it, on the device under test; NULL without one */
    unsigned char *claimed; /* [count], 1: an expectation looked at it */
};

/* A device that runs the op. The first is the reference. */
struct checkop_target {
    char name[64];
    struct nb_device *device; /* owned */
    struct nb_stream *stream[CHECKOP_STREAMS];
    struct nb_event *event[CHECKOP_STREAMS];
    bool under_test; /* compared by tolerance; the others by bytes */
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
    double copy_bytes_per_second; /* 0: not measured yet */
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

/* An op of the table, with its args' type erased. */
struct checkop_entry {
    const char *name;
    void (*check)(struct checkop *c); /* NULL: nobody wrote one */
    nb_status (*accept)(const void *args);
    nb_status (*call)(struct nb_device *device, struct nb_stream *stream, const void *args);
    uint64_t (*scratch_bytes)(struct nb_device *device, const void *args);
};

const struct checkop_entry *checkop_entry(enum checkop_op op);

/* Counts a failure and prints it with op, case and seed. */
void checkop_fail(struct checkop *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A mistake of the check or of the machine, not of the op: prints and exits 2. */
_Noreturn void checkop_abort(const struct checkop *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* malloc that does not return without memory; zeroed. */
void *checkop_allocate(uint64_t bytes);

/* Element i of an array, as a double. */
double checkop_element(const void *from, enum nb_dtype dtype, uint64_t i);

/* Takes over `device`. */
void checkop_add_target(struct checkop *c, const char *name, struct nb_device *device, bool under_test);
void checkop_remove_targets(struct checkop *c);

/* The cpu devices of an ordinary run. */
void checkop_add_cpu_targets(struct checkop *c);

/* Deliberately broken ops must be caught. Returns the number that were not. */
int checkop_self_test(uint64_t seed);

#endif
