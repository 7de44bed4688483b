/* A deep model in bf16 and in 4 bits, rows to train it on, and trainings of it whose bytes are compared: what the tests
 * of weights from files share. Failures end the test. */
#ifndef NB_TESTS_PARITY_FILE_MODEL_H
#define NB_TESTS_PARITY_FILE_MODEL_H

#include <sys/stat.h>

#include "training.h"

enum { FILE_MODEL_LAYERS = 7, FILE_MODEL_STEPS = 2 };

struct file_model {
    const char *shape;
    char *folder, *path, *four_bits; /* the last two lie in the first */
};

/* A cmocka set-up and its tear-down. *state is the name of a golden model, then a struct file_model *. */
int file_model_open(void **state);
int file_model_close(void **state);

/* A config that trains `base`, with more lines; the caller frees. */
char *file_model_yaml(const struct file_model *model, const char *base, const char *more);

struct file_trained {
    struct nb_step_result step[FILE_MODEL_STEPS];
    float *masters; /* the caller frees */
    uint64_t bytes, device_bytes, pinned_bytes;
};

/* FILE_MODEL_STEPS steps, deferred where seed > 0; what is taken is what was planned, to the byte. */
struct file_trained file_model_train(const char *yaml, uint64_t seed);
bool file_trained_same(const struct file_trained *a, const struct file_trained *b);

/* A whole run into FOLDER/out; *metrics (the caller frees) is its metrics.jsonl without times and memory. */
nb_status file_model_run(const struct file_model *model, const char *out, const char *more, bool resume, char **metrics);

/* The one file in a cache's folder, which the caller frees; NULL where there is none. More than one is a failure. */
char *file_model_cached(const char *folder);

struct stat file_model_stat(const char *path);

#endif
