/* SmolLM2's tokenizer out of a GGUF against the reference's ids, under the other pre-tokenizers' names, and damaged. */
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
#include "checkpoint/gguf.h"
#include "text/tokenizer.h"

#define MODEL "tests/golden/smollm2/tokenizer.gguf"

static struct nb_tokenizer *open_smollm2(void)
{
    struct nb_tokenizer *tokenizer;
    assert_int_equal(nb_tokenizer_open(MODEL, &tokenizer), NB_OK);
    return tokenizer;
}

static void assert_ids(const struct nb_token_list *list, const json_t *ids)
{
    assert_int_equal(list->count, json_array_size(ids));
    for (size_t i = 0; i < list->count; i++)
        assert_int_equal(list->tokens[i].id, json_integer_value(json_array_get(ids, i)));
}

/* Tokens lie one behind the other; with SmolLM2 only bytes that it has no token for may fall between them. */
static void assert_offsets(
    const struct nb_tokenizer *tokenizer, const struct nb_token_list *list, const char *text, size_t bytes)
{
    uint32_t at = 0;
    for (size_t i = 0; i < list->count; i++) {
        const struct nb_token *token = &list->tokens[i];
        size_t length;
        const char *data = nb_tokenizer_decode_token(tokenizer, token->id, &length);
        assert_true(token->begin >= at && token->end > token->begin && token->end <= bytes);
        if (length == token->end - token->begin)
            assert_memory_equal(data, text + token->begin, length);
        else
            assert_true(
                memchr(text + token->begin, 0, token->end - token->begin) || (unsigned char)text[token->begin] < 32);
        at = token->end;
    }
}

static void ids_and_text_equal_the_reference(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer = open_smollm2();
    struct nb_token_list list = {0};
    char *lines, *rest;
    size_t bytes;
    int count = 0;
    assert_int_equal(nb_file_read("tests/golden/smollm2/tokenizer.jsonl", 1 << 20, false, &lines, &bytes), NB_OK);
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest), count++) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL), *text = json_object_get(row, "text");
        const json_t *decoded = json_object_get(row, "decoded");
        assert_int_equal(
            nb_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), &list), NB_OK);
        assert_ids(&list, json_object_get(row, "ids"));
        assert_offsets(tokenizer, &list, json_string_value(text), json_string_length(text));
        int32_t ids[256];
        char *back;
        assert_true(list.count < 256);
        for (size_t i = 0; i < list.count; i++)
            ids[i] = list.tokens[i].id;
        assert_int_equal(nb_tokenizer_decode(tokenizer, ids, list.count, false, &back, &bytes), NB_OK);
        assert_int_equal(bytes, json_string_length(decoded));
        assert_memory_equal(back, json_string_value(decoded), bytes);
        free(back);
        json_decref(row);
    }
    assert_int_equal(count, 69);
    free(lines);
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
}

/* The GGUF's bytes with another name for its pre-tokenizer; the caller frees them. */
static char *rename_pre(const char *file, size_t bytes, const char *name, size_t *renamed_bytes)
{
    static const char key[] = "tokenizer.ggml.pre\x08\0\0\0\x06\0\0\0\0\0\0\0smollm";
    const char *found = memmem(file, bytes, key, sizeof key - 1);
    assert_non_null(found);
    size_t at = (size_t)(found - file) + sizeof key - 1 - 6, length = strlen(name); /* where the old name begins */
    char *renamed = malloc(bytes + length);
    assert_non_null(renamed);
    memcpy(renamed, file, at);
    renamed[at - 8] = (char)length;
    memcpy(renamed + at, name, length);
    memcpy(renamed + at + length, file + at + 6, bytes - at - 6);
    *renamed_bytes = bytes - 6 + length;
    return renamed;
}

static nb_status open_renamed(const char *file, size_t bytes, const char *pre, struct nb_tokenizer **tokenizer)
{
    size_t renamed_bytes;
    struct nb_gguf *gguf;
    char *renamed = rename_pre(file, bytes, pre, &renamed_bytes);
    assert_int_equal(nb_gguf_parse(renamed, renamed_bytes, "renamed", &gguf), NB_OK);
    nb_status status = nb_tokenizer_open_gguf(gguf, "renamed", tokenizer);
    nb_gguf_close(&gguf);
    free(renamed);
    return status;
}

