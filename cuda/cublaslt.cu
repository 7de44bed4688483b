/* bf16 products by cuBLASLt. The library is looked for at run time; what its interface looks like is written down here, since a build needs
 * no part of it. Names, values and layouts: NVIDIA, cuBLAS 12 and 13, cublasLt.h and library_types.h; they are part of the library's stable
 * binary interface.
 *
 * Bound by the tensor cores at training sizes; the host's part of a product is a few microseconds (three descriptors on the stack of the
 * library's allocator), and nothing in a graph. */
#include "cuda/cublaslt.cuh"

#include <stdlib.h>
#include <string.h>

#ifndef NB_EMULATED
#include <dlfcn.h>
#endif

/* ---- the library's interface ---- */

typedef int lt_status; /* cublasStatus_t; 0: CUBLAS_STATUS_SUCCESS */
typedef struct lt_handle_type *lt_handle;
typedef struct lt_operation_type *lt_operation;
typedef struct lt_layout_type *lt_layout;
typedef struct lt_preference_type *lt_preference;

/* cublasLtMatmulAlgo_t: to be copied, not looked into. */
struct lt_algorithm {
    uint64_t data[8];
};

/* cublasLtMatmulHeuristicResult_t */
struct lt_choice {
    struct lt_algorithm algorithm;
    size_t workspace_bytes;
    lt_status state;
    float waves;
    int reserved[4];
};

enum {
    LT_BF16 = 14,                 /* CUDA_R_16BF */
    LT_F32 = 0,                   /* CUDA_R_32F */
    LT_COMPUTE_F32 = 68,          /* CUBLAS_COMPUTE_32F */
    LT_TRANSPOSED = 1,            /* CUBLAS_OP_T */
    LT_OPERATION_TRANSPOSE_A = 3, /* CUBLASLT_MATMUL_DESC_TRANSA, int32 */
    LT_PREFER_WORKSPACE = 1,      /* CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64 */
    LT_PREFER_REDUCTIONS = 3,     /* CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32 */
    LT_PREFER_ALIGNMENT_A = 5,    /* CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32; then B, C, D */
    LT_CONFIG_SPLITS = 2,         /* CUBLASLT_ALGO_CONFIG_SPLITK_NUM, int32 */
    LT_CONFIG_REDUCTION = 3,      /* CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, uint32; 0: none */
};

struct lt_functions {
    size_t (*version)(void);
    lt_status (*create)(lt_handle *);
    lt_status (*destroy)(lt_handle);
    lt_status (*operation_create)(lt_operation *, int compute, int scale_type);
    lt_status (*operation_destroy)(lt_operation);
    lt_status (*operation_set)(lt_operation, int attribute, const void *value, size_t bytes);
    lt_status (*layout_create)(lt_layout *, int type, uint64_t rows, uint64_t columns, int64_t leading);
    lt_status (*layout_destroy)(lt_layout);
    lt_status (*preference_create)(lt_preference *);
    lt_status (*preference_destroy)(lt_preference);
    lt_status (*preference_set)(lt_preference, int attribute, const void *value, size_t bytes);
    lt_status (*heuristic)(lt_handle, lt_operation, lt_layout a, lt_layout b, lt_layout c, lt_layout d, lt_preference, int wanted,
                           struct lt_choice *, int *found);
    lt_status (*check)(lt_handle, lt_operation, lt_layout a, lt_layout b, lt_layout c, lt_layout d, const struct lt_algorithm *,
                       struct lt_choice *);
    lt_status (*config)(const struct lt_algorithm *, int attribute, void *value, size_t bytes, size_t *written);
    lt_status (*matmul)(lt_handle, lt_operation, const void *alpha, const void *a, lt_layout, const void *b, lt_layout, const void *beta,
                        const void *c, lt_layout, void *d, lt_layout, const struct lt_algorithm *, void *workspace, size_t workspace_bytes,
                        cudaStream_t);
};

/* The oldest one whose interface this is and whose algorithms know these GPUs. */
enum { OLDEST_VERSION = 120000 };

