/* What goes wrong with files while weights come from them: a disk that fails, a file that is cut off, written over or
 * replaced, a cache that is damaged or cannot be written. A step that cannot be done ends the run, whose last
 * checkpoint goes on to the same bytes; a cache costs time at most. pread is wrapped: at its call number `fault.at` it
 * does what the test asks for. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/random.h"
#include "file_model.h"
#include "model/unit_file.h"

static struct {
    int calls, at; /* counted from 1; 0: never */
    enum { FAIL, CUT, WRITE_OVER, REPLACE } what;
    const char *path;
} fault;

static void write_over(const char *path, off_t at)
{
    unsigned char byte;
    int file = open(path, O_RDWR);
    assert_true(file >= 0 && lseek(file, at, at < 0 ? SEEK_END : SEEK_SET) >= 0);
    assert_int_equal(read(file, &byte, 1), 1);
    byte ^= 4;
    assert_true(lseek(file, at, at < 0 ? SEEK_END : SEEK_SET) >= 0);
    assert_int_equal(write(file, &byte, 1), 1);
    close(file);
}

static void replace(const char *path)
{
    char *other = nb_format("%s.other", path);
    assert_int_equal(nb_file_write(other, "another file", 12), NB_OK);
    assert_int_equal(rename(other, path), 0);
    free(other);
}

/* What pread is called where off_t has 64 bits. */
ssize_t __real_pread64(int file, void *to, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int file, void *to, size_t bytes, off_t offset);

ssize_t __wrap_pread64(int file, void *to, size_t bytes, off_t offset)
{
    if (++fault.calls != fault.at)
        return __real_pread64(file, to, bytes > 5000 ? bytes / 2 : bytes, offset); /* reading in parts is no fault */
    switch (fault.what) {
    case FAIL:
        errno = EIO;
        return -1;
    case CUT:
        assert_int_equal(truncate(fault.path, offset), 0);
        break;
    case WRITE_OVER:
        write_over(fault.path, offset);
        break;
    default:
        replace(fault.path);
    }
    return __real_pread64(file, to, bytes, offset);
}

static void set_fault(int what, int at, const char *path)
{
    fault.calls = 0;
    fault.at = at;
    fault.what = what;
    fault.path = path;
}

static void copy(const char *from, const char *to)
{
    char *data;
    size_t bytes;
    training_check(nb_file_read(from, UINT32_MAX, false, &data, &bytes));
    training_check(nb_file_write(to, data, bytes));
    free(data);
}

/* ---- what is said on stderr ---- */

static struct {
    int original;
    FILE *file;
} listening;

static void listen(void)
{
    fflush(stderr);
    listening.original = dup(STDERR_FILENO);
    listening.file = tmpfile();
    assert_non_null(listening.file);
    assert_true(dup2(fileno(listening.file), STDERR_FILENO) >= 0);
}

/* Everything since listen, at most what a few lines take; holds until the next call. */
static const char *heard(void)
{
    static char text[1 << 16];
    fflush(stderr);
    assert_true(dup2(listening.original, STDERR_FILENO) >= 0);
    close(listening.original);
    rewind(listening.file);
    text[fread(text, 1, sizeof text - 1, listening.file)] = 0;
    fclose(listening.file);
    fputs(text, stderr);
    return text;
}

static void says(const char *text, const char *words)
{
    if (!strstr(text, words))
        fail_msg("\"%s\" is not in: %s", words, text);
}

enum { UNITS = FILE_MODEL_LAYERS + 2 };

/* The units' sizes, as they stand in the header. */
static void read_sizes(const char *path, uint64_t size[UNITS])
{
    FILE *file = fopen(path, "rb");
    assert_true(file && fseek(file, 32, SEEK_SET) == 0 && fread(size, sizeof *size, UNITS, file) == UNITS);
    fclose(file);
}

/* Where a unit begins, or with UNITS where the last ends. */
static off_t unit_at(const char *path, int number)
{
    uint64_t size[UNITS], begin = 4096;
    read_sizes(path, size);
    for (int i = 0; i < number; i++)
        begin = (begin + size[i] + 4095) / 4096 * 4096;
    return (off_t)begin;
}

