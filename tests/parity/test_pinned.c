/* Where what is kept off the device stands: page-locked or pageable, asked for or fallen back to, changes no bit and no
 * planned byte; a refusal and a lack of host memory are told before anything is taken, with what they need and what
 * takes less.
 *
 * The model is the tiny Llama with seven layers; masters and moments, block inputs and all weights leave the device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "support/deep_model.h"
#include "train/device.h"
#include "training.h"

enum { LAYERS = 7, STEPS = 3, ROWS = 12, LENGTH = 24 };

struct fixture {
    char *folder, *model;
};

static int open_fixture(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    int32_t ids[ROWS * LENGTH], labels[ROWS * LENGTH];
    for (int i = 0; i < ROWS * LENGTH; i++) {
        ids[i] = 3 + i * 17 % 200;
        labels[i] = i % LENGTH < LENGTH / 2 ? -100 : ids[i];
    }
    f->folder = training_folder();
    f->model = nb_path_join(f->folder, "deep");
    training_check(nb_test_write_deep_model("tests/golden/models/llama", LAYERS, f->model));
    training_write_rows(f->folder, ids, labels, ROWS, LENGTH);
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    struct fixture *f = *state;
    training_check(nb_remove_folder(f->folder));
    free(f->model);
    free(f->folder);
    free(f);
    return 0;
}

static char *yaml_of(const struct fixture *f, const char *more)
{
    return nb_format(
        "base_model: %s\nadapter: qlora\nlora_r: 8\nlora_target_linear: true\ndatasets: [{path: %s/rows.jsonl, "
        "type: tokens}]\nlearning_rate: 1e-3\nsequence_len: %d\nmicro_batch_size: 2\n"
        "gradient_accumulation_steps: 2\ngradient_checkpointing: true\ndevice: cpu\nthreads: 2\n"
        "output_dir: %s/out\n%s",
        f->model, f->folder, LENGTH, f->folder, more);
}

static const char everything_leaves[] =
    "optimizer: paged_adamw_8bit\nresident_optimizer_bytes: 0\nactivation_offloading: true\nresident_layers: 0\n";

/* ---- a device that refuses ---- */

static nb_status (*host_take)(struct nb_device *, uint64_t, void **);
static bool refused; /* already: the first request alone, the slab's, is refused */

static nb_status refuse_once(struct nb_device *device, uint64_t bytes, void **memory)
{
    if (refused)
        return host_take(device, bytes, memory);
    refused = true;
    return nb_fail(NB_MEMORY, "the driver pins no more");
}

static void open_refusing(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 2, .deferred = seed != 0, .deferred_seed = seed};
    training_check(nb_run_open_device(run, NULL, 0));
    host_take = run->device->host_take;
    refused = false;
    run->device->host_take = refuse_once;
}

static void defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 2, .deferred = seed != 0, .deferred_seed = seed};
}

/* ---- runs ---- */

struct outcome {
    struct nb_step_result step[STEPS];
    float *masters;
    uint64_t count;
    bool pageable;
};

static void run(const char *yaml, training_change *change, uint64_t seed, struct outcome *outcome)
{
    struct training training;
    memset(outcome, 0, sizeof *outcome);
    training_open_changed(&training, yaml, change, seed);
    for (int i = 0; i < STEPS; i++)
        outcome->step[i] = training_step(&training, i + 1);
    outcome->masters = training_masters(&training);
    outcome->count = nb_adapter_elements(training.session->adapter);
    outcome->pageable = training.session->host.pageable;
    assert_int_equal(nb_arena_high_water(training.session->arena), training.plan.peak_bytes);
    assert_int_equal(nb_arena_high_water(training.session->pinned), training.plan.pinned_bytes);
    training_close(&training);
}

static void assert_same(const struct outcome *a, const struct outcome *b)
{
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->masters, b->masters, a->count * sizeof *a->masters);
    for (int i = 0; i < STEPS; i++) {
        assert_memory_equal(&a->step[i].loss, &b->step[i].loss, sizeof a->step[i].loss);
        assert_memory_equal(&a->step[i].grad_norm, &b->step[i].grad_norm, sizeof a->step[i].grad_norm);
    }
}

