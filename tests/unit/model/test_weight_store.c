/* The layout of weight units, and the order in which they may be acquired, on the dry device, where nothing has
 * contents; and what streamed units bring to the device, and when, on the CPU device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "model/weight_store.h"
#include "support/red_zone.h"

struct fixture {
    struct nb_device *device;
    struct nb_stream *stream;
    struct nb_checkpoint *checkpoint;
    struct nb_arena *arena;
    struct nb_weight_store *store;
};

static struct fixture open_store(const char *model, enum nb_weight_format format, bool nested)
{
    struct fixture f;
    struct nb_cpu_options cpu = {.threads = 1};
    struct nb_device_profile profile;
    struct nb_model_options options = {.linear_format = format, .nested = nested, .activation = NB_DTYPE_F32};
    nb_cpu_profile(&cpu, &profile);
    assert_int_equal(nb_dry_device_create(&profile, &f.device), NB_OK);
    assert_int_equal(f.device->stream_create(f.device, &f.stream), NB_OK);
    assert_int_equal(nb_checkpoint_open(model, &f.checkpoint), NB_OK);
    assert_int_equal(nb_arena_create("device", 1 << 20, UINT64_MAX, &f.arena), NB_OK);
    assert_int_equal(nb_weight_store_create(f.device, nb_checkpoint_config(f.checkpoint), &options, &f.store), NB_OK);
    struct nb_model_memory memory = {.device = f.arena};
    assert_int_equal(nb_weight_store_allocate(f.store, &memory), NB_OK);
    return f;
}

static void close_store(struct fixture *f)
{
    nb_weight_store_destroy(&f->store);
    nb_arena_destroy(&f->arena);
    nb_checkpoint_close(&f->checkpoint);
    f->device->stream_destroy(f->device, &f->stream);
    nb_device_destroy(&f->device);
}

static struct nb_unit_view acquire(struct fixture *f, int unit)
{
    struct nb_weight_access access = {unit, NB_WEIGHT_FORWARD};
    struct nb_unit_view view;
    nb_weight_store_schedule(f->store, &access, 1);
    assert_int_equal(nb_weight_store_acquire(f->store, unit, NB_WEIGHT_FORWARD, f->stream, &view), NB_OK);
    assert_int_equal(nb_weight_store_release(f->store, unit, f->stream), NB_OK);
    return view;
}

static void test_layout(void **state)
{
    (void)state;
    struct fixture f = open_store("tests/golden/models/qwen3", NB_WEIGHT_NF4, true);
    struct nb_unit_view first = acquire(&f, 1), second = acquire(&f, 2);
    const struct nb_tensor_spec *spec;
    int tensors = nb_weight_store_tensors(f.store, 1, &spec);
    uint64_t base = first.vector[NB_TENSOR_INPUT_NORM].address, apart = second.vector[NB_TENSOR_INPUT_NORM].address - base;
    assert_int_equal(nb_weight_store_units(f.store), 4);
    assert_int_equal(tensors, 11); /* seven linears, two norms, two head norms */
    for (int i = 0; i < tensors; i++) {
        const struct nb_weight *a = &first.matrix[spec[i].role], *b = &second.matrix[spec[i].role];
        if (spec[i].rows == 1) {
            assert_int_equal(first.vector[spec[i].role].address % 256, 0);
            assert_int_equal(second.vector[spec[i].role].address - first.vector[spec[i].role].address, apart);
            continue;
        }
        const uint64_t parts[][2] = {
            {a->data.address, b->data.address},
            {a->absmax.address, b->absmax.address},
            {a->nested_absmax.address, b->nested_absmax.address},
            {a->nested_map.address, b->nested_map.address},
            {a->nested_offset.address, b->nested_offset.address},
            {a->codebook.address, b->codebook.address},
        };
        assert_int_equal(a->format, NB_WEIGHT_NF4);
        assert_true(a->nested && a->rows == spec[i].rows && a->columns == spec[i].columns);
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            assert_true(parts[p][0] >= base && parts[p][0] < base + apart);
            assert_int_equal(parts[p][0] % 256, 0);
            assert_int_equal(parts[p][1] - parts[p][0], apart);
        }
    }
    close_store(&f);
}

