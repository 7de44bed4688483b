/* What the benchmarks share: an open device, buffers with random contents, timing, the two rates that everything is
 * compared with. */
#ifndef NB_BENCH_RIG_H
#define NB_BENCH_RIG_H

#include <jansson.h>

#include "bench/bench.h"
#include "device/device.h"

enum { NB_BENCH_BUFFERS_MAX = 256 };

struct nb_bench {
    const struct nb_bench_options *options;
    struct nb_device *device;
    struct nb_stream *stream;
    bool cuda;
    double copy_bytes_per_second;    /* read and written, of a large copy within the device's memory */
    double product_flops_per_second; /* of a large bf16 product */
    nb_dptr buffer[NB_BENCH_BUFFERS_MAX];
    int buffers;
    void *random; /* host memory that copies reach, random bf16 */
    uint64_t random_bytes;
    nb_dptr slot, step;
};

/* Opens the device as `options->device` says and measures the rates. Errors: those of the device. Close it whatever
 * it returns. */
nb_status nb_bench_open(const struct nb_bench_options *options, struct nb_bench *bench);
void nb_bench_close(struct nb_bench *bench);

/* Device memory, freed by nb_bench_release_to(a mark of before). Random: normal-like bf16 of deviation about 0.02;
 * otherwise zero. */
nb_status nb_bench_take(struct nb_bench *bench, uint64_t bytes, bool random, nb_dptr *address);
static inline int nb_bench_mark(const struct nb_bench *bench)
{
    return bench->buffers;
}
void nb_bench_release_to(struct nb_bench *bench, int mark);

/* A matrix [rows, columns] in a format, nested, quantized on the device from random values. */
nb_status nb_bench_weight(struct nb_bench *bench, enum nb_weight_format format, int rows, int columns, struct nb_weight *weight);

/* Sets the slot for `tokens` tokens as one sequence. */
nb_status nb_bench_set_tokens(struct nb_bench *bench, int tokens);

struct nb_bench_time {
    double minimum, median, maximum; /* seconds a call */
};

/* Seconds of enqueue(context, i), i counting the calls so that a context may rotate through its inputs: three calls
 * to warm up, then samples of as many calls as fill some milliseconds. Device time on a GPU. */
typedef nb_status nb_bench_call(struct nb_bench *bench, void *context, int i);
nb_status nb_bench_time(struct nb_bench *bench, nb_bench_call *call, void *context, struct nb_bench_time *time);

/* {"benchmark": ..., "device": ..., "copy_gb_per_second": ..., "product_tflops": ..., "results": [...]}: printed
 * with options->json, written to options->save where that is set. Takes `results`. */
nb_status nb_bench_report(const struct nb_bench *bench, const char *benchmark, json_t *results);

/* The lines over every table for people. */
void nb_bench_print_head(const struct nb_bench *bench, const char *benchmark);

#endif
