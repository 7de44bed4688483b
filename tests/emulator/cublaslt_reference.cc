/* Stands in for cuBLASLt: the functions that cuda/cublaslt.cu looks up, with the library's signatures, as queued host work.
 *
 * Its heuristic offers what a caller must pass over before what it may take: an algorithm that splits k, one that sums by stream-k, one
 * that needs workspace, and one that serves large batches only. The first three add in an order that depends on m, as the real ones do, so
 * that a caller who takes them gives other bits at another m. Sums are fp32, in an order that the seed draws. */
#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/bfloat.h"
#include "emulator/cuda_runtime.h"

namespace {

enum { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { BF16 = 14, F32 = 0, COMPUTE_F32 = 68 };
enum { VERSION = 130000 };

struct operation {
    int32_t transpose_a, transpose_b;
};
struct layout {
    uint64_t rows, columns;
    int64_t leading;
};
struct preference {
    uint64_t workspace;
    uint32_t reductions, alignment[4];
};

/* Within the 64 bytes of a cublasLtMatmulAlgo_t. */
struct algorithm {
    int32_t splits;
    uint32_t reduction;
    uint64_t workspace, rows_min, kind, unused[4]; /* kind: told apart by the order of their sums */
};
static_assert(sizeof(algorithm) == 64, "as large as the library's");

struct choice {
    algorithm algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

const algorithm offered[] = {
    {4, 2, 0, 1, 1, {0, 0, 0, 0}},  /* splits k */
    {-1, 0, 0, 1, 2, {0, 0, 0, 0}}, /* stream-k */
    {1, 0, 4096, 1, 3, {0, 0, 0, 0}},
    {1, 0, 0, 64, 4, {0, 0, 0, 0}}, /* tiles of 64 rows alone */
    {1, 0, 0, 1, 5, {0, 0, 0, 0}},
    {1, 0, 0, 1, 6, {0, 0, 0, 0}},
};

size_t version()
{
    return VERSION;
}

int create(void **handle)
{
    *handle = new int(0);
    return OK;
}

/* As a library does that is newer than the driver: it can be asked, but makes no handle. */
size_t version_too_new()
{
    return VERSION + 10000;
}

int create_too_new(void **)
{
    return NOT_INITIALIZED;
}

int destroy(void *handle)
{
    delete static_cast<int *>(handle);
    return OK;
}

int operation_create(operation **o, int compute, int scale)
{
    if (compute != COMPUTE_F32 || scale != F32)
        return NOT_SUPPORTED;
    *o = new operation();
    return OK;
}

int operation_destroy(operation *o)
{
    delete o;
    return OK;
}

int operation_set(operation *o, int attribute, const void *value, size_t bytes)
{
    if ((attribute != 3 && attribute != 4) || bytes != sizeof(int32_t))
        return INVALID_VALUE;
    memcpy(attribute == 3 ? &o->transpose_a : &o->transpose_b, value, bytes);
    return OK;
}

int layout_create(layout **l, int type, uint64_t rows, uint64_t columns, int64_t leading)
{
    if (type != BF16 || leading < (int64_t)rows)
        return INVALID_VALUE;
    *l = new layout{rows, columns, leading};
    return OK;
}

int layout_destroy(layout *l)
{
    delete l;
    return OK;
}

int preference_create(preference **p)
{
    *p = new preference{0, 7, {256, 256, 256, 256}};
    return OK;
}

int preference_destroy(preference *p)
{
    delete p;
    return OK;
}

int preference_set(preference *p, int attribute, const void *value, size_t bytes)
{
    if (attribute == 1 && bytes == 8)
        memcpy(&p->workspace, value, bytes);
    else if (attribute == 3 && bytes == 4)
        memcpy(&p->reductions, value, bytes);
    else if (attribute >= 5 && attribute <= 8 && bytes == 4)
        memcpy(&p->alignment[attribute - 5], value, bytes);
    else
        return INVALID_VALUE;
    return OK;
}

struct shape {
    uint64_t m, n, k; /* of the row-major product: m rows of a and c */
};

/* Whether the layouts fit each other; only the second operand as it lies (the callers' a). */
bool shape_of(const operation &o, const layout &a, const layout &b, const layout &c, shape *s)
{
    *s = {b.columns, o.transpose_a ? a.columns : a.rows, b.rows};
    return !o.transpose_b && (o.transpose_a ? a.rows : a.columns) == s->k && c.rows == s->n && c.columns == s->m;
}

/* An operand whose alignment no preference lowered would have been taken for one of 256 bytes. */
int heuristic(void *, const operation *o, const layout *a, const layout *b, const layout *c, const layout *d, const preference *p,
              int wanted, choice *choices, int *found)
{
    shape s;
    *found = 0;
    if (c != d || !shape_of(*o, *a, *b, *c, &s) || *std::max_element(p->alignment, p->alignment + 4) > 16)
        return INVALID_VALUE;
    for (const algorithm &each : offered)
        if (*found < wanted && s.m >= each.rows_min) {
            choices[*found] = choice{};
            choices[*found].algo = each;
            choices[*found].workspace = each.workspace;
            choices[(*found)++].state = each.workspace > p->workspace ? NOT_SUPPORTED : OK;
        }
    return *found ? OK : NOT_SUPPORTED;
}

int check(void *, const operation *o, const layout *a, const layout *b, const layout *c, const layout *d, const algorithm *algo,
          choice *result)
{
    shape s;
    if (c != d || !shape_of(*o, *a, *b, *c, &s))
        return INVALID_VALUE;
    bool aligned = a->leading % 8 == 0 && b->leading % 8 == 0 && c->leading % 8 == 0;
    if (!aligned || s.m < algo->rows_min)
        return NOT_SUPPORTED;
    result->algo = *algo;
    result->workspace = algo->workspace;
    result->state = OK;
    return OK;
}

int config(const algorithm *algo, int attribute, void *value, size_t bytes, size_t *written)
{
    if ((attribute != 2 && attribute != 3) || bytes != 4)
        return INVALID_VALUE;
    memcpy(value, attribute == 2 ? (const void *)&algo->splits : (const void *)&algo->reduction, bytes);
    *written = bytes;
    return OK;
}

/* ---- multiplying ---- */

struct product {
    const nb_bf16 *weights, *x;
    nb_bf16 *y;
    layout weights_layout, x_layout, y_layout;
    bool transposed;
    float alpha, beta;
    algorithm algo;
    shape s;
};

/* Starts of the pieces of k, in the order in which they are added. */
std::vector<uint64_t> order_of_sums(const product &p)
{
    bool depends_on_m = p.algo.splits != 1 || p.algo.workspace;
    uint64_t piece = 16, state = nb_emulator_seed_value() + p.s.n * 31 + p.s.k + p.algo.kind * 977 + (depends_on_m ? p.s.m : 0);
    std::vector<uint64_t> starts;
    for (uint64_t i = 0; i < p.s.k; i += piece)
        starts.push_back(i);
    for (size_t i = starts.size(); i > 1; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(starts[i - 1], starts[(state >> 33) % i]);
    }
    return starts;
}

/* Columns of a column-major matrix, each of them `rows` long. */
bool touch(const nb_bf16 *at, const layout &l, bool written)
{
    for (uint64_t j = 0; j < l.columns; j++)
        if (!nb_emulator_memory_touch(at + j * (uint64_t)l.leading, l.rows * sizeof *at, written))
            return false;
    return true;
}

bool multiply(const product &p)
{
    const shape &s = p.s;
    if (!touch(p.weights, p.weights_layout, false) || !touch(p.x, p.x_layout, false) || !touch(p.y, p.y_layout, true))
        return false;
    std::vector<float> weights(s.k * s.n), sums(s.n); /* weights: [k, n] */
    for (uint64_t i = 0; i < s.k; i++)
        for (uint64_t j = 0; j < s.n; j++) {
            uint64_t at = p.transposed ? j * (uint64_t)p.weights_layout.leading + i : i * (uint64_t)p.weights_layout.leading + j;
            weights[i * s.n + j] = nb_bf16_to_float(p.weights[at]);
        }
    std::vector<uint64_t> starts = order_of_sums(p);
    for (uint64_t row = 0; row < s.m; row++) {
        const nb_bf16 *x = p.x + row * (uint64_t)p.x_layout.leading;
        nb_bf16 *y = p.y + row * (uint64_t)p.y_layout.leading;
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (uint64_t start : starts)
            for (uint64_t i = start; i < std::min(start + 16, s.k); i++) {
                float factor = nb_bf16_to_float(x[i]);
                const float *w = &weights[i * s.n];
                for (uint64_t j = 0; j < s.n; j++)
                    sums[j] += factor * w[j];
            }
        for (uint64_t j = 0; j < s.n; j++) {
            float before = p.beta == 0 ? 0 : p.beta * nb_bf16_to_float(y[j]);
            y[j] = nb_bf16_from_float(p.alpha * sums[j] + before);
        }
    }
    return true;
}

int matmul(void *, const operation *o, const float *alpha, const void *a, const layout *a_layout, const void *b, const layout *b_layout,
           const float *beta, const void *c, const layout *c_layout, void *d, const layout *d_layout, const algorithm *algo,
           void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    product p = {(const nb_bf16 *)a, (const nb_bf16 *)b, (nb_bf16 *)d, *a_layout, *b_layout, *d_layout, o->transpose_a != 0, *alpha, *beta,
                 *algo, {}};
    bool aligned = ((uintptr_t)a | (uintptr_t)b | (uintptr_t)d) % 16 == 0;
    if (c != d || c_layout != d_layout || !shape_of(*o, *a_layout, *b_layout, *c_layout, &p.s) || !aligned || p.s.m < algo->rows_min ||
        algo->workspace > (workspace ? workspace_bytes : 0))
        return INVALID_VALUE;
    return nb_emulator_enqueue(stream, [p] { return multiply(p); }) == cudaSuccess ? OK : 13; /* CUBLAS_STATUS_EXECUTION_FAILED */
}

} /* namespace */

void *nb_emulator_cublaslt_symbol(const char *name, bool too_new)
{
    if (too_new && strcmp(name, "cublasLtGetVersion") == 0)
        return (void *)version_too_new;
    if (too_new && strcmp(name, "cublasLtCreate") == 0)
        return (void *)create_too_new;
    static const std::map<std::string, void *> symbols = {
        {"cublasLtGetVersion", (void *)version},
        {"cublasLtCreate", (void *)create},
        {"cublasLtDestroy", (void *)destroy},
        {"cublasLtMatmulDescCreate", (void *)operation_create},
        {"cublasLtMatmulDescDestroy", (void *)operation_destroy},
        {"cublasLtMatmulDescSetAttribute", (void *)operation_set},
        {"cublasLtMatrixLayoutCreate", (void *)layout_create},
        {"cublasLtMatrixLayoutDestroy", (void *)layout_destroy},
        {"cublasLtMatmulPreferenceCreate", (void *)preference_create},
        {"cublasLtMatmulPreferenceDestroy", (void *)preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", (void *)preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", (void *)heuristic},
        {"cublasLtMatmulAlgoCheck", (void *)check},
        {"cublasLtMatmulAlgoConfigGetAttribute", (void *)config},
        {"cublasLtMatmul", (void *)matmul},
    };
    auto found = symbols.find(name);
    return found == symbols.end() ? nullptr : found->second;
}