static void test_heads(void **state)
{
    (void)state;
    struct fixture tied = open_store("tests/golden/models/llama_tied", NB_WEIGHT_BF16, false);
    struct nb_unit_view last = acquire(&tied, 3);
    assert_int_equal(nb_weight_store_head_unit(tied.store), 0);
    assert_int_equal(last.matrix[NB_TENSOR_HEAD].rows, 0);
    assert_false(nb_dptr_is_null(last.vector[NB_TENSOR_FINAL_NORM]));
    close_store(&tied);

    struct fixture own = open_store("tests/golden/models/llama", NB_WEIGHT_NF4, false);
    last = acquire(&own, 3);
    assert_int_equal(nb_weight_store_head_unit(own.store), 3);
    assert_int_equal(last.matrix[NB_TENSOR_HEAD].format, NB_WEIGHT_BF16); /* heads are never quantized */
    assert_int_equal(last.matrix[NB_TENSOR_HEAD].rows, 259);
    struct nb_unit_view block = acquire(&own, 1);
    assert_false(block.matrix[NB_TENSOR_Q].nested);
    assert_true(nb_dptr_is_null(block.matrix[NB_TENSOR_Q].nested_map));
    close_store(&own);
}

static void test_schedule(void **state)
{
    (void)state;
    const struct nb_weight_access schedule[] = {{1, NB_WEIGHT_FORWARD}, {2, NB_WEIGHT_FORWARD}, {2, NB_WEIGHT_BACKWARD}};
    struct fixture f = open_store("tests/golden/models/llama", NB_WEIGHT_NF4, true);
    struct nb_unit_view view;
    assert_int_equal(nb_weight_store_acquire(f.store, 1, NB_WEIGHT_FORWARD, f.stream, &view), NB_UNSUPPORTED); /* none announced */
    nb_weight_store_schedule(f.store, schedule, 3);
    assert_int_equal(nb_weight_store_acquire(f.store, 2, NB_WEIGHT_FORWARD, f.stream, &view), NB_UNSUPPORTED);
    assert_int_equal(nb_weight_store_acquire(f.store, 1, NB_WEIGHT_BACKWARD, f.stream, &view), NB_UNSUPPORTED);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nb_weight_store_acquire(f.store, schedule[i].unit, schedule[i].direction, f.stream, &view), NB_OK);
        assert_int_equal(nb_weight_store_release(f.store, schedule[i].unit, f.stream), NB_OK);
    }
    assert_int_equal(nb_weight_store_acquire(f.store, 1, NB_WEIGHT_FORWARD, f.stream, &view), NB_UNSUPPORTED);
    close_store(&f);
}

static void test_sizes(void **state)
{
    (void)state;
    struct fixture f = open_store("tests/golden/models/llama", NB_WEIGHT_NF4, true);
    struct nb_model_config config = *nb_checkpoint_config(f.checkpoint);
    struct nb_model_options options = {.linear_format = NB_WEIGHT_NF4};
    struct nb_weight_store *store = NULL;
    config.hidden = 60; /* rows of activations would not start at multiples of 16 bytes */
    assert_int_equal(nb_weight_store_create(f.device, &config, &options, &store), NB_UNSUPPORTED);
    config = *nb_checkpoint_config(f.checkpoint);
    config.head_dim = 264;
    assert_int_equal(nb_weight_store_create(f.device, &config, &options, &store), NB_UNSUPPORTED);
    assert_null(store);
    close_store(&f);
}

/* ---- streaming ---- */

enum { BLOCKS = 7, STREAM_BYTES = 1 << 20 };

/* A store of 7 blocks of which some are streamed, over real memory on the CPU device, or over none on the dry one. */
struct streaming {
    struct fixture f;
    struct nb_arena *pinned;
    nb_dptr slab;
    void *host;
    uint64_t unit_bytes;
};

