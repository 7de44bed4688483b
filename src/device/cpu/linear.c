/* y = x W^T + scale * (dropout(x) A^T) B^T + bias, tile by tile:
 *   1. 4-bit weights become bf16 matrices in scratch, and t = dropout(x) A^T is computed and stored, both shared out
 *      among the threads;
 *   2. each tile of 128 tokens by up to 256 outputs sums x W^T and t B^T in fp32 scratch and is rounded into y.
 * An op planned for up to 8 rows (generation) takes the way of linear_few.c, which never writes the matrix. */
#include "device/cpu/linear_tile.h"

#include "device/cpu/linear_few.h"

struct work {
    const struct nb_linear *a;
    struct nb_products *products;
    struct nb_linear_weights weights;
    struct nb_cut rows, depth;
    struct nb_cut columns[NB_LINEAR_PARTS];
    bool bf16;
    char *locals;
};

/* The activation rows of a row tile, `columns` of them from column `begin`. */
static struct nb_tile_rows tile_rows(const struct work *w, nb_dptr from, int stride, int tile, int begin, int columns)
{
    struct nb_tile_span span = {nb_cut_begin(&w->rows, tile), nb_cut_width(&w->rows, tile), NB_TILE_ROW_STEP, begin, columns};
    return nb_tile_rows((struct nb_tile_source){from, w->a->activation, stride}, span);
}

/* t = dropout(x) A^T for the rows of a tile. The kept features' factor 1 / (1 - dropout) multiplies the fp32 sum. */
static void adapter_down(
    const struct work *w, const struct nb_linear_local *local, const struct nb_lora *lora, int row_tile)
{
    const struct nb_linear *a = w->a;
    struct nb_cut ranks = nb_cut_evenly(lora->rank, NB_PRODUCT_COLUMNS, 16);
    for (int r = 0; r < ranks.count; r++) {
        int rank = nb_cut_width(&ranks, r), rank_begin = nb_cut_begin(&ranks, r);
        struct nb_product product = {.a_dtype = a->activation,
            .b_dtype = a->activation,
            .n = rank,
            .b_stride = a->in,
            .c_stride = rank,
            .b_transposed = true,
            .scale = 1.0f / (1.0f - lora->dropout)};
        for (int d = 0; d < w->depth.count; d++) {
            int begin = nb_cut_begin(&w->depth, d);
            struct nb_tile_rows x = tile_rows(w, a->x, a->x_stride, row_tile, begin, nb_cut_width(&w->depth, d));
            const void *rows;
            if (lora->dropout > 0) {
                struct nb_linear_mask mask = nb_linear_mask(
                    lora, a->step, a->slot, a->rows, a->row_begin_chunk, nb_cut_begin(&w->rows, row_tile));
                rows = nb_linear_rows_masked(&x, &mask, begin, local->rows);
                product.a_stride = x.columns;
            } else {
                rows = nb_tile_rows_padded(&x, local->rows, &product.a_stride);
            }
            product.m = x.padded;
            product.k = x.columns;
            product.accumulate = d > 0;
            nb_product_multiply(w->products, &product, rows,
                nb_cpu_element(lora->a, a->activation, (uint64_t)rank_begin * (uint64_t)a->in + (uint64_t)begin),
                local->sum, local->product);
        }
        struct nb_linear_store store = {.y = lora->t,
            .dtype = a->activation,
            .index = (int64_t)nb_cut_begin(&w->rows, row_tile) * lora->rank + rank_begin,
            .stride = lora->rank,
            .rows = nb_cut_width(&w->rows, row_tile),
            .columns = rank,
            .scale = 1.0f};
        nb_linear_store(&store, local->sum);
    }
}

/* sum += scale * t B^T for a tile. */
static void adapter_up(const struct work *w, const struct nb_linear_local *local, const struct nb_lora *lora,
    int row_tile, int column_begin, int columns)
{
    const struct nb_linear *a = w->a;
    struct nb_tile_rows t = tile_rows(w, lora->t, lora->rank, row_tile, 0, lora->rank);
    struct nb_product product = {.a_dtype = a->activation,
        .b_dtype = a->activation,
        .m = t.padded,
        .n = columns,
        .k = lora->rank,
        .b_stride = lora->rank,
        .c_stride = columns,
        .b_transposed = true,
        .accumulate = true,
        .scale = lora->scale};
    const void *rows = nb_tile_rows_padded(&t, local->rows, &product.a_stride);
    nb_product_multiply(w->products, &product, rows,
        nb_cpu_element(lora->b, a->activation, (uint64_t)column_begin * (uint64_t)lora->rank), local->sum,
        local->product);
}

