/* What no reference file shows of the tokenizer: streams, long words, offsets, splits, hostile files. test_tokenizer_gguf.c has the
 * reference's ids. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

static struct nb_tokenizer *open_smollm2(void)
{
    struct nb_tokenizer *tokenizer;
    assert_int_equal(nb_tokenizer_open("tests/golden/smollm2/tokenizer.gguf", &tokenizer), NB_OK);
    return tokenizer;
}

/* Text that is whole, broken and cut in every way must come out the same however its bytes are handed over. */
static void streamed_text_does_not_depend_on_the_cuts(void **state)
{
    (void)state;
    static const char text[] = "a\xc3\xa9\xe6\x97\xa5\xf0\x9f\x91\xa9 "
                               "\xff\xc3(\xe6\x97|\xf0\x9f\x91\xed\xa0\x80\xc0\xaf\xf4\x90\x80\x80 \xe6\x97";
    static const char want[] =
        "a\xc3\xa9\xe6\x97\xa5\xf0\x9f\x91\xa9 \xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbd|\xef\xbf\xbd"
        "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
        "\xef\xbf\xbd\xef\xbf\xbd"
        "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd \xef\xbf\xbd";
    size_t bytes = sizeof text - 1;
    for (size_t first = 0; first <= bytes; first++) {
        for (size_t second = first; second <= bytes; second++) {
            struct nb_stream_decoder decoder = {0};
            char out[NB_STREAM_DECODER_BYTES(sizeof text) * 4];
            size_t n = nb_stream_decoder_put(&decoder, text, first, out);
            n += nb_stream_decoder_put(&decoder, text + first, second - first, out + n);
            n += nb_stream_decoder_put(&decoder, text + second, bytes - second, out + n);
            n += nb_stream_decoder_finish(&decoder, out + n);
            assert_int_equal(n, sizeof want - 1);
            assert_memory_equal(out, want, n);
        }
    }
}

/* An emoji of several tokens: nothing comes out before its last byte. */
static void a_character_waits_for_its_last_token(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer = open_smollm2();
    struct nb_token_list list = {0};
    struct nb_stream_decoder decoder = {0};
    assert_int_equal(nb_tokenizer_encode(tokenizer, "\xf0\x9f\x91\xa9", 4, &list), NB_OK);
    assert_true(list.count > 1);
    for (size_t i = 0; i < list.count; i++) {
        size_t bytes;
        char out[64];
        const char *data = nb_tokenizer_decode_token(tokenizer, list.tokens[i].id, &bytes);
        size_t n = nb_stream_decoder_put(&decoder, data, bytes, out);
        assert_int_equal(n, i + 1 == list.count ? 4 : 0);
    }
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
}

/* Work on one word grows as n log n: eight times the bytes, at most twelve times the operations. */
static void a_long_word_is_not_quadratic(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer = open_smollm2();
    size_t bytes = 1 << 20;
    char *text = malloc(bytes);
    uint64_t operations[2];
    assert_non_null(text);
    for (int kind = 0; kind < 3; kind++) {
        uint32_t random = 1;
        for (size_t i = 0; i < bytes; i++) {
            random = random * 1664525u + 1013904223u;
            text[i] = kind == 0 ? (char)('a' + (random >> 24) % 26) : kind == 1 ? 'a' : ' ';
        }
        for (int size = 0; size < 2; size++) {
            struct nb_token_list list = {0};
            assert_int_equal(nb_tokenizer_encode(tokenizer, text, size ? bytes : bytes / 8, &list), NB_OK);
            operations[size] = nb_token_list_operations(&list);
            assert_true(list.count > 0 && list.tokens[list.count - 1].end == (size ? bytes : bytes / 8));
            nb_token_list_free(&list);
        }
        assert_true(operations[1] < 12 * operations[0]);
        assert_true(operations[1] < 128 * bytes);
    }
    free(text);
    nb_tokenizer_destroy(&tokenizer);
}

/* A word goes through the queue from 33 bytes on: both ways must merge alike. A long word of pieces that cannot merge
 * across their borders tokenizes as the pieces do. */
