/* Weights from files: a run leaves the same bytes, and takes what was planned, whether they are resident, stream from
 * host memory or from a file, and whether they come from the checkpoint or the cache, at the first start or the second.
 * Models of seven layers, all different, so that a unit in another's place shows. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "file_model.h"
#include "model/generate.h"
#include "support/deep_model.h"

enum { LAYERS = FILE_MODEL_LAYERS, ANSWER = 6 };

/* Trains and compares; returns the pinned bytes. */
static uint64_t same_as(
    const struct file_trained *first, const struct file_model *m, const char *base, const char *more, uint64_t seed)
{
    char *yaml = file_model_yaml(m, base, more);
    struct file_trained now = file_model_train(yaml, seed);
    if (!file_trained_same(first, &now))
        fail_msg("seed %d: other bytes with\n%s", (int)seed, yaml);
    uint64_t pinned = now.pinned_bytes;
    free(now.masters);
    free(yaml);
    return pinned;
}

/* The weights' form: in the file, and in use. */
struct form {
    const char *name, *settings;
    bool four_bits, direct; /* the checkpoint holds them as they are used */
};

static const struct form forms[] = {
    {"quantized", "adapter: qlora\n", false, false},
    {"4 bits", "adapter: qlora\n", true, true},
    {"bf16", "adapter: lora\n", false, true},
    {"4-bit head", "adapter: qlora\nhead_4bit: true\nembedding_device: host\n", false, false},
    {"plain scales", "adapter: qlora\nbnb_4bit_use_double_quant: false\nbnb_4bit_quant_type: fp4\n", false, false},
};

static const char mixed[] = "sample_packing: true\nactivation_offloading: true\noptimizer: paged_adamw_8bit\n"
                            "gradient_checkpointing: true\n";

static const char layer_major[] = "accumulation_order: layer_major\n"
                                  "optimizer: paged_adamw_8bit\ngradient_checkpointing: true\n";

/* With what else stands in pinned memory (`rest`), as many units as are said to. */
static void pins(uint64_t pinned, uint64_t rest, uint64_t unit, uint64_t units)
{
    assert_int_equal(pinned, rest + unit * units);
}

static void one_form(const struct file_model *m, const struct form *form, const char *settings, uint64_t seed)
{
    const char *base = form->four_bits ? m->four_bits : m->path;
    char *cache = nb_format("%s/cache", m->folder), *plain = nb_format("%s%s", form->settings, settings);
    char *yaml = file_model_yaml(m, base, plain);
    struct file_trained first = file_model_train(yaml, 0);
    uint64_t rest = first.pinned_bytes, unit = 0;
    free(yaml);
    for (int resident = 0; resident <= 3; resident += 3) {
        char *host = nb_format("%sresident_layers: %d\nweights_from: host\n", plain, resident);
        char *file = nb_format("%sresident_layers: %d\nweights_from: file\n", plain, resident);
        char *host_cached = nb_format("%squantized_cache: %s\n", host, cache);
        char *file_cached = nb_format("%squantized_cache: %s\n", file, cache);
        uint64_t streamed = (uint64_t)(LAYERS - resident), pinned = same_as(&first, m, base, host, seed);
        unit = (pinned - rest) / streamed;
        assert_true(unit > 0);
        if (form->direct)
            pins(same_as(&first, m, base, file, seed), rest, unit, NB_UNIT_BUFFERS);
        /* First start, second start, of both ways; each reads the other's file. */
        training_check(nb_remove_folder(cache));
        pins(same_as(&first, m, base, file_cached, seed), rest, unit, NB_UNIT_BUFFERS);
        char *made = file_model_cached(cache);
        assert_non_null(made);
        struct stat before = file_model_stat(made);
        pins(same_as(&first, m, base, file_cached, seed + (seed > 0)), rest, unit, NB_UNIT_BUFFERS);
        pins(same_as(&first, m, base, host_cached, seed), rest, unit, streamed);
        char *all = nb_format("%squantized_cache: %s\n", plain, cache);
        pins(same_as(&first, m, base, all, seed), rest, 0, 0);
        struct stat after = file_model_stat(made);
        assert_true(before.st_ino == after.st_ino && before.st_size == after.st_size);
        training_check(nb_remove_folder(cache));
        pins(same_as(&first, m, base, host_cached, seed), rest, unit, streamed);
        pins(same_as(&first, m, base, file_cached, seed), rest, unit, NB_UNIT_BUFFERS);
        training_check(nb_remove_folder(cache));
        free(all);
        free(made);
        free(file_cached);
        free(host_cached);
        free(file);
        free(host);
    }
    free(first.masters);
    free(plain);
    free(cache);
}

