/* Where a pass enqueues its work, and the ops that need scratch: taken from the arena for the op alone. Private to src/model/. */
#ifndef NB_MODEL_WORK_H
#define NB_MODEL_WORK_H

#include "base/arena.h"
#include "device/device.h"

/* Owns nothing. The arena belongs to the stream. */
struct nb_work {
    struct nb_device *device;
    struct nb_stream *stream;
    struct nb_arena *arena;
};

nb_status nb_work_take(const struct nb_work *work, enum nb_category category, const char *name, uint64_t bytes, nb_dptr *address);

/* [rows, columns], contiguous. */
struct nb_matrix_shape {
    int64_t rows, columns;
    enum nb_dtype dtype;
};

nb_status nb_work_take_matrix(const struct nb_work *work, enum nb_category category, const char *name, struct nb_matrix_shape shape,
                              nb_dptr *address);

/* Fill in args->scratch, enqueue, and release the scratch. It is taken for `tokens_limit` rows, args->tokens_max of which are at work. */
nb_status nb_work_linear(const struct nb_work *work, struct nb_linear *args, int tokens_limit);
nb_status nb_work_linear_backward(const struct nb_work *work, struct nb_linear_backward *args, int tokens_limit);
nb_status nb_work_attention(const struct nb_work *work, struct nb_attention *args, int tokens_limit);
nb_status nb_work_attention_backward(const struct nb_work *work, struct nb_attention_backward *args, int tokens_limit);
nb_status nb_work_quantize(const struct nb_work *work, struct nb_quantize *args);
nb_status nb_work_sample(const struct nb_work *work, struct nb_sample *args);

/* The chunks of 0 .. end - 1: the first, and after each the one at `begin` the next, until `end` is reached. On a dry
 * device the first, counted for all others that are as long, and the last. */
int nb_work_first_chunk(const struct nb_work *work, int chunk, int end);
int nb_work_next_chunk(const struct nb_work *work, int begin, int chunk, int end);

#endif
