/* PEFT's adapter folders: adapter_config.json and adapter_model.safetensors. */
#ifndef NB_ADAPTER_PEFT_H
#define NB_ADAPTER_PEFT_H

#include "adapter/adapter.h"

/* An adapter folder as read: what nb_adapter_create needs, owned. */
struct nb_peft_config;

/* Reads adapter_config.json. Errors: NB_UNSUPPORTED, naming field and value, for DoRA, bias other than none, modules_to_save,
 * rank or alpha patterns, layers_to_transform, and anything else that would change the arithmetic; NB_FORMAT, NB_IO. */
nb_status nb_peft_config_read(const char *folder, struct nb_peft_config **config);
void nb_peft_config_destroy(struct nb_peft_config **config);

/* Rank, alpha, dropout, rsLoRA and targets of the folder; the other options are left as they are. Strings are owned by `config`. */
void nb_peft_config_options(const struct nb_peft_config *config, struct nb_adapter_options *options);
const char *nb_peft_config_base_model(const struct nb_peft_config *config); /* base_model_name_or_path; "" if none */

/* Loads adapter_model.safetensors (F32, F16 or BF16) into an allocated adapter: copies, and masters where it trains. Every tensor of
 * the file must fit one of the registry's by name and shape and the reverse; otherwise NB_USAGE names the first that does not. */
nb_status nb_peft_load(struct nb_adapter *adapter, struct nb_stream *stream, void *staging, const char *folder);

/* Writes both files as PEFT does (tensors F32 from the masters, PEFT's names, sorted by name), atomically each. `base_model_name`
 * is what adapter_config.json shall say. Waits for the stream. */
nb_status nb_peft_save(const struct nb_adapter *adapter, struct nb_stream *stream, void *staging, const char *folder,
                       const char *base_model_name);

#endif
