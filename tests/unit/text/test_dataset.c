/* Data files of every type, and what is wrong with bad ones. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base/file.h"
#include "text/chat_template.h"
#include "text/dataset.h"
#include "text/lint.h"
#include "text/tokenizer.h"

struct fixture {
    struct nb_tokenizer *tokenizer;
    struct nb_chat_template *chat_template;
    struct nb_dataset_options options;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    if (!f || nb_tokenizer_open("tests/golden/smollm2/tokenizer.gguf", &f->tokenizer) != NB_OK ||
        nb_chat_template_open("smollm2", NULL, NULL, &f->chat_template) != NB_OK)
        return -1;
    f->options = (struct nb_dataset_options){.tokenizer = f->tokenizer,
        .chat_template = f->chat_template,
        .sequence_len = 256,
        .vocabulary = 49152,
        .threads = 2};
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    nb_chat_template_destroy(&f->chat_template);
    nb_tokenizer_destroy(&f->tokenizer);
    free(f);
    return 0;
}

static nb_status read_text(const struct fixture *f, const char *text, const char *type, struct nb_dataset **dataset)
{
    struct nb_dataset_source source = {.path = "data.jsonl", .type = type};
    return nb_dataset_read_bytes(text, strlen(text), &source, &f->options, dataset);
}

/* A row's text with its trained parts marked is `want`. */
static void assert_shows(const struct fixture *f, const struct nb_dataset *dataset, uint32_t row, const char *want)
{
    char *text;
    assert_int_equal(nb_dataset_show_row(dataset, f->tokenizer, row, 4096, &text), NB_OK);
    assert_string_equal(text, want);
    free(text);
}

static void assert_reference_rows(const struct nb_dataset *dataset)
{
    json_t *reference = json_load_file("tests/golden/smollm2/reference.json", 0, NULL),
           *rows = json_object_get(reference, "rows");
    assert_int_equal(dataset->row_count, json_array_size(rows));
    assert_int_equal(dataset->kept_count, dataset->row_count);
    for (uint32_t r = 0; r < dataset->row_count; r++) {
        const json_t *row = json_array_get(rows, r), *ids = json_object_get(row, "ids"),
                     *mask = json_object_get(row, "mask");
        int32_t got[256], labels[256];
        assert_int_equal(dataset->rows[r].count, json_array_size(ids));
        assert_int_equal(dataset->rows[r].trained_count, json_integer_value(json_object_get(row, "answer_tokens")));
        nb_dataset_copy_row(dataset, r, got, labels);
        for (uint32_t i = 0; i < dataset->rows[r].count; i++) {
            assert_int_equal(got[i], json_integer_value(json_array_get(ids, i)));
            assert_int_equal(labels[i], json_integer_value(json_array_get(mask, i)) ? got[i] : NB_LABEL_IGNORED);
        }
    }
    json_decref(reference);
}

/* The same rows as JSONL, as a JSON array, both gzipped, and with every thread count. */
static void conversations_equal_the_reference(void **state)
{
    struct fixture *f = *state;
    char *lines, *array, folder[] = "/tmp/nibble-test-XXXXXX";
    size_t bytes;
    struct nb_dataset *dataset;
    assert_non_null(mkdtemp(folder));
    assert_int_equal(nb_file_read("tests/golden/smollm2/rows.jsonl", 1 << 20, false, &lines, &bytes), NB_OK);
    array = nb_format(" [%s]\n", lines);
    for (char *c = array; *c; c++)
        if (*c == '\n' && c[1] == '{')
            *c = ',';
    for (int kind = 0; kind < 4; kind++) {
        char *path = nb_format("%s/data%d", folder, kind);
        const char *text = kind & 1 ? array : lines;
        if (kind & 2) {
            gzFile file = gzopen(path, "wb");
            assert_int_equal(gzwrite(file, text, (unsigned)strlen(text)), strlen(text));
            assert_int_equal(gzclose(file), Z_OK);
        } else {
            assert_int_equal(nb_file_write(path, text, strlen(text)), NB_OK);
        }
        for (f->options.threads = 0; f->options.threads < 4; f->options.threads++) {
            struct nb_dataset_source source = {.path = path};
            assert_int_equal(nb_dataset_read(&source, 1, &f->options, &dataset), NB_OK);
            assert_string_equal(dataset->sources[0].type, "chat_template");
            assert_reference_rows(dataset);
            assert_int_equal(dataset->rows[3].line, 4);
            assert_int_equal(nb_lint(dataset, f->tokenizer, f->chat_template), NB_OK);
            nb_dataset_destroy(&dataset);
            assert_null(dataset);
        }
        f->options.threads = 2;
        free(path);
    }
    free(lines);
    free(array);
    assert_int_equal(nb_remove_folder(folder), NB_OK);
}

