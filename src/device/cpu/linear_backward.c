/* dx, dA and dB of nb_linear, the weights frozen:
 *   1. 4-bit weights become bf16 matrices in scratch; u = scale * dy B goes into scratch in the activation dtype;
 *   2. tiles, shared out among the threads: dx = sum over parts of dy W + u A; da += u^T dropout(x);
 *      db += scale * dy^T t, where a tile of da or db adds the products of 256 tokens each, in order. */
#include <string.h>

#include "device/cpu/linear_tile.h"

/* Valid rows of a last tile of tokens are rounded up to this, zeros behind, where tokens are what is summed over. */
enum { DEPTH_STEP = 32 };

struct work {
    const struct nb_linear_backward *a;
    struct nb_products *products;
    struct nb_linear_weights weights;
    char *u[NB_LINEAR_PARTS]; /* [tokens rounded up to NB_TILE_TOKENS, rank] activation, zero beyond the valid rows */
    struct nb_cut rows, columns;
    int tokens;
    bool bf16;
    char *locals;
};

static bool has_adapter(const struct nb_linear_backward *a, int p)
{
    return !nb_dptr_is_null(a->part[p].lora.a);
}

static uint64_t u_bytes(const struct nb_linear_backward *a, int p)
{
    uint64_t tokens = (uint64_t)nb_round_up(a->tokens_max, NB_TILE_TOKENS);
    return nb_aligned(tokens * (uint64_t)a->part[p].lora.rank * nb_dtype_bytes(a->activation));
}

static struct nb_tile_rows row_tile_of(const struct work *w, nb_dptr from, int stride, int tile, int begin, int columns)
{
    struct nb_tile_span span = {nb_cut_begin(&w->rows, tile), nb_cut_width(&w->rows, tile), NB_TILE_ROW_STEP, begin, columns};
    return nb_tile_rows((struct nb_tile_source){from, w->a->activation, stride}, span);
}

/* u of a row tile, rounded once. The rows up to the end of the last tile of 256 tokens become zeros. */
static void compute_u(const struct work *w, const struct nb_linear_local *local, int p, int tile)
{
    const struct nb_linear_backward *a = w->a;
    const struct nb_linear_part *part = &a->part[p];
    int rank = part->lora.rank;
    struct nb_cut ranks = nb_cut_evenly(rank, NB_PRODUCT_COLUMNS, 16),
                  depth = nb_cut_evenly(part->out, NB_PRODUCT_DEPTH, 64);
    nb_dptr u = {(uintptr_t)w->u[p]};
    for (int r = 0; r < ranks.count; r++) {
        int begin = nb_cut_begin(&ranks, r), columns = nb_cut_width(&ranks, r);
        struct nb_product product = {.a_dtype = a->activation,
            .b_dtype = a->activation,
            .n = columns,
            .b_stride = rank,
            .c_stride = columns,
            .scale = part->output_scale * part->lora.scale};
        for (int d = 0; d < depth.count; d++) {
            int out = nb_cut_begin(&depth, d);
            struct nb_tile_rows dy = row_tile_of(w, part->y, part->y_stride, tile, out, nb_cut_width(&depth, d));
            const void *rows = nb_tile_rows_padded(&dy, local->rows, &product.a_stride);
            product.m = dy.padded;
            product.k = dy.columns;
            product.accumulate = d > 0;
            nb_product_multiply(w->products, &product, rows,
                nb_cpu_element(part->lora.b, a->activation, (uint64_t)out * (uint64_t)rank + (uint64_t)begin),
                local->sum, local->product);
        }
        struct nb_linear_store store = {.y = u,
            .dtype = a->activation,
            .index = (int64_t)nb_cut_begin(&w->rows, tile) * rank + begin,
            .stride = rank,
            .rows = nb_cut_width(&w->rows, tile),
            .columns = columns,
            .scale = 1.0f};
        nb_linear_store(&store, local->sum);
    }
    if (tile == w->rows.count - 1) {
        uint64_t row_bytes = (uint64_t)rank * nb_dtype_bytes(a->activation);
        int end = nb_round_up(w->tokens, NB_TILE_TOKENS);
        memset(w->u[p] + (uint64_t)w->tokens * row_bytes, 0, (uint64_t)(end - w->tokens) * row_bytes);
    }
}