static const struct {
    const char *name;
    size_t offset;
} symbol[] = {
    {"cublasLtGetVersion", offsetof(struct lt_functions, version)},
    {"cublasLtCreate", offsetof(struct lt_functions, create)},
    {"cublasLtDestroy", offsetof(struct lt_functions, destroy)},
    {"cublasLtMatmulDescCreate", offsetof(struct lt_functions, operation_create)},
    {"cublasLtMatmulDescDestroy", offsetof(struct lt_functions, operation_destroy)},
    {"cublasLtMatmulDescSetAttribute", offsetof(struct lt_functions, operation_set)},
    {"cublasLtMatrixLayoutCreate", offsetof(struct lt_functions, layout_create)},
    {"cublasLtMatrixLayoutDestroy", offsetof(struct lt_functions, layout_destroy)},
    {"cublasLtMatmulPreferenceCreate", offsetof(struct lt_functions, preference_create)},
    {"cublasLtMatmulPreferenceDestroy", offsetof(struct lt_functions, preference_destroy)},
    {"cublasLtMatmulPreferenceSetAttribute", offsetof(struct lt_functions, preference_set)},
    {"cublasLtMatmulAlgoGetHeuristic", offsetof(struct lt_functions, heuristic)},
    {"cublasLtMatmulAlgoCheck", offsetof(struct lt_functions, check)},
    {"cublasLtMatmulAlgoConfigGetAttribute", offsetof(struct lt_functions, config)},
    {"cublasLtMatmul", offsetof(struct lt_functions, matmul)},
};

/* ---- finding it ---- */

static void *open_library(const char *name)
{
#ifdef NB_EMULATED
    return nb_emulator_library_open(name);
#else
    return dlopen(name, RTLD_NOW | RTLD_LOCAL);
#endif
}

static void *find_symbol(void *library, const char *name)
{
#ifdef NB_EMULATED
    return nb_emulator_library_symbol(library, name);
#else
    return dlsym(library, name);
#endif
}

/* Whether this library knows these GPUs, and the driver knows it: one of a newer CUDA than the driver's opens, but makes no handle. */
static bool suits(const struct lt_functions *lt, int driver_version)
{
    size_t version = lt->version();
    return version >= OLDEST_VERSION && (int)(version / 10000) <= driver_version / 1000;
}

/* The newest first, by the loader's own paths, then where NVIDIA's packages put it. False: there is none that serves. Once opened it stays
 * open: closing a library that holds CUDA state is not safe before the process ends. */
static bool load(struct lt_functions *lt, int driver_version)
{
    static const char *const name[] = {
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "libcublasLt.so",
        "/usr/local/cuda/lib64/libcublasLt.so",
    };
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        void *library = open_library(name[i]);
        bool whole = library != NULL;
        for (size_t k = 0; whole && k < sizeof symbol / sizeof *symbol; k++) {
            void *found = find_symbol(library, symbol[k].name);
            memcpy((char *)lt + symbol[k].offset, &found, sizeof found);
            whole = found != NULL;
        }
        if (whole && suits(lt, driver_version))
            return true;
    }
    return false;
}

int nb_blaslt_probe(int driver_version)
{
    struct lt_functions lt;
    return load(&lt, driver_version) ? (int)lt.version() : 0;
}

/* ---- the handle ---- */

/* One algorithm, and the number of rows it was last checked for. */
struct site {
    int n, k;
    bool b_transposed;
    struct lt_algorithm algorithm;
    int m_checked, strides_checked[3];
};

enum { SITES_MAX = 512, CHOICES_MAX = 32 };

struct nb_blaslt {
    struct lt_functions lt;
    lt_handle handle;
    lt_operation operation[2]; /* by b_transposed */
    lt_preference preference;
    int version, sites;
    struct site site[SITES_MAX];
};