#define SYSTEM "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"

static void sharegpt_and_named_fields_are_conversations(void **state)
{
    struct fixture *f = *state;
    struct nb_dataset *dataset;
    static const char sharegpt[] =
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}]}\n\n"
        "{\"conversations\":[{\"from\":\"system\",\"value\":\"s\"},{\"from\":\"gpt\",\"value\":\"c\"}]}";
    assert_int_equal(read_text(f, sharegpt, NULL, &dataset), NB_OK);
    assert_shows(f, dataset, 0,
        SYSTEM "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n\xe3\x80\x90"
               "b<|im_end|>\xe3\x80\x91\n");
    assert_shows(f, dataset, 1,
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>assistant\n\xe3\x80\x90"
        "c<|im_end|>\xe3\x80\x91\n");
    assert_int_equal(dataset->rows[1].line, 3);
    nb_dataset_destroy(&dataset);
    static const char named[] = "{\"talk\":[{\"who\":\"user\",\"said\":\"a\"},{\"who\":\"assistant\",\"said\":\"b\"}]}";
    struct nb_dataset_source source = {.path = "data.jsonl", .type = "chat_template", .field_messages = "talk",
                                       .message_field_role = "who", .message_field_content = "said"};
    assert_int_equal(nb_dataset_read_bytes(named, strlen(named), &source, &f->options, &dataset), NB_OK);
    assert_int_equal(dataset->kept_count, 1);
    nb_dataset_destroy(&dataset);
    f->options.train_on_inputs = true;
    assert_int_equal(read_text(f, sharegpt, NULL, &dataset), NB_OK);
    assert_int_equal(dataset->rows[0].trained_count, dataset->rows[0].count - 1);
    nb_dataset_destroy(&dataset);
    f->options.train_on_inputs = false;
}

