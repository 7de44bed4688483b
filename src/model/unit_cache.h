/* The cache of a model's units in a folder: one file (unit_file.h) for each state of the checkpoint's files and each
 * choice that decides the units' bytes. A cache that cannot be read or written costs time, never the run: what is wrong
 * goes to nb_warn. Files of checkpoints that are gone stay; any may be removed at any time: who reads it holds it open.
 * Private to src/model/. */
#ifndef NB_MODEL_UNIT_CACHE_H
#define NB_MODEL_UNIT_CACHE_H

#include "model/decoder.h"
#include "model/unit_file.h"

/* Which file a model has. */
struct nb_unit_cache {
    char *folder, *path, *key;
    uint64_t *bytes; /* of the units */
    struct nb_unit_file_shape shape;
};

/* Errors: NB_MEMORY. Destroy with nb_unit_cache_free, after an error too. */
nb_status nb_unit_cache_describe(const struct nb_model *model, struct nb_unit_cache *cache);
void nb_unit_cache_free(struct nb_unit_cache *cache);

/* The file, or NULL where there is none; a damaged one is removed with a warning. */
struct nb_unit_file *nb_unit_cache_open(const struct nb_unit_cache *cache);

/* A file that turned out damaged while it was read (nb_status_message says how): closed, and removed with a warning. */
void nb_unit_cache_reject(struct nb_unit_file **file);

/* A writer, in the folder, which is made, and rid of what a killed process left of this file; NULL after a warning. */
struct nb_unit_file_writer *nb_unit_cache_create(const struct nb_unit_cache *cache);

/* Appends, and finishes after the last byte. What goes wrong is a warning, which abandons and nulls *writer. NULL is
 * fine. */
void nb_unit_cache_append(struct nb_unit_file_writer **writer, const void *data, uint64_t bytes);
void nb_unit_cache_finish(struct nb_unit_file_writer **writer);

#endif
