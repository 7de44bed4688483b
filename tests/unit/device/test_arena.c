/* Arenas: alignment, LIFO frames, the high-water mark and its categories, errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"

enum { BASE = 4096 };

static struct nb_arena *arena_of(uint64_t capacity)
{
    struct nb_arena *arena = NULL;
    assert_int_equal(nb_arena_create("test", BASE, capacity, &arena), NB_OK);
    return arena;
}

static uint64_t take(struct nb_arena *arena, enum nb_category category, uint64_t bytes)
{
    uint64_t address = 0;
    assert_int_equal(nb_arena_take(arena, category, "thing", bytes, &address), NB_OK);
    assert_int_equal(address % 256, 0);
    return address;
}

/* What one byte costs: 256, and a red zone in checked builds. */
static uint64_t unit_bytes(void)
{
    struct nb_arena *arena = arena_of(UINT64_MAX);
    take(arena, NB_CATEGORY_BATCH, 1);
    uint64_t used = nb_arena_used(arena);
    nb_arena_destroy(&arena);
    assert_null(arena);
    assert_true(used == 256 || used == 512);
    return used;
}

static void allocations_lie_in_order_and_apart(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(UINT64_MAX);
    uint64_t a = take(arena, NB_CATEGORY_BATCH, 1), b = take(arena, NB_CATEGORY_BATCH, 256), c = take(arena, NB_CATEGORY_BATCH, 257);
    uint64_t zone = unit_bytes() - 256;
    assert_int_equal(a, BASE);
    assert_int_equal(b, a + 256 + zone);
    assert_int_equal(c, b + 256 + zone);
    assert_int_equal(nb_arena_used(arena), 256 + 256 + 512 + 3 * zone);
    nb_arena_destroy(&arena);
}

static void a_frame_is_released_together_and_used_again(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(UINT64_MAX);
    take(arena, NB_CATEGORY_MASTERS, 100);
    uint64_t outer = nb_arena_frame(arena), before = nb_arena_used(arena);
    uint64_t first = take(arena, NB_CATEGORY_SCRATCH, 1000);
    uint64_t inner = nb_arena_frame(arena);
    take(arena, NB_CATEGORY_SCRATCH, 5000);
    nb_arena_release_to(arena, inner);
    assert_int_equal(nb_arena_used(arena), inner);
    take(arena, NB_CATEGORY_LOSS, 1);
    nb_arena_release_to(arena, outer);
    assert_int_equal(nb_arena_used(arena), before);
    assert_int_equal(take(arena, NB_CATEGORY_SCRATCH, 8), first);
    nb_arena_destroy(&arena);
}

static void the_high_water_mark_keeps_its_categories(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(UINT64_MAX);
    uint64_t zone = unit_bytes() - 256, sum = 0;
    take(arena, NB_CATEGORY_MASTERS, 1024);
    uint64_t frame = nb_arena_frame(arena);
    take(arena, NB_CATEGORY_SCRATCH, 4096);
    nb_arena_release_to(arena, frame);
    take(arena, NB_CATEGORY_LOSS, 2048); /* below the mark: it must not show there */
    assert_int_equal(nb_arena_high_water(arena), 1024 + 4096 + 2 * zone);
    assert_int_equal(nb_arena_high_water_of(arena, NB_CATEGORY_MASTERS), 1024 + zone);
    assert_int_equal(nb_arena_high_water_of(arena, NB_CATEGORY_SCRATCH), 4096 + zone);
    assert_int_equal(nb_arena_high_water_of(arena, NB_CATEGORY_LOSS), 0);
    take(arena, NB_CATEGORY_LOSS, 2048); /* level with it, or above by the red zone */
    take(arena, NB_CATEGORY_LOSS, 1);
    for (int category = 0; category < NB_CATEGORY_COUNT; category++)
        sum += nb_arena_high_water_of(arena, (enum nb_category)category);
    assert_int_equal(sum, nb_arena_high_water(arena));
    assert_int_equal(nb_arena_high_water(arena), nb_arena_used(arena));
    assert_int_equal(nb_arena_high_water_of(arena, NB_CATEGORY_SCRATCH), 0);
    nb_arena_destroy(&arena);
}