static void where_weights_come_from_changes_no_bit(void **state)
{
    const struct file_model *m = *state;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        one_form(m, &forms[i], "gradient_checkpointing: attention\n", 0);
        one_form(m, &forms[i], i % 2 ? mixed : layer_major, 11 + i);
    }
}

/* A first unit that is read late, or over one that was not uploaded yet, shows with some seed. */
static void late_work_changes_no_bit(void **state)
{
    const struct file_model *m = *state;
    char *cache = nb_format("%s/cache", m->folder);
    char *file = nb_format("adapter: qlora\nresident_layers: 0\nweights_from: file\nquantized_cache: %s\n", cache);
    char *yaml = file_model_yaml(m, m->path, "adapter: qlora\n");
    struct file_trained first = file_model_train(yaml, 0);
    for (uint64_t seed = 1; seed <= 8; seed++)
        same_as(&first, m, m->path, file, seed);
    training_check(nb_remove_folder(cache));
    free(first.masters);
    free(yaml);
    free(file);
    free(cache);
}

/* Of a head that is larger than what is read at once: in several pieces, each over one that has left. */
static void large_units_pass_in_pieces(void **state)
{
    const struct file_model *m = *state;
    static const char key[] = "\"vocab_size\": ";
    char *shape = nb_format("%s/shape", m->folder), *large = nb_format("%s/large", m->folder), *json;
    char *from = nb_format("tests/golden/models/%s/config.json", m->shape), *to = nb_path_join(shape, "config.json");
    size_t bytes;
    training_check(nb_make_folder(shape));
    training_check(nb_file_read(from, 1 << 20, false, &json, &bytes));
    char *at = strstr(json, key);
    assert_non_null(at);
    at += sizeof key - 1;
    char *text = nb_format("%.*s100000%s", (int)(at - json), json, at + strspn(at, "0123456789"));
    training_check(nb_file_write(to, text, strlen(text)));
    training_check(nb_test_write_deep_model(shape, 1, large));
    char *more = nb_format("adapter: qlora\nquantized_cache: %s/cache\n", m->folder),
         *yaml = file_model_yaml(m, large, more);
    struct file_trained first = file_model_train(yaml, 0);
    for (uint64_t seed = 0; seed <= 4; seed++)
        same_as(&first, m, large, more, seed);
    free(first.masters);
    free(yaml);
    free(more);
    free(text);
    free(json);
    free(to);
    free(from);
    free(large);
    free(shape);
}

/* ---- the key ---- */

static struct timespec add_bit(const char *path, off_t at)
{
    struct stat before = file_model_stat(path);
    unsigned char byte;
    int file = open(path, O_RDWR);
    assert_true(file >= 0 && pread(file, &byte, 1, at) == 1);
    byte ^= 1;
    assert_int_equal(pwrite(file, &byte, 1, at), 1);
    close(file);
    return before.st_mtim;
}

static void set_time(const char *path, struct timespec time)
{
    const struct timespec times[] = {time, time};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* The second start reads no weights but the cache's: that the source was changed shows by its time alone, and then a
 * cache of its own is made. So it is with other choices. */
static void a_cache_is_of_one_state_of_one_source(void **state)
{
    const struct file_model *m = *state;
    char *cache = nb_format("%s/cache", m->folder), *weights = nb_path_join(m->path, "model.safetensors");
    char *cached = nb_format("adapter: qlora\nquantized_cache: %s\n", cache);
    char *yaml = file_model_yaml(m, m->path, cached);
    struct file_trained first = file_model_train(yaml, 0);
    char *made = file_model_cached(cache);
    assert_non_null(made);
    off_t last = file_model_stat(weights).st_size - 1;
    struct timespec time = add_bit(weights, last);
    set_time(weights, time);
    assert_int_equal(same_as(&first, m, m->path, cached, 0), 0);
    time.tv_nsec = time.tv_nsec ? time.tv_nsec - 1 : 1;
    set_time(weights, time);
    struct file_trained other = file_model_train(yaml, 0);
    assert_false(file_trained_same(&first, &other));
    training_check(nb_remove_folder(cache));
    add_bit(weights, last);
    same_as(&first, m, m->path, cached, 0);
    char *other_type = nb_format("%sbnb_4bit_quant_type: fp4\n", cached),
         *fp4 = file_model_yaml(m, m->path, other_type);
    struct file_trained third = file_model_train(fp4, 0);
    assert_false(file_trained_same(&first, &third));
    same_as(&third, m, m->path, other_type, 0);
    same_as(&first, m, m->path, cached, 0);
    free(third.masters);
    free(fp4);
    free(other_type);
    training_check(nb_remove_folder(cache));
    free(other.masters);
    free(first.masters);
    free(made);
    free(yaml);
    free(cached);
    free(weights);
    free(cache);
}

/* ---- what must be quantized cannot stream from the checkpoint ---- */

static void says_what_to_do_without_a_file(void **state)
{
    const struct file_model *m = *state;
    struct nb_config config;
    struct nb_run *run = NULL;
    char *yaml = file_model_yaml(m, m->path, "adapter: qlora\nresident_layers: 0\nweights_from: file\n");
    training_config(yaml, &config);
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_TRAIN};
    nb_status status = nb_run_open(&args, &run);
    struct nb_plan plan = {0};
    if (status == NB_OK)
        status = nb_plan_make(run, &plan);
    assert_int_equal(status, NB_UNSUPPORTED);
    assert_non_null(strstr(nb_status_message(), "quantized_cache: FOLDER"));
    assert_non_null(strstr(nb_status_message(), "nibble quantize"));
    nb_plan_destroy(&plan);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(yaml);
}

