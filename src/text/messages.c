#include "text/messages.h"

#include <jansson.h>
#include <stdlib.h>

#include "base/file.h"

enum { FILE_LIMIT = 64 << 20 };

struct nb_messages {
    json_t *array; /* owns the strings */
    struct nb_chat_message *items;
    size_t count;
};

static nb_status read_items(const char *path, struct nb_messages *messages)
{
    messages->count = json_array_size(messages->array);
    if (!json_is_array(messages->array) || messages->count == 0)
        return nb_fail(NB_FORMAT, "%s: not a JSON array of messages, such as [{\"role\": \"user\", \"content\": \"...\"}]", path);
    messages->items = calloc(messages->count, sizeof *messages->items);
    if (!messages->items)
        return nb_fail(NB_MEMORY, "%s: no memory to read it", path);
    for (size_t i = 0; i < messages->count; i++) {
        json_t *message = json_array_get(messages->array, i);
        json_t *role = json_object_get(message, "role"), *content = json_object_get(message, "content");
        if (!json_is_string(role) || !json_is_string(content))
            return nb_fail(NB_FORMAT, "%s: message %zu needs \"role\" and \"content\" with strings", path, i + 1);
        messages->items[i] = (struct nb_chat_message){
            .role = json_string_value(role), .content = json_string_value(content), .content_bytes = json_string_length(content)};
    }
    return NB_OK;
}

nb_status nb_messages_read(const char *path, struct nb_messages **out)
{
    char *text;
    size_t bytes;
    json_error_t error;
    *out = NULL;
    NB_TRY(nb_file_read(path, FILE_LIMIT, false, &text, &bytes));
    struct nb_messages *messages = calloc(1, sizeof *messages);
    if (messages)
        messages->array = json_loadb(text, bytes, JSON_ALLOW_NUL, &error);
    free(text);
    if (!messages)
        return nb_fail(NB_MEMORY, "%s: no memory to read it", path);
    nb_status status = messages->array ? read_items(path, messages)
                                       : nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", path, error.line, error.column, error.text);
    if (status != NB_OK)
        nb_messages_destroy(&messages);
    *out = messages;
    return status;
}

void nb_messages_destroy(struct nb_messages **messages)
{
    if (!*messages)
        return;
    json_decref((*messages)->array);
    free((*messages)->items);
    free(*messages);
    *messages = NULL;
}

const struct nb_chat_message *nb_messages_items(const struct nb_messages *messages)
{
    return messages->items;
}

size_t nb_messages_count(const struct nb_messages *messages)
{
    return messages->count;
}
