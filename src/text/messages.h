/* A conversation in a file of its own: a JSON array of {"role", "content"}. */
#ifndef NB_TEXT_MESSAGES_H
#define NB_TEXT_MESSAGES_H

#include <stddef.h>

#include "base/status.h"
#include "text/chat_template.h"

struct nb_messages;

/* Errors: NB_IO, NB_FORMAT naming file and message. */
nb_status nb_messages_read(const char *path, struct nb_messages **messages);

/* Takes NULL; nulls the handle. Views got from it are gone. */
void nb_messages_destroy(struct nb_messages **messages);

const struct nb_chat_message *nb_messages_items(const struct nb_messages *messages);
size_t nb_messages_count(const struct nb_messages *messages);

#endif
