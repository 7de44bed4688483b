/* YAML that is damaged or made to hurt: one error with its place, soon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "config/config.h"
#include "config/config_yaml.h"

static void assert_refused(const char *text, size_t bytes, const char *part)
{
    struct nb_config config;
    if (nb_config_parse(text, bytes, "f.yml", NULL, 0, &config) != NB_USAGE)
        fail_msg("accepted; \"%s\" was expected", part);
    if (!strstr(nb_status_message(), part))
        fail_msg("\"%s\" does not hold \"%s\"", nb_status_message(), part);
}

#define ASSERT_REFUSED(text, part) assert_refused(text, sizeof(text) - 1, part)

static char *repeated(const char *part, size_t times, const char *head)
{
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    assert_non_null(stream);
    fputs(head, stream);
    for (size_t i = 0; i < times; i++)
        fputs(part, stream);
    fclose(stream);
    return text;
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    static const char *const parts[] = {"[", "{a: ", "- "};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char *text = repeated(parts[i], 100000, "");
        assert_refused(text, strlen(text), "nested deeper than 16 levels");
        free(text);
    }
}

static void aliases_are_refused_and_anchors_alone_are_not(void **state)
{
    (void)state;
    ASSERT_REFUSED("debug: &a [x]\nlora_target_modules: *a\n", "f.yml:2:22: the alias *a is not supported");
    ASSERT_REFUSED("a: &a [x,x]\nb: &b [*a,*a]\n", "f.yml:2:8: the alias *a is not supported");
    ASSERT_REFUSED("debug: &a [*a]\n", "alias");
    struct nb_config config;
    assert_int_equal(nb_config_parse("seed: &s 3\n", 11, "f.yml", NULL, 0, &config), NB_OK);
    assert_int_equal(config.seed, 3);
    nb_config_destroy(&config);
}

static void bytes_that_are_no_text_are_refused_with_their_place(void **state)
{
    (void)state;
    ASSERT_REFUSED("seed: 1\nbase_model: \xff\xfe\n", "f.yml:2:13: ");
    ASSERT_REFUSED("seed: 1\nbase_model: a\xc3\n", "f.yml:2:15: ");
    ASSERT_REFUSED("base_model: \xed\xa0\x80\n", "f.yml:1:13: ");
    ASSERT_REFUSED("base_model: \xc0\x80\n", "f.yml:1:13: ");
    ASSERT_REFUSED("seed: 1\0\n", "f.yml:1:8: control characters are not allowed");
    ASSERT_REFUSED("base_model: \"a\\0b\"\n", "f.yml:1:13: a text holds a zero byte");
    ASSERT_REFUSED("\"a\\0b\": 1\n", "a text holds a zero byte");
}

static void huge_files_and_texts_are_bounded(void **state)
{
    (void)state;
    char *text = repeated("x", NB_YAML_BYTES_MAX, "base_model: ");
    assert_refused(text, strlen(text), "longer than 1048576 bytes");
    struct nb_config config;
    const size_t long_text = 500000;
    assert_int_equal(nb_config_parse(text, long_text, "f.yml", NULL, 0, &config), NB_OK);
    assert_int_equal(strlen(config.base_model), long_text - strlen("base_model: "));
    nb_config_destroy(&config);
    memcpy(text, "lora_r:     ", 12);
    assert_refused(text, long_text, "f.yml:1:13: lora_r: \"xxxxxxxx");
    assert_true(strlen(nb_status_message()) < 200);
    memcpy(text, "\"xxxxxxxxxxx", 12);
    memcpy(text + long_text, "\": 1", 5);
    assert_refused(text, long_text + 4, "mapping values are not allowed"); /* a key has 1,024 bytes at most */
    free(text);
    text = repeated("- x\n", 100000, "lora_target_modules:\n");
    assert_refused(text, strlen(text), "more than 4096 values");
    free(text);
}

