/* Chunks of paged masters and moments, and the records they are made of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "bench.h"
#include "train/pager.h"

enum { TENSORS_MAX = 24 };

/* Cuts, and holds what holds for every cut. */
static struct nb_pager_layout cut(const uint64_t *bytes, int count, uint64_t target, uint64_t free_bytes, int *first)
{
    struct nb_pager_layout layout;
    uint64_t largest = 0, widest = 0;
    nb_pager_cut(bytes, count, target, free_bytes, first, &layout);
    assert_true(first[0] == 0 && first[layout.chunks] == count);
    for (int chunk = 0; chunk < layout.chunks; chunk++) {
        uint64_t sum = 0;
        assert_true(first[chunk] < first[chunk + 1]);
        for (int i = first[chunk]; i < first[chunk + 1]; i++) {
            sum += bytes[i];
            largest = bytes[i] > largest ? bytes[i] : largest;
        }
        assert_true(sum <= target || first[chunk + 1] - first[chunk] == 1);
        widest = sum > widest ? sum : widest;
    }
    assert_int_equal(layout.buffer_bytes, widest);
    assert_true(layout.buffers >= 1 && layout.buffers <= NB_PAGER_BUFFERS_MAX && layout.buffers <= layout.chunks);
    /* Nothing but a single buffer for a tensor that is too large goes beyond what is free. */
    assert_true((uint64_t)layout.buffers * widest <= free_bytes || (layout.buffers == 1 && widest == largest));
    return layout;
}

static void chunks_are_whole_tensors(void **state)
{
    (void)state;
    static const uint64_t bytes[] = {256, 512, 256, 1024, 256, 256};
    int first[7];
    struct nb_pager_layout layout = cut(bytes, 6, 1024, 1 << 20, first);
    assert_int_equal(layout.chunks, 3);
    assert_int_equal(layout.buffers, 3);
    assert_int_equal(layout.buffer_bytes, 1024);
    assert_true(first[1] == 3 && first[2] == 4);
    layout = cut(bytes, 6, 1, 1 << 20, first); /* a tensor each */
    assert_true(layout.chunks == 6 && layout.buffers == 3 && layout.buffer_bytes == 1024);
    layout = cut(bytes, 6, 1 << 20, 1 << 20, first); /* all at once */
    assert_true(layout.chunks == 1 && layout.buffers == 1 && layout.buffer_bytes == 2560);
}

static void little_free_memory_makes_small_chunks_then_few_buffers(void **state)
{
    (void)state;
    static const uint64_t bytes[] = {512, 512, 512, 512, 512, 512, 512, 512};
    int first[9];
    struct nb_pager_layout layout = cut(bytes, 8, 2048, 3 * 1024, first);
    assert_true(layout.chunks == 4 && layout.buffers == 3 && layout.buffer_bytes == 1024);
    layout = cut(bytes, 8, 2048, 3 * 512 - 1, first);
    assert_true(layout.chunks == 8 && layout.buffers == 2 && layout.buffer_bytes == 512);
    layout = cut(bytes, 8, 2048, 2 * 512 - 1, first);
    assert_true(layout.chunks == 8 && layout.buffers == 1);
    layout = cut(bytes, 8, 2048, 0, first);
    assert_true(layout.chunks == 8 && layout.buffers == 1 && layout.buffer_bytes == 512);
}

static void no_cut_goes_beyond_what_is_free(void **state)
{
    (void)state;
    uint64_t bytes[TENSORS_MAX], counter = 0;
    int first[TENSORS_MAX + 1];
    for (int round = 0; round < 2000; round++) {
        int count = 1 + (int)nb_random_below(9, NB_RANDOM_SHUFFLE, 0, counter++, TENSORS_MAX);
        for (int i = 0; i < count; i++)
            bytes[i] = 256 * (1 + (uint64_t)nb_random_below(9, NB_RANDOM_SHUFFLE, 0, counter++, 40));
        uint64_t target = nb_random_below(9, NB_RANDOM_SHUFFLE, 0, counter++, 30000);
        cut(bytes, count, target, nb_random_below(9, NB_RANDOM_SHUFFLE, 0, counter++, 60000), first);
    }
}

static uint64_t bytes_before(const struct nb_adapter *adapter, int trainable)
{
    uint64_t bytes = 0;
    for (int i = 0; i < trainable; i++)
        bytes += nb_adapter_record_of(adapter, i).bytes;
    return bytes;
}

/* Rank 64: some moments in 8 bits. */
static struct nb_adapter_options paging_options(uint64_t resident_bytes)
{
    struct nb_adapter_options options = bench_options();
    options.rank = 64;
    options.moments_8bit = true;
    options.paging = (struct nb_adapter_paging){.on = true, .resident_bytes = resident_bytes};
    return options;
}