static struct nb_linear_mask mask_of(const struct work *w, const struct nb_lora *lora, int row)
{
    return nb_linear_mask(lora, w->a->step, w->a->slot, w->a->rows, w->a->row_begin_chunk, row);
}

/* sum += the adapter's share of dx: u A, masked as the branch's input was. */
static void add_adapter_dx(
    const struct work *w, const struct nb_linear_local *local, int p, int tile, int column_begin, int columns)
{
    const struct nb_linear_backward *a = w->a;
    const struct nb_lora *lora = &a->part[p].lora;
    bool masked = lora->dropout > 0;
    int padded = nb_round_up(nb_cut_width(&w->rows, tile), NB_TILE_ROW_STEP), row = nb_cut_begin(&w->rows, tile);
    struct nb_product product = {.a_dtype = a->activation,
        .b_dtype = a->activation,
        .m = padded,
        .n = columns,
        .k = lora->rank,
        .a_stride = lora->rank,
        .b_stride = a->in,
        .c_stride = columns,
        .accumulate = !masked,
        .scale = 1.0f};
    nb_product_multiply(w->products, &product,
        w->u[p] + (uint64_t)row * (uint64_t)lora->rank * nb_dtype_bytes(a->activation),
        nb_cpu_element(lora->a, a->activation, (uint64_t)column_begin), masked ? local->branch : local->sum,
        local->product);
    if (masked) {
        struct nb_linear_mask mask = mask_of(w, lora, row);
        nb_linear_add_masked(
            local->sum, local->branch, nb_cut_width(&w->rows, tile), columns, &mask, column_begin);
    }
}

/* One tile of dx. */
static void compute_dx(const struct work *w, const struct nb_linear_local *local, int column_tile, int tile)
{
    const struct nb_linear_backward *a = w->a;
    int begin = nb_cut_begin(&w->columns, column_tile), columns = nb_cut_width(&w->columns, column_tile);
    bool accumulate = false;
    for (int p = 0; p < a->parts; p++) {
        const struct nb_linear_part *part = &a->part[p];
        struct nb_cut depth = nb_cut_evenly(part->out, NB_PRODUCT_DEPTH, 64);
        struct nb_product product = {.a_dtype = a->activation,
            .b_dtype = NB_DTYPE_BF16,
            .n = columns,
            .b_stride = a->in,
            .c_stride = columns,
            .scale = part->output_scale};
        for (int d = 0; d < depth.count; d++) {
            int out = nb_cut_begin(&depth, d);
            struct nb_tile_rows dy = row_tile_of(w, part->y, part->y_stride, tile, out, nb_cut_width(&depth, d));
            const void *rows = nb_tile_rows_padded(&dy, local->rows, &product.a_stride);
            product.m = dy.padded;
            product.k = dy.columns;
            product.accumulate = accumulate;
            nb_product_multiply(w->products, &product, rows, w->weights.data[p] + (int64_t)out * a->in + begin,
                local->sum, local->product);
            accumulate = true;
        }
        if (has_adapter(a, p))
            add_adapter_dx(w, local, p, tile, begin, columns);
    }
    struct nb_linear_store store = {.y = a->dx,
        .dtype = a->activation,
        .index = (int64_t)nb_cut_begin(&w->rows, tile) * a->dx_stride + begin,
        .stride = a->dx_stride,
        .rows = nb_cut_width(&w->rows, tile),
        .columns = columns,
        .scale = 1.0f,
        .accumulate = a->accumulate_dx};
    nb_linear_store(&store, local->sum);
}

