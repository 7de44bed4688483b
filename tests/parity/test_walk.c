/* A pass whose slots go through the layers together, beside one whose micro-batches go one after the other: some slots
 * idle, some without a trained row, block inputs on the device or off it. Seven layers, all different. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "rig.h"
#include "support/deep_model.h"

enum { LAYERS = 7, SLOTS = 4, TOKENS = 24, MEMORY_BYTES = 8 << 20 };

static const struct nb_adapter_options fresh = {.target_linear = true, .rank = 4, .alpha = 8, .dropout = 0.1f};

static const struct nb_batch_limits limits = {
    .tokens = TOKENS, .sequences = 1, .longest = TOKENS, .trained_rows = TOKENS, .loss_rows = NB_TILE_TOKENS};

struct walk {
    int active, offloaded;
    uint64_t seed;
    bool layer_major;
};

static int uploads, early_uploads, downloads, attentions;
static struct nb_device real;

static nb_status count_upload(
    struct nb_device *device, struct nb_stream *stream, nb_dptr to, const void *from, uint64_t bytes)
{
    uploads++;
    early_uploads += attentions == 0;
    return real.upload(device, stream, to, from, bytes);
}

static nb_status count_download(
    struct nb_device *device, struct nb_stream *stream, void *to, nb_dptr from, uint64_t bytes)
{
    downloads++;
    return real.download(device, stream, to, from, bytes);
}

static nb_status count_attention(
    struct nb_device *device, struct nb_stream *stream, const struct nb_attention_backward *args)
{
    attentions++;
    return real.attention_backward(device, stream, args);
}

/* What goes to the host comes back once, and the first of it while the head is at work, whoever is idle. */
static void train_counting(struct rig *rig, int active, bool offloads)
{
    uploads = early_uploads = downloads = attentions = 0;
    real = *rig->device;
    rig->device->upload = count_upload;
    rig->device->download = count_download;
    rig->device->attention_backward = count_attention;
    rig_check(nb_pass_train_layer_major(rig->pass, active));
    rig->device->upload = real.upload;
    rig->device->download = real.download;
    rig->device->attention_backward = real.attention_backward;
    assert_int_equal(uploads, downloads);
    assert_int_equal(uploads > 0, offloads);
    assert_int_equal(early_uploads > 0, offloads);
}

/* Two rounds with other tokens, in the first of which one micro-batch has nothing that trains. */
static float *walk(const char *model, const struct walk *w, double *loss)
{
    int32_t ids[2 * SLOTS * TOKENS], labels[2 * SLOTS * TOKENS];
    struct rig rig;
    struct rig_options options = {.model = model, .format = NB_WEIGHT_NF4, .activation = NB_DTYPE_F32,
        .fresh_adapter = &fresh, .threads = 1, .deferred = w->seed != 0, .seed = w->seed,
        .memory_bytes = MEMORY_BYTES};
    struct nb_arena *pinned = NULL;
    void *host = NULL;
    for (int i = 0; i < 2 * SLOTS * TOKENS; i++) {
        ids[i] = 3 + i * 29 % 200;
        labels[i] = i / TOKENS == 1 ? -100 : ids[i];
    }
    rig_open(&rig, &options);
    rig_check(rig.device->host_take(rig.device, 1 << 20, &host));
    rig_check(nb_arena_create("pinned", (uintptr_t)host, 1 << 20, &pinned));
    struct nb_pass_options pass = {
        .limits = limits,
        .keep = NB_KEEP_ATTENTION,
        .slots = SLOTS,
        .layer_major = w->layer_major,
        .batches = 2 * SLOTS,
        .step = rig.step,
        .offloaded = w->offloaded,
        .pinned = pinned};
    rig_check(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass));
    rig_begin_step(&rig);
    rig_clear_gradients(&rig);
    for (int round = 0; round < 2; round++) {
        struct rig_rows rows = {.ids = ids + round * SLOTS * TOKENS, .labels = labels + round * SLOTS * TOKENS,
            .length = TOKENS - 5 * round};
        int active = round ? w->active : SLOTS;
        for (int slot = 0; slot < active; slot++)
            rig_set_rows(&rig, slot, &rows, slot, 1);
        for (int slot = 0; slot < active && !w->layer_major; slot++)
            rig_check(nb_pass_train(rig.pass, slot));
        if (w->layer_major)
            train_counting(&rig, active, w->offloaded > 0);
    }
    *loss = rig_loss(&rig, 1);
    float *gradients = rig_gradients(&rig);
    nb_pass_destroy(&rig.pass);
    assert_int_equal(nb_arena_used(pinned), 0);
    nb_arena_destroy(&pinned);
    rig.device->host_give_back(rig.device, host);
    rig_close(&rig);
    return gradients;
}

