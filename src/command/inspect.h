/* The kinds of things `nibble inspect` looks into. Each collects a JSON object first; --json prints it, otherwise it is laid out for
 * people. */
#ifndef NB_COMMAND_INSPECT_H
#define NB_COMMAND_INSPECT_H

#include <jansson.h>

#include "base/status.h"
#include "command/command.h"

/* A model: family, sizes, tensors with shape, dtype and bytes, parameters, chat template. The caller owns *out. */
nb_status nb_inspect_model(const char *path, json_t **out);

/* A PEFT adapter folder: rank, alpha, targets, base, tensors. */
nb_status nb_inspect_adapter(const char *path, json_t **out);

/* A .safetensors file. */
nb_status nb_inspect_safetensors(const char *path, json_t **out);

/* A data file. Without a model: rows and the first row's fields. With one: what training would see, and the first rows with the
 * trained stretches marked. */
nb_status nb_inspect_data(const struct nb_arguments *arguments, const char *model, int shown_rows, json_t **out);

/* Lays such an object out for people. */
void nb_inspect_print(const json_t *object, FILE *out);

#endif
