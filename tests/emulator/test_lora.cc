/* The adapter's thin products and the few-token product, called without the ops around them: against sums in double,
 * and against themselves cut into chunks or with fewer tokens, bit by bit. Rows beyond the valid ones hold NaN, and
 * must come out as they went in. */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/lora.cuh"
#include "device/cuda/lora_plan.h"
#include "device/dropout.h"
#include "quant/matrix.h"

static int failures;

#define CHECK(condition, ...)                                    \
    do {                                                         \
        if (!(condition)) {                                      \
            failures++;                                          \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                 \
            printf("\n");                                        \
        }                                                        \
    } while (0)

static void must(cudaError_t error)
{
    if (error != cudaSuccess) {
        printf("%s: %s\n", cudaGetErrorString(error), nb_emulator_fault_message());
        exit(1);
    }
}

static cudaStream_t stream;

static void must(nb_status status)
{
    if (status != NB_OK) {
        printf("%s\n", nb_status_message());
        exit(1);
    }
}

/* Device memory with a copy on the host. */
template <typename T> struct buffer {
    std::vector<T> host;
    T *device = NULL;
    explicit buffer(size_t count, T value = T()) : host(count, value)
    {
        void *memory;
        must(cudaMalloc(&memory, count * sizeof(T) + 16));
        device = (T *)memory;
    }
    buffer(const buffer &) = delete;
    ~buffer() { must(cudaFree(device)); }
    void up() { must(cudaMemcpyAsync(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice, stream)); }
    void down()
    {
        must(cudaMemcpyAsync(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost, stream));
        must(cudaStreamSynchronize(stream));
    }
    nb_dptr at(size_t element = 0) const { return nb_dptr{(uint64_t)(uintptr_t)(device + element)}; }
};

static uint64_t state = 1;

