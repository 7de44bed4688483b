/* Runs the broken kernels and their right twins under several seeds: each mistake must be found, as what it is,
 * and told with kernel, block and thread; the twins must pass and give the same result under every seed. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "emulator/broken/broken.h"

enum { SEEDS = 8, GAP = 512, FLOATS_BYTES = NB_BROKEN_FLOATS * sizeof(float) };

static int failures;

static void report(bool good, const char *what, const char *name, const char *detail)
{
    if (!good) {
        printf("FAILED %s: %s: %s\n", name, what, detail);
        failures++;
    }
}

/* Three arrays and the counters with gaps between; `out` is forgotten before each launch, and all of it once more
 * after a fault. */
struct arena {
    unsigned char *slab;
    struct nb_broken_memory memory;
    float host[4];
};

static void arena_create(struct arena *arena)
{
    arena->slab = (unsigned char *)aligned_alloc(512, 4 * (FLOATS_BYTES + 2 * GAP));
    unsigned char *at = arena->slab + GAP;
    float **array[] = {(float **)&arena->memory.in, &arena->memory.out, (float **)&arena->memory.forgotten,
        (float **)&arena->memory.counter};
    size_t bytes[] = {FLOATS_BYTES, FLOATS_BYTES, FLOATS_BYTES, 16};
    for (int i = 0; i < 4; i++, at += FLOATS_BYTES + GAP) {
        *array[i] = (float *)at;
        nb_emulator_memory_add(at, bytes[i], true);
    }
    for (int i = 0; i < NB_BROKEN_FLOATS; i++)
        ((float *)arena->memory.in)[i] = (float)(i % 251);
    nb_emulator_memory_touch(arena->memory.in, FLOATS_BYTES, true);
    arena->memory.host = arena->host;
}

static void arena_destroy(struct arena *arena)
{
    nb_emulator_memory_remove((void *)arena->memory.in);
    nb_emulator_memory_remove(arena->memory.out);
    nb_emulator_memory_remove((void *)arena->memory.forgotten);
    nb_emulator_memory_remove(arena->memory.counter);
    free(arena->slab);
}

static bool launch(struct arena *arena, const struct nb_broken_case *test, bool broken, uint64_t seed)
{
    memset(arena->memory.out, 0, FLOATS_BYTES);
    memset(arena->memory.counter, 0, 16);
    nb_emulator_memory_forget(arena->memory.out, FLOATS_BYTES);
    nb_emulator_memory_touch(arena->memory.counter, 16, true);
    nb_emulator_seed(seed);
    struct nb_broken_memory memory = arena->memory;
    void (*kernel)(struct nb_broken_memory) = broken ? test->broken : test->right;
    struct nb_emulator_grid grid = {
        test->name, {(unsigned)test->blocks, 1, 1}, test->threads, test->shared_bytes, [=] { kernel(memory); }};
    return nb_emulator_run(grid);
}

static void check_message(const struct nb_broken_case *test)
{
    const char *message = nb_emulator_fault_message();
    std::string kernel = std::string("kernel ") + test->name + ", block ";
    report(strstr(message, kernel.c_str()) != NULL && strstr(message, ", thread ") != NULL,
        "the message does not say where", test->name, message);
}

static void check_case(struct arena *arena, const struct nb_broken_case *test)
{
    float expected[NB_BROKEN_FLOATS];
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        bool good = launch(arena, test, false, seed);
        report(good, "the right twin has a fault", test->name, nb_emulator_fault_message());
        nb_emulator_reset();
        if (seed == 1)
            memcpy(expected, arena->memory.out, sizeof expected);
        report(!memcmp(expected, arena->memory.out, sizeof expected), "the right twin's result depends on the seed",
            test->name, "");
        good = launch(arena, test, true, seed);
        report(!good, "the mistake was not found", test->name, std::to_string(seed).c_str());
        if (!good) {
            report(nb_emulator_fault() == test->kind || nb_emulator_fault() == test->or_kind, "found as something else",
                test->name, nb_emulator_fault_message());
            check_message(test);
        }
        if (seed == 1 && !good)
            printf("%s\n", nb_emulator_fault_message());
        nb_emulator_reset();
    }
}

static void do_nothing(struct nb_broken_memory)
{
}