static void no_bit_depends_on_it(void **state)
{
    const struct fixture *f = *state;
    static const char *const dtypes[] = {"bf16: false\n", "bf16: true\n"};
    static const struct {
        const char *pinned;
        training_change *change;
        uint64_t seeds; /* 0: immediately; others: deferred */
        bool pageable;
    } ways[] = {{"auto", defer, 1, false}, {"true", defer, 1, false}, {"false", defer, 3, true},
        {"auto", open_refusing, 2, true}};
    for (size_t d = 0; d < 2; d++) {
        struct outcome reference, outcome;
        char *resident = yaml_of(f, dtypes[d]);
        run(resident, NULL, 0, &reference);
        assert_false(reference.pageable);
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
            for (uint64_t seed = 0; seed < ways[w].seeds; seed++) {
                char *more = nb_format("%s%spinned: %s\n", everything_leaves, dtypes[d], ways[w].pinned);
                char *yaml = yaml_of(f, more);
                run(yaml, ways[w].change, seed, &outcome);
                assert_int_equal(outcome.pageable, ways[w].pageable);
                assert_same(&reference, &outcome);
                free(outcome.masters);
                free(yaml);
                free(more);
            }
        free(reference.masters);
        free(resident);
    }
}

/* What is pageable is there when the session opens: a lack of memory is not left to the first step that needs it. */
static void pageable_memory_is_touched(void **state)
{
    char *more = nb_format("%spinned: false\n", everything_leaves), *yaml = yaml_of(*state, more);
    struct training training;
    training_open(&training, yaml);
    const struct nb_host_slab slab = training.session->host;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (slab.bytes + page - 1) / page, there = 0;
    unsigned char *resident = calloc(pages, 1);
    assert_true(slab.pageable && pages > 1);
    assert_int_equal(mincore(slab.memory, slab.bytes, resident), 0);
    for (size_t i = 0; i < pages; i++)
        there += resident[i] & 1;
    assert_int_equal(there, pages);
    free(resident);
    training_close(&training);
    free(yaml);
    free(more);
}

/* ---- what is said ---- */

static void assert_says(const char *said, const char *const *wanted, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!strstr(said, wanted[i]))
            fail_msg("\"%s\" does not say %s", said, wanted[i]);
}

#define ASSERT_SAYS(said, ...)                                        \
    do {                                                              \
        static const char *const wanted_[] = {__VA_ARGS__};           \
        assert_says(said, wanted_, sizeof wanted_ / sizeof *wanted_); \
    } while (0)

/* What the body writes to stderr; the caller frees. */
static char *stderr_of(void (*body)(void *), void *context)
{
    char *text = NULL;
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    int kept = dup(STDERR_FILENO);
    assert_true(kept >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    body(context);
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    long bytes = lseek(fileno(file), 0, SEEK_END);
    assert_true(bytes >= 0);
    text = calloc((size_t)bytes + 1, 1);
    rewind(file);
    assert_int_equal(fread(text, 1, (size_t)bytes, file), bytes);
    fclose(file);
    return text;
}

static void open_and_close(void *yaml)
{
    struct training training;
    training_open_changed(&training, yaml, open_refusing, 0);
    training_close(&training);
}

static void falling_back_warns_once(void **state)
{
    char *yaml = yaml_of(*state, everything_leaves), *said = stderr_of(open_and_close, yaml);
    ASSERT_SAYS(said, "warning: ", "MiB of pinned host memory", "the driver pins no more", "leaves",
        "pageable memory serves", "GB/s");
    assert_null(strstr(strstr(said, "warning: ") + 1, "warning: "));
    free(said);
    free(yaml);
}

/* Opens the session of a run that `change` has altered after the device was opened, which must fail. */
static const char *refusal_of(const char *yaml, training_change *change, uint64_t number)
{
    struct nb_config config;
    struct nb_run *opened = NULL;
    struct nb_plan plan;
    struct nb_session *session = NULL;
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_TRAIN};
    training_config(yaml, &config);
    training_check(nb_run_open(&args, &opened));
    change(opened, number);
    training_check(nb_plan_make(opened, &plan));
    training_check(nb_run_open_device(opened, plan.site, plan.sites));
    struct nb_session_args with = {.capacity = plan.peak_bytes,
        .pinned_capacity = plan.pinned_bytes,
        .host = &plan.host,
        .positions_max = opened->sequence_len};
    assert_int_equal(nb_session_open(opened, &with, &session), NB_MEMORY);
    assert_null(session);
    nb_plan_destroy(&plan);
    nb_run_destroy(&opened);
    nb_config_destroy(&config);
    return nb_status_message();
}

