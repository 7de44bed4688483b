/* A GPU that need not be here, for `plan --device`: configs/devices/NAME.yml, whose README.md says what each key means. */
#ifndef NB_CONFIG_DEVICE_PROFILE_H
#define NB_CONFIG_DEVICE_PROFILE_H

#include <stddef.h>

#include "base/status.h"
#include "device/types.h"

/* What a plan assumes of the matrix library when a file does not say: cublasLtGetVersion's number of CUDA 13.0. */
enum { NB_DEVICE_PROFILE_CUBLASLT = 130000 };

/* Reads the profile called `name` (nb_shipped_file of "devices"), or the file at that path. Errors: NB_USAGE
 * "FILE:LINE:COLUMN: ..." (bad YAML; a key that is unknown, missing, of the wrong type or out of range), or no such file;
 * NB_IO; NB_MEMORY. */
nb_status nb_device_profile_read(const char *name, struct nb_device_profile *profile);

/* The same for text in memory, called `name` in messages. The fuzz target calls this one. `profile` is written on
 * success alone. */
nb_status nb_device_profile_parse(const char *text, size_t bytes, const char *name, struct nb_device_profile *profile);

#endif