static uint64_t count_gradients(const char *model)
{
    struct rig rig;
    struct rig_options options = {.model = model, .format = NB_WEIGHT_NF4, .activation = NB_DTYPE_F32,
        .fresh_adapter = &fresh, .threads = 1};
    rig_open(&rig, &options);
    uint64_t count = nb_adapter_elements(rig.adapter);
    rig_close(&rig);
    return count;
}

static void idle_slots_and_untrained_ones_change_no_bit(void **state)
{
    const char *model = *(char **)*state;
    uint64_t bytes = count_gradients(model) * sizeof(float);
    for (int active = 1; active <= SLOTS; active++) {
        struct walk w = {.active = active};
        double want_loss, loss;
        float *want = walk(model, &w, &want_loss);
        w.layer_major = true;
        static const struct {
            int offloaded;
            uint64_t seed;
        } cases[] = {{0, 0}, {LAYERS, 0}, {2, 0}, {LAYERS, 1}, {LAYERS - 1, 2}};
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            w.seed = cases[i].seed * (uint64_t)active;
            w.offloaded = cases[i].offloaded;
            float *got = walk(model, &w, &loss);
            assert_memory_equal(got, want, bytes);
            assert_true(loss == want_loss);
            free(got);
        }
        free(want);
    }
}

static void a_pass_refuses_what_cannot_be(void **state)
{
    const char *model = *(char **)*state;
    struct rig rig;
    struct rig_options options = {.model = model, .format = NB_WEIGHT_NF4, .activation = NB_DTYPE_F32,
        .fresh_adapter = &fresh, .threads = 1};
    rig_open(&rig, &options);
    struct nb_pass_options pass = {
        .limits = limits,
        .keep = NB_KEEP_NOTHING,
        .slots = 2,
        .layer_major = true,
        .step = rig.step,
        .pinned = rig.arena};
    assert_int_equal(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass), NB_USAGE);
    pass.keep = NB_KEEP_INPUT;
    pass.offloaded = LAYERS;
    assert_int_equal(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass), NB_USAGE);
    pass.offloaded = 0;
    rig_check(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass));
    assert_int_equal(nb_pass_train_layer_major(rig.pass, 0), NB_USAGE);
    assert_int_equal(nb_pass_train_layer_major(rig.pass, 3), NB_USAGE);
    assert_int_equal(nb_pass_train(rig.pass, 0), NB_USAGE);
    assert_int_equal(nb_pass_backward(rig.pass, 0, LAYERS, 0), NB_USAGE);
    nb_pass_destroy(&rig.pass);
    pass.layer_major = false;
    rig_check(nb_pass_create(rig.model, rig.adapter, &pass, rig.arena, rig.stream, &rig.pass));
    assert_int_equal(nb_pass_train_layer_major(rig.pass, 2), NB_USAGE);
    rig_close(&rig);
}

static int open_model(void **state)
{
    const char *base = getenv("TMPDIR");
    char **names = calloc(2, sizeof *names); /* of the model, and of the folder it is in */
    names[1] = nb_format("%s/nibble-test-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(names[1]));
    names[0] = nb_path_join(names[1], "model");
    rig_check(nb_test_write_deep_model("tests/golden/models/llama", LAYERS, names[0]));
    *state = names;
    return 0;
}

static int close_model(void **state)
{
    char **names = *state;
    rig_check(nb_remove_folder(names[1]));
    free(names[0]);
    free(names[1]);
    free(names);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idle_slots_and_untrained_ones_change_no_bit),
        cmocka_unit_test(a_pass_refuses_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