static void asking_for_it_makes_a_refusal_an_error(void **state)
{
    char *more = nb_format("%spinned: true\n", everything_leaves), *yaml = yaml_of(*state, more);
    const char *said = refusal_of(yaml, open_refusing, 0);
    ASSERT_SAYS(said, "MiB of pinned host memory", "the driver pins no more", "leaves", "pinned: auto",
        "a higher resident_layers");
    free(yaml);
    free(more);
}

/* ---- too little of the host ---- */

static void open_with(struct nb_run *run, uint64_t host_bytes)
{
    training_check(nb_run_open_device(run, NULL, 0));
    run->host_available_bytes = host_bytes;
    run->host_limit = NB_HOST_LIMIT_CGROUP;
    run->device->host_take = refuse_once; /* nothing is to be taken */
    run->device->memory_take = NULL;
    refused = false;
}

static void a_lack_is_told_before_anything_is_taken(void **state)
{
    const struct fixture *f = *state;
    char *yaml = yaml_of(f, everything_leaves), *paged = yaml_of(f, "optimizer: paged_adamw_32bit\nresident_optimizer_bytes: 0\n");
    const char *said = refusal_of(yaml, open_with, 300 << 10);
    ASSERT_SAYS(said, "MiB of the host's memory", "linear weights", "optimizer moments", "block inputs",
        "batches and copies", "the CPU device", "memory.max", "leaves 0.3 MiB", "a higher resident_layers",
        "activation_offloading: false", "resident_optimizer_bytes");
    assert_false(refused);
    said = refusal_of(paged, open_with, 300 << 10);
    ASSERT_SAYS(said, "optimizer moments", "resident_optimizer_bytes", "lower sequence_len");
    assert_null(strstr(said, "resident_layers"));
    assert_null(strstr(said, "linear weights"));
    free(yaml);
    free(paged);
}

static void nothing_more(struct nb_run *run, uint64_t number)
{
    (void)run;
    (void)number;
}

/* As many bytes as the plan says are enough, one less is not; without a limit the machine's is measured. */
static void the_budget_counts_to_the_byte(void **state)
{
    const struct fixture *f = *state;
    struct training training;
    struct outcome outcome;
    char *yaml = yaml_of(f, everything_leaves);
    training_open(&training, yaml);
    assert_true(training.run->host_available_bytes > 1 << 20 && training.run->host_available_bytes < UINT64_MAX);
    assert_int_not_equal(training.run->host_limit, NB_HOST_LIMIT_NONE);
    uint64_t needed = training.plan.peak_bytes + training.plan.host.staging_bytes, kept = 0;
    for (int c = 0; c < NB_CATEGORY_COUNT; c++)
        kept += training.plan.host.kept_bytes[c];
    assert_int_equal(kept, training.plan.pinned_bytes);
    needed += kept;
    training_close(&training);
    free(yaml);
    for (int less = 0; less < 2; less++) {
        char *more =
            nb_format("%shost_memory_budget: %llu\n", everything_leaves, (unsigned long long)needed - (unsigned)less);
        yaml = yaml_of(f, more);
        if (less) {
            ASSERT_SAYS(refusal_of(yaml, nothing_more, 0), "host_memory_budget leaves");
        } else {
            run(yaml, NULL, 0, &outcome);
            free(outcome.masters);
        }
        free(yaml);
        free(more);
    }
}

static void the_plan_says_so(void **state)
{
    const struct fixture *f = *state;
    struct training training;
    char *more = nb_format("%spinned: false\n", everything_leaves), *yaml = yaml_of(f, more);
    training_open(&training, yaml);
    char *note = nb_host_slab_note(training.run, 3 << 20);
    assert_null(note); /* a CPU's copies are all alike */
    training.run->profile.kind = NB_DEVICE_CUDA;
    note = nb_host_slab_note(training.run, 3 << 20);
    ASSERT_SAYS(note, "pinned: false", "3.0 MiB", "GB/s");
    free(note);
    assert_null(nb_host_slab_note(training.run, 0));
    training.run->profile.kind = NB_DEVICE_CPU;
    training_close(&training);
    free(yaml);
    free(more);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_bit_depends_on_it),
        cmocka_unit_test(pageable_memory_is_touched),
        cmocka_unit_test(falling_back_warns_once),
        cmocka_unit_test(asking_for_it_makes_a_refusal_an_error),
        cmocka_unit_test(a_lack_is_told_before_anything_is_taken),
        cmocka_unit_test(the_budget_counts_to_the_byte),
        cmocka_unit_test(the_plan_says_so),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
