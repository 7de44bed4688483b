/* Where units are read from at each use, when neither device nor host memory holds them: a file of units as they lie in
 * memory (unit_file.h), or the checkpoint, where its tensors are used as they stand there. Private to src/model/. */
#ifndef NB_MODEL_UNIT_SOURCE_H
#define NB_MODEL_UNIT_SOURCE_H

#include "base/status.h"
#include "checkpoint/checkpoint.h"

struct nb_unit_file;
struct nb_unit_source;
struct nb_weight_store;

/* Takes the file over and nulls the handle, also on an error. Errors: NB_MEMORY. */
nb_status nb_unit_source_of_file(
    struct nb_unit_file **file, const struct nb_weight_store *store, struct nb_unit_source **source);

/* Opens the checkpoint's files, which must still be what they were when it was opened. It may be closed then. Errors:
 * NB_UNSUPPORTED as nb_unit_source_check; NB_FORMAT as nb_checkpoint_matrix_quantized; NB_IO, NB_MEMORY. */
nb_status nb_unit_source_of_checkpoint(
    const struct nb_checkpoint *checkpoint, const struct nb_weight_store *store, struct nb_unit_source **source);

/* Whether the checkpoint holds the units that are in a file as the model uses them: bf16 as bf16, and in 4 bits what
 * the model has in 4 bits. Reads no weights. Errors: NB_UNSUPPORTED, naming the tensor and what to do. */
nb_status nb_unit_source_check(const struct nb_checkpoint *checkpoint, const struct nb_weight_store *store);

/* Takes NULL; nulls the handle. */
void nb_unit_source_destroy(struct nb_unit_source **source);

/* Reads a unit, whole. The first time it is verified: against its checksum, or that all weights are finite. Errors:
 * NB_IO, NB_FORMAT, naming file and offset. A damaged file of units is removed, for the next start to make anew. */
nb_status nb_unit_source_read(struct nb_unit_source *source, int unit, void *to);

/* Advises the kernel that a unit comes next. */
void nb_unit_source_announce(const struct nb_unit_source *source, int unit);

#endif
