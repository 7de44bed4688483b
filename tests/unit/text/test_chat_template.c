/* Conversations to text and spans, against the reference's ids and masks, and byte by byte. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

static struct nb_chat_template *open_named(const char *name, const char *bos)
{
    struct nb_chat_template *chat_template;
    assert_int_equal(nb_chat_template_open(name, NULL, bos, &chat_template), NB_OK);
    assert_string_equal(nb_chat_template_name(chat_template), name);
    return chat_template;
}

static const struct nb_chat_message conversation[] = {
    {"user", " hi\n", 4}, {"assistant", "\tone two ", 9}, {"user", "", 0}, {"assistant", "3", 1}};

static void assert_span(const struct nb_rendering *rendering, size_t index, const char *want)
{
    const struct nb_span *span = &rendering->spans[index];
    assert_int_equal(span->end - span->begin, strlen(want));
    assert_memory_equal(rendering->text + span->begin, want, strlen(want));
}

static void chatml_is_written_byte_by_byte(void **state)
{
    (void)state;
    struct nb_chat_template *chat_template = open_named("chatml", NULL);
    struct nb_rendering rendering = {0};
    assert_int_equal(nb_chat_template_render(chat_template, conversation, 4, false, &rendering), NB_OK);
    assert_string_equal(rendering.text,
        "<|im_start|>user\n hi\n<|im_end|>\n<|im_start|>assistant\n\tone two <|im_end|>\n"
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n");
    assert_int_equal(rendering.span_count, 2);
    assert_span(&rendering, 0, "\tone two <|im_end|>");
    assert_span(&rendering, 1, "3<|im_end|>");
    assert_int_equal(nb_chat_template_render(chat_template, conversation, 1, true, &rendering), NB_OK);
    assert_string_equal(rendering.text, "<|im_start|>user\n hi\n<|im_end|>\n<|im_start|>assistant\n");
    assert_int_equal(rendering.span_count, 0);
    assert_string_equal(nb_chat_template_end_of_turn(chat_template), "<|im_end|>");
    nb_rendering_free(&rendering);
    nb_chat_template_destroy(&chat_template);
}

static void llama3_begins_with_bos_and_trims(void **state)
{
    (void)state;
    struct nb_chat_template *chat_template = open_named("llama3", "<|begin_of_text|>");
    struct nb_rendering rendering = {0};
    assert_int_equal(nb_chat_template_render(chat_template, conversation, 2, true, &rendering), NB_OK);
    assert_string_equal(rendering.text,
                        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\none two<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\n");
    assert_int_equal(rendering.span_count, 1);
    assert_span(&rendering, 0, "one two<|eot_id|>");
    static const struct nb_chat_message spaces = {"assistant", "\xc2\xa0 \x1f\xe3\x80\x80", 7};
    assert_int_equal(nb_chat_template_render(chat_template, &spaces, 1, false, &rendering), NB_OK);
    assert_span(&rendering, 0, "<|eot_id|>");
    nb_rendering_free(&rendering);
    nb_chat_template_destroy(&chat_template);
}

static void smollm2_speaks_first_when_no_system_does(void **state)
{
    (void)state;
    struct nb_chat_template *chat_template = open_named("smollm2", NULL);
    struct nb_rendering rendering = {0};
    static const struct nb_chat_message with_system[] = {{"system", "S", 1}, {"user", "U", 1}};
    assert_int_equal(nb_chat_template_render(chat_template, with_system, 2, false, &rendering), NB_OK);
    assert_string_equal(rendering.text, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n");
    assert_int_equal(nb_chat_template_render(chat_template, with_system + 1, 1, false, &rendering), NB_OK);
    assert_string_equal(rendering.text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nU<|im_end|>\n");
    nb_rendering_free(&rendering);
    nb_chat_template_destroy(&chat_template);
}

static void rows_equal_the_reference(void **state)
{
    (void)state;
    struct nb_tokenizer *tokenizer;
    struct nb_chat_template *chat_template;
    struct nb_token_list list = {0};
    struct nb_rendering rendering = {0};
    char *lines, *rest;
    size_t bytes, index = 0;
    assert_int_equal(nb_tokenizer_open("tests/golden/smollm2/tokenizer.gguf", &tokenizer), NB_OK);
    assert_int_equal(nb_chat_template_open(NULL, nb_tokenizer_chat_template(tokenizer), NULL, &chat_template), NB_OK);
    assert_string_equal(nb_chat_template_name(chat_template), "smollm2");
    json_t *reference = json_load_file("tests/golden/smollm2/reference.json", 0, NULL),
           *rows = json_object_get(reference, "rows");
    assert_int_equal(nb_file_read("tests/golden/smollm2/rows.jsonl", 1 << 20, false, &lines, &bytes), NB_OK);
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest), index++) {
        json_t *row = json_loads(line, 0, NULL), *messages = json_object_get(row, "messages");
        struct nb_chat_message views[16];
        size_t count = json_array_size(messages), span = 0;
        for (size_t i = 0; i < count; i++) {
            const json_t *content = json_object_get(json_array_get(messages, i), "content");
            views[i] = (struct nb_chat_message){json_string_value(json_object_get(json_array_get(messages, i), "role")),
                                                json_string_value(content), json_string_length(content)};
        }
        assert_int_equal(nb_chat_template_render(chat_template, views, count, false, &rendering), NB_OK);
        assert_int_equal(nb_tokenizer_encode(tokenizer, rendering.text, rendering.bytes, &list), NB_OK);
        const json_t *want = json_array_get(rows, index), *ids = json_object_get(want, "ids"),
                     *mask = json_object_get(want, "mask");
        assert_int_equal(list.count, json_array_size(ids));
        for (size_t i = 0; i < list.count; i++) {
            assert_int_equal(list.tokens[i].id, json_integer_value(json_array_get(ids, i)));
            while (span < rendering.span_count && list.tokens[i].begin >= rendering.spans[span].end)
                span++;
            int trained = span < rendering.span_count && list.tokens[i].begin >= rendering.spans[span].begin;
            assert_int_equal(trained, json_integer_value(json_array_get(mask, i)));
        }
        json_decref(row);
    }
    assert_int_equal(index, json_array_size(rows));
    json_decref(reference);
    free(lines);
    nb_token_list_free(&list);
    nb_rendering_free(&rendering);
    nb_chat_template_destroy(&chat_template);
    nb_tokenizer_destroy(&tokenizer);
}

static void only_identical_templates_are_recognized(void **state)
{
    (void)state;
    static const char chatml[] =
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}";
    static const char escaped[] =
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% endif %}";
    static const char llama3[] =
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
        "%}{% set "
        "content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    static const struct {
        const char *text, *name;
    } known[] = {{chatml, "chatml"}, {escaped, "chatml"}, {llama3, "llama3"}};
    struct nb_chat_template *chat_template;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(nb_chat_template_open("tokenizer_default", known[i].text, "", &chat_template), NB_OK);
        assert_string_equal(nb_chat_template_name(chat_template), known[i].name);
        nb_chat_template_destroy(&chat_template);
        /* Another byte, one more or one fewer is another template. */
        size_t bytes = strlen(known[i].text);
        char *text = malloc(bytes + 2);
        assert_non_null(text);
        for (size_t at = 0; at <= bytes; at += 7) {
            memcpy(text, known[i].text, bytes + 1);
            text[at < bytes ? at : bytes - 1] ^= 1;
            assert_int_equal(nb_chat_template_open(NULL, text, "", &chat_template), NB_UNSUPPORTED);
        }
        memcpy(text, known[i].text, bytes + 1);
        text[bytes - 1] = 0;
        assert_int_equal(nb_chat_template_open(NULL, text, "", &chat_template), NB_UNSUPPORTED);
        memcpy(text, known[i].text, bytes);
        memcpy(text + bytes, "x", 2);
        assert_int_equal(nb_chat_template_open(NULL, text, "", &chat_template), NB_UNSUPPORTED);
        assert_non_null(strstr(nb_status_message(), "set chat_template"));
        assert_non_null(strstr(nb_status_message(), "chatml, llama3 and smollm2"));
        assert_null(chat_template);
        free(text);
    }
    assert_int_equal(nb_chat_template_open(NULL, NULL, "", &chat_template), NB_USAGE);
    assert_non_null(strstr(nb_status_message(), "set chat_template"));
    assert_int_equal(nb_chat_template_open("alpaca", chatml, "", &chat_template), NB_USAGE);
    assert_non_null(strstr(nb_status_message(), "chat_template \"alpaca\""));
}

