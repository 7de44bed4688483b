/* checkpoint-N: what is saved comes back, and damage anywhere in it is noticed. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "bench.h"
#include "train/checkpoint_state.h"

static const char *const files[] = {
    "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "config.yml", "trainer_state.json"};

enum { FILES = sizeof files / sizeof files[0] };

struct place {
    struct bench bench;
    struct nb_run_folder *folder;
    char *path;
};

static void open_place(struct place *place, bool eight_bit)
{
    struct nb_adapter_options options = bench_options();
    options.rank = 32; /* 8-bit: tensors on both sides of 4,096 elements */
    options.moments_8bit = eight_bit;
    bench_open(&place->bench, &options);
    place->path = bench_folder();
    bench_ok(nb_run_folder_open(place->path, false, &place->folder));
}

static void close_place(struct place *place)
{
    nb_run_folder_close(&place->folder);
    bench_ok(nb_remove_folder(place->path));
    free(place->path);
    bench_close(&place->bench);
}

static struct nb_trainer_state state_of(int64_t step)
{
    return (struct nb_trainer_state){
        .step = step,
        .epoch = (double)step / 3,
        .seed = 42,
        .tokens = 1000 * (uint64_t)step,
        .trained_tokens = 300 * (uint64_t)step,
        .metrics_bytes = 77 * (uint64_t)step,
        .best_loss = 1.0 / 3,
        .best_step = 1,
        .evaluations_without_gain = 2,
        .micro_batch_size = 3,
        .evaluation_due = step % 2 == 1,
    };
}

static void save(struct place *place, int64_t step)
{
    struct nb_trainer_state state = state_of(step);
    bench_ok(nb_checkpoint_state_save(&place->bench.session, place->folder, &state));
}

/* Everything that a step reads of the adapter, in one piece of memory: from the first slab to the end of the last. */
static unsigned char *snapshot(struct place *place, uint64_t *bytes)
{
    struct nb_adapter *adapter = place->bench.session.adapter;
    *bytes = nb_arena_used(place->bench.session.arena);
    return bench_download(&place->bench, nb_adapter_memory_of(adapter)->copy, *bytes);
}

static void scramble_all(struct place *place)
{
    const struct nb_adapter *adapter = place->bench.session.adapter;
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(adapter, i);
        uint64_t blocks = (t->count + 255) / 256;
        struct nb_adamw at = {0};
        nb_adapter_bind_adamw(adapter, i, &at);
        unsigned seed = (unsigned)(5 * i);
        bench_scramble(&place->bench, at.master, t->count, seed);
        bench_scramble(&place->bench, at.copy, t->count, seed);
        bench_scramble(&place->bench, at.m, t->moments_8bit ? t->count / 4 : t->count, seed + 2);
        bench_scramble(&place->bench, at.v, t->moments_8bit ? t->count / 4 : t->count, seed + 3);
        if (t->moments_8bit) {
            bench_scramble(&place->bench, at.m_absmax, blocks, seed + 4);
            bench_scramble(&place->bench, at.v_absmax, blocks, seed + 5);
        }
    }
}

static void round_trip(bool eight_bit)
{
    struct place place;
    struct nb_trainer_state read, wrote = state_of(5);
    uint64_t bytes = 0;
    open_place(&place, eight_bit);
    scramble_all(&place);
    unsigned char *before = snapshot(&place, &bytes);
    save(&place, 5);
    struct nb_session *s = &place.bench.session;
    bench_ok(nb_adapter_initialize(s->adapter, s->stream, s->staging)); /* as a new process would begin */
    char *path = nb_run_folder_checkpoint(place.folder, 5);
    bench_ok(nb_checkpoint_state_read(path, &read));
    assert_true(read.step == wrote.step && read.epoch == wrote.epoch && read.seed == wrote.seed &&
                read.tokens == wrote.tokens && read.trained_tokens == wrote.trained_tokens &&
                read.metrics_bytes == wrote.metrics_bytes && read.best_loss == wrote.best_loss &&
                read.best_step == wrote.best_step && read.evaluations_without_gain == wrote.evaluations_without_gain &&
                read.micro_batch_size == wrote.micro_batch_size && read.evaluation_due == wrote.evaluation_due);
    bench_ok(nb_checkpoint_state_load(s, path));
    unsigned char *after = snapshot(&place, &bytes);
    assert_memory_equal(before, after, bytes);
    free(before);
    free(after);
    free(path);
    close_place(&place);
}

static void all_state_comes_back(void **state)
{
    (void)state;
    round_trip(false);
    round_trip(true);
}