static uint32_t random_word(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float uniform(void)
{
    return (float)(random_word() >> 8) * 0x1p-23f - 1.0f;
}

static void fill(std::vector<nb_bf16> &values, float size)
{
    for (nb_bf16 &value : values)
        value = nb_bf16_from_float(size * uniform());
}

static const nb_bf16 not_a_number = 0x7fc1;

/* Half of what lies between two bf16 numbers there. */
static double half_step(double value)
{
    return value == 0 ? 0 : ldexp(1, ilogb(value) - 8);
}

/* What a sum of bf16 products may be off by: fp32's rounding, a chain of them, and half a step of the result's bf16. */
static bool near(double got, double wanted, double size, int depth, bool rounded)
{
    double allowed = (depth / 16.0 + 24) * 0x1p-24 * size + (rounded ? half_step(wanted) : 0x1p-23 * fabs(wanted));
    return fabs(got - wanted) <= allowed;
}

struct lora_case {
    int tokens, tokens_max, in, parts, rank[NB_LINEAR_PARTS], out[NB_LINEAR_PARTS];
    float dropout[NB_LINEAR_PARTS];
    int chunk;     /* tokens of a chunk; 0: none */
    int row_begin; /* > 0: a chunk of the trained rows, `rows` given */
    int extra;     /* of strides */
};

/* What both directions share. */
struct setup {
    lora_case k;
    int x_stride;
    buffer<nb_step> step{1};
    buffer<nb_slot> slot;
    buffer<int32_t> rows;
    buffer<nb_bf16> x;
    buffer<nb_bf16> *a[NB_LINEAR_PARTS] = {}, *b[NB_LINEAR_PARTS] = {}, *t[NB_LINEAR_PARTS] = {};

    explicit setup(const lora_case &c)
        : k(c), x_stride(c.in + c.extra), slot((size_t)(c.chunk ? (c.tokens_max + c.chunk - 1) / c.chunk : 0) + 1),
          rows((size_t)(c.row_begin + c.tokens_max)), x((size_t)c.tokens_max * (size_t)x_stride)
    {
        step.host[0] = {};
        step.host[0].random_step = 7, step.host[0].seed[0] = 11, step.host[0].seed[1] = 13;
        step.up();
        for (size_t i = 0; i < slot.host.size(); i++) {
            int begin = i == 0 ? 0 : (int)(i - 1) * k.chunk, most = i == 0 ? k.tokens_max : k.chunk, left = k.tokens - begin;
            slot.host[i] = {};
            slot.host[i].tokens = (uint32_t)(left < 0 ? 0 : left < most ? left : most);
            slot.host[i].trained_rows = (uint32_t)(k.row_begin + k.tokens);
            slot.host[i].token_offset = 1000 + (uint32_t)begin;
        }
        slot.up();
        for (size_t i = 0; i < rows.host.size(); i++)
            rows.host[i] = (int32_t)(3 * i + 1);
        rows.up();
        fill(x.host, 1);
        for (size_t i = (size_t)k.tokens * (size_t)x_stride; i < x.host.size(); i++)
            x.host[i] = not_a_number;
        x.up();
        for (int p = 0; p < k.parts; p++) {
            if (k.rank[p] == 0)
                continue;
            a[p] = new buffer<nb_bf16>((size_t)k.rank[p] * (size_t)k.in);
            b[p] = new buffer<nb_bf16>((size_t)k.out[p] * (size_t)k.rank[p]);
            t[p] = new buffer<nb_bf16>((size_t)k.tokens_max * (size_t)k.rank[p], not_a_number);
            fill(a[p]->host, 1), fill(b[p]->host, 1);
            a[p]->up(), b[p]->up(), t[p]->up();
        }
    }
    ~setup()
    {
        for (int p = 0; p < NB_LINEAR_PARTS; p++)
            delete a[p], delete b[p], delete t[p];
    }
    uint64_t module(int p) const { return 0x123456789abcdefu * (uint64_t)(p + 1); }
    /* dropout(x), before the factor. */
    double kept(int p, int row, int column) const
    {
        float value = nb_bf16_to_float(x.host[(size_t)row * (size_t)x_stride + (size_t)column]);
        if (k.dropout[p] == 0)
            return value;
        uint32_t token = 1000 + (uint32_t)(k.row_begin > 0 ? rows.host[(size_t)(k.row_begin + row)] : row);
        const nb_step &s = step.host[0];
        struct nb_dropout d = nb_dropout(k.dropout[p], module(p), s.random_step, s.seed, token);
        return nb_dropout_keep(&d, (uint32_t)column) ? value : 0;
    }
    /* Of args of either direction: everything but y, u and the gradients, for the rows [begin, begin + count). */
    template <typename A> void fill_args(A *args, int begin, int count, size_t which) const
    {
        args->x = x.at((size_t)begin * (size_t)x_stride);
        args->step = step.at(), args->slot = slot.at(which);
        args->tokens_max = count, args->in = k.in, args->x_stride = x_stride, args->parts = k.parts;
        args->activation = NB_DTYPE_BF16;
        args->rows_from = k.row_begin > 0 ? NB_ROWS_TRAINED_CHUNK : NB_ROWS_TOKENS;
        args->row_begin_chunk = k.row_begin;
        if (k.row_begin > 0)
            args->rows = rows.at();
        args->site_tokens = k.tokens_max;
        for (int p = 0; p < k.parts; p++) {
            nb_linear_part *part = &args->part[p];
            part->out = k.out[p], part->output_scale = 1.5f;
            if (!a[p])
                continue;
            part->lora.a = a[p]->at(), part->lora.b = b[p]->at(), part->lora.t = t[p]->at((size_t)begin * (size_t)k.rank[p]);
            part->lora.rank = k.rank[p], part->lora.scale = 0.75f, part->lora.dropout = k.dropout[p], part->lora.module = module(p);
        }
    }
};

/* ---- t ---- */

static void run_down(const setup &s, int begin, int count, size_t which)
{
    struct nb_linear args = {};
    s.fill_args(&args, begin, count, which);
    buffer<float> partials((size_t)nb_cuda_lora_partial_bytes(NULL, &args) / 4 + 1);
    must(nb_lora_down(NULL, stream, &args, partials.at()));
    must(cudaStreamSynchronize(stream));
}

static void test_down(const lora_case &k)
{
    setup s(k);
    run_down(s, 0, k.tokens_max, 0);
    for (int p = 0; p < k.parts; p++) {
        if (!s.t[p])
            continue;
        s.t[p]->down();
        for (int row = 0; row < k.tokens_max; row++) {
            for (int j = 0; j < k.rank[p]; j++) {
                nb_bf16 got = s.t[p]->host[(size_t)(row * k.rank[p] + j)];
                if (row >= k.tokens) {
                    CHECK(got == not_a_number, "t of part %d, row %d, was written", p, row);
                    continue;
                }
                double sum = 0, size = 0;
                for (int i = 0; i < k.in; i++) {
                    double product = s.kept(p, row, i) * nb_bf16_to_float(s.a[p]->host[(size_t)j * (size_t)k.in + (size_t)i]);
                    sum += product, size += fabs(product);
                }
                float factor = 1.0f / (1.0f - k.dropout[p]);
                CHECK(near(nb_bf16_to_float(got), sum * factor, size * factor, k.in, true), "t of part %d [%d, %d] is %g, not %g", p,
                    row, j, nb_bf16_to_float(got), sum * factor);
            }
        }
    }
    if (k.chunk == 0)
        return;
    std::vector<nb_bf16> whole[NB_LINEAR_PARTS];
    for (int p = 0; p < k.parts; p++)
        if (s.t[p])
            whole[p] = s.t[p]->host, s.t[p]->up();
    for (int begin = 0; begin < k.tokens_max; begin += k.chunk)
        run_down(s, begin, k.tokens_max - begin < k.chunk ? k.tokens_max - begin : k.chunk, (size_t)(begin / k.chunk) + 1);
    for (int p = 0; p < k.parts; p++) {
        if (!s.t[p])
            continue;
        s.t[p]->down();
        CHECK(s.t[p]->host == whole[p], "chunks of %d tokens change t", k.chunk);
    }
}

/* ---- u, db, da ---- */

struct gradients {
    buffer<nb_bf16> *u[NB_LINEAR_PARTS] = {};
    buffer<float> *da[NB_LINEAR_PARTS] = {}, *db[NB_LINEAR_PARTS] = {};
    explicit gradients(const lora_case &k)
    {
        for (int p = 0; p < k.parts; p++) {
            if (k.rank[p] == 0)
                continue;
            size_t rank = (size_t)k.rank[p];
            u[p] = new buffer<nb_bf16>((size_t)k.tokens_max * rank, not_a_number);
            da[p] = new buffer<float>(rank * (size_t)k.in, 0.5f);
            db[p] = new buffer<float>(rank * (size_t)k.out[p], -0.25f);
            u[p]->up(), da[p]->up(), db[p]->up();
        }
    }
    void down()
    {
        for (int p = 0; p < NB_LINEAR_PARTS; p++)
            if (u[p])
                u[p]->down(), da[p]->down(), db[p]->down();
    }
    ~gradients()
    {
        for (int p = 0; p < NB_LINEAR_PARTS; p++)
            delete u[p], delete da[p], delete db[p];
    }
};

static void run_backward(
    const setup &s, buffer<nb_bf16> *const dy[NB_LINEAR_PARTS], gradients &g, int begin, int count, size_t which)
{
    struct nb_linear_backward args = {};
    s.fill_args(&args, begin, count, which);
    nb_dptr u[NB_LINEAR_PARTS] = {};
    for (int p = 0; p < s.k.parts; p++) {
        args.part[p].y_stride = (s.k.out[p] + 7) / 8 * 8;
        args.part[p].y = dy[p]->at((size_t)begin * (size_t)args.part[p].y_stride);
        if (!g.u[p])
            continue;
        u[p] = g.u[p]->at((size_t)begin * (size_t)s.k.rank[p]);
        args.part[p].lora.da = g.da[p]->at(), args.part[p].lora.db = g.db[p]->at();
    }
    buffer<float> partials((size_t)nb_cuda_lora_backward_partial_bytes(NULL, &args) / 4 + 1);
    must(nb_lora_backward(NULL, stream, &args, u, partials.at()));
    must(cudaStreamSynchronize(stream));
}

static void expect_part(const setup &s, const buffer<nb_bf16> &dy, const gradients &g, int p)
{
    const lora_case &k = s.k;
    int rank = k.rank[p], out = k.out[p], stride = (out + 7) / 8 * 8;
    std::vector<double> db((size_t)(out * rank), 0.0), db_size = db, da((size_t)(rank * k.in), 0.0), da_size = da;
    double scale = 1.5f * 0.75f, factor = 1.0f / (1.0f - k.dropout[p]);
    for (int row = 0; row < k.tokens; row++) {
        for (int j = 0; j < rank; j++) {
            double sum = 0, size = 0, t = nb_bf16_to_float(s.t[p]->host[(size_t)(row * rank + j)]);
            for (int o = 0; o < out; o++) {
                double d = nb_bf16_to_float(dy.host[(size_t)(row * stride + o)]);
                double product = d * nb_bf16_to_float(s.b[p]->host[(size_t)(o * rank + j)]);
                sum += product, size += fabs(product);
                db[(size_t)(o * rank + j)] += scale * d * t, db_size[(size_t)(o * rank + j)] += fabs(scale * d * t);
            }
            double u = nb_bf16_to_float(g.u[p]->host[(size_t)(row * rank + j)]);
            CHECK(near(u, scale * sum, scale * size, out, true), "u of part %d [%d, %d] is %g, not %g", p, row, j, u, scale * sum);
            for (int i = 0; i < k.in; i++) {
                double product = factor * u * s.kept(p, row, i);
                da[(size_t)(j * k.in + i)] += product, da_size[(size_t)(j * k.in + i)] += fabs(product);
            }
        }
    }
    /* Behind the valid rows zeros to the end of the tile, and nothing is written after that. */
    int end = (k.tokens + NB_TILE_TOKENS - 1) / NB_TILE_TOKENS * NB_TILE_TOKENS;
    for (int i = k.tokens * rank; i < k.tokens_max * rank; i++)
        CHECK(g.u[p]->host[(size_t)i] == (i < end * rank ? 0 : not_a_number), "u of row %d is %#x", i / rank, g.u[p]->host[(size_t)i]);
    for (size_t i = 0; i < db.size(); i++)
        CHECK(near(g.db[p]->host[i], db[i] - 0.25, db_size[i] + 0.25, k.tokens, false), "db of part %d [%zu, %zu] is %g, not %g", p,
            i / (size_t)rank, i % (size_t)rank, g.db[p]->host[i], db[i] - 0.25);
    for (size_t i = 0; i < da.size(); i++)
        CHECK(near(g.da[p]->host[i], da[i] + 0.5, da_size[i] + 0.5, k.tokens, false), "da of part %d [%zu, %zu] is %g, not %g", p,
            i / (size_t)k.in, i % (size_t)k.in, g.da[p]->host[i], da[i] + 0.5);
}

static void test_backward(const lora_case &k)
{
    setup s(k);
    gradients whole(k);
    buffer<nb_bf16> *dy[NB_LINEAR_PARTS] = {};
    for (int p = 0; p < k.parts; p++) {
        size_t stride = (size_t)(k.out[p] + 7) / 8 * 8;
        dy[p] = new buffer<nb_bf16>((size_t)k.tokens_max * stride, not_a_number);
        for (size_t i = 0; i < (size_t)k.tokens * stride; i++)
            dy[p]->host[i] = (int)(i % stride) < k.out[p] ? nb_bf16_from_float(uniform()) : not_a_number;
        dy[p]->up();
        if (!s.t[p])
            continue;
        for (int i = 0; i < k.tokens * k.rank[p]; i++)
            s.t[p]->host[(size_t)i] = nb_bf16_from_float(uniform());
        s.t[p]->up();
    }
    run_backward(s, dy, whole, 0, k.tokens_max, 0);
    whole.down();
    for (int p = 0; p < k.parts; p++)
        if (s.t[p])
            expect_part(s, *dy[p], whole, p);
    if (k.chunk > 0) {
        gradients cut(k);
        for (int begin = 0; begin < k.tokens_max; begin += k.chunk) {
            int count = k.tokens_max - begin < k.chunk ? k.tokens_max - begin : k.chunk;
            run_backward(s, dy, cut, begin, count, (size_t)(begin / k.chunk) + 1);
        }
        cut.down();
        for (int p = 0; p < k.parts; p++) {
            if (!s.t[p])
                continue;
            CHECK(memcmp(cut.da[p]->host.data(), whole.da[p]->host.data(), whole.da[p]->host.size() * 4) == 0, "chunks change da");
            CHECK(memcmp(cut.db[p]->host.data(), whole.db[p]->host.data(), whole.db[p]->host.size() * 4) == 0, "chunks change db");
            CHECK(cut.u[p]->host == whole.u[p]->host, "chunks change u");
        }
    }
    for (int p = 0; p < k.parts; p++)
        delete dy[p];
}

/* ---- few tokens ---- */

struct few_case {
    int tokens, tokens_max, in, parts, out[NB_LINEAR_PARTS], rank, row_begin;
    nb_weight_format format;
    bool nested, bias, accumulate;
};

struct few_part {
    buffer<uint8_t> *slab = NULL;
    buffer<float> *offset = NULL;
    buffer<nb_bf16> *dense = NULL, *bias = NULL, *b = NULL, *t = NULL, *y = NULL;
    std::vector<nb_bf16> weight, y_before;
    ~few_part() { delete slab, delete offset, delete dense, delete bias, delete b, delete t, delete y; }
};

static void make_weight(const few_case &k, int rows, few_part *part, nb_weight *w)
{
    size_t count = (size_t)rows * (size_t)k.in;
    std::vector<nb_bf16> values(count);
    fill(values, 1);
    *w = {};
    w->format = k.format, w->nested = k.nested, w->rows = rows, w->columns = k.in;
    if (k.format == NB_WEIGHT_BF16) {
        part->dense = new buffer<nb_bf16>(count);
        part->dense->host = part->weight = values;
        part->dense->up();
        w->data = part->dense->at();
        return;
    }
    enum nb_quant_type type = k.format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
    struct nb_quant_layout layout;
    must(nb_quant_matrix_layout(type, k.nested, (uint64_t)rows, (uint64_t)k.in, &layout));
    std::vector<float> scales(count / 64 + 1);
    /* The map and the codebook must lie at multiples of 16: a vector's storage does. */
    std::vector<uint8_t> slab(layout.bytes);
    struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, slab.data(), scales.data());
    must(nb_quantize(type, k.nested, values.data(), (uint64_t)rows, (uint64_t)k.in, &parts));
    struct nb_quant_matrix matrix = nb_quant_matrix_view(&layout, slab.data(), parts.nested_offset);
    part->weight.resize(count);
    nb_dequantize_bf16(&matrix, 0, count, part->weight.data());
    part->slab = new buffer<uint8_t>(layout.bytes);
    part->slab->host = slab;
    part->slab->up();
    part->offset = new buffer<float>(1, parts.nested_offset);
    part->offset->up();
    w->data = part->slab->at(layout.packed), w->absmax = part->slab->at(layout.absmax), w->codebook = part->slab->at(layout.codebook);
    if (k.nested)
        w->nested_absmax = part->slab->at(layout.nested_absmax), w->nested_map = part->slab->at(layout.nested_map),
        w->nested_offset = part->offset->at();
}

