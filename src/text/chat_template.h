/* Chat templates: a conversation to one text and the byte ranges of it that train. The text is then tokenized once,
 * whole, and a token trains if its first byte lies in a range; so a general template language would replace this file
 * alone. */
#ifndef NB_TEXT_CHAT_TEMPLATE_H
#define NB_TEXT_CHAT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct nb_chat_template;

/* A view: does not own its strings. `role` is zero-terminated: "system", "user", "assistant" or "tool". */
struct nb_chat_message {
    const char *role;
    const char *content;
    size_t content_bytes;
};

/* Bytes [begin, end) of a text. */
struct nb_span {
    size_t begin, end;
};

/* Start with {0}; reused from call to call; free with nb_rendering_free. Spans ascend and do not touch. */
struct nb_rendering {
    char *text; /* zero-terminated */
    size_t bytes, capacity;
    struct nb_span *spans;
    size_t span_count, span_capacity;
};

/* The template to use. `name` is the config's chat_template: "chatml", "llama3", "smollm2", or NULL or
 * "tokenizer_default" for the checkpoint's own, whose text is `checkpoint_text` (NULL when it has none): recognized
 * only when identical to a known one. `bos_text` is the tokenizer's bos token, which llama3 begins with (NULL or "":
 * none).
 * Errors: NB_UNSUPPORTED (another template), NB_USAGE (unknown name, or neither given), both naming the chat_template
 * key and the choices; NB_MEMORY. */
nb_status nb_chat_template_open(const char *name, const char *checkpoint_text, const char *bos_text,
                                struct nb_chat_template **chat_template);

/* Takes NULL; nulls the handle. */
void nb_chat_template_destroy(struct nb_chat_template **chat_template);

/* "chatml", "llama3" or "smollm2". */
const char *nb_chat_template_name(const struct nb_chat_template *chat_template);

/* The text of the token that ends a turn, such as "<|im_end|>": what an answer is trained to end with. */
const char *nb_chat_template_end_of_turn(const struct nb_chat_template *chat_template);

/* Renders messages into `rendering`, replacing what it held. Spans: each assistant message's content and its
 * end-of-turn token, not the newline after it. With `add_generation_prompt` the text ends where an answer begins.
 * Errors, which the caller gives a place: NB_FORMAT (no messages, an unknown role, not UTF-8), NB_MEMORY. */
nb_status nb_chat_template_render(const struct nb_chat_template *chat_template, const struct nb_chat_message *messages,
                                  size_t count, bool add_generation_prompt, struct nb_rendering *rendering);

void nb_rendering_free(struct nb_rendering *rendering);

#endif