static void flip(const char *path, uint64_t at)
{
    char *data = NULL;
    size_t bytes = 0;
    bench_ok(nb_file_read(path, 1 << 26, false, &data, &bytes));
    data[at % bytes] ^= 0x10;
    bench_ok(nb_file_write(path, data, bytes));
    free(data);
}

static void every_flipped_bit_is_noticed(void **state)
{
    (void)state;
    struct place place;
    struct nb_trainer_state read;
    open_place(&place, true);
    save(&place, 4);
    char *folder = nb_run_folder_checkpoint(place.folder, 4);
    for (int i = 0; i < FILES; i++) {
        char *path = nb_path_join(folder, files[i]);
        for (uint64_t k = 0; k < 40; k++) {
            uint64_t at = k * k * 97;
            flip(path, at);
            nb_status status = nb_checkpoint_state_read(folder, &read);
            flip(path, at);
            if (status != NB_FORMAT)
                fail_msg("%s: byte %llu flipped, status %d", files[i], (unsigned long long)at, (int)status);
            assert_non_null(strstr(nb_status_message(), files[i]));
        }
        free(path);
    }
    bench_ok(nb_checkpoint_state_read(folder, &read));
    free(folder);
    close_place(&place);
}

static void missing_and_cut_files_are_noticed(void **state)
{
    (void)state;
    struct nb_trainer_state read;
    for (int i = 0; i < FILES; i++)
        for (int cut = 0; cut < 2; cut++) {
            struct place place;
            open_place(&place, false);
            save(&place, 4);
            char *folder = nb_run_folder_checkpoint(place.folder, 4), *path = nb_path_join(folder, files[i]);
            assert_int_equal(cut ? truncate(path, 20) : unlink(path), 0);
            nb_status status = nb_checkpoint_state_read(folder, &read);
            assert_int_equal(status, cut ? NB_FORMAT : NB_IO);
            assert_non_null(strstr(nb_status_message(), files[i]));
            free(path);
            free(folder);
            close_place(&place);
        }
}

static void damage(struct place *place, int64_t step)
{
    char *folder = nb_run_folder_checkpoint(place->folder, step), *path = nb_path_join(folder, "optimizer.safetensors");
    flip(path, 5000);
    free(path);
    free(folder);
}

static void the_newest_good_checkpoint_is_found(void **state)
{
    (void)state;
    struct place place;
    struct nb_trainer_state read;
    char *found = NULL;
    open_place(&place, false);
    bench_ok(nb_checkpoint_state_find(place.folder, NULL, &found, &read));
    assert_null(found);
    assert_int_equal(read.step, 0);
    save(&place, 9);
    save(&place, 10);
    save(&place, 100);
    bench_ok(nb_checkpoint_state_find(place.folder, NULL, &found, &read));
    assert_int_equal(read.step, 100);
    free(found);
    damage(&place, 100);
    bench_ok(nb_checkpoint_state_find(place.folder, NULL, &found, &read));
    assert_int_equal(read.step, 10);
    free(found);
    char *named = nb_run_folder_checkpoint(place.folder, 9);
    bench_ok(nb_checkpoint_state_find(place.folder, named, &found, &read));
    assert_int_equal(read.step, 9);
    free(found);
    free(named);
    named = nb_run_folder_checkpoint(place.folder, 100);
    bench_fails(nb_checkpoint_state_find(place.folder, named, &found, &read), NB_FORMAT,
        "checkpoint-100/optimizer.safetensors");
    free(named);
    const char *run = nb_run_folder_path(place.folder);
    bench_ok(nb_checkpoint_state_find(place.folder, run, &found, &read));
    assert_int_equal(read.step, 10);
    free(found);
    char *empty = nb_path_join(run, "empty"), *nowhere = nb_path_join(run, "nowhere");
    bench_ok(nb_make_folder(empty));
    bench_fails(nb_checkpoint_state_find(place.folder, empty, &found, &read), NB_IO, "neither a checkpoint");
    bench_fails(nb_checkpoint_state_find(place.folder, nowhere, &found, &read), NB_IO, "no such folder");
    free(empty);
    free(nowhere);
    damage(&place, 10);
    damage(&place, 9);
    bench_fails(nb_checkpoint_state_find(place.folder, NULL, &found, &read), NB_FORMAT, "damaged");
    assert_null(found);
    close_place(&place);
}

