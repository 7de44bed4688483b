#include "outer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "quant/matrix.h"
#include "support/deep_model.h"

enum { ROWS = 17 };

int outer_open_models(void **state)
{
    static const char *const shape[SHAPES] = {"tests/golden/models/llama", "tests/golden/models/llama_tied"};
    struct models *m = calloc(1, sizeof *m);
    m->folder = training_folder();
    for (int i = 0; i < SHAPES; i++) {
        m->path[i] = nb_path_join(m->folder, i == OWN ? "own" : "tied");
        training_check(nb_test_write_deep_model(shape[i], LAYERS, m->path[i]));
    }
    training_write_varied_rows(m->folder, (struct training_rows){ROWS, LONGEST, 256});
    *state = m;
    return 0;
}

int outer_close_models(void **state)
{
    struct models *m = *state;
    training_check(nb_remove_folder(m->folder));
    free(m->folder);
    for (int i = 0; i < SHAPES; i++)
        free(m->path[i]);
    free(m);
    return 0;
}

char *outer_yaml(const struct models *m, const char *base, const char *more)
{
    return nb_format("base_model: %s\n%slora_r: 4\nlora_alpha: 8\n%s"
                     "datasets: [{path: %s/rows.jsonl, type: tokens}]\nlearning_rate: 1e-2\nlr_scheduler: constant\n"
                     "sequence_len: %d\nmicro_batch_size: 2\ngradient_accumulation_steps: 3\nlora_dropout: 0.1\n"
                     "threads: 1\noutput_dir: %s/out\n%s",
        base, strstr(more, "adapter:") ? "" : "adapter: qlora\n",
        strstr(more, "lora_target") ? "" : "lora_target_linear: true\n", m->folder, LONGEST, m->folder, more);
}

struct trained outer_train(const char *yaml, training_change *change, uint64_t number)
{
    struct trained r;
    struct training t;
    training_open_changed(&t, yaml, change, number);
    for (int i = 0; i < STEPS; i++)
        r.step[i] = training_step(&t, i + 1);
    r.masters = training_masters(&t);
    r.bytes = nb_adapter_elements(t.session->adapter) * sizeof *r.masters;
    r.device_bytes = t.plan.peak_bytes;
    r.pinned_bytes = t.plan.pinned_bytes;
    r.pageable_bytes = t.plan.pageable_bytes;
    r.row_bytes = nb_aligned((uint64_t)t.run->limits.tokens * (uint64_t)nb_checkpoint_config(t.run->checkpoint)->hidden *
                             nb_dtype_bytes(t.run->model.activation));
    assert_int_equal(nb_arena_high_water(t.session->arena), r.device_bytes);
    assert_int_equal(nb_arena_high_water(t.session->pinned), r.pinned_bytes);
    assert_int_equal(nb_arena_high_water(t.session->pageable), r.pageable_bytes);
    training_close(&t);
    return r;
}

void outer_assert_same(const struct trained *want, const struct trained *got, const char *what)
{
    for (int i = 0; i < STEPS; i++)
        if (want->step[i].loss != got->step[i].loss || want->step[i].grad_norm != got->step[i].grad_norm)
            fail_msg("%s: step %d: loss %.17g, norm %.9g; wanted %.17g, %.9g", what, i + 1, got->step[i].loss,
                (double)got->step[i].grad_norm, want->step[i].loss, (double)want->step[i].grad_norm);
    assert_int_equal(want->bytes, got->bytes);
    if (memcmp(want->masters, got->masters, want->bytes) != 0)
        fail_msg("%s: other masters", what);
}

void outer_defer(struct nb_run *run, uint64_t seed)
{
    run->cpu = (struct nb_cpu_options){.threads = 1, .deferred = seed > 0, .deferred_seed = seed};
}

/* bf16 in binary16's range, exactly; what is too small for it becomes 0. */
static uint16_t half_of(nb_bf16 value)
{
    int exponent = (value >> 7 & 0xff) - 127 + 15;
    return exponent < 1 ? (uint16_t)(value & 0x8000) : (uint16_t)((value & 0x8000) | exponent << 10 | (value & 0x7f) << 3);
}