static nb_status blaslt_status(lt_status status, const char *doing)
{
    if (status == 0)
        return NB_OK;
    /* CUBLAS_STATUS_ALLOC_FAILED */
    return nb_fail(status == 3 ? NB_MEMORY : NB_IO,
                   "%s: cuBLASLt reports status %d (cublasStatus_t); where its library is not to be found, nibble does without", doing,
                   status);
}

/* What the choice of algorithms goes by: no workspace, no sums beside the tile's own, and no alignment beyond the ops' 16 bytes. */
static nb_status create_preference(struct nb_blaslt *b)
{
    const uint64_t no_workspace = 0;
    const uint32_t no_reduction = 0, alignment = 16;
    lt_status status = b->lt.preference_create(&b->preference);
    if (status == 0)
        status = b->lt.preference_set(b->preference, LT_PREFER_WORKSPACE, &no_workspace, sizeof no_workspace);
    if (status == 0)
        status = b->lt.preference_set(b->preference, LT_PREFER_REDUCTIONS, &no_reduction, sizeof no_reduction);
    for (int i = 0; status == 0 && i < 4; i++)
        status = b->lt.preference_set(b->preference, LT_PREFER_ALIGNMENT_A + i, &alignment, sizeof alignment);
    return blaslt_status(status, "opening cuBLASLt");
}

static nb_status create_handle(struct nb_blaslt *b)
{
    const int32_t transposed = LT_TRANSPOSED;
    lt_status status = b->lt.create(&b->handle);
    for (int i = 0; status == 0 && i < 2; i++)
        status = b->lt.operation_create(&b->operation[i], LT_COMPUTE_F32, LT_F32);
    if (status == 0)
        status = b->lt.operation_set(b->operation[1], LT_OPERATION_TRANSPOSE_A, &transposed, sizeof transposed);
    NB_TRY(blaslt_status(status, "opening cuBLASLt"));
    return create_preference(b);
}

nb_status nb_blaslt_create(struct nb_cuda *cuda, struct nb_blaslt **blaslt)
{
    *blaslt = NULL;
    struct nb_blaslt *b = (struct nb_blaslt *)calloc(1, sizeof *b);
    if (!b)
        return nb_fail(NB_MEMORY, "no memory for cuBLASLt's handle");
    if (!load(&b->lt, cuda->driver_version)) {
        free(b);
        return NB_OK;
    }
    b->version = (int)b->lt.version();
    nb_status status = create_handle(b);
    if (status != NB_OK)
        nb_blaslt_destroy(&b);
    *blaslt = b;
    return status;
}

void nb_blaslt_destroy(struct nb_blaslt **blaslt)
{
    struct nb_blaslt *b = *blaslt;
    if (!b)
        return;
    if (b->preference)
        (void)b->lt.preference_destroy(b->preference);
    for (int i = 0; i < 2; i++)
        if (b->operation[i])
            (void)b->lt.operation_destroy(b->operation[i]);
    if (b->handle)
        (void)b->lt.destroy(b->handle);
    free(b);
    *blaslt = NULL;
}

int nb_blaslt_version(const struct nb_blaslt *blaslt)
{
    return blaslt ? blaslt->version : 0;
}

/* ---- descriptors ---- */

/* The library counts by columns: c^T = op(b)^T a^T, so its A is b, its B is a. */
struct layouts {
    lt_layout a, b, c;
};

static void destroy_layouts(const struct nb_blaslt *b, struct layouts *l)
{
    if (l->a)
        (void)b->lt.layout_destroy(l->a);
    if (l->b)
        (void)b->lt.layout_destroy(l->b);
    if (l->c)
        (void)b->lt.layout_destroy(l->c);
}

static nb_status create_layouts(const struct nb_blaslt *b, const struct nb_blaslt_product *p, struct layouts *l)
{
    uint64_t m = (uint64_t)p->m, n = (uint64_t)p->n, k = (uint64_t)p->k;
    *l = {NULL, NULL, NULL};
    lt_status status = b->lt.layout_create(&l->a, LT_BF16, p->b_transposed ? k : n, p->b_transposed ? n : k, p->b_stride);
    if (status == 0)
        status = b->lt.layout_create(&l->b, LT_BF16, k, m, p->a_stride);
    if (status == 0)
        status = b->lt.layout_create(&l->c, LT_BF16, n, m, p->c_stride);
    if (status != 0)
        destroy_layouts(b, l);
    return blaslt_status(status, "describing a product");
}

