/* How fast 4-bit weights become bf16, beside a plain copy of as many output bytes. One thread, as an op's worker runs it:
 * tiles of 128 rows decoded into scratch that stays in cache ("tile"), and a whole matrix written to memory ("matrix").
 * usage: bench_dequantize [ROWS COLUMNS]   default 4096 4096 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "quant/matrix.h"
#include "quant/dequantize_paths.h"

enum { RUNS = 9, TILE_ROWS = 128 };

enum subject {
    COPY, /* memcpy of the output's bytes */
    BF16,
};

struct bench {
    struct nb_quant_matrix matrix;
    void *out, *source; /* rows * columns fp32 each */
};

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Decodes the matrix once in pieces of `tile_rows`, each to the same scratch unless the piece is the whole. Returns output bytes. */
static uint64_t pass(const struct bench *bench, enum subject subject, uint64_t tile_rows, uint64_t element_bytes)
{
    uint64_t rows = bench->matrix.rows, columns = bench->matrix.columns, done = 0;
    for (uint64_t row = 0; row < rows; row += tile_rows) {
        uint64_t count = (rows - row < tile_rows ? rows - row : tile_rows) * columns;
        if (subject == COPY)
            memcpy(bench->out, bench->source, count * element_bytes);
        else
            nb_dequantize_bf16(&bench->matrix, row * columns, count, bench->out);
        __asm__ volatile("" : : "r"(bench->out) : "memory"); /* the bytes count as read */
        done += count * element_bytes;
    }
    return done;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Prints minimum and median rate of output bytes; returns the median. `copy` is the copy's median, 0 when this is the copy. */
static double measure(const struct bench *bench, const char *name, enum subject subject, uint64_t tile_rows,
                      uint64_t element_bytes, double copy)
{
    double rates[RUNS];
    pass(bench, subject, tile_rows, element_bytes);
    for (int run = 0; run < RUNS; run++) {
        double start = seconds();
        uint64_t bytes = pass(bench, subject, tile_rows, element_bytes);
        rates[run] = (double)bytes / (seconds() - start) * 1e-9;
    }
    qsort(rates, RUNS, sizeof *rates, ascending);
    printf("%-22s %8.2f %8.2f %8.2f", name, rates[0], rates[RUNS / 2], rates[RUNS - 1]);
    if (copy > 0.0)
        printf(" %7.0f%%", 100.0 * rates[RUNS / 2] / copy);
    printf("\n");
    return rates[RUNS / 2];
}

static void measure_all(const struct bench *bench)
{
    uint64_t tile = bench->matrix.rows < TILE_ROWS ? bench->matrix.rows : TILE_ROWS;
    printf("GB/s of output             min   median      max  of copy\n");
    double copy = measure(bench, "copy, tile", COPY, tile, 2, 0.0);
    measure(bench, "bf16, tile", BF16, tile, 2, copy);
    copy = measure(bench, "copy, matrix", COPY, bench->matrix.rows, 2, 0.0);
    measure(bench, "bf16, matrix", BF16, bench->matrix.rows, 2, copy);
}

/* Quantizing, all threads: bf16 bytes read a second. */
static void measure_quantize(const nb_bf16 *w, const struct nb_quant_layout *layout, struct nb_quant_parts *parts)
{
    double best = 1e30;
    for (int run = 0; run < 3; run++) {
        double start = seconds();
        if (nb_quantize(layout->type, layout->nested, w, layout->rows, layout->columns, parts) != NB_OK)
            exit(1);
        double took = seconds() - start;
        best = took < best ? took : best;
    }
    printf("quantize, all threads: %.2f GB/s of bf16 input, best of 3\n", 2e-9 * (double)(layout->rows * layout->columns) / best);
}

/* Each way to decode whole blocks alone, scales given: what a machine without the wider instructions gets. */
static void measure_paths(const struct bench *bench)
{
    static const char *const names[NB_DEQUANTIZE_PATHS] = {"plain C", "AVX2", "AVX-512"};
    float absmax[NB_QUANT_SUPERBLOCK];
    uint64_t runs = bench->matrix.rows * bench->matrix.columns / (NB_QUANT_SUPERBLOCK * NB_QUANT_BLOCK);
    for (int i = 0; i < NB_QUANT_SUPERBLOCK; i++)
        absmax[i] = 0.5f;
    for (int path = 0; path < NB_DEQUANTIZE_PATHS; path++) {
        struct nb_dequantize_functions functions;
        double best = 0.0;
        if (!nb_dequantize_path((enum nb_dequantize_path)path, &functions))
            continue;
        for (int run = 0; run < RUNS; run++) {
            double start = seconds();
            for (uint64_t i = 0; i < runs; i++)
                functions.bf16(bench->matrix.packed + i * NB_QUANT_SUPERBLOCK * NB_QUANT_BLOCK / 2, bench->matrix.codebook, absmax,
                               NB_QUANT_SUPERBLOCK, bench->out);
            double rate = 2e-9 * NB_QUANT_SUPERBLOCK * NB_QUANT_BLOCK * (double)runs / (seconds() - start);
            best = rate > best ? rate : best;
        }
        printf("blocks by %-8s %.2f GB/s of bf16, best of %d\n", names[path], best, (int)RUNS);
    }
}

int main(int argc, char **argv)
{
    uint64_t rows = argc > 2 ? strtoull(argv[1], NULL, 10) : 4096, columns = argc > 2 ? strtoull(argv[2], NULL, 10) : 4096;
    struct nb_quant_layout layout;
    if (nb_quant_matrix_layout(NB_QUANT_NF4, true, rows, columns, &layout) != NB_OK) {
        fprintf(stderr, "error: %s\n", nb_status_message());
        return 2;
    }
    uint64_t count = rows * columns, bytes = (count * sizeof(float) + 63) / 64 * 64;
    struct bench bench = {.out = aligned_alloc(64, bytes), .source = aligned_alloc(64, bytes)};
    void *slab = aligned_alloc(64, (layout.bytes + 63) / 64 * 64);
    float *scratch = malloc(nb_quant_blocks(count) * sizeof *scratch);
    if (!bench.out || !bench.source || !slab || !scratch) {
        fprintf(stderr, "error: out of memory for %" PRIu64 " x %" PRIu64 "\n", rows, columns);
        return 1;
    }
    nb_bf16 *w = bench.source;
    memset(bench.out, 0, bytes);
    memset(bench.source, 0, bytes);
    for (uint64_t i = 0; i < count; i++)
        w[i] = nb_bf16_from_float(nb_random_uniform(1, NB_RANDOM_SHUFFLE, 0, i) - 0.5f);
    struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, slab, scratch);
    printf("NF4, double-quantized, %" PRIu64 " x %" PRIu64 ", %d runs, one thread\n", rows, columns, (int)RUNS);
    measure_quantize(w, &layout, &parts);
    bench.matrix = nb_quant_matrix_view(&layout, slab, parts.nested_offset);
    measure_all(&bench);
    measure_paths(&bench);
    free(bench.out);
    free(bench.source);
    free(slab);
    free(scratch);
    return 0;
}