static void damaged_yaml_is_refused_with_line_and_column(void **state)
{
    (void)state;
    ASSERT_REFUSED("seed: 1\n  lora_r: 2\n", "f.yml:2:9: not YAML: ");
    ASSERT_REFUSED("lora_target_modules: [a\nseed: 1\n", "not YAML: ");
    ASSERT_REFUSED("base_model: \"abc\n", "f.yml:");
    ASSERT_REFUSED("\tseed: 1\n", "f.yml:1:1: not YAML: ");
    ASSERT_REFUSED("seed: 1\n---\nseed: 2\n", "f.yml:2:1: a second document begins");
    ASSERT_REFUSED("[a]: 1\n", "f.yml:1:1: a list or a mapping cannot be a key");
    ASSERT_REFUSED("{a: b}: 1\n", "cannot be a key");
    ASSERT_REFUSED("seed: !!python/object/apply:os.system [ls]\n", "f.yml:1:7: the tag tag:yaml.org,2002:python/object/apply:os.system");
    ASSERT_REFUSED("seed: !x 1\n", "the tag !x is not supported");
    ASSERT_REFUSED("<<: {seed: 1}\n", "f.yml:1:1: unknown key \"<<\"");
    ASSERT_REFUSED("~: 1\n", "unknown key \"~\"");
    ASSERT_REFUSED("? \n: 1\n", "unknown key \"\"");
    ASSERT_REFUSED("base_model: a\n: {}\n", "f.yml:2:1: not YAML: ");
}

static void every_cut_of_a_config_is_read_or_refused(void **state)
{
    (void)state;
    static const char text[] = "base_model: \"m\\u00e9\"\nlora_target_modules: [q_proj, 'k_proj']\ndatasets:\n  - path: a\n"
                               "    message_property_mappings: {role: from}\nspecial_tokens:\n  bos_token: <s>\n"
                               "  additional_special_tokens: [a]\nwandb_project: |\n  x\n";
    int accepted = 0;
    for (size_t bytes = 0; bytes < sizeof text; bytes++) {
        struct nb_config config;
        char *copy = malloc(bytes + 1); /* an exact copy, so that a read past its end shows under the address sanitizer */
        assert_non_null(copy);
        memcpy(copy, text, bytes);
        char *exact = realloc(copy, bytes ? bytes : 1);
        assert_non_null(exact);
        nb_status status = nb_config_parse(exact, bytes, "f.yml", NULL, 0, &config);
        assert_true(status == NB_OK || status == NB_USAGE);
        accepted += status == NB_OK;
        nb_config_destroy(&config);
        free(exact);
    }
    assert_true(accepted > 20);
}

static void other_line_ends_and_encodings_are_read(void **state)
{
    (void)state;
    struct nb_config config;
    static const char crlf[] = "\xef\xbb\xbfseed: 7\r\nlora_r: 3\r\n";
    assert_int_equal(nb_config_parse(crlf, sizeof crlf - 1, "f.yml", NULL, 0, &config), NB_OK);
    assert_int_equal(config.seed, 7);
    assert_int_equal(config.lora_r, 3);
    nb_config_destroy(&config);
    static const char utf16[] = "\xff\xfes\0e\0e\0d\0:\0 \0" "7\0\n\0";
    assert_int_equal(nb_config_parse(utf16, sizeof utf16 - 1, "f.yml", NULL, 0, &config), NB_OK);
    assert_int_equal(config.seed, 7);
    nb_config_destroy(&config);
    static const char *const empties[] = {"", "\n", "# nothing\n", "---\n", "null\n", "{}"};
    for (size_t i = 0; i < sizeof empties / sizeof *empties; i++) {
        assert_int_equal(nb_config_parse(empties[i], strlen(empties[i]), "f.yml", NULL, 0, &config), NB_OK);
        assert_int_equal(config.lora_r, 16);
        nb_config_destroy(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(aliases_are_refused_and_anchors_alone_are_not),
        cmocka_unit_test(bytes_that_are_no_text_are_refused_with_their_place),
        cmocka_unit_test(huge_files_and_texts_are_bounded),
        cmocka_unit_test(damaged_yaml_is_refused_with_line_and_column),
        cmocka_unit_test(every_cut_of_a_config_is_read_or_refused),
        cmocka_unit_test(other_line_ends_and_encodings_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