static void expect_few(const few_case &k, const buffer<nb_bf16> &x, const few_part &part, int out, int stride)
{
    for (int row = 0; row < k.tokens_max; row++) {
        for (int o = 0; o < out; o++) {
            size_t at = (size_t)(row * stride + o);
            nb_bf16 got = part.y->host[at];
            if (row >= k.tokens) {
                CHECK(got == part.y_before[at], "y of row %d was written", row);
                continue;
            }
            double sum = 0, size = 0, branch = 0;
            for (int i = 0; i < k.in; i++) {
                double product = (double)nb_bf16_to_float(x.host[(size_t)(row * k.in + i)]) *
                                 nb_bf16_to_float(part.weight[(size_t)(k.row_begin + o) * (size_t)k.in + (size_t)i]);
                sum += product, size += fabs(product);
            }
            for (int j = 0; j < k.rank; j++)
                branch += (double)nb_bf16_to_float(part.t->host[(size_t)(row * k.rank + j)]) *
                          nb_bf16_to_float(part.b->host[(size_t)(o * k.rank + j)]);
            double wanted = 1.5 * (sum + 0.75 * branch + (k.bias ? nb_bf16_to_float(part.bias->host[(size_t)o]) : 0));
            double before = k.accumulate ? nb_bf16_to_float(part.y_before[at]) : 0;
            size = 1.5 * (size + fabs(branch) + 1);
            /* Accumulating rounds twice: the summand within half a step of its own. */
            double twice = k.accumulate ? half_step(wanted) : 0, error = nb_bf16_to_float(got) - (before + wanted);
            error -= copysign(fmin(fabs(error), twice), error);
            CHECK(near(error + before + wanted, before + wanted, size, k.in, true), "y [%d, %d] is %g, not %g", row, o,
                nb_bf16_to_float(got), before + wanted);
        }
    }
}