static struct streaming open_streaming(struct nb_device *device, int streamed)
{
    struct streaming s = {.f = {.device = device}};
    struct nb_model_options options = {.linear_format = NB_WEIGHT_NF4, .activation = NB_DTYPE_F32, .streamed_blocks = streamed};
    assert_int_equal(nb_checkpoint_open("tests/golden/models/llama", &s.f.checkpoint), NB_OK);
    struct nb_model_config config = *nb_checkpoint_config(s.f.checkpoint);
    config.layers = BLOCKS;
    assert_int_equal(device->stream_create(device, &s.f.stream), NB_OK);
    assert_int_equal(device->memory_take(device, STREAM_BYTES, &s.slab), NB_OK);
    assert_int_equal(device->host_take(device, STREAM_BYTES, &s.host), NB_OK);
    assert_int_equal(nb_arena_create("device", s.slab.address, STREAM_BYTES, &s.f.arena), NB_OK);
    assert_int_equal(nb_arena_create("pinned", (uintptr_t)s.host, STREAM_BYTES, &s.pinned), NB_OK);
    assert_int_equal(nb_weight_store_create(device, &config, &options, &s.f.store), NB_OK);
    struct nb_model_memory memory = {.device = s.f.arena, .pinned = s.pinned};
    assert_int_equal(nb_weight_store_allocate(s.f.store, &memory), NB_OK);
    s.unit_bytes = streamed ? nb_arena_used(s.pinned) / (uint64_t)streamed : 0;
    return s;
}

static void close_streaming(struct streaming *s)
{
    nb_weight_store_destroy(&s->f.store);
    s->f.device->stream_destroy(s->f.device, &s->f.stream);
    s->f.device->host_give_back(s->f.device, s->host);
    s->f.device->memory_give_back(s->f.device, s->slab);
    nb_arena_destroy(&s->f.arena);
    nb_arena_destroy(&s->pinned);
    nb_checkpoint_close(&s->f.checkpoint);
    nb_device_destroy(&s->f.device);
}

static struct nb_device *dry_device(void)
{
    struct nb_device_profile profile;
    struct nb_device *device;
    nb_cpu_profile(&(struct nb_cpu_options){.threads = 1}, &profile);
    assert_int_equal(nb_dry_device_create(&profile, &device), NB_OK);
    return device;
}

/* Blocks upwards, or downwards; the first norm's first element is where who computes looks. */
static int announce_all(struct streaming *s, struct nb_weight_access access[BLOCKS], enum nb_weight_direction direction)
{
    for (int i = 0; i < BLOCKS; i++)
        access[i] = (struct nb_weight_access){direction == NB_WEIGHT_FORWARD ? i + 1 : BLOCKS - i, direction};
    nb_weight_store_schedule(s->f.store, access, BLOCKS);
    return BLOCKS;
}

static void walk(struct streaming *s, enum nb_weight_direction direction)
{
    struct nb_weight_access access[BLOCKS];
    struct nb_unit_view view;
    for (int i = 0, count = announce_all(s, access, direction); i < count; i++) {
        assert_int_equal(nb_weight_store_acquire(s->f.store, access[i].unit, direction, s->f.stream, &view), NB_OK);
        assert_int_equal(nb_weight_store_release(s->f.store, access[i].unit, s->f.stream), NB_OK);
    }
}

static uint64_t fetched(const struct streaming *s, uint64_t *before)
{
    uint64_t all = nb_dry_device_counts(s->f.device)->uploaded_bytes, unit = s->unit_bytes - NB_TEST_RED_ZONE;
    uint64_t units = (all - *before) / unit;
    assert_int_equal((all - *before) % unit, 0);
    *before = all;
    return units;
}

/* Device memory holds two buffers and the rest of the blocks, pinned memory the streamed ones. What the buffers
 * hold when the direction turns is not fetched again; nor is anything where all that is streamed has a buffer. */
static void test_what_is_fetched(void **state)
{
    (void)state;
    struct streaming none = open_streaming(dry_device(), 0);
    uint64_t resident = nb_arena_used(none.f.arena);
    assert_int_equal(nb_arena_used(none.pinned), 0);
    close_streaming(&none);
    for (int streamed = 1; streamed <= BLOCKS; streamed++) {
        struct streaming s = open_streaming(dry_device(), streamed);
        uint64_t before = 0, kept = streamed < 2 ? (uint64_t)streamed : 2, again = (uint64_t)streamed - kept;
        assert_int_equal(nb_arena_used(s.f.arena), resident - s.unit_bytes * (uint64_t)streamed + s.unit_bytes * kept);
        assert_false(nb_weight_store_is_settled(s.f.store));
        nb_weight_store_settle(s.f.store);
        assert_false(nb_weight_store_is_settled(s.f.store));
        walk(&s, NB_WEIGHT_FORWARD);
        assert_int_equal(fetched(&s, &before), streamed);
        for (int turn = 0; turn < 3; turn++) {
            walk(&s, NB_WEIGHT_BACKWARD);
            assert_int_equal(fetched(&s, &before), again);
            walk(&s, NB_WEIGHT_FORWARD);
            assert_int_equal(fetched(&s, &before), again);
        }
        walk(&s, NB_WEIGHT_FORWARD); /* as evaluation does */
        assert_int_equal(fetched(&s, &before), streamed == 3 ? 2 : again ? streamed : 0);
        close_streaming(&s);
    }
}