static void queue_and_short_way_agree(void **state)
{
    (void)state;
    static const char *const words[] = {"internationalization", "zzzzqqqqxxxx", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                                        "counterrevolutionaries", "abababababababababab"};
    struct nb_tokenizer *tokenizer = open_smollm2();
    for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
        struct nb_token_list one = {0}, many = {0};
        char text[2048];
        size_t bytes = strlen(words[w]), at = 0;
        assert_int_equal(nb_tokenizer_encode(tokenizer, words[w], bytes, &one), NB_OK);
        for (int i = 0; i < 20; i++) { /* a letter of another script on both sides: no token of SmolLM2 crosses it */
            memcpy(text + at, words[w], bytes);
            memcpy(text + at + bytes, "\xe1\x8e\xa0", 3); /* CHEROKEE LETTER A */
            at += bytes + 3;
        }
        assert_int_equal(nb_tokenizer_encode(tokenizer, text, at, &many), NB_OK);
        size_t border = many.count / 20 - one.count;
        assert_int_equal(many.count, 20 * (one.count + border));
        for (size_t i = 0; i < many.count; i++)
            if (i % (one.count + border) < one.count)
                assert_int_equal(many.tokens[i].id, one.tokens[i % (one.count + border)].id);
        nb_token_list_free(&one);
        nb_token_list_free(&many);
    }
    nb_tokenizer_destroy(&tokenizer);
}

static void text_that_is_not_utf8_is_an_error(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer = open_smollm2();
    struct nb_token_list list = {0};
    static const char *const bad[] = {
        "abc\xff", "abc\xc3", "abc\xed\xa0\x80", "abc\xf5\x80\x80\x80", "abc\xe0\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(nb_tokenizer_encode(tokenizer, bad[i], strlen(bad[i]), &list), NB_FORMAT);
        assert_non_null(strstr(nb_status_message(), "offset 3"));
    }
    assert_int_equal(nb_tokenizer_encode(tokenizer, NULL, 0, &list), NB_OK);
    assert_int_equal(list.count, 0);
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
}

/* tokenizer.json in small: the 94 printable ASCII bytes, the space and line feed, "ab", "abc". */
static char *small_json(
    const char *added, const char *normalizer, const char *pre, const char *post, const char *model_extra)
{
    char *vocabulary = nb_format("%s", ""), *longer;
    for (int c = 33; c < 127; c++) {
        longer = nb_format("%s\"%s%c\":%d,", vocabulary, c == '"' || c == '\\' ? "\\" : "", c, c);
        free(vocabulary);
        vocabulary = longer;
    }
    char *json =
        nb_format("{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,\"model\":{"
                  "\"type\":\"BPE\",%s\"vocab\":{%s\"\xc4\xa0\":0,\"\xc4\x8a\":1,\"ab\":2,\"abc\":3,\"\xc3\x83\":4,"
                  "\"\xc2\xa9\":5},\"merges\":[\"a b\",[\"ab\",\"c\"]]}}",
            added, normalizer, pre, post, model_extra, vocabulary);
    free(vocabulary);
    return json;
}

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"

static nb_status open_small(const char *json, const char *config, struct nb_tokenizer **tokenizer)
{
    return nb_tokenizer_open_json(json, strlen(json), config, config ? strlen(config) : 0, "test", tokenizer);
}

static void assert_encodes(const struct nb_tokenizer *tokenizer, const char *text, const int32_t *ids, size_t count)
{
    struct nb_token_list list = {0};
    assert_int_equal(nb_tokenizer_encode(tokenizer, text, strlen(text), &list), NB_OK);
    assert_int_equal(list.count, count);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(list.tokens[i].id, ids[i]);
    nb_token_list_free(&list);
}

static void json_files_are_read(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer;
    char *json = small_json(
        "{\"id\":200,\"content\":\"<s>\",\"special\":true},{\"id\":201,\"content\":\"<s>x\",\"special\":false},"
        "{\"id\":202,\"content\":\"<pad>\",\"special\":true,\"lstrip\":true,\"rstrip\":true},"
        "{\"id\":203,\"content\":\"word\",\"single_word\":true,\"normalized\":true}",
        "null", "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL "]}",
        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\","
        "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}]}]}",
        "");
    assert_int_equal(open_small(json,
                         "{\"eos_token\":{\"content\":\"<pad>\"},\"pad_token\":\"<pad>\",\"chat_template\":"
                         "[{\"name\":\"tool_use\",\"template\":\"t\"},{\"name\":\"default\",\"template\":\"d\"}]}",
                         &tokenizer),
        NB_OK);
    assert_int_equal(nb_tokenizer_bos(tokenizer), 200);
    assert_true(nb_tokenizer_adds_bos(tokenizer));
    assert_int_equal(nb_tokenizer_eos(tokenizer), 202);
    assert_true(nb_tokenizer_is_stop(tokenizer, 202));
    assert_string_equal(nb_tokenizer_chat_template(tokenizer), "d");
    assert_encodes(
        tokenizer, "abcab <s>xab <pad>\nab<s", (int32_t[]){3, 2, 0, 201, 2, 202, 2, '<', 's'}, 9); /* longest wins */
    assert_encodes(tokenizer, "word swords word", (int32_t[]){203, 0, 's', 'w', 'o', 'r', 'd', 's', 0, 203}, 10);
    nb_tokenizer_destroy(&tokenizer);
    /* model_max_length as transformers writes it where there is none. */
    const char *config = "{\"add_bos_token\":false,\"model_max_length\":1000000000000000019884624838656}";
    assert_int_equal(open_small(json, config, &tokenizer), NB_OK);
    assert_false(nb_tokenizer_adds_bos(tokenizer));
    nb_tokenizer_destroy(&tokenizer);
    free(json);
}