/* One tile of one part's y. */
static void multiply_tile(
    const struct work *w, const struct nb_linear_local *local, int p, int column_tile, int row_tile)
{
    const struct nb_linear *a = w->a;
    const struct nb_linear_part *part = &a->part[p];
    int column_begin = nb_cut_begin(&w->columns[p], column_tile), columns = nb_cut_width(&w->columns[p], column_tile);
    struct nb_product product = {.a_dtype = a->activation,
        .b_dtype = NB_DTYPE_BF16,
        .n = columns,
        .b_stride = a->in,
        .c_stride = columns,
        .b_transposed = true,
        .scale = 1.0f};
    for (int d = 0; d < w->depth.count; d++) {
        int begin = nb_cut_begin(&w->depth, d);
        struct nb_tile_rows x = tile_rows(w, a->x, a->x_stride, row_tile, begin, nb_cut_width(&w->depth, d));
        const void *rows = nb_tile_rows_padded(&x, local->rows, &product.a_stride);
        product.m = x.padded;
        product.k = x.columns;
        product.accumulate = d > 0;
        nb_product_multiply(w->products, &product, rows, w->weights.data[p] + (int64_t)column_begin * a->in + begin,
            local->sum, local->product);
    }
    if (!nb_dptr_is_null(part->lora.a))
        adapter_up(w, local, &part->lora, row_tile, column_begin, columns);
    struct nb_linear_store store = {
        .y = part->y,
        .dtype = a->activation,
        .index = (int64_t)nb_cut_begin(&w->rows, row_tile) * part->y_stride + column_begin,
        .stride = part->y_stride,
        .rows = nb_cut_width(&w->rows, row_tile),
        .columns = columns,
        .bias = nb_dptr_is_null(part->bias) ? NULL : (const nb_bf16 *)nb_cpu_pointer(part->bias) + column_begin,
        .scale = part->output_scale,
        .accumulate = part->accumulate,
    };
    nb_linear_store(&store, local->sum);
}

/* Inside the parallel region: every tile of every part. A column tile's weights are used by all row tiles in turn,
 * while in cache. */
static void multiply(const struct work *w, const struct nb_linear_local *local)
{
    const struct nb_linear *a = w->a;
    int tiles = 0;
    for (int p = 0; p < a->parts; p++)
        tiles += w->columns[p].count * w->rows.count;
#pragma omp for schedule(dynamic)
    for (int tile = 0; tile < tiles; tile++) {
        int p = 0, inner = tile;
        while (inner >= w->columns[p].count * w->rows.count)
            inner -= w->columns[p++].count * w->rows.count;
        multiply_tile(w, local, p, inner / w->rows.count, inner % w->rows.count);
    }
}

static void run_thread(const struct work *w)
{
    const struct nb_linear *a = w->a;
    struct nb_linear_local local = nb_linear_local(w->locals, nb_cpu_thread(), a->activation, w->bf16);
    nb_linear_weights_fill(a->part, a->parts, a->in, &w->weights);
    for (int p = 0; p < a->parts; p++) {
        if (nb_dptr_is_null(a->part[p].lora.a))
            continue;
#pragma omp for schedule(dynamic) nowait
        for (int tile = 0; tile < w->rows.count; tile++)
            adapter_down(w, &local, &a->part[p].lora, tile);
    }
#pragma omp barrier
    multiply(w, &local);
}

static bool has_dropout(const struct nb_linear *a)
{
    for (int p = 0; p < a->parts; p++)
        if (!nb_dptr_is_null(a->part[p].lora.a) && a->part[p].lora.dropout > 0)
            return true;
    return false;
}

void nb_cpu_run_linear(struct nb_cpu *cpu, const struct nb_linear *a)
{
    int rows = nb_cpu_rows(a->slot, a->rows_from, a->row_begin_chunk, a->tokens_max);
    if (rows == 0)
        return;
    /* By the bounds, not by the count: a row's bits shall not depend on how many others came with it, or on its chunk. */
    if (a->tokens_max <= NB_LINEAR_FEW_ROWS && a->site_tokens <= NB_LINEAR_FEW_ROWS && !has_dropout(a)) {
        nb_linear_few(cpu, a, rows);
        return;
    }
    struct work w = {.a = a,
        .products = cpu->products,
        .rows = nb_cut_by(rows, NB_PRODUCT_ROWS),
        .depth = nb_cut_evenly(a->in, NB_PRODUCT_DEPTH, 64),
        .bf16 = cpu->base.profile.bf16};
    char *scratch = nb_cpu_pointer(a->scratch.base);
    nb_linear_weights_locate(a->part, a->parts, a->in, &scratch, &w.weights);
    w.locals = scratch;
    for (int p = 0; p < a->parts; p++)
        w.columns[p] = nb_cut_evenly(a->part[p].out, NB_PRODUCT_COLUMNS, 16);
    int entered = nb_products_enter();
#pragma omp parallel num_threads(cpu->threads)
    run_thread(&w);
    nb_cpu_leave_products(cpu, entered);
}

uint64_t nb_cpu_linear_scratch_bytes(const struct nb_device_profile *profile, const struct nb_linear *a)
{
    uint64_t bytes = (uint64_t)profile->multiprocessors * nb_linear_local_bytes(a->activation, profile->bf16);
    for (int p = 0; p < a->parts; p++)
        bytes += nb_linear_weight_bytes(&a->part[p], a->in);
    uint64_t few = nb_linear_few_scratch_bytes(profile, a);
    return bytes > few ? bytes : few;
}