/* Evenly, and the last block always: what a view's address tells, for the buffers come first in the arena. */
static void test_which_are_streamed(void **state)
{
    (void)state;
    static const char *const patterns[] = {".......", "......s", "...s..s", "..s.s.s", ".s.s.ss", ".ss.sss", "sssssss"};
    static const int counts[] = {0, 1, 2, 3, 4, 5, 7};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct streaming s = open_streaming(dry_device(), counts[i]);
        struct nb_weight_access access[BLOCKS];
        char pattern[BLOCKS + 1] = {0};
        announce_all(&s, access, NB_WEIGHT_FORWARD);
        for (int unit = 1; unit <= BLOCKS; unit++) {
            struct nb_unit_view view;
            assert_int_equal(nb_weight_store_acquire(s.f.store, unit, NB_WEIGHT_FORWARD, s.f.stream, &view), NB_OK);
            uint64_t buffers = s.unit_bytes * (uint64_t)(counts[i] < 2 ? counts[i] : 2);
            pattern[unit - 1] = view.vector[NB_TENSOR_INPUT_NORM].address < s.slab.address + buffers ? 's' : '.';
            assert_int_equal(nb_weight_store_release(s.f.store, unit, s.f.stream), NB_OK);
        }
        assert_string_equal(pattern, patterns[i]);
        close_streaming(&s);
    }
}

/* The fetch of the unit after next is under way while a unit is held; one that is out of order, or finds no buffer,
 * is an error. */
static void test_fetching_ahead(void **state)
{
    (void)state;
    struct streaming s = open_streaming(dry_device(), BLOCKS);
    struct nb_weight_access access[BLOCKS];
    struct nb_unit_view view, second, third;
    uint64_t before = 0;
    announce_all(&s, access, NB_WEIGHT_FORWARD);
    assert_int_equal(nb_weight_store_acquire(s.f.store, 2, NB_WEIGHT_FORWARD, s.f.stream, &view), NB_UNSUPPORTED);
    assert_int_equal(fetched(&s, &before), 0);
    assert_int_equal(nb_weight_store_acquire(s.f.store, 1, NB_WEIGHT_FORWARD, s.f.stream, &view), NB_OK);
    assert_int_equal(fetched(&s, &before), 2);
    assert_int_equal(nb_weight_store_acquire(s.f.store, 2, NB_WEIGHT_FORWARD, s.f.stream, &second), NB_OK);
    assert_int_equal(fetched(&s, &before), 0);
    assert_int_equal(nb_weight_store_acquire(s.f.store, 3, NB_WEIGHT_FORWARD, s.f.stream, &third), NB_UNSUPPORTED);
    assert_int_equal(nb_weight_store_release(s.f.store, 1, s.f.stream), NB_OK);
    assert_int_equal(fetched(&s, &before), 1);
    assert_int_equal(nb_weight_store_acquire(s.f.store, 3, NB_WEIGHT_FORWARD, s.f.stream, &third), NB_OK);
    assert_int_equal(third.vector[NB_TENSOR_INPUT_NORM].address, view.vector[NB_TENSOR_INPUT_NORM].address);
    assert_true(second.vector[NB_TENSOR_INPUT_NORM].address != view.vector[NB_TENSOR_INPUT_NORM].address);
    close_streaming(&s);
}

/* A number all over the unit's first norm. Odd ones are written by the host, where the unit lies there. */
static void write_unit(struct streaming *s, int unit, int number, nb_bf16 *values)
{
    struct nb_unit_place place;
    int width = nb_checkpoint_config(s->f.checkpoint)->hidden;
    for (int i = 0; i < width; i++)
        values[i] = (nb_bf16)number;
    assert_int_equal(nb_weight_store_begin_write(s->f.store, unit, s->f.stream, number % 2, &place), NB_OK);
    assert_int_equal(place.on_host, number % 2 && nb_weight_store_is_on_host(s->f.store, unit));
    nb_dptr to = place.view.vector[NB_TENSOR_INPUT_NORM];
    if (place.on_host)
        memcpy((void *)(uintptr_t)to.address, values, (size_t)width * sizeof *values);
    else
        assert_int_equal(
            s->f.device->upload(s->f.device, s->f.stream, to, values, (uint64_t)width * sizeof *values), NB_OK);
    assert_int_equal(nb_weight_store_end_write(s->f.store, unit, s->f.stream), NB_OK);
}

