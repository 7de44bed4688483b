/* checkop [--device cpu|cuda] [--seed N] [--only OP]... [--work-max N] [--bench [--threads N]] | --coverage OP... |
 * [--device cpu|cuda] --self-test */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

enum { EXIT_SKIPPED = 77 }; /* what meson takes for a skip */

static int usage(const char *what)
{
    fprintf(stderr,
            "checkop: %s\nusage: checkop [--device cpu|cuda] [--seed N] [--only OP]... [--work-max N] [--bench [--threads N]] | --coverage "
            "OP... | [--device cpu|cuda] --self-test\n"
            "  --work-max N: cases of more multiply-adds do not run on the device under test (0: all do; 50,000,000 on an emulated one)\n",
            what);
    return 2;
}

static int op_of(const char *name)
{
    for (int op = 0; op < CHECKOP_OPS; op++)
        if (strcmp(name, checkop_entry((enum checkop_op)op)->name) == 0)
            return op;
    return -1;
}

/* Every op of the table has a check, and the names given (the build's list of tests) are the table's. */
static int check_coverage(char **name, int names)
{
    bool listed[CHECKOP_OPS] = {false};
    int missing = 0;
    for (int i = 0; i < names; i++) {
        int op = op_of(name[i]);
        if (op < 0) {
            missing++;
            fprintf(stderr, "checkop: %s is tested, but no op of NB_OPS\n", name[i]);
        } else {
            listed[op] = true;
        }
    }
    for (int op = 0; op < CHECKOP_OPS; op++) {
        const struct checkop_entry *entry = checkop_entry((enum checkop_op)op);
        if (!entry->check)
            fprintf(stderr, "checkop: %s has no check (tests/checkop/%s.c: checkop_%s)\n", entry->name, entry->name, entry->name);
        if (!listed[op])
            fprintf(stderr, "checkop: %s is missing from the ops of tests/checkop/meson.build\n", entry->name);
        missing += !entry->check || !listed[op];
    }
    printf("%d ops, %d of them or of the list amiss\n", CHECKOP_OPS, missing);
    return missing ? 1 : 0;
}

/* What a device under test left out, and why. */
static void print_not_run(const struct checkop *c, enum checkop_op op)
{
    for (int k = 0; k < c->targets; k++) {
        const struct checkop_target *t = &c->target[k];
        if (t->under_test && checkop_takes_part(t, op))
            printf("    %-40s %" PRIu64 " cases run, %" PRIu64 " not for being fp32, %" PRIu64 " not for more than %.0f multiply-adds\n",
                   t->name, t->ran, t->in_f32, t->too_large, c->work_max);
    }
}

/* Runs one op's check. Returns whether it passed. */
static bool run_check(struct checkop *c, enum checkop_op op)
{
    const struct checkop_entry *entry = checkop_entry(op);
    double begin = checkop_seconds();
    c->op = op;
    c->cases = c->failures = c->messages = c->case_number = 0;
    for (int k = 0; k < c->targets; k++)
        c->target[k].ran = c->target[k].in_f32 = c->target[k].too_large = 0;
    snprintf(c->case_name, sizeof c->case_name, "start");
    if (!entry->check) {
        printf("%-18s FAILED: no check\n", entry->name);
        return false;
    }
    entry->check(c);
    if (c->in_case)
        checkop_abort(c, "the last case has no checkop_end");
    if (c->bench)
        return true;
    if (c->runs[op] == 0)
        checkop_fail(c, "the check never ran the op");
    int devices = 0;
    for (int k = 0; k < c->targets; k++) {
        bool takes_part = checkop_takes_part(&c->target[k], op);
        devices += takes_part;
        if (takes_part && c->target[k].ran == 0)
            checkop_fail(c, "%s: no case ran", c->target[k].name);
    }
    if (c->failures)
        printf("%-18s FAILED: %" PRIu64 " failures in %" PRIu64 " cases\n", entry->name, c->failures, c->cases);
    else
        printf("%-18s ok, %" PRIu64 " cases on %d devices, %.1f s\n", entry->name, c->cases, devices, checkop_seconds() - begin);
    print_not_run(c, op);
    fflush(stdout);
    return c->failures == 0;
}

static bool parse_number(const char *text, uint64_t *value)
{
    char *end = NULL;
    if (!text || *text < '0' || *text > '9')
        return false;
    *value = strtoull(text, &end, 10);
    return *end == 0;
}

int main(int argument_count, char **argument)
{
    static const uint64_t default_seed = 1;
    bool only[CHECKOP_OPS] = {false}, any_only = false;
    uint64_t threads = 0, work_max = checkop_machine_emulated ? 50000000 : 0;
    bool cuda = false;
    struct checkop *c = checkop_allocate(sizeof *c);
    c->seed = default_seed;
    for (int i = 1; i < argument_count; i++) {
        const char *value = i + 1 < argument_count ? argument[i + 1] : NULL;
        if (strcmp(argument[i], "--coverage") == 0) {
            free(c);
            return check_coverage(argument + i + 1, argument_count - i - 1);
        }
        if (strcmp(argument[i], "--self-test") == 0) {
            int missed = checkop_self_test(c->seed, cuda);
            free(c);
            return missed < 0 ? EXIT_SKIPPED : missed ? 1 : 0;
        }
        if (strcmp(argument[i], "--bench") == 0) {
            c->bench = true;
            continue;
        }
        if (strcmp(argument[i], "--only") == 0 && value && op_of(value) >= 0)
            only[op_of(value)] = any_only = true;
        else if (strcmp(argument[i], "--device") == 0 && value && (strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0))
            cuda = strcmp(value, "cuda") == 0;
        else if (!(strcmp(argument[i], "--work-max") == 0 && parse_number(value, &work_max)) &&
                 !(strcmp(argument[i], "--seed") == 0 && parse_number(value, &c->seed)) &&
                 !(strcmp(argument[i], "--threads") == 0 && parse_number(value, &threads) && threads <= 4096))
            return usage(argument[i]);
        i++;
    }
    c->bench_threads = (int)threads;
    c->work_max = (double)work_max;
    if (!cuda) {
        checkop_add_cpu_targets(c);
    } else if (checkop_add_cuda_targets(c) != NB_OK) {
        printf("checkop: skipped: %s\n", nb_status_message());
        free(c);
        return EXIT_SKIPPED;
    }
    int passed = 0, failed = 0;
    for (int op = 0; op < CHECKOP_OPS; op++)
        if (!any_only || only[op]) {
            if (run_check(c, (enum checkop_op)op))
                passed++;
            else
                failed++;
        }
    checkop_remove_targets(c);
    if (!c->bench)
        printf("%d passed, %d failed (seed %" PRIu64 ")\n", passed, failed, c->seed);
    free(c);
    return failed ? 1 : 0;
}