static void another_adapter_does_not_fit(void **state)
{
    (void)state;
    struct place place;
    struct bench other;
    open_place(&place, false);
    save(&place, 1);
    char *folder = nb_run_folder_checkpoint(place.folder, 1);
    struct nb_adapter_options options = bench_options();
    bench_open(&other, &options); /* rank 4, not 32 */
    bench_fails(nb_checkpoint_state_load(&other.session, folder), NB_USAGE, "another adapter or optimizer");
    bench_close(&other);
    options.rank = 32;
    options.moments_8bit = true;
    bench_open(&other, &options);
    bench_fails(nb_checkpoint_state_load(&other.session, folder), NB_USAGE, "another adapter or optimizer");
    bench_close(&other);
    free(folder);
    close_place(&place);
}

/* A limit on the length of files stands for a full disk: the optimizer's state is the first that does not fit. */
static void a_failed_save_leaves_nothing(void **state)
{
    (void)state;
    struct place place;
    struct nb_trainer_state trainer = state_of(3);
    struct rlimit usual, small;
    open_place(&place, false);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &usual), 0);
    small = (struct rlimit){.rlim_cur = 500000, .rlim_max = usual.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    nb_status status = nb_checkpoint_state_save(&place.bench.session, place.folder, &trainer);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &usual), 0);
    bench_fails(status, NB_IO, "optimizer.safetensors");
    char *unfinished = nb_run_folder_unfinished(place.folder, 3), *path = nb_run_folder_checkpoint(place.folder, 3);
    assert_false(nb_path_exists(path));
    assert_false(nb_path_exists(unfinished));
    free(path);
    free(unfinished);
    close_place(&place);
}

static const char base[] =
    "base_model: tests/golden/models/llama\nadapter: lora\ndatasets: [{path: rows.jsonl, type: tokens}]\n"
    "learning_rate: 1e-3\nlora_r: 4\nlora_target_linear: true\nsequence_len: 64\noutput_dir: out\nmax_steps: 8\n";

static void with_config(const char *folder, const char *changes, nb_status want, const char *words)
{
    struct nb_config config;
    char *text = nb_format("%s%s", base, changes);
    bench_ok(nb_config_parse(text, strlen(text), "test.yml", NULL, 0, &config));
    bench_ok(nb_config_validate_train(&config));
    nb_status status = nb_checkpoint_state_check_config(folder, &config);
    if (want == NB_OK)
        bench_ok(status);
    else
        bench_fails(status, want, words);
    nb_config_destroy(&config);
    free(text);
}

static void store_config(const char *folder, const char *changes)
{
    struct nb_config config;
    size_t bytes = 0;
    char *text = NULL, *stored = nb_format("%s%s", base, changes);
    bench_ok(nb_config_parse(stored, strlen(stored), "test.yml", NULL, 0, &config));
    bench_ok(nb_config_validate_train(&config));
    bench_ok(nb_config_format(&config, &text, &bytes));
    bench_write(folder, "config.yml", text);
    nb_config_destroy(&config);
    free(text);
    free(stored);
}

static void a_run_goes_on_with_the_config_it_began_with(void **state)
{
    (void)state;
    char *folder = bench_folder();
    store_config(folder, "lr_scheduler: constant\n");
    with_config(folder, "lr_scheduler: constant\n", NB_OK, NULL);
    with_config(folder, "lr_scheduler: constant\nlogging_steps: 7\nsave_steps: 3\nsave_total_limit: 2\nthreads: 3\n"
                        "base_model_name: another/name\n", NB_OK, NULL);
    with_config(folder, "lr_scheduler: constant\nseed: 1234\n", NB_USAGE, "seed");
    with_config(folder, "lr_scheduler: constant\nweight_decay: 0.3\n", NB_USAGE, "weight_decay");
    with_config(folder, "lr_scheduler: linear\n", NB_USAGE, "lr_scheduler");
    /* More epochs: only where they leave the learning rates behind them as they were. */
    store_config(folder, "lr_scheduler: constant_with_warmup\nwarmup_steps: 2\n");
    with_config(folder, "lr_scheduler: constant_with_warmup\nwarmup_steps: 2\nnum_epochs: 3\n", NB_OK, NULL);
    store_config(folder, "lr_scheduler: constant_with_warmup\nwarmup_steps: 0\nwarmup_ratio: 0.5\n");
    with_config(folder, "lr_scheduler: constant_with_warmup\nwarmup_steps: 0\nwarmup_ratio: 0.5\nnum_epochs: 3\n", NB_USAGE,
        "num_epochs");
    bench_ok(nb_remove_folder(folder));
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_state_comes_back),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(missing_and_cut_files_are_noticed),
        cmocka_unit_test(the_newest_good_checkpoint_is_found),
        cmocka_unit_test(another_adapter_does_not_fit),
        cmocka_unit_test(a_failed_save_leaves_nothing),
        cmocka_unit_test(a_run_goes_on_with_the_config_it_began_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
