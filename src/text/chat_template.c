#include "text/chat_template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

/* One way of writing conversations. A turn is opening + role + heading + content + closing + separator. */
struct style {
    const char *name;
    const char *opening, *heading, *closing, *separator;
    const char *default_system; /* written first when the first message is not from the system; NULL: nothing */
    bool trims;                 /* content loses the white space around it */
    bool begins_with_bos;
};

static const struct style styles[] = {
    {"chatml", "<|im_start|>", "\n", "<|im_end|>", "\n", NULL, false, false},
    {"llama3", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "", NULL, true, true},
    {"smollm2", "<|im_start|>", "\n", "<|im_end|>", "\n",
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face", false, false},
};

enum { STYLE_CHATML, STYLE_LLAMA3, STYLE_SMOLLM2 };

#define CHATML_TURN "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
#define CHATML_PROMPT "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
#define PROMPT_IS_FALSE \
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
#define LLAMA3_TURNS                                                                                                  \
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "   \
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}" \
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"

/* The texts as checkpoints carry them. */
static const struct {
    int style;
    const char *text;
} known[] = {
    {STYLE_CHATML, "{% for message in messages %}" CHATML_TURN "{% endfor %}" CHATML_PROMPT},
    {STYLE_CHATML, PROMPT_IS_FALSE "{% for message in messages %}" CHATML_TURN "{% endfor %}" CHATML_PROMPT},
    {STYLE_LLAMA3, LLAMA3_TURNS
     "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"},
    {STYLE_LLAMA3, PROMPT_IS_FALSE LLAMA3_TURNS
     "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"},
    {STYLE_SMOLLM2,
     "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" CHATML_TURN
     "{% endfor %}" CHATML_PROMPT},
};

#define CHOICES "chatml, llama3 and smollm2"

struct nb_chat_template {
    const struct style *style;
    char *bos;
};

/* Whether two templates are one, where a line feed in a string may also be written as Jinja's escape \n. */
static bool same_text(const char *text, const char *reference)
{
    while (*text && *reference) {
        if (*text == *reference) {
            text++;
        } else if (*reference == '\n' && text[0] == '\\' && text[1] == 'n') {
            text += 2;
        } else {
            return false;
        }
        reference++;
    }
    return *text == *reference;
}

static const struct style *style_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++)
        if (strcmp(styles[i].name, name) == 0)
            return &styles[i];
    return NULL;
}

static const struct style *style_by_text(const char *text)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (same_text(text, known[i].text))
            return &styles[known[i].style];
    return NULL;
}

nb_status nb_chat_template_open(const char *name, const char *checkpoint_text, const char *bos_text,
                                struct nb_chat_template **chat_template)
{
    const struct style *style;
    *chat_template = NULL;
    if (name && strcmp(name, "tokenizer_default") != 0) {
        style = style_by_name(name);
        if (!style)
            return nb_fail(NB_USAGE, "chat_template \"%s\" is not known; choose one of " CHOICES
                           ", or leave it out to use the checkpoint's", name);
    } else if (!checkpoint_text || !*checkpoint_text) {
        return nb_fail(NB_USAGE, "the checkpoint carries no chat template; set chat_template to one of " CHOICES);
    } else {
        style = style_by_text(checkpoint_text);
        if (!style)
            return nb_fail(NB_UNSUPPORTED,
                "the checkpoint's chat template is none of those this program knows (it begins "
                "\"%.60s\"); if its conversations are written as one of " CHOICES ", set chat_template to that",
                checkpoint_text);
    }
    struct nb_chat_template *created = calloc(1, sizeof *created);
    if (created)
        created->bos = strdup(bos_text ? bos_text : "");
    if (!created || !created->bos) {
        free(created);
        return nb_fail(NB_MEMORY, "no memory for a chat template");
    }
    created->style = style;
    *chat_template = created;
    return NB_OK;
}

void nb_chat_template_destroy(struct nb_chat_template **chat_template)
{
    if (*chat_template) {
        free((*chat_template)->bos);
        free(*chat_template);
    }
    *chat_template = NULL;
}

const char *nb_chat_template_name(const struct nb_chat_template *chat_template)
{
    return chat_template->style->name;
}

const char *nb_chat_template_end_of_turn(const struct nb_chat_template *chat_template)
{
    return chat_template->style->closing;
}

void nb_rendering_free(struct nb_rendering *rendering)
{
    free(rendering->text);
    free(rendering->spans);
    *rendering = (struct nb_rendering){0};
}

