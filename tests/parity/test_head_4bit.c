/* A head in 4 bits computes as one in bf16 does that was made of the same 4 bits: the same bytes, forward and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/model.h"
#include "outer.h"
#include "quant/matrix.h"

static void a_head_in_4_bits_is_its_own_bf16(void **state)
{
    const struct models *m = *state;
    static const struct {
        enum nb_quant_type type;
        bool nested;
        const char *more;
    } ways[] = {
        {NB_QUANT_NF4, true, "gradient_checkpointing: true\n"},
        {NB_QUANT_NF4, true, "gradient_checkpointing: true\nbf16: true\nsample_packing: true\n"},
        {NB_QUANT_FP4, false, "bnb_4bit_quant_type: fp4\nbnb_4bit_use_double_quant: false\nresident_layers: 0\n"},
        {NB_QUANT_NF4, false, "bnb_4bit_use_double_quant: false\nadapter: lora\nload_in_4bit: true\n"},
        {NB_QUANT_NF4, true, "lora_target_modules: [lm_head, q_proj]\n"},
    };
    for (size_t i = 0; i < 2 * sizeof ways / sizeof *ways; i++) {
        int shape = i % 2 ? TIED : OWN;
        if (shape == TIED && strstr(ways[i / 2].more, "lm_head")) /* no target where it is the embedding */
            continue;
        struct rewriting how = {
            .head = true, .type = ways[i / 2].type, .nested = ways[i / 2].nested, .embedding = NB_SAFETENSORS_BF16};
        char *path = nb_format("%s/reference-%zu", m->folder, i);
        outer_write_again(m->path[shape], path, &how);
        char *more = nb_format("%shead_4bit: true\n", ways[i / 2].more);
        char *reference = outer_yaml(m, path, ways[i / 2].more), *yaml = outer_yaml(m, m->path[shape], more),
             *plain = outer_yaml(m, m->path[shape], ways[i / 2].more);
        struct trained want = outer_train(reference, NULL, 0), got = outer_train(yaml, NULL, 0);
        struct trained late = outer_train(yaml, outer_defer, i + 1), wide = outer_train(plain, NULL, 0);
        outer_assert_same(&want, &got, more);
        outer_assert_same(&want, &late, more);
        assert_true(wide.step[0].loss != got.step[0].loss); /* it changes numbers */
        free(want.masters);
        free(got.masters);
        free(late.masters);
        free(wide.masters);
        free(more);
        free(reference);
        free(yaml);
        free(plain);
        free(path);
    }
}

/* ---- what quantizing it takes of the host ---- */

static struct {
    uint64_t most_bytes; /* that were taken at once */
    nb_status (*host_take)(struct nb_device *, uint64_t, void **);
} counted;

static nb_status counting_host_take(struct nb_device *device, uint64_t bytes, void **memory)
{
    counted.most_bytes = bytes > counted.most_bytes ? bytes : counted.most_bytes;
    return counted.host_take(device, bytes, memory);
}

/* The most that a load takes of the device's host memory. Its parts are taken one after the other. */
static uint64_t host_bytes_of_a_load(struct nb_device *device, const char *path, bool nested)
{
    enum { BYTES = 16 << 20, POSITIONS = 4 };
    struct nb_model_options options = {.linear_format = NB_WEIGHT_NF4,
        .head_format = NB_WEIGHT_NF4,
        .nested = nested,
        .activation = NB_DTYPE_F32};
    struct nb_stream *stream;
    struct nb_checkpoint *checkpoint;
    struct nb_arena *arena;
    struct nb_model *model;
    nb_dptr slab;
    training_check(device->stream_create(device, &stream));
    training_check(device->memory_take(device, BYTES, &slab));
    training_check(nb_arena_create("device", slab.address, BYTES, &arena));
    training_check(nb_checkpoint_open(path, &checkpoint));
    training_check(nb_model_create(device, checkpoint, &options, &model));
    struct nb_model_memory memory = {.device = arena};
    training_check(nb_model_allocate(model, &memory, POSITIONS));
    counted.host_take = device->host_take;
    counted.most_bytes = 0;
    device->host_take = counting_host_take;
    training_check(nb_model_load(model, stream, arena, NULL));
    device->host_take = counted.host_take;
    nb_model_destroy(&model);
    nb_checkpoint_close(&checkpoint);
    nb_arena_destroy(&arena);
    device->stream_destroy(device, &stream);
    device->memory_give_back(device, slab);
    return counted.most_bytes;
}

/* The matrix in bf16 and in 4 bits, and its scales: counted where a run is planned, and no more where it is loaded. */
static void what_quantizing_takes_of_the_host_is_planned(void **state)
{
    const struct models *m = *state;
    const struct nb_cpu_options cpu = {.threads = 1};
    struct nb_device_profile profile;
    nb_cpu_profile(&cpu, &profile);
    for (int i = 0; i < 2 * SHAPES; i++) {
        const char *path = m->path[i % SHAPES];
        bool nested = i >= SHAPES;
        struct nb_checkpoint *checkpoint;
        struct nb_quant_layout layout;
        training_check(nb_checkpoint_open(path, &checkpoint));
        const struct nb_model_config *config = nb_checkpoint_config(checkpoint);
        uint64_t rows = (uint64_t)config->vocab, columns = (uint64_t)config->hidden;
        training_check(nb_quant_matrix_layout(NB_QUANT_NF4, nested, rows, columns, &layout));
        uint64_t wanted = nb_aligned(rows * columns * sizeof(nb_bf16)) + nb_aligned(layout.bytes) +
                          nb_quant_blocks(rows * columns) * sizeof(float);
        nb_checkpoint_close(&checkpoint);
        struct nb_device *dry, *real;
        training_check(nb_dry_device_create(&profile, &dry));
        training_check(nb_cpu_device_create(&cpu, &real));
        assert_int_equal(host_bytes_of_a_load(dry, path, nested), wanted);
        assert_int_equal(nb_dry_device_counts(dry)->host_bytes_max, wanted);
        assert_int_equal(host_bytes_of_a_load(real, path, nested), wanted);
        nb_device_destroy(&dry);
        nb_device_destroy(&real);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_head_in_4_bits_is_its_own_bf16),
        cmocka_unit_test(what_quantizing_takes_of_the_host_is_planned),
    };
    return cmocka_run_group_tests(tests, outer_open_models, outer_close_models);
}
