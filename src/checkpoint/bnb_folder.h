/* The small files of a quantized model's folder. */
#ifndef NB_CHECKPOINT_BNB_FOLDER_H
#define NB_CHECKPOINT_BNB_FOLDER_H

#include "base/status.h"
#include "checkpoint/bnb.h"

struct nb_gguf;

/* config.json with quantization_config, generation_config.json and the tokenizer's files, into `folder`. Errors: NB_IO, NB_FORMAT,
 * NB_MEMORY. */
nb_status nb_bnb_write_small_files(const struct nb_bnb_write *args, const char *folder);

/* tokenizer.json and tokenizer_config.json from a GGUF's metadata. A SentencePiece vocabulary is left out with a warning. */
nb_status nb_bnb_write_tokenizer(const struct nb_gguf *gguf, const char *folder);

#endif