static nb_status append(struct nb_rendering *rendering, const char *text, size_t bytes)
{
    if (bytes > SIZE_MAX / 4 || rendering->bytes + bytes + 1 > rendering->capacity) {
        size_t capacity = (rendering->bytes + bytes + 1) * 2;
        char *larger = bytes > SIZE_MAX / 4 ? NULL : realloc(rendering->text, capacity);
        if (!larger)
            return nb_fail(NB_MEMORY, "no memory for a conversation of %zu bytes", rendering->bytes + bytes);
        rendering->text = larger;
        rendering->capacity = capacity;
    }
    memcpy(rendering->text + rendering->bytes, text, bytes);
    rendering->bytes += bytes;
    rendering->text[rendering->bytes] = 0;
    return NB_OK;
}

static nb_status append_text(struct nb_rendering *rendering, const char *text)
{
    return append(rendering, text, strlen(text));
}

static nb_status append_span(struct nb_rendering *rendering, size_t begin, size_t end)
{
    if (rendering->span_count == rendering->span_capacity) {
        size_t capacity = rendering->span_capacity ? rendering->span_capacity * 2 : 8;
        struct nb_span *larger = realloc(rendering->spans, capacity * sizeof *larger);
        if (!larger)
            return nb_fail(NB_MEMORY, "no memory for a conversation of %zu turns", capacity);
        rendering->spans = larger;
        rendering->span_capacity = capacity;
    }
    rendering->spans[rendering->span_count++] = (struct nb_span){begin, end};
    return NB_OK;
}

/* Jinja's trim is Python's str.strip, which takes the four information separators for white space too. */
static bool is_trimmed(uint32_t c)
{
    return nb_utf8_is_space(c) || (c >= 0x1c && c <= 0x1f);
}

static void trim(const char **content, size_t *bytes)
{
    size_t length, kept = 0;
    while (*bytes > 0 && is_trimmed(nb_utf8_decode(*content, &length))) {
        *content += length;
        *bytes -= length;
    }
    for (size_t i = 0; i < *bytes; i += length)
        if (!is_trimmed(nb_utf8_decode(*content + i, &length)))
            kept = i + length;
    *bytes = kept;
}

static nb_status append_turn(
    struct nb_rendering *rendering, const struct style *style, const struct nb_chat_message *message)
{
    const char *content = message->content;
    size_t bytes = message->content_bytes;
    if (style->trims)
        trim(&content, &bytes);
    NB_TRY(append_text(rendering, style->opening));
    NB_TRY(append_text(rendering, message->role));
    NB_TRY(append_text(rendering, style->heading));
    size_t begin = rendering->bytes;
    NB_TRY(append(rendering, content, bytes));
    NB_TRY(append_text(rendering, style->closing));
    if (strcmp(message->role, "assistant") == 0)
        NB_TRY(append_span(rendering, begin, rendering->bytes));
    return append_text(rendering, style->separator);
}

static nb_status check_message(const struct nb_chat_message *message, size_t index)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    bool found = false;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        found = found || strcmp(message->role, roles[i]) == 0;
    if (!found)
        return nb_fail(NB_FORMAT, "message %zu: role \"%.40s\" is not one of system, user, assistant and tool",
            index + 1, message->role);
    size_t valid = nb_utf8_valid_prefix(message->content, message->content_bytes);
    if (valid < message->content_bytes)
        return nb_fail(NB_FORMAT, "message %zu is not UTF-8: byte 0x%02x at offset %zu", index + 1,
                       (unsigned char)message->content[valid], valid);
    return NB_OK;
}

nb_status nb_chat_template_render(const struct nb_chat_template *chat_template, const struct nb_chat_message *messages,
                                  size_t count, bool add_generation_prompt, struct nb_rendering *rendering)
{
    const struct style *style = chat_template->style;
    rendering->bytes = 0;
    rendering->span_count = 0;
    if (count == 0)
        return nb_fail(NB_FORMAT, "a conversation without messages");
    if (style->begins_with_bos)
        NB_TRY(append_text(rendering, chat_template->bos));
    if (style->default_system && strcmp(messages[0].role, "system") != 0)
        NB_TRY(append_turn(rendering, style,
                           &(struct nb_chat_message){"system", style->default_system, strlen(style->default_system)}));
    for (size_t i = 0; i < count; i++) {
        NB_TRY(check_message(&messages[i], i));
        NB_TRY(append_turn(rendering, style, &messages[i]));
    }
    if (!add_generation_prompt)
        return NB_OK;
    NB_TRY(append_text(rendering, style->opening));
    NB_TRY(append_text(rendering, "assistant"));
    return append_text(rendering, style->heading);
}