static void alpaca_is_prompted_as_published(void **state)
{
    struct fixture *f = *state;
    struct nb_dataset *dataset;
    assert_int_equal(read_text(f,
                         "{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\"}\n"
                         "{\"instruction\":\"Hi\",\"input\":\"\",\"output\":\"Ho\"}\n"
                         "{\"instruction\":\"Hi\",\"input\":null,\"output\":\"Ho\",\"system\":\"Sing.\"}\n",
                         NULL, &dataset),
        NB_OK);
    assert_string_equal(dataset->sources[0].type, "alpaca");
    assert_shows(f, dataset, 0,
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n\xe3\x80\x90"
        "3<|im_end|>\xe3\x80\x91");
    assert_shows(f, dataset, 1,
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi\n\n### Response:\n\xe3\x80\x90Ho<|im_end|>\xe3\x80\x91");
    assert_shows(f, dataset, 2, "Sing.\n\n### Instruction:\nHi\n\n### Response:\n\xe3\x80\x90Ho<|im_end|>\xe3\x80\x91");
    nb_dataset_destroy(&dataset);
}

/* A long text is cut into pieces of sequence_len tokens, none of which is a single token; only the last ends with eos.
 * */
static void completion_is_cut_into_pieces(void **state)
{
    struct fixture *f = *state;
    struct nb_dataset *dataset;
    f->options.sequence_len = 16;
    for (int words = 1; words < 70; words++) {
        char text[1024] = "{\"text\":\"a";
        for (int i = 1; i < words; i++)
            strcat(text, " a");
        strcat(text, "\"}");
        assert_int_equal(read_text(f, text, NULL, &dataset), NB_OK);
        assert_string_equal(dataset->sources[0].type, "completion");
        assert_int_equal(dataset->token_count, words + 1);
        assert_int_equal(dataset->row_count, (words + 1 + 15) / 16);
        for (uint32_t r = 0; r < dataset->row_count; r++) {
            const struct nb_row *row = &dataset->rows[r];
            assert_in_range(row->count, 2, 16);
            assert_int_equal(row->trained_count, row->count - 1);
            assert_int_equal(row->line, 1);
            nb_row_token last = dataset->tokens[row->first + row->count - 1];
            assert_int_equal(nb_row_token_id(last) == 2, r + 1 == dataset->row_count);
        }
        assert_int_equal(nb_lint(dataset, f->tokenizer, f->chat_template), NB_OK);
        nb_dataset_destroy(&dataset);
    }
    f->options.sequence_len = 256;
}

static void rows_of_tokens_need_no_tokenizer(void **state)
{
    struct fixture *f = *state;
    struct nb_dataset *dataset;
    struct nb_dataset_options options = {.sequence_len = 4, .vocabulary = 10};
    struct nb_dataset_source source = {.path = "data.jsonl"};
    static const char text[] =
        "{\"input_ids\":[1,2,3],\"labels\":[-100,2,-100]}\n"
        "{\"input_ids\":[4,5]}\n"
        "{\"input_ids\":[7,8,9,0,0],\"labels\":[7,8,9,-100,-100],\"attention_mask\":[1,1,1,0,0]}\n";
    assert_int_equal(nb_dataset_read_bytes(text, strlen(text), &source, &options, &dataset), NB_OK);
    assert_int_equal(dataset->kept_count, 3);
    int32_t ids[4], labels[4];
    nb_dataset_copy_row(dataset, 0, ids, labels);
    assert_memory_equal(ids, ((int32_t[]){1, 2, 3}), 12);
    assert_memory_equal(labels, ((int32_t[]){-100, 2, -100}), 12);
    nb_dataset_copy_row(dataset, 1, ids, NULL);
    assert_int_equal(dataset->rows[2].count, 3);
    assert_int_equal(nb_lint(dataset, NULL, NULL), NB_OK);
    char *shown;
    assert_int_equal(nb_dataset_show_row(dataset, NULL, 0, 100, &shown), NB_OK);
    assert_string_equal(shown, " 1\xe3\x80\x90 2\xe3\x80\x91 3");
    free(shown);
    nb_dataset_destroy(&dataset);
    assert_int_equal(nb_dataset_read_bytes("{\"text\":\"a\"}", 12, &source, &options, &dataset), NB_USAGE);
    assert_non_null(strstr(nb_status_message(), "needs a tokenizer"));
    options.tokenizer = f->tokenizer;
    options.chat_template_problem = "no template here";
    assert_int_equal(nb_dataset_read_bytes("{\"messages\":[]}", 15, &source, &options, &dataset), NB_USAGE);
    assert_non_null(strstr(nb_status_message(), "no template here"));
}

/* Bad rows keep their place and are told apart. */
static void bad_rows_keep_their_place(void **state)
{
    struct fixture *f = *state;
    struct nb_dataset *dataset;
    f->options.sequence_len = 6;
    static const struct {
        const char *row;
        enum nb_row_dropped dropped;
    } rows[] = {
        {"{\"input_ids\":[1,2,3],\"labels\":[-100,2,3]}", NB_ROW_KEPT},
        {"{\"input_ids\":[1,2,3],\"labels\":[-100,-100,-100]}", NB_ROW_NO_ANSWER},
        {"{\"input_ids\":[1,2,3],\"labels\":[1,-100,-100]}", NB_ROW_NO_ANSWER}, /* nothing predicts the first */
        {"{\"input_ids\":[1],\"labels\":[1]}", NB_ROW_NO_ANSWER},
        {"{\"input_ids\":[],\"labels\":[]}", NB_ROW_NO_ANSWER},
        {"{\"input_ids\":[1,49152],\"labels\":[-100,49152]}", NB_ROW_BAD_ID},
        {"{\"input_ids\":[1,-1]}", NB_ROW_BAD_ID},
        {"{\"input_ids\":[1,2.5]}", NB_ROW_BAD_ID},
        {"{\"input_ids\":[1,2,3],\"labels\":[1,2]}", NB_ROW_BAD_LABELS},
        {"{\"input_ids\":[1,2,3],\"labels\":[2,3,-100]}", NB_ROW_BAD_LABELS}, /* shifted already */
        {"{\"input_ids\":[1,2,3],\"attention_mask\":[1]}", NB_ROW_BAD_LABELS},
        {"{\"input_ids\":[1,2,3,4,5,6,7]}", NB_ROW_TOO_LONG},
        {"{\"input_ids\":\"1\"}", NB_ROW_BAD_FIELDS},
        {"{}", NB_ROW_BAD_FIELDS},
        {"[]", NB_ROW_BAD_FIELDS},
    };
    char text[4096] = "";
    size_t count = sizeof rows / sizeof *rows;
    for (size_t i = 0; i < count; i++) {
        strcat(text, rows[i].row);
        strcat(text, "\n");
    }
    assert_int_equal(read_text(f, text, NULL, &dataset), NB_OK);
    assert_int_equal(dataset->row_count, count);
    assert_int_equal(dataset->kept_count, 1);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(dataset->rows[i].dropped, rows[i].dropped);
        assert_int_equal(dataset->rows[i].line, i + 1);
        assert_int_equal(dataset->rows[i].count, rows[i].dropped ? 0 : 3);
    }
    assert_int_equal(dataset->rows[11].length, 7);
    assert_int_equal(dataset->sources[0].dropped_count[NB_ROW_NO_ANSWER], 4);
    assert_int_equal(dataset->sources[0].first_line[NB_ROW_BAD_LABELS], 9);
    assert_int_equal(nb_lint(dataset, f->tokenizer, f->chat_template), NB_FORMAT);
    nb_dataset_destroy(&dataset);
    f->options.sequence_len = 256;
}