static nb_bf16 *quantized_head(const struct nb_checkpoint *checkpoint, const struct rewriting *how)
{
    const struct nb_model_config *c = nb_checkpoint_config(checkpoint);
    uint64_t rows = (uint64_t)c->vocab, columns = (uint64_t)c->hidden, blocks = nb_quant_blocks(rows * columns);
    struct nb_quant_layout layout;
    nb_bf16 *values = malloc(rows * columns * sizeof *values);
    float *scales = malloc(blocks * sizeof *scales);
    training_check(nb_quant_matrix_layout(how->type, how->nested, rows, columns, &layout));
    void *slab = aligned_alloc(16, layout.bytes);
    training_check(nb_checkpoint_tensor_read_bf16(
        checkpoint, c->tied ? "model.embed_tokens.weight" : "lm_head.weight", c->vocab, c->hidden, values));
    struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, slab, scales);
    training_check(nb_quantize(how->type, how->nested, values, rows, columns, &parts));
    struct nb_quant_matrix matrix = nb_quant_matrix_view(&layout, slab, parts.nested_offset);
    nb_dequantize_bf16(&matrix, 0, rows * columns, values);
    free(slab);
    free(scales);
    return values;
}

/* The tensor as the entry wants it. */
static void put_tensor(struct nb_safetensors_writer *writer, const struct nb_safetensors_tensor *from,
    enum nb_safetensors_dtype dtype)
{
    size_t each = nb_safetensors_dtype_bytes(dtype);
    unsigned char *to = malloc(from->count * each);
    for (uint64_t i = 0; i < from->count; i++) {
        nb_bf16 value;
        memcpy(&value, from->data + i * sizeof value, sizeof value);
        uint16_t half = half_of(value);
        float single = nb_bf16_to_float(value);
        memcpy(to + i * each,
            dtype == NB_SAFETENSORS_F32   ? (const void *)&single
            : dtype == NB_SAFETENSORS_F16 ? (const void *)&half
                                          : (const void *)&value,
            each);
    }
    training_check(nb_safetensors_writer_write(writer, to, from->count * each));
    free(to);
}

void outer_write_again(const char *from, const char *folder, const struct rewriting *how)
{
    enum { TENSORS_MAX = 256 };
    struct nb_safetensors_entry entry[TENSORS_MAX];
    const struct nb_safetensors_tensor *source[TENSORS_MAX];
    struct nb_checkpoint *checkpoint = NULL;
    struct nb_safetensors_writer *writer = NULL;
    size_t count = 0;
    training_check(nb_checkpoint_open(from, &checkpoint));
    const struct nb_safetensors *file = nb_checkpoint_safetensors(checkpoint);
    struct nb_model_config config = *nb_checkpoint_config(checkpoint);
    for (size_t i = 0; i < nb_safetensors_count(file); i++) {
        const struct nb_safetensors_tensor *t = nb_safetensors_at(file, i);
        bool embedding = strcmp(t->name, "model.embed_tokens.weight") == 0;
        if (how->head && strcmp(t->name, "lm_head.weight") == 0)
            continue;
        source[count] = t;
        entry[count++] = (struct nb_safetensors_entry){.name = t->name, .rank = t->rank, .shape = {t->shape[0], t->shape[1]},
            .dtype = embedding ? how->embedding : t->dtype};
    }
    if (how->head)
        entry[count++] = (struct nb_safetensors_entry){.name = "lm_head.weight", .rank = 2, .dtype = NB_SAFETENSORS_BF16,
            .shape = {(uint64_t)config.vocab, (uint64_t)config.hidden}};
    training_check(nb_make_folder(folder));
    char *tensors = nb_path_join(folder, "model.safetensors"), *json = nb_path_join(folder, "config.json");
    training_check(nb_safetensors_writer_open(tensors, entry, count, &writer));
    for (size_t i = 0; i < count - how->head; i++)
        put_tensor(writer, source[i], entry[i].dtype);
    if (how->head) {
        nb_bf16 *head = quantized_head(checkpoint, how);
        training_check(nb_safetensors_writer_write(writer, head, (size_t)config.vocab * (size_t)config.hidden * sizeof *head));
        free(head);
        config.tied = false;
    }
    training_check(nb_safetensors_writer_finish(&writer, NULL));
    char *text = nb_model_config_to_json(&config);
    training_check(nb_file_write(json, text, strlen(text)));
    free(text);
    free(tensors);
    free(json);
    nb_checkpoint_close(&checkpoint);
}