/* SmolLM2's vocabulary behind the other pre-tokenizers, each by the name that GGUF files give it. */
static void other_pretokenizers_equal_the_reference(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer = NULL;
    struct nb_token_list list = {0};
    char *file, *lines, *rest, pre[32] = "";
    size_t bytes, line_bytes;
    int count = 0;
    assert_int_equal(nb_file_read(MODEL, 1 << 24, false, &file, &bytes), NB_OK);
    assert_int_equal(
        nb_file_read("tests/golden/smollm2/pretokenizers.jsonl", 1 << 20, false, &lines, &line_bytes), NB_OK);
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest), count++) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL), *text = json_object_get(row, "text");
        const char *name = json_string_value(json_object_get(row, "pre"));
        if (strcmp(pre, name) != 0) {
            nb_token_list_free(&list);
            nb_tokenizer_destroy(&tokenizer);
            assert_int_equal(open_renamed(file, bytes, name, &tokenizer), NB_OK);
            snprintf(pre, sizeof pre, "%s", name);
        }
        assert_int_equal(
            nb_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), &list), NB_OK);
        assert_ids(&list, json_object_get(row, "ids"));
        json_decref(row);
    }
    assert_int_equal(count, 387);
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
    assert_int_equal(open_renamed(file, bytes, "default", &tokenizer), NB_UNSUPPORTED);
    assert_non_null(strstr(nb_status_message(), "tokenizer.ggml.pre is \"default\""));
    assert_null(tokenizer);
    free(lines);
    free(file);
}

static void gguf_metadata_is_read(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer = open_smollm2();
    assert_int_equal(nb_tokenizer_vocabulary(tokenizer), 49152);
    assert_int_equal(nb_tokenizer_bos(tokenizer), 1);
    assert_int_equal(nb_tokenizer_eos(tokenizer), 2);
    assert_int_equal(nb_tokenizer_pad(tokenizer), 2);
    assert_int_equal(nb_tokenizer_unk(tokenizer), 0);
    assert_false(nb_tokenizer_adds_bos(tokenizer));
    assert_true(nb_tokenizer_is_special(tokenizer, 2));
    assert_true(nb_tokenizer_is_stop(tokenizer, 2));
    assert_false(nb_tokenizer_is_stop(tokenizer, 1));
    assert_false(nb_tokenizer_is_special(tokenizer, 100));
    assert_int_equal(nb_tokenizer_find(tokenizer, "<|im_end|>", 10), 2);
    assert_int_equal(nb_tokenizer_find(tokenizer, " leading", 8), 2899);
    assert_int_equal(nb_tokenizer_find(tokenizer, "no such token", 13), -1);
    assert_non_null(strstr(nb_tokenizer_chat_template(tokenizer), "SmolLM"));
    size_t bytes;
    assert_null(nb_tokenizer_decode_token(tokenizer, -1, &bytes));
    assert_null(nb_tokenizer_decode_token(tokenizer, 49152, &bytes));
    nb_tokenizer_destroy(&tokenizer);
    assert_null(tokenizer);
    nb_tokenizer_destroy(&tokenizer);
}

/* A control token is looked for as it stands, so one that is not UTF-8 would cut a text within a character. */
static void a_control_token_that_is_not_utf8_is_refused(void **state)
{
    (void)state;
    static const char name[] = "<|im_start|>";
    struct nb_tokenizer *tokenizer;
    struct nb_gguf *gguf;
    char *file;
    size_t bytes;
    assert_int_equal(nb_file_read(MODEL, 1 << 24, false, &file, &bytes), NB_OK);
    char *found = memmem(file, bytes, name, sizeof name - 1);
    assert_non_null(found);
    memset(found, 0x80, sizeof name - 1);
    assert_int_equal(nb_gguf_parse(file, bytes, "damaged", &gguf), NB_OK);
    assert_int_equal(nb_tokenizer_open_gguf(gguf, "damaged", &tokenizer), NB_FORMAT);
    assert_non_null(strstr(nb_status_message(), "damaged: tokenizer: added token 1 is not UTF-8"));
    assert_null(tokenizer);
    nb_gguf_close(&gguf);
    free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_and_text_equal_the_reference),
        cmocka_unit_test(other_pretokenizers_equal_the_reference),
        cmocka_unit_test(gguf_metadata_is_read),
        cmocka_unit_test(a_control_token_that_is_not_utf8_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