/* ---- choosing ---- */

static bool sums_whole_rows(const struct nb_blaslt *b, const struct lt_algorithm *algorithm)
{
    int32_t splits = 0;
    uint32_t reduction = 0;
    size_t written = 0;
    return b->lt.config(algorithm, LT_CONFIG_SPLITS, &splits, sizeof splits, &written) == 0 && (splits == 0 || splits == 1) &&
           b->lt.config(algorithm, LT_CONFIG_REDUCTION, &reduction, sizeof reduction, &written) == 0 && reduction == 0;
}

/* Whether the algorithm multiplies `product`, in no memory but its operands'. */
static bool serves(const struct nb_blaslt *b, const struct nb_blaslt_product *product, const struct lt_algorithm *algorithm)
{
    struct layouts l;
    struct lt_choice result;
    memset(&result, 0, sizeof result);
    if (create_layouts(b, product, &l) != NB_OK)
        return false;
    lt_status status = b->lt.check(b->handle, b->operation[product->b_transposed], l.a, l.b, l.c, l.c, algorithm, &result);
    destroy_layouts(b, &l);
    return status == 0 && result.state == 0 && result.workspace_bytes == 0;
}

/* From a single row to more than are planned: what a shorter batch, a chunk or an evaluation may bring. */
static bool serves_every_m(const struct nb_blaslt *b, struct nb_blaslt_product product, const struct lt_algorithm *algorithm)
{
    static const int m[] = {1, 3, 16, 64, 100, 256, 1024, 4096};
    int planned = product.m;
    for (size_t i = 0; i < sizeof m / sizeof *m; i++) {
        product.m = m[i];
        if (!serves(b, &product, algorithm))
            return false;
    }
    product.m = planned;
    return serves(b, &product, algorithm);
}

static struct site *find_site(struct nb_blaslt *b, const struct nb_blaslt_product *p)
{
    for (int i = 0; i < b->sites; i++)
        if (b->site[i].n == p->n && b->site[i].k == p->k && b->site[i].b_transposed == p->b_transposed)
            return &b->site[i];
    return NULL;
}

/* The best of the heuristic's list, for product->m rows, that every number of rows may use. */
static nb_status choose(struct nb_blaslt *b, const struct nb_blaslt_product *product, struct site **chosen)
{
    struct lt_choice choice[CHOICES_MAX];
    struct layouts l;
    int found = 0;
    *chosen = find_site(b, product);
    if (*chosen)
        return NB_OK;
    if (b->sites == SITES_MAX)
        return nb_fail(NB_UNSUPPORTED, "cuBLASLt: more than %d different matrices", (int)SITES_MAX);
    NB_TRY(create_layouts(b, product, &l));
    lt_status status = b->lt.heuristic(b->handle, b->operation[product->b_transposed], l.a, l.b, l.c, l.c, b->preference, CHOICES_MAX,
                                       choice, &found);
    destroy_layouts(b, &l);
    for (int i = 0; status == 0 && i < found; i++) {
        if (choice[i].state != 0 || !sums_whole_rows(b, &choice[i].algorithm) || !serves_every_m(b, *product, &choice[i].algorithm))
            continue;
        *chosen = &b->site[b->sites++];
        **chosen = {product->n, product->k, product->b_transposed, choice[i].algorithm, 0, {0, 0, 0}};
        return NB_OK;
    }
    return nb_fail(NB_UNSUPPORTED, "cuBLASLt %d has no algorithm for a product of %d columns over %d (status %d) that sums whole rows "
                                   "without workspace; own_products does without the library",
                   b->version, product->n, product->k, (int)status);
}

/* ---- multiplying ---- */