/* ---- in the middle of a run ---- */

static const char common[] = "adapter: qlora\nmax_steps: 6\nsave_steps: 2\nseed: 5\nresident_layers: 2\n";

static char *streaming(const struct file_model *m)
{
    return nb_format("%sweights_from: file\nquantized_cache: %s/cache\n", common, m->folder);
}

/* A whole run without faults, which leaves the cache; and how often it reads when it finds that. */
static char *good_run(const struct file_model *m, const char *settings, int *reads)
{
    char *first, *again;
    set_fault(FAIL, 0, NULL);
    training_check(file_model_run(m, "good", settings, false, &first));
    set_fault(FAIL, 0, NULL);
    training_check(file_model_run(m, "again", settings, false, &again));
    *reads = fault.calls;
    assert_true(*reads > 20);
    assert_string_equal(first, again);
    free(again);
    return first;
}

/* The step ends, naming file and offset, at any of the reads; the last checkpoint goes on to the same bytes. */
static void a_step_that_cannot_read_is_abandoned(void **state)
{
    const struct file_model *m = *state;
    static const char *const words[] = {
        "Input/output error", "was changed while it was in use", "was changed while it was in use"};
    char *settings = streaming(m), *folder = nb_format("%s/cache", m->folder), *broken;
    int reads;
    char *good = good_run(m, settings, &reads), *cache = file_model_cached(folder);
    assert_non_null(cache);
    for (int what = FAIL; what <= WRITE_OVER; what++)
        for (int tenths = 6; tenths <= 9; tenths += 3) {
            char *out = nb_format("broken-%d-%d", what, tenths);
            char *last = nb_format("%s/%s/checkpoint-2", m->folder, out);
            set_fault(what, reads * tenths / 10, cache);
            assert_int_equal(file_model_run(m, out, settings, false, &broken), NB_IO);
            says(nb_status_message(), cache);
            says(nb_status_message(), "offset");
            says(nb_status_message(), words[what]);
            assert_true(nb_path_exists(last));
            set_fault(FAIL, 0, NULL);
            /* What was written over is found when it is read again. */
            if (what == WRITE_OVER)
                assert_int_equal(file_model_run(m, out, settings, true, &broken), NB_FORMAT);
            training_check(file_model_run(m, out, settings, true, &broken));
            assert_string_equal(good, broken);
            free(broken);
            free(last);
            free(out);
        }
    free(cache);
    free(folder);
    free(good);
    free(settings);
}

/* The file that was opened is read on. The one in its place is no cache: the next start removes it and makes one. */
static void a_file_in_its_place_changes_nothing(void **state)
{
    const struct file_model *m = *state;
    char *settings = streaming(m), *folder = nb_format("%s/cache", m->folder), *other;
    int reads;
    char *good = good_run(m, settings, &reads), *cache = file_model_cached(folder);
    set_fault(REPLACE, reads / 2, cache);
    training_check(file_model_run(m, "replaced", settings, false, &other));
    assert_string_equal(good, other);
    free(other);
    listen();
    nb_status status = file_model_run(m, "after", settings, false, &other);
    says(heard(), "of no use");
    training_check(status);
    assert_string_equal(good, other);
    free(other);
    free(cache);
    free(folder);
    free(good);
    free(settings);
}

/* Streamed from the checkpoint itself: there is no cache between. */
static void so_is_one_that_reads_the_checkpoint(void **state)
{
    const struct file_model *m = *state;
    char *weights = nb_path_join(m->path, "model.safetensors"), *good, *broken;
    static const char settings[] =
        "adapter: lora\nmax_steps: 4\nsave_steps: 2\nseed: 5\nresident_layers: 2\nweights_from: file\n";
    set_fault(FAIL, 0, NULL);
    training_check(file_model_run(m, "plain", settings, false, &good));
    set_fault(FAIL, fault.calls * 8 / 10, weights);
    assert_int_equal(file_model_run(m, "failed", settings, false, &broken), NB_IO);
    says(nb_status_message(), weights);
    says(nb_status_message(), "offset");
    set_fault(FAIL, 0, NULL);
    training_check(file_model_run(m, "failed", settings, true, &broken));
    assert_string_equal(good, broken);
    free(broken);
    free(good);
    free(weights);
}