static void words_that_are_tokens_can_be_left_whole(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer;
    char *json = small_json("", "null", BYTE_LEVEL, "null", "\"ignore_merges\":true,");
    assert_int_equal(open_small(json, NULL, &tokenizer), NB_OK);
    assert_encodes(tokenizer, "abc abcd", (int32_t[]){3, 0, 3, 'd'}, 4);
    nb_tokenizer_destroy(&tokenizer);
    free(json);
}

/* NFC composes e and an acute accent to one character (two bytes); offsets still point into the text as given. */
static void normalized_text_keeps_its_places(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer;
    struct nb_token_list list = {0};
    char *json = small_json("", "{\"type\":\"NFC\"}", BYTE_LEVEL, "null", "");
    assert_int_equal(open_small(json, NULL, &tokenizer), NB_OK);
    assert_int_equal(nb_tokenizer_encode(tokenizer, "ab e\xcc\x81z", 7, &list), NB_OK);
    static const struct nb_token want[] = {{2, 0, 2}, {0, 2, 3}, {4, 3, 6}, {5, 3, 6}, {'z', 6, 7}};
    assert_int_equal(list.count, 5);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(list.tokens[i].id, want[i].id);
        assert_int_equal(list.tokens[i].begin, want[i].begin);
        assert_int_equal(list.tokens[i].end, want[i].end);
    }
    char *marks = malloc(3001);
    assert_non_null(marks);
    marks[0] = 'a';
    for (int i = 0; i < 1500; i++)
        memcpy(marks + 1 + 2 * i, i % 2 ? "\xcc\x81" : "\xcc\xa3", 2);
    assert_int_equal(nb_tokenizer_encode(tokenizer, marks, 3001, &list), NB_UNSUPPORTED);
    assert_non_null(strstr(nb_status_message(), "combining marks"));
    free(marks);
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
    free(json);
}

struct pieces {
    char text[1024];
};

static nb_status collect(void *user, const char *text, size_t begin, size_t end)
{
    struct pieces *pieces = user;
    size_t at = strlen(pieces->text);
    assert_true(at + (end - begin) + 2 <= sizeof pieces->text);
    memcpy(pieces->text + at, text + begin, end - begin);
    memcpy(pieces->text + at + (end - begin), "\x1f", 2);
    return NB_OK;
}

static void assert_splits(const struct nb_pretokenizer *pretokenizer, const char *text, const char *want)
{
    struct nb_split_work work = {0};
    struct pieces pieces = {{0}};
    const struct nb_piece_sink sink = {collect, &pieces};
    assert_int_equal(nb_pretokenizer_split(pretokenizer, &work, text, 0, strlen(text), &sink), NB_OK);
    assert_string_equal(pieces.text, want);
    nb_split_work_free(&work);
}

#define LLAMA3                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| " \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define QWEN2                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| " \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static void expressions_cut_as_at_home(void **state)
{
    (void)state;
    struct nb_pretokenizer llama = {0}, qwen = {0}, inverted = {0}, literal = {0};
    assert_int_equal(nb_pretokenizer_add(&llama, NB_SPLIT_ISOLATE, LLAMA3, strlen(LLAMA3), false), NB_OK);
    assert_int_equal(nb_pretokenizer_add(&qwen, NB_SPLIT_ISOLATE, QWEN2, strlen(QWEN2), false), NB_OK);
    assert_splits(&llama, "I'LL pay 12345 now!!\n\n  ok",
        "I\x1f'LL\x1f pay\x1f \x1f"
        "123\x1f"
        "45\x1f now\x1f!!\n\n\x1f \x1f ok\x1f");
    assert_splits(&qwen, "a1234 (b)\t\tc", "a\x1f" "1\x1f" "2\x1f" "3\x1f" "4\x1f (\x1f" "b\x1f)\x1f\t\x1f\tc\x1f");
    /* U+180E is no white space to Unicode, but is to PCRE2's \s: it must go with the text beside it. */
    assert_splits(&llama, "a\xe1\xa0\x8e!", "a\x1f\xe1\xa0\x8e!\x1f");
    assert_splits(&llama, "a\xe3\x80\x80" "b", "a\x1f\xe3\x80\x80" "b\x1f"); /* U+3000 is */
    assert_int_equal(nb_pretokenizer_add(&inverted, NB_SPLIT_KEEP, "\\w+|[^\\w\\s]+", 12, false), NB_OK);
    assert_splits(&inverted, "ab, c  d", "ab\x1f,\x1f" "c\x1f" "d\x1f");
    assert_int_equal(nb_pretokenizer_add(&literal, NB_SPLIT_ISOLATE, "+", 1, true), NB_OK);
    assert_int_equal(nb_pretokenizer_add(&literal, NB_SPLIT_DIGITS, NULL, 0, false), NB_OK);
    assert_splits(&literal, "a+12b", "a\x1f+\x1f" "1\x1f" "2\x1f" "b\x1f");
    nb_pretokenizer_free(&llama);
    nb_pretokenizer_free(&qwen);
    nb_pretokenizer_free(&inverted);
    nb_pretokenizer_free(&literal);
}