static void bad_conversations_are_errors(void **state)
{
    (void)state;
    struct nb_chat_template *chat_template = open_named("chatml", NULL);
    struct nb_rendering rendering = {0};
    assert_int_equal(nb_chat_template_render(chat_template, NULL, 0, false, &rendering), NB_FORMAT);
    static const struct nb_chat_message wrong[] = {{"user", "x", 1}, {"narrator", "y", 1}};
    assert_int_equal(nb_chat_template_render(chat_template, wrong, 2, false, &rendering), NB_FORMAT);
    assert_non_null(strstr(nb_status_message(), "message 2: role \"narrator\""));
    static const struct nb_chat_message latin = {"user", "ab\xe9", 3};
    assert_int_equal(nb_chat_template_render(chat_template, &latin, 1, false, &rendering), NB_FORMAT);
    assert_non_null(strstr(nb_status_message(), "offset 2"));
    nb_rendering_free(&rendering);
    nb_chat_template_destroy(&chat_template);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chatml_is_written_byte_by_byte),
        cmocka_unit_test(llama3_begins_with_bos_and_trims),
        cmocka_unit_test(smollm2_speaks_first_when_no_system_does),
        cmocka_unit_test(rows_equal_the_reference),
        cmocka_unit_test(only_identical_templates_are_recognized),
        cmocka_unit_test(bad_conversations_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