/* What no checksum tells is looked for as in loading: the unit is the first that is read. */
static void a_weight_that_is_no_number_is_found(void **state)
{
    const struct file_model *m = *state;
    char *weights = nb_path_join(m->path, "model.safetensors"), *metrics;
    struct stat status = file_model_stat(weights);
    const unsigned char infinite[] = {0x80, 0x7f};
    int file = open(weights, O_RDWR);
    assert_int_equal(pwrite(file, infinite, 2, status.st_size - 2), 2); /* of the last tensor, one of the last block */
    close(file);
    set_fault(FAIL, 0, NULL);
    assert_int_equal(file_model_run(m, "infinite",
                         "adapter: lora\nmax_steps: 1\nresident_layers: 2\nweights_from: file\n", false, &metrics),
        NB_FORMAT);
    says(nb_status_message(), weights);
    says(nb_status_message(), "offset");
    says(nb_status_message(), "not a number");
    free(weights);
}

/* Between the opening of the checkpoint and that of its file for streaming. */
static void a_checkpoint_replaced_in_the_meantime_is_refused(void **state)
{
    const struct file_model *m = *state;
    const struct nb_cpu_options cpu = {.threads = 1};
    struct nb_model_options options = {
        .linear_format = NB_WEIGHT_BF16, .streamed_blocks = FILE_MODEL_LAYERS, .streams_from_file = true};
    char *weights = nb_path_join(m->path, "model.safetensors"), *other = nb_path_join(m->path, "other");
    struct nb_device *device;
    struct nb_stream *stream;
    struct nb_checkpoint *checkpoint;
    struct nb_arena *arena, *pinned;
    struct nb_model *model;
    nb_dptr slab;
    void *host = aligned_alloc(4096, 64 << 20);
    training_check(nb_cpu_device_create(&cpu, &device));
    training_check(device->stream_create(device, &stream));
    training_check(device->memory_take(device, 64 << 20, &slab));
    training_check(nb_arena_create("device", slab.address, 64 << 20, &arena));
    training_check(nb_arena_create("pinned", (uintptr_t)host, 64 << 20, &pinned));
    training_check(nb_checkpoint_open(m->path, &checkpoint));
    training_check(nb_model_create(device, checkpoint, &options, &model));
    struct nb_model_memory memory = {.device = arena, .pinned = pinned};
    training_check(nb_model_allocate(model, &memory, 4));
    copy(weights, other);
    assert_int_equal(rename(other, weights), 0);
    set_fault(FAIL, 0, NULL);
    assert_int_equal(nb_model_load(model, stream, arena, NULL), NB_IO);
    says(nb_status_message(), weights);
    says(nb_status_message(), "replaced");
    nb_model_destroy(&model);
    nb_checkpoint_close(&checkpoint);
    nb_arena_destroy(&arena);
    nb_arena_destroy(&pinned);
    device->stream_destroy(device, &stream);
    device->memory_give_back(device, slab);
    nb_device_destroy(&device);
    free(host);
    free(other);
    free(weights);
}

/* ---- damage ---- */

static bool same_file(const char *a, const char *b)
{
    char *one, *other;
    size_t one_bytes, other_bytes;
    training_check(nb_file_read(a, UINT32_MAX, false, &one, &one_bytes));
    training_check(nb_file_read(b, UINT32_MAX, false, &other, &other_bytes));
    bool same = one_bytes == other_bytes && memcmp(one, other, one_bytes) == 0;
    free(one);
    free(other);
    return same;
}

struct damaged {
    struct file_trained first;
    const char *cache, *whole;
    char *yaml;
};

/* The damaged cache is named with an offset, made anew with the same bytes, and the training's bytes are the same. */
static void recovers(const struct damaged *d)
{
    listen();
    struct file_trained now = file_model_train(d->yaml, 0);
    const char *text = heard();
    says(text, "of no use");
    says(text, d->cache);
    says(text, "offset");
    assert_true(file_trained_same(&d->first, &now));
    assert_true(same_file(d->cache, d->whole));
    free(now.masters);
}