/* The first tensors stay, whole; the others' records stand one behind the other. */
static void check_pages(uint64_t resident_bytes)
{
    struct nb_adapter_options options = paging_options(resident_bytes);
    struct bench bench;
    bench_open(&bench, &options);
    const struct nb_adapter *adapter = bench.session.adapter;
    int count = nb_adapter_trainable_count(adapter), resident = nb_adapter_resident(adapter);
    const unsigned char *end = bench.session.host.memory;
    assert_true(bytes_before(adapter, resident) <= resident_bytes);
    assert_true(resident == count || bytes_before(adapter, resident + 1) > resident_bytes);
    assert_int_equal(nb_adapter_paged_bytes(adapter), bytes_before(adapter, count) - bytes_before(adapter, resident));
    for (int i = 0; i < count; i++) {
        struct nb_adamw args = {0};
        nb_adapter_bind_adamw(adapter, i, &args);
        assert_int_equal(nb_dptr_is_null(args.master), i >= resident);
        assert_int_equal(nb_dptr_is_null(args.m) || nb_dptr_is_null(args.v), i >= resident);
        if (i < resident) {
            assert_null(nb_adapter_page(adapter, i));
            continue;
        }
        assert_ptr_equal(nb_adapter_page(adapter, i), end);
        end += nb_adapter_record_of(adapter, i).bytes;
    }
    bench_close(&bench);
}

static void the_first_tensors_stay_on_the_device(void **state)
{
    (void)state;
    struct nb_adapter_options options = paging_options(0);
    struct bench bench;
    bench_open(&bench, &options);
    uint64_t one = nb_adapter_record_of(bench.session.adapter, 0).bytes;
    uint64_t all = nb_adapter_paged_bytes(bench.session.adapter);
    bench_close(&bench);
    const uint64_t bytes[] = {0, one - 1, one, all / 2, all - 1, all, UINT64_MAX};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++)
        check_pages(bytes[i]);
}

/* Parts lie apart in the record, aligned as ops want them, and hold what unpaged slabs hold. */
static void records_hold_what_the_slabs_would(void **state)
{
    (void)state;
    struct nb_adapter_options paging = paging_options(0), without = paging;
    without.paging.on = false;
    struct bench bench, other;
    bench_open(&bench, &paging);
    bench_open(&other, &without);
    const struct nb_adapter *adapter = bench.session.adapter;
    assert_int_equal(nb_adapter_paged_bytes(other.session.adapter), 0);
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(adapter, i);
        struct nb_adapter_record record = nb_adapter_record_of(adapter, i);
        const unsigned char *page = nb_adapter_page(adapter, i);
        uint64_t moment = t->moments_8bit ? t->count : t->count * 4;
        uint64_t scales = t->moments_8bit ? (t->count + 255) / 256 * 4 : 0;
        assert_true(record.master == 0 && record.m >= t->count * 4 && record.v >= record.m + moment);
        assert_true(record.m_absmax >= record.v + moment && record.v_absmax >= record.m_absmax + scales);
        assert_true(record.bytes >= record.v_absmax + scales);
        assert_int_equal((record.m | record.v | record.m_absmax | record.v_absmax | record.bytes) % NB_ALIGNMENT, 0);
        struct nb_adamw here = {0}, there = {0};
        nb_adapter_bind_page(adapter, i, (nb_dptr){(uintptr_t)page}, &here);
        assert_int_equal(here.v.address, (uintptr_t)page + record.v);
        assert_int_equal(nb_dptr_is_null(here.m_absmax), !t->moments_8bit);
        nb_adapter_bind_adamw(other.session.adapter, i, &there);
        void *master = bench_download(&other, there.master, t->count * 4);
        assert_memory_equal(page, master, t->count * 4);
        free(master);
        for (uint64_t k = t->count * 4; k < record.bytes; k++)
            assert_int_equal(page[k], 0);
        nb_adapter_bind_adamw(adapter, i, &here);
        void *copies[2] = {
            bench_download(&bench, here.copy, t->count * 4), bench_download(&other, there.copy, t->count * 4)};
        assert_memory_equal(copies[0], copies[1], t->count * 4);
        free(copies[0]);
        free(copies[1]);
    }
    bench_close(&bench);
    bench_close(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_whole_tensors),
        cmocka_unit_test(little_free_memory_makes_small_chunks_then_few_buffers),
        cmocka_unit_test(no_cut_goes_beyond_what_is_free),
        cmocka_unit_test(the_first_tensors_stay_on_the_device),
        cmocka_unit_test(records_hold_what_the_slabs_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