/* Rows of the 256 tokens from `token` on, `columns` of them from column `begin`, for a sum over tokens. */
static struct nb_tile_rows token_tile(const struct work *w, nb_dptr from, int stride, int token, int begin, int columns)
{
    int valid = w->tokens - token < NB_TILE_TOKENS ? w->tokens - token : NB_TILE_TOKENS;
    struct nb_tile_span span = {token, valid, DEPTH_STEP, begin, columns};
    return nb_tile_rows((struct nb_tile_source){from, w->a->activation, stride}, span);
}

/* da[rank tile][column tile] += u^T dropout(x), 256 tokens after another. */
static void compute_da(const struct work *w, const struct nb_linear_local *local, int p, int rank_tile, int column_tile)
{
    const struct nb_linear_backward *a = w->a;
    const struct nb_lora *lora = &a->part[p].lora;
    struct nb_cut ranks = nb_cut_evenly(lora->rank, NB_PRODUCT_ROWS, 16);
    int rank_begin = nb_cut_begin(&ranks, rank_tile), begin = nb_cut_begin(&w->columns, column_tile);
    float *da = (float *)nb_cpu_pointer(lora->da) + (int64_t)rank_begin * a->in + begin;
    struct nb_product product = {.a_dtype = a->activation,
        .b_dtype = a->activation,
        .m = nb_cut_width(&ranks, rank_tile),
        .n = nb_cut_width(&w->columns, column_tile),
        .a_stride = lora->rank,
        .c_stride = a->in,
        .a_transposed = true,
        .accumulate = true,
        .scale = 1.0f / (1.0f - lora->dropout)};
    for (int token = 0; token < w->tokens; token += NB_TILE_TOKENS) {
        struct nb_tile_rows x = token_tile(w, a->x, a->x_stride, token, begin, product.n);
        const void *rows;
        if (lora->dropout > 0) {
            struct nb_linear_mask mask = mask_of(w, lora, token);
            rows = nb_linear_rows_masked(&x, &mask, begin, local->rows);
            product.b_stride = product.n;
        } else {
            rows = nb_tile_rows_padded(&x, local->rows, &product.b_stride);
        }
        product.k = x.padded;
        nb_product_multiply(w->products, &product,
            w->u[p] + ((uint64_t)token * (uint64_t)lora->rank + (uint64_t)rank_begin) * nb_dtype_bytes(a->activation),
            rows, da, local->product);
    }
}

/* db[output tile][rank tile] += scale * dy^T t, 256 tokens after another. */
static void compute_db(const struct work *w, const struct nb_linear_local *local, int p, int output_tile, int rank_tile)
{
    const struct nb_linear_backward *a = w->a;
    const struct nb_linear_part *part = &a->part[p];
    const struct nb_lora *lora = &part->lora;
    struct nb_cut outputs = nb_cut_evenly(part->out, NB_PRODUCT_ROWS, 16),
                  ranks = nb_cut_evenly(lora->rank, NB_PRODUCT_COLUMNS, 16);
    int output = nb_cut_begin(&outputs, output_tile), rank_begin = nb_cut_begin(&ranks, rank_tile);
    float *db = (float *)nb_cpu_pointer(lora->db) + (int64_t)output * lora->rank + rank_begin;
    struct nb_product product = {.a_dtype = a->activation,
        .b_dtype = a->activation,
        .m = nb_cut_width(&outputs, output_tile),
        .n = nb_cut_width(&ranks, rank_tile),
        .c_stride = lora->rank,
        .a_transposed = true,
        .accumulate = true,
        .scale = part->output_scale * lora->scale};
    for (int token = 0; token < w->tokens; token += NB_TILE_TOKENS) {
        struct nb_tile_rows dy = token_tile(w, part->y, part->y_stride, token, output, product.m);
        struct nb_tile_rows t = token_tile(w, lora->t, lora->rank, token, rank_begin, product.n);
        const void *dy_rows = nb_tile_rows_padded(&dy, local->rows, &product.a_stride);
        const void *t_rows = nb_tile_rows_padded(&t, local->rows_too, &product.b_stride);
        product.k = dy.padded;
        nb_product_multiply(w->products, &product, dy_rows, t_rows, db, local->product);
    }
}