static void a_damaged_cache_is_made_anew(void **state)
{
    const struct file_model *m = *state;
    char *folder = nb_format("%s/cache", m->folder), *whole = nb_format("%s/whole", m->folder);
    for (int resident = 0; resident <= FILE_MODEL_LAYERS; resident += FILE_MODEL_LAYERS) {
        char *more = nb_format("adapter: qlora\nquantized_cache: %s\nresident_layers: %d\n", folder, resident);
        struct damaged d = {.yaml = file_model_yaml(m, m->path, more), .whole = whole};
        set_fault(FAIL, 0, NULL);
        d.first = file_model_train(d.yaml, 0);
        char *cache = file_model_cached(folder);
        d.cache = cache;
        copy(cache, whole);
        const off_t bytes = file_model_stat(whole).st_size;
        /* Magic, version, number of units, sizes, key; the first checksum, and that of the checksums. */
        const off_t at[] = {0, 8, 12, 16, 24, 33, 32 + 8 * UNITS + 3, bytes - 4 * (UNITS + 1), bytes - 1};
        for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
            write_over(cache, at[i]);
            recovers(&d);
        }
        /* Each unit, in its first byte, its last, and one between. */
        uint64_t unit[UNITS];
        read_sizes(cache, unit);
        for (int i = 0; i < UNITS; i++)
            for (uint64_t part = 0; part <= 2; part++) {
                write_over(cache, unit_at(cache, i) + (off_t)(part * (unit[i] - 1) / 2));
                recovers(&d);
            }
        const off_t end[] = {0, 1, 31, 4095, 4096, bytes / 2, bytes - 1, bytes + 1};
        for (size_t i = 0; i < sizeof end / sizeof *end; i++) {
            assert_int_equal(truncate(cache, end[i]), 0);
            recovers(&d);
        }
        /* A disk that cannot read it: as good as none. */
        listen();
        set_fault(FAIL, 4, NULL);
        struct file_trained now = file_model_train(d.yaml, 0);
        says(heard(), "Input/output error");
        set_fault(FAIL, 0, NULL);
        assert_true(file_trained_same(&d.first, &now) && same_file(cache, whole));
        free(now.masters);
        training_check(nb_remove_folder(folder));
        free(d.first.masters);
        free(d.yaml);
        free(cache);
        free(more);
    }
    free(whole);
    free(folder);
}

/* The key that stands in a cache's header; the caller frees. */
static char *key_of(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint64_t bytes;
    assert_true(file && fseek(file, 24, SEEK_SET) == 0 && fread(&bytes, sizeof bytes, 1, file) == 1);
    char *key = calloc(1, bytes + 1);
    assert_true(fseek(file, 32 + 8 * UNITS, SEEK_SET) == 0 && fread(key, 1, bytes, file) == bytes);
    fclose(file);
    return key;
}

/* A program of another version has its file beside this one's: it is no damaged one. */
static void a_cache_of_another_version_stays(void **state)
{
    const struct file_model *m = *state;
    char *folder = nb_format("%s/cache", m->folder), *more = nb_format("adapter: qlora\nquantized_cache: %s\n", folder);
    char *yaml = file_model_yaml(m, m->path, more), *words = nb_format(", version %d\n", NB_UNIT_FILE_VERSION);
    set_fault(FAIL, 0, NULL);
    struct file_trained first = file_model_train(yaml, 0);
    char *cache = file_model_cached(folder), *key = key_of(cache), *version = strstr(key, words);
    char *hash = nb_format("-%016" PRIx64 ".units", nb_name_hash(key));
    assert_non_null(strstr(cache, hash));
    assert_non_null(version);
    version[strlen(words) - 2]++;
    char *other = nb_format("%.*s-%016" PRIx64 ".units", (int)(strstr(cache, hash) - cache), cache, nb_name_hash(key));
    copy(cache, other);
    write_over(other, 8);
    assert_int_equal(unlink(cache), 0);
    for (int i = 0; i < 2; i++) {
        listen();
        struct file_trained now = file_model_train(yaml, 0);
        assert_null(strstr(heard(), "warning"));
        assert_true(file_trained_same(&first, &now));
        assert_true(nb_path_exists(other) && nb_path_exists(cache));
        free(now.masters);
    }
    training_check(nb_remove_folder(folder));
    free(first.masters);
    free(other);
    free(hash);
    free(key);
    free(cache);
    free(words);
    free(yaml);
    free(more);
    free(folder);
}