static void read_units(struct streaming *s, enum nb_weight_direction direction, const int number[BLOCKS + 1])
{
    struct nb_weight_access access[BLOCKS];
    int width = nb_checkpoint_config(s->f.checkpoint)->hidden;
    nb_bf16 *seen = calloc((size_t)(BLOCKS * width), sizeof *seen);
    for (int i = 0, count = announce_all(s, access, direction); i < count; i++) {
        struct nb_unit_view view;
        assert_int_equal(nb_weight_store_acquire(s->f.store, access[i].unit, direction, s->f.stream, &view), NB_OK);
        assert_int_equal(s->f.device->download(s->f.device, s->f.stream, seen + i * width, view.vector[NB_TENSOR_INPUT_NORM],
                             (uint64_t)width * sizeof *seen), NB_OK);
        assert_int_equal(nb_weight_store_release(s->f.store, access[i].unit, s->f.stream), NB_OK);
    }
    assert_int_equal(s->f.device->stream_wait(s->f.device, s->f.stream), NB_OK);
    for (int i = 0; i < BLOCKS; i++)
        if (seen[i * width] != (nb_bf16)number[access[i].unit] || seen[i * width + width - 1] != seen[i * width])
            fail_msg("unit %d holds %d, not %d", access[i].unit, seen[i * width], number[access[i].unit]);
    free(seen);
}

/* Writes units, reads all of them in both directions, and again after some were written anew, whenever the work is
 * done. */
static void read_and_write(bool deferred, uint64_t seed, int streamed)
{
    const struct nb_cpu_options cpu = {.threads = 1, .deferred = deferred, .deferred_seed = seed};
    struct nb_device *device;
    int number[BLOCKS + 1], next = 100;
    assert_int_equal(nb_cpu_device_create(&cpu, &device), NB_OK);
    struct streaming s = open_streaming(device, streamed);
    nb_bf16 *values = calloc((size_t)(3 * BLOCKS * nb_checkpoint_config(s.f.checkpoint)->hidden), sizeof *values), *at = values;
    memset(s.host, 0, STREAM_BYTES);
    assert_int_equal(device->fill_zero(device, s.f.stream, s.slab, STREAM_BYTES), NB_OK);
    assert_int_equal(device->stream_wait(device, s.f.stream), NB_OK);
    for (int round = 0; round < 3; round++) {
        for (int unit = 1 + round; unit <= BLOCKS; unit += 1 + round, at += nb_checkpoint_config(s.f.checkpoint)->hidden)
            write_unit(&s, unit, number[unit] = next++, at);
        if (round == 1) {
            assert_int_equal(device->stream_wait(device, s.f.stream), NB_OK);
            nb_weight_store_settle(s.f.store);
        }
        read_units(&s, NB_WEIGHT_FORWARD, number);
        read_units(&s, NB_WEIGHT_BACKWARD, number);
        read_units(&s, NB_WEIGHT_FORWARD, number);
    }
    close_streaming(&s);
    free(values);
}

static void test_contents(void **state)
{
    (void)state;
    for (int streamed = 0; streamed <= BLOCKS; streamed++) {
        read_and_write(false, 0, streamed);
        for (uint64_t seed = 1; seed <= 20; seed++)
            read_and_write(true, seed, streamed);
    }
}

/* So much other work that this stream is late. */
static void delay(struct streaming *s, struct nb_stream *stream)
{
    uint64_t frame = nb_arena_frame(s->f.arena);
    nb_dptr spare;
    assert_int_equal(nb_arena_take(s->f.arena, NB_CATEGORY_SCRATCH, "spare", 16, &spare.address), NB_OK);
    for (int i = 0; i < 50; i++)
        assert_int_equal(s->f.device->fill_zero(s->f.device, stream, spare, 16), NB_OK);
    nb_arena_release_to(s->f.arena, frame);
}

