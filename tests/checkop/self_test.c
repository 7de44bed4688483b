/* Deliberately broken ops: each kind of damage must make a check fail, and the whole op must pass. */
#include <stdio.h>
#include <stdlib.h>

#include "harness.h"

/* The unbroken op stands, while its entry is taken, in one that the check of add does not use. */
typedef nb_status add_function(struct nb_device *, struct nb_stream *, const struct nb_add *);
typedef nb_status swiglu_function(struct nb_device *, struct nb_stream *, const struct nb_swiglu *);

static nb_status whole_add(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    return ((add_function *)(void (*)(void))d->swiglu)(d, s, a);
}

/* The four bytes at `at` bytes from the start of y set to zero, behind the right result. */
static nb_status add_and_zero(struct nb_device *d, struct nb_stream *s, const struct nb_add *a, nb_dptr where)
{
    NB_TRY(whole_add(d, s, a));
    return d->fill_zero(d, s, where, 4);
}

static uint64_t bytes_of_y(const struct nb_add *a)
{
    return (uint64_t)a->tokens_max * (uint64_t)a->width * nb_dtype_bytes(a->activation);
}

static nb_status wrong_value(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    return add_and_zero(d, s, a, a->y);
}

static nb_status writes_behind(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
#ifdef __SANITIZE_ADDRESS__ /* there the allocation ends with the buffer */
    return wrong_value(d, s, a);
#else
    return add_and_zero(d, s, a, nb_dptr_at(a->y, bytes_of_y(a)));
#endif
}

static nb_status writes_in_front(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    return add_and_zero(d, s, a, (nb_dptr){a->y.address - 4});
}

/* The last row of tokens_max: beyond the valid ones in a case whose batch is short, right nowhere. */
static nb_status writes_beyond_valid(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    return add_and_zero(d, s, a, nb_dptr_at(a->y, bytes_of_y(a) - 4));
}

static nb_status changes_input(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    return add_and_zero(d, s, a, a->b);
}

static nb_status does_nothing(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    (void)d;
    (void)s;
    (void)a;
    return NB_OK;
}

static nb_status depends_on_threads(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    return d->profile.multiprocessors == 5 ? wrong_value(d, s, a) : whole_add(d, s, a);
}

static nb_status runs_twice_on_another_stream(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    struct nb_stream *other = NULL; /* not joined to `s`: in deferred mode it runs before its inputs are there, or never */
    (void)s;
    NB_TRY(d->stream_create(d, &other));
    nb_status status = whole_add(d, other, a);
    d->stream_destroy(d, &other);
    return status;
}

/* Not in nb_cuda_refuse_f32's words. */
static nb_status declines(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    (void)d;
    (void)s;
    (void)a;
    return nb_fail(NB_UNSUPPORTED, "add: not today");
}

/* In its words, but in bf16 too. */
static nb_status declines_bf16(struct nb_device *d, struct nb_stream *s, const struct nb_add *a)
{
    (void)d;
    (void)s;
    (void)a;
    return nb_fail(NB_UNSUPPORTED, "add: activations in fp32; this device computes in bf16 alone");
}

/* Failures of add's check with the op broken on all devices or, where CUDA devices are checked, on those. SKIPPED: there is no GPU. */
enum { SKIPPED = UINT32_MAX };
static uint64_t failures_with(uint64_t seed, bool cuda, add_function *broken)
{
    struct checkop *c = checkop_allocate(sizeof *c);
    c->seed = seed;
    c->quiet = true;
    c->op = CHECKOP_add;
    if (!cuda) {
        checkop_add_cpu_targets(c);
    } else if (checkop_add_cuda_targets(c) != NB_OK) {
        free(c);
        return SKIPPED;
    }
    for (int k = 0; broken && k < c->targets; k++) {
        struct nb_device *d = c->target[k].device;
        if (cuda && !c->target[k].under_test)
            continue;
        d->swiglu = (swiglu_function *)(void (*)(void))d->add;
        d->add = broken;
    }
    checkop_add(c);
    checkop_remove_targets(c);
    uint64_t failures = c->failures;
    free(c);
    return failures;
}

int checkop_self_test(uint64_t seed, bool cuda)
{
    static const struct {
        const char *name;
        add_function *broken;
        bool cpu, gpu, emulated_gpu; /* where it shows */
    } damage[] = {
        {"a wrong value", wrong_value, true, true, true},
        {"a write behind", writes_behind, true, true, true},
        {"a write in front", writes_in_front, true, true, true},
        {"a write beyond the valid rows", writes_beyond_valid, true, true, true},
        {"a changed input", changes_input, true, true, true},
        {"an op that does nothing", does_nothing, true, true, true},
        {"an op that declines", declines, true, true, true},
        {"an op that declines bf16 as fp32", declines_bf16, true, true, true},
        {"a result that depends on the threads", depends_on_threads, true, false, false},
        {"work on a stream that nothing joins", runs_twice_on_another_stream, true, false, true},
    };
    uint64_t failures = failures_with(seed, cuda, NULL);
    int missed = failures != 0;
    if (failures == SKIPPED) {
        printf("checkop: skipped: %s\n", nb_status_message());
        return -1;
    }
    printf("%-40s %s\n", "the unbroken op", failures ? "FAILED" : "passes");
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        if (!cuda ? !damage[i].cpu : checkop_machine_emulated ? !damage[i].emulated_gpu : !damage[i].gpu)
            continue;
        failures = failures_with(seed, cuda, damage[i].broken);
        printf("%-40s %s (%llu failures)\n", damage[i].name, failures ? "caught" : "MISSED", (unsigned long long)failures);
        missed += failures == 0;
    }
    return missed;
}