/* The same calls on a planning arena of any size and on a real one that just fits end at the same mark: what `plan` promises. */
static void a_plan_fits_exactly(void **state)
{
    (void)state;
    uint64_t planned = 0;
    for (int real = 0; real < 2; real++) {
        struct nb_arena *arena = arena_of(real ? planned : UINT64_MAX);
        uint32_t random = 1;
        for (int round = 0; round < 50; round++) {
            uint64_t frame = nb_arena_frame(arena);
            for (int k = 0; k < 20; k++) {
                random = random * 1664525u + 1013904223u;
                take(arena, (enum nb_category)(random % NB_CATEGORY_COUNT), random >> 16);
            }
            if (round % 3)
                nb_arena_release_to(arena, frame);
        }
        if (real)
            assert_int_equal(nb_arena_high_water(arena), planned);
        planned = nb_arena_high_water(arena);
        nb_arena_destroy(&arena);
    }
}

static void what_does_not_fit_is_named(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(4 * unit_bytes());
    uint64_t address = 77, used = 0;
    take(arena, NB_CATEGORY_BATCH, 1);
    used = nb_arena_used(arena);
    const uint64_t too_many[] = {4096, UINT64_MAX, UINT64_MAX - 255, UINT64_MAX / 2};
    for (size_t i = 0; i < sizeof too_many / sizeof *too_many; i++) {
        assert_int_equal(nb_arena_take(arena, NB_CATEGORY_LOSS, "logits", too_many[i], &address), NB_MEMORY);
        assert_non_null(strstr(nb_status_message(), "test memory: logits needs"));
        assert_int_equal(nb_arena_used(arena), used);
        assert_int_equal(address, 77);
    }
    for (int i = 0; i < 3; i++) /* and what fits still does, to the last byte */
        take(arena, NB_CATEGORY_BATCH, 256);
    assert_int_equal(nb_arena_take(arena, NB_CATEGORY_LOSS, "logits", 1, &address), NB_MEMORY);
    nb_arena_destroy(&arena);
}

static void nothing_has_an_address(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(UINT64_MAX);
    uint64_t a = take(arena, NB_CATEGORY_BATCH, 0);
    assert_true(a >= BASE);
    take(arena, NB_CATEGORY_BATCH, 8);
    nb_arena_release_to(arena, 0);
    assert_int_equal(nb_arena_used(arena), 0);
    nb_arena_destroy(&arena);
    nb_arena_destroy(&arena); /* a null handle is nothing to destroy */
}

struct marks {
    int64_t usable_bytes;
    int calls;
};

static void count_mark(void *context, uint64_t address, uint64_t bytes, bool usable)
{
    struct marks *marks = context;
    assert_true(address >= BASE);
    marks->usable_bytes += usable ? (int64_t)bytes : -(int64_t)bytes;
    marks->calls++;
}

static void marks_come_for_what_was_asked(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(UINT64_MAX);
    struct marks marks = {0, 0};
    nb_arena_set_mark(arena, count_mark, &marks);
    take(arena, NB_CATEGORY_BATCH, 300);
    uint64_t frame = nb_arena_frame(arena);
    take(arena, NB_CATEGORY_BATCH, 5);
    take(arena, NB_CATEGORY_BATCH, 6);
    assert_int_equal(marks.usable_bytes, 311);
    nb_arena_release_to(arena, frame);
    assert_int_equal(marks.usable_bytes, 300);
    nb_arena_destroy(&arena);
    assert_int_equal(marks.usable_bytes, 0);
    assert_int_equal(marks.calls, 6);
}

static void the_table_lists_the_mark_largest_first(void **state)
{
    (void)state;
    struct nb_arena *arena = arena_of(UINT64_MAX);
    uint64_t address = 0;
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(nb_arena_take(arena, NB_CATEGORY_MASTERS, "small", 10, &address), NB_OK);
    assert_int_equal(nb_arena_take(arena, NB_CATEGORY_LOSS, "large", 1000, &address), NB_OK);
    assert_int_equal(nb_arena_take(arena, NB_CATEGORY_MASTERS, "small", 10, &address), NB_OK);
    FILE *out = open_memstream(&text, &bytes);
    nb_arena_print(arena, out);
    fclose(out);
    assert_non_null(strstr(text, "   2 x             10  adapter masters"));
    const char *large = strstr(text, "large"), *small = strstr(text, "small");
    assert_non_null(large);
    assert_non_null(small);
    assert_true(large < small);
    assert_non_null(strstr(text, nb_category_name(NB_CATEGORY_LOSS)));
    free(text);
    nb_arena_destroy(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations_lie_in_order_and_apart),
        cmocka_unit_test(a_frame_is_released_together_and_used_again),
        cmocka_unit_test(the_high_water_mark_keeps_its_categories),
        cmocka_unit_test(a_plan_fits_exactly),
        cmocka_unit_test(what_does_not_fit_is_named),
        cmocka_unit_test(nothing_has_an_address),
        cmocka_unit_test(marks_come_for_what_was_asked),
        cmocka_unit_test(the_table_lists_the_mark_largest_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
