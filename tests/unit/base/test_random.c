/* Philox4x32-10 against its authors' known answers, and what is made from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/random.h"

/* From the known-answer file that Random123, the authors' own library, is tested with. */
static void philox_gives_the_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], answer[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        struct nb_philox got = nb_philox(known[i].counter, known[i].key);
        for (int word = 0; word < 4; word++)
            assert_int_equal(got.word[word], known[i].answer[word]);
    }
}

static void a_stream_is_the_words_of_its_blocks(void **state)
{
    (void)state;
    const uint64_t seed = 0x0123456789abcdefu, stream = 0xfedcba9876543210u;
    for (uint64_t index = 0; index < 40; index++) {
        uint32_t counter[4] = {(uint32_t)(index / 4), (uint32_t)NB_RANDOM_DROPOUT << 24, 0x76543210, 0xfedcba98};
        uint32_t key[2] = {0x89abcdef, 0x01234567};
        assert_int_equal(nb_random_u32(seed, NB_RANDOM_DROPOUT, stream, index), nb_philox(counter, key).word[index % 4]);
    }
}

static void uses_seeds_and_streams_differ(void **state)
{
    (void)state;
    uint32_t base = nb_random_u32(1, NB_RANDOM_SHUFFLE, 1, 1);
    assert_int_not_equal(base, nb_random_u32(2, NB_RANDOM_SHUFFLE, 1, 1));
    assert_int_not_equal(base, nb_random_u32(1 + (1ull << 32), NB_RANDOM_SHUFFLE, 1, 1));
    assert_int_not_equal(base, nb_random_u32(1, NB_RANDOM_SPLIT, 1, 1));
    assert_int_not_equal(base, nb_random_u32(1, NB_RANDOM_SHUFFLE, 2, 1));
    assert_int_not_equal(base, nb_random_u32(1, NB_RANDOM_SHUFFLE, 1 + (1ull << 32), 1));
    assert_int_not_equal(base, nb_random_u32(1, NB_RANDOM_SHUFFLE, 1, 1 + (1ull << 34)));
}

static void uniform_numbers_fill_the_unit_interval(void **state)
{
    (void)state;
    enum { COUNT = 1 << 16 };
    double sum = 0, squares = 0;
    for (int i = 0; i < COUNT; i++) {
        float u = nb_random_uniform(7, NB_RANDOM_SAMPLE, 3, (uint64_t)i);
        assert_true(u >= 0.0f && u < 1.0f);
        sum += u;
        squares += (double)u * u;
    }
    /* Mean 1/2 with deviation sqrt(1/12 / 65536) = 0.00113; mean square 1/3 with deviation sqrt(4/45 / 65536) = 0.00116: five each. */
    assert_true(sum / COUNT > 0.5 - 0.0057 && sum / COUNT < 0.5 + 0.0057);
    assert_true(squares / COUNT > 1.0 / 3 - 0.0058 && squares / COUNT < 1.0 / 3 + 0.0058);
}

static void bounded_numbers_reach_every_value(void **state)
{
    (void)state;
    uint32_t count[7] = {0};
    for (uint64_t i = 0; i < 7000; i++) {
        uint32_t value = nb_random_below(5, NB_RANDOM_SAMPLE, 0, i, 7);
        assert_true(value < 7);
        count[value]++;
    }
    for (int v = 0; v < 7; v++) /* 1000 with deviation 29.3: five of them */
        assert_true(count[v] > 850 && count[v] < 1150);
    assert_int_equal(nb_random_below(5, NB_RANDOM_SAMPLE, 0, 0, 1), 0);
}

static void a_shuffle_is_a_permutation_of_its_seed_and_stream(void **state)
{
    (void)state;
    enum { COUNT = 257 };
    uint32_t order[3][COUNT], places[5] = {0};
    bool seen[COUNT] = {false};
    for (uint64_t run = 0; run < 3; run++) {
        for (uint32_t i = 0; i < COUNT; i++)
            order[run][i] = i;
        nb_random_shuffle(9, NB_RANDOM_SHUFFLE, run / 2, order[run], COUNT);
    }
    assert_memory_equal(order[0], order[1], sizeof order[0]);
    assert_memory_not_equal(order[0], order[2], sizeof order[0]);
    for (int i = 0; i < COUNT; i++) {
        assert_true(order[0][i] < COUNT && !seen[order[0][i]]);
        seen[order[0][i]] = true;
    }
    for (uint64_t stream = 0; stream < 5000; stream++) { /* where the first element goes: evenly, 1000 with deviation 28.3 */
        uint32_t five[5] = {0, 1, 2, 3, 4};
        nb_random_shuffle(1, NB_RANDOM_SHUFFLE, stream, five, 5);
        for (int i = 0; i < 5; i++)
            places[i] += five[i] == 0;
    }
    for (int i = 0; i < 5; i++)
        assert_true(places[i] > 858 && places[i] < 1142);
    nb_random_shuffle(1, NB_RANDOM_SHUFFLE, 0, order[0], 0);
}

/* The values of the 64-bit FNV-1a test suite of its authors. */
static void names_hash_by_fnv1a(void **state)
{
    (void)state;
    assert_true(nb_name_hash("") == 0xcbf29ce484222325u);
    assert_true(nb_name_hash("a") == 0xaf63dc4c8601ec8cu);
    assert_true(nb_name_hash("foobar") == 0x85944171f73967e8u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(a_stream_is_the_words_of_its_blocks),
        cmocka_unit_test(uses_seeds_and_streams_differ),
        cmocka_unit_test(uniform_numbers_fill_the_unit_interval),
        cmocka_unit_test(bounded_numbers_reach_every_value),
        cmocka_unit_test(a_shuffle_is_a_permutation_of_its_seed_and_stream),
        cmocka_unit_test(names_hash_by_fnv1a),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