static void test_few(const few_case &k)
{
    buffer<nb_slot> slot(2);
    slot.host[0] = slot.host[1] = {};
    slot.host[0].tokens = (uint32_t)k.tokens, slot.host[1].tokens = (uint32_t)(k.tokens + 1) / 2;
    slot.up();
    buffer<nb_bf16> x((size_t)(k.tokens_max * k.in), not_a_number);
    for (int i = 0; i < k.tokens * k.in; i++)
        x.host[(size_t)i] = nb_bf16_from_float(uniform());
    x.up();
    struct nb_linear args = {};
    args.x = x.at(), args.slot = slot.at(), args.tokens_max = k.tokens_max, args.in = args.x_stride = k.in, args.parts = k.parts;
    args.activation = NB_DTYPE_BF16;
    few_part part[NB_LINEAR_PARTS];
    for (int p = 0; p < k.parts; p++) {
        nb_linear_part *to = &args.part[p];
        make_weight(k, k.row_begin + k.out[p] + 3, &part[p], &to->weight);
        to->row_begin = k.row_begin, to->out = k.out[p], to->y_stride = (k.out[p] + 15) / 8 * 8, to->output_scale = 1.5f;
        to->accumulate = k.accumulate;
        part[p].y = new buffer<nb_bf16>((size_t)(k.tokens_max * to->y_stride));
        fill(part[p].y->host, 4);
        part[p].y_before = part[p].y->host;
        part[p].y->up();
        to->y = part[p].y->at();
        if (k.bias) {
            part[p].bias = new buffer<nb_bf16>((size_t)k.out[p]);
            fill(part[p].bias->host, 1);
            part[p].bias->up();
            to->bias = part[p].bias->at();
        }
        if (k.rank > 0) {
            part[p].t = new buffer<nb_bf16>((size_t)(k.tokens_max * k.rank), not_a_number);
            part[p].b = new buffer<nb_bf16>((size_t)(k.out[p] * k.rank));
            fill(part[p].b->host, 1);
            for (int i = 0; i < k.tokens * k.rank; i++)
                part[p].t->host[(size_t)i] = nb_bf16_from_float(uniform());
            part[p].t->up(), part[p].b->up();
            to->lora.a = part[p].b->at(), to->lora.b = part[p].b->at(), to->lora.t = part[p].t->at();
            to->lora.rank = k.rank, to->lora.scale = 0.75f;
        }
    }
    CHECK(nb_linear_is_few(&args), "the case is not few");
    buffer<float> partials((size_t)nb_cuda_lora_partial_bytes(NULL, &args) / 4 + 1);
    must(nb_linear_few(NULL, stream, &args, partials.at()));
    for (int p = 0; p < k.parts; p++) {
        part[p].y->down();
        expect_few(k, x, part[p], k.out[p], args.part[p].y_stride);
    }
    /* Fewer tokens with it: the same bits. */
    args.slot = slot.at(1);
    for (int p = 0; p < k.parts; p++) {
        std::vector<nb_bf16> all = part[p].y->host;
        part[p].y->host = part[p].y_before;
        part[p].y->up();
        part[p].y->host = all;
    }
    must(nb_linear_few(NULL, stream, &args, partials.at()));
    for (int p = 0; p < k.parts; p++) {
        std::vector<nb_bf16> all = part[p].y->host;
        part[p].y->down();
        for (int row = 0; row < (k.tokens + 1) / 2; row++)
            CHECK(memcmp(&part[p].y->host[(size_t)(row * args.part[p].y_stride)], &all[(size_t)(row * args.part[p].y_stride)],
                      (size_t)k.out[p] * 2) == 0, "row %d depends on the rows beside it", row);
    }
}

