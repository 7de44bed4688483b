/* Progress lines: what they say, and that they are few where nothing can be redrawn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/progress.h"

/* Runs through 100 rows as if the work had begun `seconds` ago. *text is what was printed; the caller frees it. */
static void run(char **text, bool terminal, double seconds, const char *unit, uint64_t total)
{
    size_t bytes;
    FILE *stream = open_memstream(text, &bytes);
    struct nb_progress progress;
    assert_non_null(stream);
    nb_progress_start_on(&progress, "evaluating", unit, total, stream, terminal);
    progress.started -= seconds;
    progress.shown -= seconds;
    for (uint64_t done = 1; done <= 100; done++)
        nb_progress_update(&progress, done);
    nb_progress_finish(&progress);
    fclose(stream);
}

static int count(const char *text, const char *part)
{
    int found = 0;
    for (const char *at = strstr(text, part); at; at = strstr(at + 1, part))
        found++;
    return found;
}

static void plain_lines_come_at_every_tenth(void **state)
{
    (void)state;
    char *text;
    run(&text, false, 100, "rows", 100);
    assert_int_equal(count(text, "\n"), 10);
    assert_int_equal(count(text, "\r"), 0);
    assert_non_null(strstr(text, "evaluating: 10/100 rows (10 %), 0.10 rows/s, 15 min 00 s left\n"));
    assert_non_null(strstr(text, "evaluating: 90/100 rows (90 %), 0.90 rows/s, 11.1 s left\n"));
    assert_non_null(strstr(text, "evaluating: 100 rows in 1 min 40 s, 1.00 rows/s\n"));
    free(text);
}

static void short_work_leaves_no_plain_line(void **state)
{
    (void)state;
    char *text;
    run(&text, false, 0, "rows", 100);
    assert_string_equal(text, "");
    free(text);
}

static void a_terminal_line_is_redrawn_and_ended_once(void **state)
{
    (void)state;
    char *text;
    run(&text, true, 100, NULL, 100);
    assert_int_equal(count(text, "\n"), 1);
    assert_true(text[strlen(text) - 1] == '\n');
    assert_int_equal(count(text, "\r\033[K"), 2); /* the first update, and the end: the others come within a tenth of a second */
    assert_non_null(strstr(text, "0.0/0.0 MiB (1 %)"));
    free(text);
}

static void an_unknown_total_shows_no_percentage(void **state)
{
    (void)state;
    char *text;
    run(&text, false, 100, "rows", 0);
    assert_int_equal(count(text, "%"), 0);
    assert_int_equal(count(text, "left"), 0);
    assert_non_null(strstr(text, "evaluating: 1 rows, 0.01 rows/s\n"));
    assert_non_null(strstr(text, "evaluating: 100 rows in 1 min 40 s, 1.00 rows/s\n"));
    free(text);
}

static void seconds_are_shown_as_people_say_them(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "0.0 s"}, {-1, "0.0 s"}, {59.94, "59.9 s"}, {59.96, "1 min 00 s"}, {119.6, "2 min 00 s"}, {3599.4, "59 min 59 s"},
        {3599.6, "1 h 00 min"}, {7384, "2 h 03 min"}, {1e300, "1000000 h 00 min"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        nb_format_seconds(cases[i].seconds, text);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_lines_come_at_every_tenth),
        cmocka_unit_test(short_work_leaves_no_plain_line),
        cmocka_unit_test(a_terminal_line_is_redrawn_and_ended_once),
        cmocka_unit_test(an_unknown_total_shows_no_percentage),
        cmocka_unit_test(seconds_are_shown_as_people_say_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
