/* A training run from YAML text, opened as the program opens it, for the parity tests of training. Failures end the test. */
#ifndef NB_TESTS_PARITY_TRAINING_H
#define NB_TESTS_PARITY_TRAINING_H

#include "train/plan.h"
#include "train/step.h"

struct training {
    struct nb_config config;
    struct nb_run *run;
    struct nb_plan plan;
    struct nb_session *session;
    struct nb_stepper *stepper;
};

void training_check(nb_status status);

/* FOLDER/rows.jsonl: rows of 5 to `longest` tokens, ids 3 to ids + 2, labels of their second halves. */
struct training_rows {
    int count, longest, ids;
};
void training_write_varied_rows(const char *folder, struct training_rows rows);

/* The config of a YAML text, validated. */
void training_config(const char *yaml, struct nb_config *config);

/* Everything up to the first step: the memory is what the plan says, to the byte. Deferred: work runs only when it is waited for, in
 * an order that `seed` draws, and device memory cannot be read outside of ops. */
void training_open(struct training *training, const char *yaml);

/* The same; `change` may alter the opened run before it is planned. */
typedef void training_change(struct nb_run *run, uint64_t number);
void training_open_changed(struct training *training, const char *yaml, training_change *change, uint64_t number);

void training_open_deferred(struct training *training, const char *yaml, uint64_t seed);
void training_close(struct training *training);

/* Step `step` (from 1) of the run, at a constant learning rate. */
struct nb_step_result training_step(struct training *training, int64_t step);

/* One trainable's master, by name; the caller frees. NULL when there is none of that name. */
float *training_master(struct training *training, const char *name, uint64_t *count);

/* All masters in the registry's order, zeros as padding; the caller frees. */
float *training_masters(struct training *training);

/* A new folder under the system's temporary one; the caller frees the name and removes the folder. */
char *training_folder(void);

/* FOLDER/rows.jsonl: rows of tokens. */
void training_write_rows(const char *folder, const int32_t *ids, const int32_t *labels, int rows, int length);

#endif