/* ---- cases ---- */

static const lora_case lora_cases[] = {
    {3, 4, 72, 2, {3, 16}, {24, 8}, {}, 0, 0, 8},
    {1, 1, 1032, 1, {8}, {16}, {}, 0, 0, 0},
    {130, 131, 72, 3, {16, 5, 9}, {24, 8, 40}, {}, 0, 0, 8},
    {129, 300, 1096, 2, {16, 0}, {72, 16}, {}, 0, 0, 0},
    {300, 600, 600, 3, {16, 16, 16}, {136, 72, 40}, {}, 256, 0, 0},
    {520, 520, 136, 2, {24, 40}, {264, 33}, {}, 256, 0, 8},
    {70, 70, 64, 1, {300}, {72}, {}, 0, 0, 0},
    {40, 64, 64, 2, {1, 130}, {1, 8}, {}, 0, 0, 0},
    {260, 520, 136, 3, {4, 16, 8}, {16, 24, 8}, {0.1f, 0.5f, 0.0f}, 256, 0, 8},
    {20, 30, 72, 1, {8}, {24}, {0.25f}, 0, 256, 0},
    {3, 3, 72, 2, {4, 130}, {8, 16}, {0.5f, 0.5f}, 0, 0, 0},
    {0, 8, 64, 1, {4}, {8}, {}, 0, 0, 0},
    {700, 4700, 64, 1, {64}, {128}, {}, 1024, 0, 0},
    /* So many columns that blocks of da take wide ones. */
    {20, 24, 8200, 2, {8, 3}, {8, 16}, {0.5f, 0.0f}, 0, 0, 0},
    {20, 24, 8200, 1, {8}, {8}, {}, 0, 0, 0},
    /* So many blocks that ranges of outputs are long. */
    {40, 4096, 64, 1, {320}, {1100}, {}, 0, 0, 0},
};

