/* A tiny model's adapter on the CPU device, and folders to write to, for the tests of this folder. Failures end the test. */
#ifndef NB_TESTS_UNIT_TRAIN_BENCH_H
#define NB_TESTS_UNIT_TRAIN_BENCH_H

#include "adapter/adapter.h"
#include "adapter/peft.h"
#include "checkpoint/checkpoint.h"
#include "train/session.h"

struct bench {
    struct nb_checkpoint *checkpoint;
    struct nb_run run;         /* of which only what saving reads is set */
    struct nb_config config;
    struct nb_session session; /* device, stream, arenas, adapter, staging; no model */
};

/* An adapter for tests/golden/models/llama with these options (rank, targets, ...). */
void bench_open(struct bench *bench, const struct nb_adapter_options *options);
void bench_close(struct bench *bench);

/* Rank 4 on all linears, fp32, trains. */
struct nb_adapter_options bench_options(void);

/* Downloads `bytes` from the device; the caller frees. */
void *bench_download(struct bench *bench, nb_dptr from, uint64_t bytes);

/* Fills device memory with bytes that a seed gives, so that a round trip is seen. */
void bench_scramble(struct bench *bench, nb_dptr at, uint64_t count_f32, unsigned seed);

/* Fails the test with the status's message unless it is NB_OK; unless it is `code` and the message holds `words`. */
void bench_ok(nb_status status);
void bench_fails(nb_status status, nb_status code, const char *words);

/* A new empty folder under the system's temporary one; removed with nb_remove_folder by the caller, who frees the name. */
char *bench_folder(void);

void bench_write(const char *folder, const char *name, const char *text);

#endif