static void check_bad_launches(struct arena *arena)
{
    static const struct nb_broken_case bad[] = {
        {"threads that are no multiple of 32", do_nothing, do_nothing, NB_EMULATOR_BAD_LAUNCH, NB_EMULATOR_BAD_LAUNCH,
            1, 33, 0},
        {"too many threads", do_nothing, do_nothing, NB_EMULATOR_BAD_LAUNCH, NB_EMULATOR_BAD_LAUNCH, 1, 1056, 0},
        {"too much shared memory", do_nothing, do_nothing, NB_EMULATOR_BAD_LAUNCH, NB_EMULATOR_BAD_LAUNCH, 1, 32,
            227 * 1024 + 1},
        {"an empty grid", do_nothing, do_nothing, NB_EMULATOR_BAD_LAUNCH, NB_EMULATOR_BAD_LAUNCH, 0, 32, 0},
    };
    for (const struct nb_broken_case &test : bad) {
        bool good = launch(arena, &test, true, 1);
        report(!good && nb_emulator_fault() == NB_EMULATOR_BAD_LAUNCH, "not refused", test.name,
            nb_emulator_fault_message());
        report(!launch(arena, &nb_broken_barriers[0], false, 1), "runs after a fault", test.name, "");
        nb_emulator_reset();
        report(launch(arena, &nb_broken_barriers[0], false, 1), "does not run after a reset", test.name,
            nb_emulator_fault_message());
    }
}

/* The runtime's copies carry along what was never written; they stay within one allocation. */
static void check_runtime_copies(struct arena *arena)
{
    const struct nb_broken_memory *m = &arena->memory;
    const struct nb_broken_case *reads = NULL;
    for (int i = 0; i < nb_broken_global_count; i++)
        if (!strcmp(nb_broken_global[i].name, "global_never_written"))
            reads = &nb_broken_global[i];
    nb_emulator_memory_copied((void *)m->forgotten, m->in, FLOATS_BYTES);
    report(launch(arena, reads, true, 1), "a copy of written bytes counts as never written", "copied",
        nb_emulator_fault_message());
    nb_emulator_memory_forget((void *)m->forgotten, FLOATS_BYTES);
    nb_emulator_memory_forget(m->out, FLOATS_BYTES);
    nb_emulator_memory_copied((void *)m->forgotten, m->out, FLOATS_BYTES);
    report(!launch(arena, reads, true, 1), "a copy of bytes never written counts as written", "copied", "");
    nb_emulator_reset();
    report(
        !nb_emulator_memory_touch(m->in, FLOATS_BYTES + 1, true), "a fill beyond the end was let through", "touch", "");
    report(nb_emulator_fault() == NB_EMULATOR_OUT_OF_BOUNDS, "a fill beyond the end is no fault", "touch",
        nb_emulator_fault_message());
    nb_emulator_reset();
}

/* A fault comes again with its seed, word for word, whatever the OS threads do. */
static void check_repeats(struct arena *arena, const struct nb_broken_case *test)
{
    for (uint64_t seed = 1; seed <= 2; seed++) {
        launch(arena, test, true, seed);
        std::string first = nb_emulator_fault_message();
        nb_emulator_reset();
        launch(arena, test, true, seed);
        report(first == nb_emulator_fault_message(), "another fault with the same seed", test->name, first.c_str());
        nb_emulator_reset();
    }
}

int main(void)
{
    const struct nb_broken_case *tables[] = {
        nb_broken_barriers, nb_broken_waits, nb_broken_copies, nb_broken_shared, nb_broken_global};
    const int counts[] = {nb_broken_barriers_count, nb_broken_waits_count, nb_broken_copies_count,
        nb_broken_shared_count, nb_broken_global_count};
    struct arena arena;
    int cases = 0;
    arena_create(&arena);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < counts[i]; j++, cases++)
            check_case(&arena, &tables[i][j]);
    for (int j = 0; j < nb_broken_shared_count; j++)
        check_repeats(&arena, &nb_broken_shared[j]);
    for (int j = 0; j < nb_broken_waits_count; j++)
        check_repeats(&arena, &nb_broken_waits[j]);
    check_bad_launches(&arena);
    check_runtime_copies(&arena);
    arena_destroy(&arena);
    printf("%d kernels with a mistake, %d seeds, %d failures\n", cases, (int)SEEDS, failures);
    return failures != 0;
}