static const few_case few_cases[] = {
    {1, 1, 64, 1, {8}, 0, 0, NB_WEIGHT_NF4, true, false, false},
    {1, 1, 576, 3, {40, 24, 1}, 16, 2, NB_WEIGHT_NF4, true, true, false},
    {3, 4, 4160, 1, {24}, 3, 0, NB_WEIGHT_FP4, false, false, true},
    {2, 2, 72, 2, {24, 17}, 5, 1, NB_WEIGHT_NF4, true, false, false},
    {4, 4, 72, 1, {33}, 8, 0, NB_WEIGHT_FP4, false, false, false},
    {1, 1, 1096, 1, {259}, 0, 3, NB_WEIGHT_BF16, false, true, false},
    {5, 5, 1344, 2, {136, 8}, 16, 0, NB_WEIGHT_NF4, true, true, false},
    {9, 16, 576, 1, {192}, 3, 2, NB_WEIGHT_FP4, true, false, true},
    {30, 32, 72, 1, {259}, 4, 0, NB_WEIGHT_NF4, false, false, false},
    {64, 64, 328, 2, {24, 136}, 8, 1, NB_WEIGHT_BF16, false, true, false},
    {33, 64, 320, 1, {130}, 16, 0, NB_WEIGHT_NF4, true, false, false},
    {7, 8, 200, 1, {24}, 0, 1, NB_WEIGHT_NF4, true, true, true},
    /* So many rows that `in` is not cut. */
    {5, 5, 576, 1, {16400}, 3, 0, NB_WEIGHT_NF4, true, false, false},
    {6, 8, 584, 1, {16400}, 0, 0, NB_WEIGHT_BF16, false, true, false},
};