static void bad_conversations_are_told_apart(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *row, *words;
        enum nb_row_dropped dropped;
    } rows[] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "assistant", NB_ROW_NO_ANSWER},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\"}]}", "assistant", NB_ROW_NO_ANSWER},
        {"{\"messages\":[]}", "without messages", NB_ROW_BAD_FIELDS},
        {"{\"messages\":{}}", "no list of messages", NB_ROW_BAD_FIELDS},
        {"{\"messages\":[{\"role\":\"narrator\",\"content\":\"a\"}]}", "message 1: role \"narrator\"",
            NB_ROW_BAD_FIELDS},
        {"{\"messages\":[{\"role\":\"user\"}]}", "message 1 lacks a content", NB_ROW_BAD_FIELDS},
        {"{\"messages\":[{\"content\":\"a\"}]}", "message 1 lacks a role", NB_ROW_BAD_FIELDS},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":[{}]}]}", "tool_calls",
            NB_ROW_BAD_FIELDS},
        {"{\"messages\":[\"a\"]}", "lacks a role", NB_ROW_BAD_FIELDS},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct nb_dataset *dataset;
        assert_int_equal(read_text(f, rows[i].row, "chat_template", &dataset), NB_OK);
        assert_int_equal(dataset->rows[0].dropped, rows[i].dropped);
        assert_non_null(strstr(dataset->sources[0].first_problem[rows[i].dropped], rows[i].words));
        assert_int_equal(nb_lint(dataset, f->tokenizer, f->chat_template), NB_FORMAT);
        assert_non_null(strstr(nb_status_message(), "data.jsonl"));
        assert_non_null(strstr(nb_status_message(), rows[i].words));
        nb_dataset_destroy(&dataset);
    }
}

static void files_that_are_no_data_are_errors(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *text, *type, *words;
        nb_status status;
    } cases[] = {
        {"", NULL, "empty", NB_FORMAT},
        {" \n\n", NULL, "empty", NB_FORMAT},
        {"[]", NULL, "empty", NB_FORMAT},
        {"[ ] x", NULL, "follows the array", NB_FORMAT},
        {"hello", NULL, "data.jsonl:1: not JSON", NB_FORMAT},
        {"{\"text\":\"a\"}\n{\"text\":\"a\"\n", NULL, "data.jsonl:2: not JSON", NB_FORMAT},
        {"{\"text\":\"\xff\"}", NULL, "data.jsonl:1: not JSON", NB_FORMAT},
        {"[{\"text\":\"a\"}", NULL, "is it complete?", NB_FORMAT},
        {"[{\"text\":\"a\"},]", NULL, "element 2", NB_FORMAT},
        {"[{\"text\":\"a\"} {\"text\":\"a\"}]", NULL, "',' or ']'", NB_FORMAT},
        {"{\"foo\":1,\"bar\":2}", NULL, "the first has the fields (foo, bar)", NB_USAGE},
        {"{\"text\":\"a\"}", "sharegpt", "type \"sharegpt\" is not known", NB_USAGE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nb_dataset *dataset;
        assert_int_equal(read_text(f, cases[i].text, cases[i].type, &dataset), cases[i].status);
        assert_null(dataset);
        if (!strstr(nb_status_message(), cases[i].words))
            fail_msg("\"%s\" does not say \"%s\"", nb_status_message(), cases[i].words);
    }
    struct nb_dataset *dataset;
    struct nb_dataset_source source = {.path = "tests/no-such-file.jsonl"};
    assert_int_equal(nb_dataset_read(&source, 1, &f->options, &dataset), NB_IO);
    f->options.sequence_len = 1;
    assert_int_equal(read_text(f, "{\"text\":\"a\"}", NULL, &dataset), NB_USAGE);
    f->options.sequence_len = 256;
}

