/* The header of a safetensors file, for this room's two writers. */
#ifndef NB_CHECKPOINT_SAFETENSORS_HEADER_H
#define NB_CHECKPOINT_SAFETENSORS_HEADER_H

#include "checkpoint/safetensors.h"

/* The length word and the header, padded with spaces to a multiple of 8: *bytes at *header, which the caller frees. Errors:
 * NB_USAGE for a name given twice, NB_MEMORY. */
nb_status nb_safetensors_header(
    const char *path, const struct nb_safetensors_entry *entries, size_t count, char **header, size_t *bytes);

#endif