/* The algorithm of another m or other strides was not looked at when it was chosen. */
static nb_status check_site(struct nb_blaslt *b, struct site *s, const struct nb_blaslt_product *p)
{
    const int strides[3] = {p->a_stride, p->b_stride, p->c_stride};
    if (s->m_checked == p->m && memcmp(s->strides_checked, strides, sizeof strides) == 0)
        return NB_OK;
    if (!serves(b, p, &s->algorithm))
        return nb_fail(NB_UNSUPPORTED, "cuBLASLt %d: the algorithm of products of %d columns over %d does not multiply %d rows with "
                                       "strides %d, %d and %d; where its library is not to be found, nibble does without",
                       b->version, p->n, p->k, p->m, p->a_stride, p->b_stride, p->c_stride);
    s->m_checked = p->m;
    memcpy(s->strides_checked, strides, sizeof strides);
    return NB_OK;
}

nb_status nb_blaslt_multiply(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_blaslt_product *p)
{
    struct nb_blaslt *b = cuda->blaslt;
    struct site *s = NULL;
    struct layouts l;
    if (p->m == 0 || p->n == 0)
        return NB_OK;
    NB_TRY(choose(b, p, &s));
    NB_TRY(check_site(b, s, p));
    NB_TRY(create_layouts(b, p, &l));
    const float alpha = p->scale, beta = p->accumulate ? 1.0f : 0.0f;
    void *c = (void *)(uintptr_t)p->c.address;
    lt_status status = b->lt.matmul(b->handle, b->operation[p->b_transposed], &alpha, (const void *)(uintptr_t)p->b.address, l.a,
                                    (const void *)(uintptr_t)p->a.address, l.b, &beta, c, l.c, c, l.c, &s->algorithm, NULL, 0, stream);
    destroy_layouts(b, &l);
    return blaslt_status(status, "multiplying");
}

/* Runs the chosen algorithm on zeros: what it loads, it loads now. */
static nb_status run_once(struct nb_cuda *cuda, struct nb_blaslt_product *product)
{
    cudaStream_t stream = cuda->side;
    uint64_t a_bytes = nb_aligned((uint64_t)product->m * (uint64_t)product->a_stride * 2);
    uint64_t b_bytes = nb_aligned((uint64_t)(product->b_transposed ? product->n : product->k) * (uint64_t)product->b_stride * 2);
    uint64_t bytes = a_bytes + b_bytes + (uint64_t)product->m * (uint64_t)product->c_stride * 2;
    void *memory = NULL;
    NB_TRY(nb_cuda_status(cudaMalloc(&memory, bytes), "taking memory for a first product"));
    product->a.address = (uintptr_t)memory;
    product->b = nb_dptr_at(product->a, a_bytes);
    product->c = nb_dptr_at(product->b, b_bytes);
    nb_status status = nb_cuda_status(cudaMemsetAsync(memory, 0, bytes, stream), "preparing a first product");
    if (status == NB_OK)
        status = nb_blaslt_multiply(cuda, stream, product);
    if (status == NB_OK)
        status = nb_cuda_status(cudaStreamSynchronize(stream), "running a first product");
    (void)cudaFree(memory);
    return status;
}

nb_status nb_blaslt_prepare(struct nb_cuda *cuda, int n, int k, bool b_transposed, int m_planned)
{
    enum { ROWS_TO_RUN = 256 };
    const int stride_n = (n + 7) / 8 * 8, stride_k = (k + 7) / 8 * 8;
    struct nb_blaslt_product product;
    struct site *site = NULL;
    memset(&product, 0, sizeof product);
    product.m = m_planned, product.n = n, product.k = k;
    product.a_stride = stride_k, product.b_stride = b_transposed ? stride_k : stride_n, product.c_stride = stride_n;
    product.b_transposed = b_transposed;
    product.scale = 1;
    if (find_site(cuda->blaslt, &product))
        return NB_OK;
    NB_TRY(choose(cuda->blaslt, &product, &site));
    product.m = m_planned < ROWS_TO_RUN ? m_planned : ROWS_TO_RUN;
    return run_once(cuda, &product);
}