/* More tokens never ask for less scratch, whatever the site; and what is asked for the most serves fewer. */
static void test_bytes(void)
{
    static const int sites[] = {0, 1, 8192};
    for (int site : sites) {
        uint64_t before[2] = {0, 0};
        for (int tokens = 1; tokens <= 8192; tokens += tokens < 600 ? 1 : 97) {
            struct nb_linear forward = {};
            struct nb_linear_backward backward = {};
            forward.tokens_max = backward.tokens_max = tokens, forward.in = backward.in = 4096, forward.parts = backward.parts = 3;
            forward.site_tokens = backward.site_tokens = site;
            static const int out[] = {4096, 1024, 1024};
            for (int p = 0; p < 3; p++) {
                forward.part[p].out = out[p];
                forward.part[p].lora.a = nb_dptr{256}, forward.part[p].lora.rank = 16 + p;
                backward.part[p] = forward.part[p];
            }
            uint64_t bytes[2] = {nb_cuda_lora_partial_bytes(NULL, &forward), nb_cuda_lora_backward_partial_bytes(NULL, &backward)};
            struct nb_lora_down_plan plan;
            nb_lora_down_plan_of(&forward, &plan);
            uint64_t used = (uint64_t)plan.splits * (uint64_t)tokens * (uint64_t)(plan.stack.tile * plan.stack.tiles) * 4;
            used = plan.splits > 1 ? used : 0;
            CHECK(used <= bytes[0], "%d tokens use %llu bytes", tokens, (unsigned long long)used);
            struct nb_lora_backward_plan backward_plan;
            nb_lora_backward_plan_of(&backward, &backward_plan);
            uint64_t end = 0;
            for (int p = 0; p < 3; p++)
                end = backward_plan.db[p] + (uint64_t)(backward_plan.group * out[p] * backward_plan.width[p]) * 4;
            CHECK(end <= bytes[1], "%d tokens use %llu bytes backward", tokens, (unsigned long long)end);
            for (int i = 0; i < 2; i++) {
                CHECK(bytes[i] >= before[i], "%d tokens of site %d ask for less than fewer", tokens, site);
                CHECK(bytes[i] <= 40u << 20, "%d tokens ask for %llu bytes", tokens, (unsigned long long)bytes[i]);
                before[i] = bytes[i];
            }
        }
    }
}

int main(int argc, char **argv)
{
    uint64_t seeds = argc > 1 ? (uint64_t)atoi(argv[1]) : 2;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    must(nb_lora_prepare(NULL));
    must(nb_linear_few_prepare(NULL));
    test_bytes();
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        nb_emulator_seed(seed);
        state = seed;
        int index = 0;
        for (const lora_case &k : lora_cases) {
            int before = failures;
            test_down(k);
            test_backward(k);
            printf("seed %d, lora case %d: %s\n", (int)seed, index++, failures == before ? "ok" : "FAILED");
        }
        index = 0;
        for (const few_case &k : few_cases) {
            int before = failures;
            test_few(k);
            printf("seed %d, few case %d: %s\n", (int)seed, index++, failures == before ? "ok" : "FAILED");
        }
    }
    must(cudaStreamDestroy(stream));
    return failures > 0;
}