/* Deep nesting must end in an error, not in the stack's end. */
static void deep_nesting_is_an_error(void **state)
{
    struct fixture *f = *state;
    struct nb_dataset *dataset;
    size_t depth = 200000;
    char *text = malloc(depth + 64);
    assert_non_null(text);
    int start = snprintf(text, 64, "{\"text\":");
    memset(text + start, '[', depth);
    text[(size_t)start + depth] = 0;
    assert_int_equal(read_text(f, text, NULL, &dataset), NB_FORMAT);
    free(text);
}

static void lines(char *text, size_t size, int good, const char *bad)
{
    size_t at = 0;
    for (int i = 0; i < good; i++)
        at += (size_t)snprintf(text + at, size - at, "{\"input_ids\":[1,5,2]}\n");
    snprintf(text + at, size - at, "%s\n", bad);
}

static void assert_lint(const struct fixture *f, const char *text, nb_status status, const char *words)
{
    struct nb_dataset *dataset;
    assert_int_equal(read_text(f, text, NULL, &dataset), NB_OK);
    assert_int_equal(nb_lint(dataset, f->tokenizer, f->chat_template), status);
    if (words && !strstr(nb_status_message(), words))
        fail_msg("\"%s\" does not say \"%s\"", nb_status_message(), words);
    nb_dataset_destroy(&dataset);
}

/* One rotten row among many is dropped; among few, or when it lacks an answer, it stops the run. */
static void lint_weighs_bad_rows(void **state)
{
    struct fixture *f = *state;
    char text[4096];
    lines(text, sizeof text, 30, "{\"input_ids\":[1,99999]}");
    assert_lint(f, text, NB_OK, NULL);
    lines(text, sizeof text, 10, "{\"input_ids\":[1,99999]}");
    assert_lint(f, text, NB_FORMAT, "data.jsonl:11: input_ids[1]");
    lines(text, sizeof text, 30, "{\"input_ids\":[1,2],\"labels\":[-100,-100]}");
    assert_lint(f, text, NB_FORMAT, "data.jsonl:31: no token of it would be trained");
    f->options.sequence_len = 3;
    lines(text, sizeof text, 3, "{\"input_ids\":[1,5,5,2]}");
    assert_lint(f, text, NB_OK, NULL);
    assert_lint(f, "{\"input_ids\":[1,5,5,2]}\n{\"input_ids\":[1,5,5,5,2]}", NB_FORMAT, "no row of 2 can be used");
    f->options.sequence_len = 256;
    assert_lint(f, "{\"input_ids\":[1,1,5,2]}", NB_OK, NULL); /* two bos in tokens: a warning */
    assert_lint(f,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_start|>\"},{\"role\":\"assistant\",\"content\":\"a\"}]}",
        NB_OK, NULL);
    assert_lint(f, "{\"text\":\"<|im_start|><|im_start|>x\"}", NB_FORMAT, "data.jsonl:1: begins with two bos tokens");
}

/* A template whose end-of-turn the tokenizer does not know would teach the model never to stop. */
static void lint_refuses_an_end_that_is_no_token(void **state)
{
    struct fixture *f = *state;
    struct nb_chat_template *llama3;
    struct nb_dataset *dataset;
    struct fixture other = *f;
    assert_int_equal(nb_chat_template_open("llama3", NULL, "", &llama3), NB_OK);
    other.options.chat_template = llama3;
    assert_int_equal(
        read_text(&other, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}", NULL, &dataset), NB_OK);
    assert_int_equal(nb_lint(dataset, f->tokenizer, llama3), NB_FORMAT);
    assert_non_null(strstr(nb_status_message(), "never learn to stop"));
    nb_dataset_destroy(&dataset);
    nb_chat_template_destroy(&llama3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversations_equal_the_reference),
        cmocka_unit_test(sharegpt_and_named_fields_are_conversations),
        cmocka_unit_test(alpaca_is_prompted_as_published),
        cmocka_unit_test(completion_is_cut_into_pieces),
        cmocka_unit_test(rows_of_tokens_need_no_tokenizer),
        cmocka_unit_test(bad_rows_keep_their_place),
        cmocka_unit_test(bad_conversations_are_told_apart),
        cmocka_unit_test(files_that_are_no_data_are_errors),
        cmocka_unit_test(deep_nesting_is_an_error),
        cmocka_unit_test(lint_weighs_bad_rows),
        cmocka_unit_test(lint_refuses_an_end_that_is_no_token),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