/* An expression that tries every way to cut the text is stopped, not waited for. */
static void an_explosive_expression_is_stopped(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer;
    struct nb_token_list list = {0};
    char *json = small_json("", "null",
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"(a+)+$\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"use_regex\":false}]}",
        "null", "");
    assert_int_equal(open_small(json, NULL, &tokenizer), NB_OK);
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    assert_int_equal(nb_tokenizer_encode(tokenizer, text, sizeof text, &list), NB_UNSUPPORTED);
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
    free(json);
}

static void assert_refused(const char *json, nb_status status, const char *words)
{
    struct nb_tokenizer *tokenizer;
    assert_int_equal(open_small(json, NULL, &tokenizer), status);
    assert_null(tokenizer);
    if (!strstr(nb_status_message(), words))
        fail_msg("\"%s\" does not say \"%s\"", nb_status_message(), words);
}

static void hostile_and_foreign_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *json, *words;
        nb_status status;
    } cases[] = {
        {"", "line 1", NB_FORMAT},
        {"[]", "not a JSON object", NB_FORMAT},
        {"{}", "no \"model\"", NB_FORMAT},
        {"{\"model\":{\"type\":\"Unigram\"}}", "SentencePiece", NB_UNSUPPORTED},
        {"{\"model\":{\"type\":\"WordPiece\"}}", "WordPiece", NB_UNSUPPORTED},
        {"{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true}}", "SentencePiece", NB_UNSUPPORTED},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", "vocab", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "out of range", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":2147483647},\"merges\":[]}}", "out of range", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":\"1\"},\"merges\":[]}}", "whole number", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", "two texts", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"\":1},\"merges\":[]}}", "empty", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[\"a b\"]}}", "merge 0", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[\"a\"]}}", "merge 0", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[[\"a\"]]}}", "merge 0", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[]}}", "ByteLevel", NB_UNSUPPORTED},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "SentencePiece",
            NB_UNSUPPORTED},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[]},\"normalizer\":{\"type\":\"NFKC\"}}", "NFKC", NB_UNSUPPORTED},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":"
         "\"(\"},"
         "\"behavior\":\"Isolated\"}}",
            "does not compile", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[]},\"added_tokens\":[{\"id\":7}]}", "added token 0", NB_FORMAT},
        {"{\"model\":{\"vocab\":{\"a\":1},\"merges\":[]},\"added_tokens\":[{\"id\":99999999,\"content\":\"x\"}]}",
            "out of range", NB_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_refused(cases[i].json, cases[i].status, cases[i].words);
}

static void a_missing_tokenizer_is_named(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer;
    assert_int_equal(nb_tokenizer_open("tests/golden", &tokenizer), NB_IO);
    assert_non_null(strstr(nb_status_message(), "tests/golden: no tokenizer.json"));
    assert_int_equal(nb_tokenizer_open("tests/no-such-model", &tokenizer), NB_IO);
    assert_null(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streamed_text_does_not_depend_on_the_cuts),
        cmocka_unit_test(a_character_waits_for_its_last_token),
        cmocka_unit_test(a_long_word_is_not_quadratic),
        cmocka_unit_test(queue_and_short_way_agree),
        cmocka_unit_test(text_that_is_not_utf8_is_an_error),
        cmocka_unit_test(json_files_are_read),
        cmocka_unit_test(words_that_are_tokens_can_be_left_whole),
        cmocka_unit_test(normalized_text_keeps_its_places),
        cmocka_unit_test(expressions_cut_as_at_home),
        cmocka_unit_test(an_explosive_expression_is_stopped),
        cmocka_unit_test(hostile_and_foreign_files_are_refused),
        cmocka_unit_test(a_missing_tokenizer_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