/* One unit's first norm, read on a stream of its own into `seen`, which is there when that stream has been waited
 * for. */
static void enqueue_read(struct streaming *s, struct nb_stream *stream, int unit, nb_bf16 *seen)
{
    struct nb_unit_view view;
    assert_int_equal(nb_weight_store_acquire(s->f.store, unit, NB_WEIGHT_FORWARD, stream, &view), NB_OK);
    assert_int_equal(s->f.device->download(s->f.device, stream, seen, view.vector[NB_TENSOR_INPUT_NORM], sizeof *seen), NB_OK);
    assert_int_equal(nb_weight_store_release(s->f.store, unit, stream), NB_OK);
}

/* Readers on one stream, writers on another: who writes waits for fetches that nobody came for, and for readers;
 * who fetches, for writers. */
static void read_beside_writing(uint64_t seed)
{
    const struct nb_cpu_options cpu = {.threads = 1, .deferred = true, .deferred_seed = seed};
    static const struct nb_weight_access first[] = {{1, NB_WEIGHT_FORWARD}, {2, NB_WEIGHT_FORWARD}},
                                         then[] = {{2, NB_WEIGHT_FORWARD}, {1, NB_WEIGHT_FORWARD}},
                                         last[] = {{5, NB_WEIGHT_FORWARD}, {4, NB_WEIGHT_FORWARD}, {3, NB_WEIGHT_FORWARD}};
    struct nb_device *device;
    struct nb_stream *reader;
    nb_bf16 seen[6] = {0}, *values = calloc(10 * 256, sizeof *values);
    assert_int_equal(nb_cpu_device_create(&cpu, &device), NB_OK);
    struct streaming s = open_streaming(device, BLOCKS);
    memset(s.host, 0, STREAM_BYTES);
    assert_int_equal(device->stream_create(device, &reader), NB_OK);
    for (int unit = 1; unit <= 4; unit++)
        write_unit(&s, unit, 10 + unit, values + 256 * (unit - 1));
    write_unit(&s, 3, 32, values + 256 * 8);
    write_unit(&s, 3, 33, values + 256 * 9); /* by the host, perhaps before the device has */
    nb_weight_store_schedule(s.f.store, first, 2);
    delay(&s, reader);
    enqueue_read(&s, reader, 1, &seen[0]); /* unit 2 is under way */
    write_unit(&s, 1, 21, values + 256 * 5); /* by the host, perhaps before it was uploaded for the reader */
    write_unit(&s, 2, 22, values + 256 * 4);
    nb_weight_store_schedule(s.f.store, then, 2);
    struct nb_unit_view held;
    assert_int_equal(nb_weight_store_acquire(s.f.store, 2, NB_WEIGHT_FORWARD, reader, &held), NB_OK);
    assert_int_equal(device->download(device, reader, &seen[1], held.vector[NB_TENSOR_INPUT_NORM], sizeof *seen), NB_OK);
    enqueue_read(&s, reader, 1, &seen[4]);
    delay(&s, s.f.stream);
    write_unit(&s, 4, 24, values + 256 * 6); /* both in the one buffer that is not held */
    write_unit(&s, 5, 25, values + 256 * 7);
    assert_int_equal(nb_weight_store_release(s.f.store, 2, reader), NB_OK);
    nb_weight_store_schedule(s.f.store, last, 3);
    enqueue_read(&s, reader, 5, &seen[2]);
    enqueue_read(&s, reader, 4, &seen[3]);
    enqueue_read(&s, reader, 3, &seen[5]);
    assert_int_equal(device->stream_wait(device, reader), NB_OK);
    static const nb_bf16 want[] = {11, 22, 25, 24, 21, 33};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        if (seen[i] != want[i])
            fail_msg("seed %d: read %d brought %d, not %d", (int)seed, (int)i, seen[i], want[i]);
    assert_int_equal(device->stream_wait(device, s.f.stream), NB_OK);
    device->stream_destroy(device, &reader);
    close_streaming(&s);
    free(values);
}

static void test_two_streams(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++)
        read_beside_writing(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_what_is_fetched),
        cmocka_unit_test(test_which_are_streamed),
        cmocka_unit_test(test_fetching_ahead),
        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_two_streams),
    };
    return cmocka_run_group_tests_name("weight store", tests, NULL, NULL);
}