/* ---- loading ---- */

/* A device that counts what loading takes of the host and brings back from the device. */
static struct {
    struct nb_device original;
    uint64_t host_bytes, down_bytes;
} counted;

static nb_status counting_host_take(struct nb_device *device, uint64_t bytes, void **memory)
{
    counted.host_bytes += bytes;
    return counted.original.host_take(device, bytes, memory);
}

static nb_status counting_download(
    struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    counted.down_bytes += bytes;
    return counted.original.download(device, stream, to, from, bytes);
}

static void load(const char *path, enum nb_weight_format format, int streamed, int positions)
{
    enum { BYTES = 64 << 20 };
    const struct nb_cpu_options cpu = {.threads = 1};
    struct nb_model_options options = {.linear_format = format,
        .nested = format == NB_WEIGHT_NF4,
        .activation = NB_DTYPE_F32,
        .streamed_blocks = streamed};
    struct nb_device *device;
    struct nb_stream *stream;
    struct nb_checkpoint *checkpoint;
    struct nb_arena *arena, *pinned;
    struct nb_model *model;
    nb_dptr slab;
    void *host = aligned_alloc(4096, BYTES);
    training_check(nb_cpu_device_create(&cpu, &device));
    training_check(device->stream_create(device, &stream));
    training_check(device->memory_take(device, BYTES, &slab));
    training_check(nb_arena_create("device", slab.address, BYTES, &arena));
    training_check(nb_arena_create("pinned", (uintptr_t)host, BYTES, &pinned));
    training_check(nb_checkpoint_open(path, &checkpoint));
    training_check(nb_model_create(device, checkpoint, &options, &model));
    struct nb_model_memory memory = {.device = arena, .pinned = pinned};
    training_check(nb_model_allocate(model, &memory, positions));
    counted.original = *device;
    counted.host_bytes = counted.down_bytes = 0;
    device->host_take = counting_host_take;
    device->download = counting_download;
    training_check(nb_model_load(model, stream, arena, NULL));
    nb_model_destroy(&model);
    nb_checkpoint_close(&checkpoint);
    nb_arena_destroy(&arena);
    nb_arena_destroy(&pinned);
    device->stream_destroy(device, &stream);
    device->memory_give_back(device, slab);
    nb_device_destroy(&device);
    free(host);
}

/* A unit that is used as it is in the file is put together where it will lie: nothing comes back from the device, and
 * the largest tensor that is staged is one outside the blocks. */
static void what_is_used_as_it_is_goes_to_its_place(void **state)
{
    const struct file_model *m = *state;
    struct nb_checkpoint *checkpoint;
    training_check(nb_checkpoint_open(m->path, &checkpoint));
    const struct nb_model_config *config = nb_checkpoint_config(checkpoint);
    uint64_t embedding = (uint64_t)config->vocab * (uint64_t)config->hidden * sizeof(nb_bf16);
    uint64_t largest = (uint64_t)config->intermediate * (uint64_t)config->hidden * sizeof(nb_bf16);
    uint64_t tables = 4 * (uint64_t)config->head_dim * sizeof(float);
    nb_checkpoint_close(&checkpoint);
    load(m->path, NB_WEIGHT_BF16, LAYERS, 4);
    assert_int_equal(counted.down_bytes, 0);
    assert_int_equal(counted.host_bytes, embedding + tables);
    load(m->four_bits, NB_WEIGHT_NF4, LAYERS, 4);
    assert_int_equal(counted.down_bytes, 0);
    assert_int_equal(counted.host_bytes, embedding + tables);
    load(m->path, NB_WEIGHT_NF4, LAYERS, 4);
    assert_true(counted.down_bytes > 0);
    assert_int_equal(counted.host_bytes, (largest > embedding ? largest : embedding) + tables);
}