/* Found when a unit is first read, in a step: that ends the run. The next start finds no cache, and makes it. */
static void damage_that_streams_is_found_and_removed(void **state)
{
    const struct file_model *m = *state;
    char *settings = streaming(m), *folder = nb_format("%s/cache", m->folder), *broken;
    int reads;
    char *good = good_run(m, settings, &reads), *cache = file_model_cached(folder);
    write_over(cache, unit_at(cache, FILE_MODEL_LAYERS) + 300); /* the last block is always streamed */
    assert_int_equal(file_model_run(m, "damaged", settings, false, &broken), NB_FORMAT);
    says(nb_status_message(), cache);
    says(nb_status_message(), "offset");
    says(nb_status_message(), "start again");
    assert_false(nb_path_exists(cache));
    training_check(file_model_run(m, "damaged", settings, true, &broken));
    assert_string_equal(good, broken);
    free(broken);
    free(cache);
    free(folder);
    free(good);
    free(settings);
}

/* ---- no room, no leave ---- */

/* Trains with a cache that cannot be made; it is said, and nothing is left. */
static void goes_without(const struct file_model *m, const struct file_trained *first, const char *folder)
{
    char *more = nb_format("adapter: qlora\nquantized_cache: %s\n", folder), *yaml = file_model_yaml(m, m->path, more);
    listen();
    struct file_trained now = file_model_train(yaml, 0);
    const char *text = heard();
    says(text, "warning: quantized_cache: ");
    says(text, folder);
    assert_true(file_trained_same(first, &now));
    assert_null(file_model_cached(folder));
    free(now.masters);
    free(yaml);
    free(more);
}

static void a_cache_that_cannot_be_written_is_done_without(void **state)
{
    const struct file_model *m = *state;
    char *folder = nb_format("%s/cache", m->folder), *file = nb_format("%s/rows.jsonl", m->folder);
    char *yaml = file_model_yaml(m, m->path, "adapter: qlora\n");
    set_fault(FAIL, 0, NULL);
    struct file_trained first = file_model_train(yaml, 0);
    goes_without(m, &first, file);
    goes_without(m, &first, "/proc/nibble");
    /* A full disk, in the first unit and in a later one. */
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (rlim_t bytes = 3000; bytes < 200000; bytes *= 4) {
        struct rlimit small = {bytes, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        goes_without(m, &first, folder);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    }
    free(first.masters);
    free(yaml);
    free(file);
    free(folder);
}

/* Where layers are to stream from it, there is no doing without. */
static void no_cache_no_streaming_from_it(void **state)
{
    const struct file_model *m = *state;
    char *settings = nb_format("%sweights_from: file\nquantized_cache: %s/rows.jsonl\n", common, m->folder), *metrics;
    set_fault(FAIL, 0, NULL);
    assert_int_equal(file_model_run(m, "none", settings, false, &metrics), NB_IO);
    says(nb_status_message(), "weights_from: file");
    free(settings);
}

int main(int argc, char **argv)
{
#define TEST(name) cmocka_unit_test_prestate_setup_teardown(name, file_model_open, file_model_close, argv[1])
    const struct CMUnitTest tests[] = {
        TEST(a_step_that_cannot_read_is_abandoned),
        TEST(a_file_in_its_place_changes_nothing),
        TEST(so_is_one_that_reads_the_checkpoint),
        TEST(a_weight_that_is_no_number_is_found),
        TEST(a_checkpoint_replaced_in_the_meantime_is_refused),
        TEST(a_damaged_cache_is_made_anew),
        TEST(a_cache_of_another_version_stays),
        TEST(damage_that_streams_is_found_and_removed),
        TEST(a_cache_that_cannot_be_written_is_done_without),
        TEST(no_cache_no_streaming_from_it),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
