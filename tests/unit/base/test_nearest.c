/* "Did you mean": the nearest word, and none where a guess would be silly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/nearest.h"

static const char *nearest_of(const char *word)
{
    static const char *const words[] = {"train", "plan", "chat", "evaluate", "generate"};
    struct nb_nearest nearest = nb_nearest_start(word);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        nb_nearest_offer(&nearest, words[i]);
    return nb_nearest_found(&nearest);
}

static void slips_are_recognized(void **state)
{
    (void)state;
    assert_string_equal(nearest_of("train"), "train");
    assert_string_equal(nearest_of("trian"), "train");
    assert_string_equal(nearest_of("trai"), "train");
    assert_string_equal(nearest_of("ttrain"), "train");
    assert_string_equal(nearest_of("cat"), "chat");
    assert_string_equal(nearest_of("evalute"), "evaluate");
    assert_string_equal(nearest_of("generte"), "generate");
}

static void the_first_of_equally_near_words_wins(void **state)
{
    (void)state;
    struct nb_nearest nearest = nb_nearest_start("bat");
    nb_nearest_offer(&nearest, "cat");
    nb_nearest_offer(&nearest, "rat");
    assert_string_equal(nb_nearest_found(&nearest), "cat");
    nb_nearest_offer(&nearest, "bat");
    assert_string_equal(nb_nearest_found(&nearest), "bat");
}

static void other_words_are_not(void **state)
{
    (void)state;
    char long_word[300];
    memset(long_word, 'a', sizeof long_word - 1);
    long_word[sizeof long_word - 1] = 0;
    assert_null(nearest_of("xyzzy"));
    assert_null(nearest_of("merge-lora"));
    assert_null(nearest_of(""));
    assert_null(nearest_of(long_word));
    struct nb_nearest nothing = nb_nearest_start("train");
    assert_null(nb_nearest_found(&nothing));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slips_are_recognized),
        cmocka_unit_test(the_first_of_equally_near_words_wins),
        cmocka_unit_test(other_words_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
