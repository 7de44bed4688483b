/* `nibble bench`: what a device reaches, beside its measured limits. One function a benchmark; each opens the
 * device, measures the rate of a large copy and of a large bf16 product on random data, then its own, and prints a
 * table for people or one JSON object. */
#ifndef NB_BENCH_BENCH_H
#define NB_BENCH_BENCH_H

#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"
#include "config/config.h"

enum { NB_BENCH_LENGTHS_MAX = 9 };

struct nb_bench_options {
    enum nb_config_device device;
    bool json;         /* print JSON in place of the table */
    const char *save;  /* write the JSON here as well; NULL: nowhere */
    bool quick;        /* fewer sizes and repetitions: for a short look and for tests */
    bool write;        /* matmul: leave the fastest ways in the user's configuration folder */
    const char *csv, *svg; /* memory: write its numbers, its picture there; NULL: nowhere */
    const char *model; /* step, generate: a checkpoint, or a config.json alone, whose weights are then random */
    const char *config; /* memory: the run to measure, but on random rows; NULL: rank 16 on every linear of the model */
    int tokens[NB_BENCH_LENGTHS_MAX]; /* of a row, ended by 0; none: the benchmark's own. memory takes several, the others one */
    int micro_batch;   /* step: rows; 0: 1 */
    const char *recompute; /* step: as gradient_checkpointing; NULL: true, attention, false and auto in turn */
    int steps;         /* step: timed steps; generate: timed tokens; 0: the benchmark's own */
    FILE *out;
};

/* Products of the shapes of Llama 3 8B and 70B, forward and backward: each way to multiply by NF4, beside a product
 * with bf16 weights; and a block's seven linears together with their rank-16 adapters. */
nb_status nb_bench_matmul(const struct nb_bench_options *options);

/* Attention of one long causal sequence, 32 query and 8 key heads of 128. FLOPs: 4 * heads * head_dim a pair of
 * query and visible key forward (so causal counts half), 2.5 times that backward. */
nb_status nb_bench_attention(const struct nb_bench_options *options);

/* Training steps on random tokens: tokens a second, share of the device's product rate, real peak beside the plan's. */
nb_status nb_bench_step(const struct nb_bench_options *options);

/* Steps of `config`, of `model`, or of the usual shapes (Llama 3 8B and 70B on a GPU, SmolLM2 on a CPU) under a ladder of settings that
 * each save memory, at several lengths of rows: planned and real peak of the device, host memory, tokens a second. Errors: NB_NUMERIC if
 * a setting changes the loss, which none may. */
nb_status nb_bench_memory(const struct nb_bench_options *options);

/* Tokens a second of one sequence, and the share of what the weights' bytes allow. */
nb_status nb_bench_generate(const struct nb_bench_options *options);

#endif