/* Inside the parallel region: first the tiles of dx, which are the largest pieces, then those of da and db. */
static void compute_tiles(const struct work *w, const struct nb_linear_local *local)
{
    const struct nb_linear_backward *a = w->a;
    if (!nb_dptr_is_null(a->dx)) {
        int tiles = w->columns.count * w->rows.count;
#pragma omp for schedule(dynamic) nowait
        for (int tile = 0; tile < tiles; tile++)
            compute_dx(w, local, tile / w->rows.count, tile % w->rows.count);
    }
    for (int p = 0; p < a->parts; p++) {
        if (!has_adapter(a, p))
            continue;
        struct nb_cut outputs = nb_cut_evenly(a->part[p].out, NB_PRODUCT_ROWS, 16);
        struct nb_cut rank_rows = nb_cut_evenly(a->part[p].lora.rank, NB_PRODUCT_ROWS, 16);
        struct nb_cut rank_columns = nb_cut_evenly(a->part[p].lora.rank, NB_PRODUCT_COLUMNS, 16);
        int da_tiles = rank_rows.count * w->columns.count, db_tiles = outputs.count * rank_columns.count;
#pragma omp for schedule(dynamic) nowait
        for (int tile = 0; tile < da_tiles + db_tiles; tile++) {
            if (tile < da_tiles)
                compute_da(w, local, p, tile / w->columns.count, tile % w->columns.count);
            else
                compute_db(w, local, p, (tile - da_tiles) / rank_columns.count, (tile - da_tiles) % rank_columns.count);
        }
    }
}

static void run_thread(const struct work *w)
{
    const struct nb_linear_backward *a = w->a;
    struct nb_linear_local local = nb_linear_local(w->locals, nb_cpu_thread(), a->activation, w->bf16);
    if (!nb_dptr_is_null(a->dx))
        nb_linear_weights_fill(a->part, a->parts, a->in, &w->weights);
    for (int p = 0; p < a->parts; p++) {
        if (!has_adapter(a, p))
            continue;
#pragma omp for schedule(dynamic) nowait
        for (int tile = 0; tile < w->rows.count; tile++)
            compute_u(w, &local, p, tile);
    }
#pragma omp barrier
    compute_tiles(w, &local);
}

void nb_cpu_run_linear_backward(struct nb_cpu *cpu, const struct nb_linear_backward *a)
{
    int rows = nb_cpu_rows(a->slot, a->rows_from, a->row_begin_chunk, a->tokens_max);
    if (rows == 0)
        return;
    struct work w = {.a = a,
        .products = cpu->products,
        .rows = nb_cut_by(rows, NB_PRODUCT_ROWS),
        .columns = nb_cut_evenly(a->in, NB_PRODUCT_COLUMNS, 16),
        .tokens = rows,
        .bf16 = cpu->base.profile.bf16};
    char *scratch = nb_cpu_pointer(a->scratch.base);
    nb_linear_weights_locate(a->part, a->parts, a->in, &scratch, &w.weights);
    for (int p = 0; p < a->parts; p++) {
        w.u[p] = scratch;
        scratch += u_bytes(a, p);
    }
    w.locals = scratch;
    int entered = nb_products_enter();
#pragma omp parallel num_threads(cpu->threads)
    run_thread(&w);
    nb_cpu_leave_products(cpu, entered);
}

uint64_t nb_cpu_linear_backward_scratch_bytes(
    const struct nb_device_profile *profile, const struct nb_linear_backward *a)
{
    uint64_t bytes = (uint64_t)profile->multiprocessors * nb_linear_local_bytes(a->activation, profile->bf16);
    for (int p = 0; p < a->parts; p++)
        bytes += nb_linear_weight_bytes(&a->part[p], a->in) + u_bytes(a, p);
    return bytes;
}