/* ---- whole runs, and answers ---- */

static void runs_with_evaluation_are_the_same(void **state)
{
    const struct file_model *m = *state;
    static const char common[] =
        "adapter: qlora\nmax_steps: 4\nval_set_size: 4\neval_steps: 1\nsave_steps: 2\nseed: 5\n";
    char *file = nb_format("%sresident_layers: 2\nweights_from: file\nquantized_cache: %s/cache\n", common, m->folder);
    char *all, *streamed;
    training_check(file_model_run(m, "all", common, false, &all));
    training_check(file_model_run(m, "file", file, false, &streamed));
    assert_string_equal(all, streamed);
    free(all);
    free(streamed);
    free(file);
}

static nb_status answer(struct nb_session *session, void *context)
{
    static const int32_t prompt[] = {5, 77, 130, 9, 21, 64, 200};
    int32_t *id = context;
    struct nb_generator_options options = {
        .context_max = 20, .prompt_chunk = 3, .sampling = {.temperature = 1, .top_p = 1, .seed = 3}};
    struct nb_generator *generator = NULL;
    NB_TRY(nb_generator_create(session->model, NULL, &options, session->arena, session->stream, &generator));
    nb_status status = nb_generator_append(generator, prompt, sizeof prompt / sizeof *prompt);
    for (int i = 0; status == NB_OK && i < ANSWER; i++)
        status = nb_generator_next(generator, &id[i]);
    nb_generator_destroy(&generator);
    if (!session->dry)
        assert_int_equal(nb_arena_high_water(session->arena), session->capacity);
    return status;
}

/* All that loading takes, and no more. */
static nb_status load_only(struct nb_session *session, void *context)
{
    uint64_t *taken = context;
    if (!session->dry)
        *taken = nb_arena_high_water(session->arena);
    return NB_OK;
}

static void a_start_from_the_cache_takes_what_was_planned(void **state)
{
    const struct file_model *m = *state;
    char *cache = nb_format("quantized_cache=%s/planned", m->folder);
    const char *overrides[] = {"bf16=false", "threads=1", cache, "resident_layers=0", "weights_from=file"};
    for (size_t given = 3; given <= 5; given++)
        for (int start = 1; start <= 2; start++) {
            struct nb_config config;
            struct nb_run *run = NULL;
            uint64_t taken = 0, planned = 1;
            training_check(nb_config_from_overrides(overrides, given, &config));
            struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_GENERATE, .model = m->path};
            training_check(nb_run_open(&args, &run));
            training_check(nb_session_run(run, 20, load_only, &taken, &planned));
            assert_int_equal(taken, planned);
            nb_run_destroy(&run);
            nb_config_destroy(&config);
        }
    free(cache);
}

static void generate(const struct file_model *m, const char *resident, const char *from, uint64_t seed, int32_t *id)
{
    char *cache = nb_format("quantized_cache=%s/answers", m->folder);
    const char *overrides[] = {"bf16=false", "threads=1", resident, from, cache};
    struct nb_config config;
    struct nb_run *run = NULL;
    training_check(nb_config_from_overrides(overrides, sizeof overrides / sizeof *overrides, &config));
    struct nb_run_args args = {.config = &config, .purpose = NB_PURPOSE_GENERATE, .model = m->path};
    training_check(nb_run_open(&args, &run));
    run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = seed > 0, .deferred_seed = seed};
    training_check(nb_session_run(run, 20, answer, id, NULL));
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(cache);
}

static void answers_are_the_same(void **state)
{
    const struct file_model *m = *state;
    int32_t all[ANSWER], other[ANSWER];
    generate(m, "resident_layers=7", "weights_from=host", 0, all);
    for (uint64_t seed = 0; seed <= 2; seed++) {
        generate(m, "resident_layers=0", "weights_from=file", seed, other);
        assert_memory_equal(all, other, sizeof all);
        generate(m, "resident_layers=3", "weights_from=host", seed, other);
        assert_memory_equal(all, other, sizeof all);
        generate(m, "resident_layers=7", "weights_from=host", seed, other);
        assert_memory_equal(all, other, sizeof all);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate_setup_teardown(
            where_weights_come_from_changes_no_bit, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(late_work_changes_no_bit, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            large_units_pass_in_pieces, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            a_cache_is_of_one_state_of_one_source, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            says_what_to_do_without_a_file, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            what_is_used_as_it_is_goes_to_its_place, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            runs_with_evaluation_are_the_same, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(
            a_start_from_the_cache_takes_what_was_planned, file_model_open, file_model_close, argv[1]),
        cmocka_unit_test_prestate_setup_teardown(answers_are_the_same, file_model_open, file_model_close, argv[1]),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s FAMILY\n", argv[0]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
