/* Products by oneDNN: single-threaded matmul primitives, made at first use and kept, their scratchpads the caller's. */
#include <oneapi/dnnl/dnnl.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bfloat.h"
#include "base/simd.h"
#include "device/cpu/tile.h"

enum { BUCKETS = 256 };

/* What a primitive is fed with, for one thread: handles are set before each call. */
struct arguments {
    dnnl_memory_t a, b, c, scratchpad;
};

struct kernel {
    struct kernel *next;
    struct nb_product shape;
    dnnl_primitive_t primitive;
    struct arguments arguments[]; /* [threads] */
};

struct nb_products {
    int threads;
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* [threads] */
    pthread_mutex_t lock;   /* over buckets and failed */
    struct kernel *buckets[BUCKETS];
    nb_status failed;
    char message[256];
};

int nb_products_enter(void)
{
#ifdef _OPENMP
    int entered = omp_get_max_threads();
    omp_set_num_threads(1);
    return entered;
#else
    return 1;
#endif
}

void nb_products_leave(int entered)
{
#ifdef _OPENMP
    omp_set_num_threads(entered);
#else
    (void)entered;
#endif
}

bool nb_products_have_bf16(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512bf16"); /* a machine with AMX has it too */
#else
    return false;
#endif
}

const char *nb_cpu_backend_description(void)
{
#define TEXT(x)                      #x
#define VERSION(major, minor, patch) "oneDNN " TEXT(major) "." TEXT(minor) "." TEXT(patch)
    return VERSION(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH);
}

/* ---- kernels ---- */

static void kernel_destroy(struct kernel *kernel, int threads)
{
    for (int i = 0; i < threads; i++) {
        dnnl_memory_destroy(kernel->arguments[i].a);
        dnnl_memory_destroy(kernel->arguments[i].b);
        dnnl_memory_destroy(kernel->arguments[i].c);
        dnnl_memory_destroy(kernel->arguments[i].scratchpad);
    }
    dnnl_primitive_destroy(kernel->primitive);
    free(kernel);
}

static dnnl_status_t describe(
    dnnl_memory_desc_t *desc, int rows, int columns, int stride, bool transposed, enum nb_dtype dtype)
{
    dnnl_dims_t dims = {rows, columns}, strides = {transposed ? 1 : stride, transposed ? stride : 1};
    return dnnl_memory_desc_init_by_strides(desc, 2, dims, dtype == NB_DTYPE_BF16 ? dnnl_bf16 : dnnl_f32, strides);
}

/* Scratchpad mode user, the scale, and accumulation as a sum after the product. */
static dnnl_status_t set_attributes(dnnl_primitive_attr_t attributes, const struct nb_product *p)
{
    dnnl_status_t status = dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    if (status == dnnl_success && p->scale != 1.0f)
        status = dnnl_primitive_attr_set_output_scales(attributes, 1, 0, &p->scale);
    if (status != dnnl_success || !p->accumulate)
        return status;
    dnnl_post_ops_t sum;
    status = dnnl_post_ops_create(&sum);
    if (status != dnnl_success)
        return status;
    status = dnnl_post_ops_append_sum(sum, 1.0f);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_set_post_ops(attributes, sum);
    dnnl_post_ops_destroy(sum);
    return status;
}

static dnnl_status_t make_arguments(struct nb_products *products, struct kernel *kernel,
    const dnnl_memory_desc_t desc[3], const dnnl_memory_desc_t *scratchpad)
{
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < products->threads && status == dnnl_success; i++) {
        struct arguments *arguments = &kernel->arguments[i];
        status = dnnl_memory_create(&arguments->a, &desc[0], products->engine, DNNL_MEMORY_NONE);
        if (status == dnnl_success)
            status = dnnl_memory_create(&arguments->b, &desc[1], products->engine, DNNL_MEMORY_NONE);
        if (status == dnnl_success)
            status = dnnl_memory_create(&arguments->c, &desc[2], products->engine, DNNL_MEMORY_NONE);
        if (status == dnnl_success)
            status = dnnl_memory_create(&arguments->scratchpad, scratchpad, products->engine, DNNL_MEMORY_NONE);
    }
    return status;
}

/* What oneDNN may copy and keep beside a product: both operands in its own order, and c. Larger than what any of its
 * kernels asks for; make_kernel checks. */
static uint64_t library_bytes(const struct nb_product *p, uint64_t element_bytes)
{
    uint64_t m = (uint64_t)p->m + 128, n = (uint64_t)p->n + 128, k = (uint64_t)p->k + 128;
    return element_bytes * k * (m + n) + 4 * m * n + (64 << 10);
}

static dnnl_status_t make_primitive(struct nb_products *products, struct kernel *kernel)
{
    const struct nb_product *p = &kernel->shape;
    dnnl_memory_desc_t desc[3];
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_primitive_desc_t description = NULL;
    dnnl_status_t status = describe(&desc[0], p->m, p->k, p->a_stride, p->a_transposed, p->a_dtype);
    if (status == dnnl_success)
        status = describe(&desc[1], p->k, p->n, p->b_stride, p->b_transposed, p->b_dtype);
    if (status == dnnl_success)
        status = describe(&desc[2], p->m, p->n, p->c_stride, false, NB_DTYPE_F32);
    if (status == dnnl_success)
        status = dnnl_matmul_desc_init(&matmul, &desc[0], &desc[1], NULL, &desc[2]);
    if (status == dnnl_success)
        status = dnnl_primitive_attr_create(&attributes);
    if (status == dnnl_success)
        status = set_attributes(attributes, p);
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(&description, &matmul, attributes, products->engine, NULL);
    if (status == dnnl_success) {
        const dnnl_memory_desc_t *scratchpad = dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
        if (dnnl_memory_desc_get_size(scratchpad) > library_bytes(p, nb_dtype_bytes(p->a_dtype)))
            status = dnnl_unimplemented;
        else
            status = make_arguments(products, kernel, desc, scratchpad);
    }
    if (status == dnnl_success)
        status = dnnl_primitive_create(&kernel->primitive, description);
    dnnl_primitive_desc_destroy(description);
    dnnl_primitive_attr_destroy(attributes);
    return status;
}

static bool same(const struct nb_product *x, const struct nb_product *y)
{
    return x->m == y->m && x->n == y->n && x->k == y->k && x->a_stride == y->a_stride && x->b_stride == y->b_stride &&
           x->c_stride == y->c_stride && x->a_dtype == y->a_dtype && x->b_dtype == y->b_dtype &&
           x->a_transposed == y->a_transposed && x->b_transposed == y->b_transposed && x->accumulate == y->accumulate &&
           x->scale == y->scale;
}

static unsigned bucket_of(const struct nb_product *p)
{
    uint32_t words[] = {(uint32_t)p->m, (uint32_t)p->n, (uint32_t)p->k, (uint32_t)p->a_stride, (uint32_t)p->b_stride,
        (uint32_t)p->c_stride, (uint32_t)p->a_transposed + 2u * p->b_transposed + 4u * p->accumulate};
    uint32_t hash = 2166136261u;
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
        hash = (hash ^ words[i]) * 16777619u;
    return (hash >> 8) % BUCKETS;
}

/* With the lock held. NULL after a failure, which is then kept. */
static struct kernel *find_kernel(struct nb_products *products, const struct nb_product *p)
{
    struct kernel **bucket = &products->buckets[bucket_of(p)];
    for (struct kernel *kernel = *bucket; kernel; kernel = kernel->next)
        if (same(&kernel->shape, p))
            return kernel;
    struct kernel *kernel = calloc(1, sizeof *kernel + (size_t)products->threads * sizeof kernel->arguments[0]);
    dnnl_status_t status = dnnl_out_of_memory;
    if (kernel) {
        kernel->shape = *p;
        status = make_primitive(products, kernel);
    }
    if (status == dnnl_success) {
        kernel->next = *bucket;
        *bucket = kernel;
        return kernel;
    }
    if (kernel)
        kernel_destroy(kernel, products->threads);
    if (products->failed == NB_OK) {
        products->failed = status == dnnl_out_of_memory ? NB_MEMORY : NB_UNSUPPORTED;
        snprintf(products->message, sizeof products->message,
            "oneDNN made no kernel for a product of %d x %d x %d (its status %d); build with -Donednn=disabled", p->m,
            p->n, p->k, (int)status);
    }
    return NULL;
}

nb_status nb_products_create(int threads, struct nb_products **created)
{
    struct nb_products *products = calloc(1, sizeof *products);
    if (!products)
        return nb_fail(NB_MEMORY, "no memory for the matrix products");
    pthread_mutex_init(&products->lock, NULL);
    products->threads = threads;
    products->streams = calloc((size_t)threads, sizeof(dnnl_stream_t));
    dnnl_status_t status = products->streams ? dnnl_engine_create(&products->engine, dnnl_cpu, 0) : dnnl_out_of_memory;
    for (int i = 0; i < threads && status == dnnl_success; i++)
        status = dnnl_stream_create(&products->streams[i], products->engine, dnnl_stream_default_flags);
    *created = products;
    if (status == dnnl_success)
        return NB_OK;
    nb_products_destroy(created);
    return nb_fail(NB_MEMORY, "oneDNN did not start (its status %d)", (int)status);
}

void nb_products_destroy(struct nb_products **handle)
{
    struct nb_products *products = *handle;
    if (!products)
        return;
    for (int i = 0; i < BUCKETS; i++) {
        while (products->buckets[i]) {
            struct kernel *kernel = products->buckets[i];
            products->buckets[i] = kernel->next;
            kernel_destroy(kernel, products->threads);
        }
    }
    for (int i = 0; products->streams && i < products->threads; i++)
        dnnl_stream_destroy(products->streams[i]);
    free(products->streams);
    dnnl_engine_destroy(products->engine);
    pthread_mutex_destroy(&products->lock);
    free(products);
    *handle = NULL;
}

nb_status nb_products_status(struct nb_products *products)
{
    nb_status status = products->failed;
    products->failed = NB_OK;
    return status == NB_OK ? NB_OK : nb_fail(status, "%s", products->message);
}

/* ---- multiplying ---- */

/* to [rows, columns], contiguous fp32 = from [rows, columns] bf16. */
NB_CLONES static void widen(float *restrict to, const nb_bf16 *restrict from, int rows, int columns, int stride)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            to[(int64_t)i * columns + j] = nb_bf16_to_float(from[(int64_t)i * stride + j]);
}

/* Both operands are fp32, or both bf16 where the machine multiplies that. */
static bool is_direct(const struct nb_product *p, bool bf16)
{
    return p->a_dtype == p->b_dtype && (p->a_dtype == NB_DTYPE_F32 || bf16);
}

uint64_t nb_product_scratch_bytes(const struct nb_product *largest, bool bf16)
{
    uint64_t m = (uint64_t)largest->m, n = (uint64_t)largest->n, k = (uint64_t)largest->k, bytes = 0;
    bool direct = is_direct(largest, bf16);
    if (!direct && largest->a_dtype == NB_DTYPE_BF16)
        bytes += nb_aligned(m * k * 4);
    if (!direct && largest->b_dtype == NB_DTYPE_BF16)
        bytes += nb_aligned(n * k * 4);
    bytes += library_bytes(largest, direct ? nb_dtype_bytes(largest->a_dtype) : 4);
    return nb_aligned(bytes);
}

/* Widens what is bf16 into `scratch` and describes the product of the copies; returns the scratch behind them. */
static void *widen_operands(struct nb_product *p, const void **a, const void **b, void *scratch)
{
    if (p->a_dtype == NB_DTYPE_BF16) {
        int rows = p->a_transposed ? p->k : p->m, columns = p->a_transposed ? p->m : p->k;
        widen(scratch, *a, rows, columns, p->a_stride);
        *a = scratch;
        scratch = (char *)scratch + nb_aligned((uint64_t)rows * (uint64_t)columns * 4);
        p->a_stride = columns;
        p->a_dtype = NB_DTYPE_F32;
    }
    if (p->b_dtype == NB_DTYPE_BF16) {
        int rows = p->b_transposed ? p->n : p->k, columns = p->b_transposed ? p->k : p->n;
        widen(scratch, *b, rows, columns, p->b_stride);
        *b = scratch;
        scratch = (char *)scratch + nb_aligned((uint64_t)rows * (uint64_t)columns * 4);
        p->b_stride = columns;
        p->b_dtype = NB_DTYPE_F32;
    }
    return scratch;
}

void nb_product_multiply(struct nb_products *products, const struct nb_product *product, const void *a, const void *b,
    float *c, void *scratch)
{
    struct nb_product p = *product;
    int thread = nb_cpu_thread();
    if (!is_direct(&p, nb_products_have_bf16()))
        scratch = widen_operands(&p, &a, &b, scratch);
    pthread_mutex_lock(&products->lock);
    struct kernel *kernel = find_kernel(products, &p);
    pthread_mutex_unlock(&products->lock);
    if (!kernel)
        return;
    struct arguments *arguments = &kernel->arguments[thread];
    dnnl_memory_set_data_handle(arguments->a, (void *)(uintptr_t)a);
    dnnl_memory_set_data_handle(arguments->b, (void *)(uintptr_t)b);
    dnnl_memory_set_data_handle(arguments->c, c);
    dnnl_memory_set_data_handle(arguments->scratchpad, scratch);
    dnnl_exec_arg_t list[] = {{DNNL_ARG_SRC, arguments->a}, {DNNL_ARG_WEIGHTS, arguments->b},
        {DNNL_ARG_DST, arguments->c}, {DNNL_ARG_SCRATCHPAD, arguments->scratchpad}};
    dnnl_status_t status = dnnl_primitive_execute(kernel->primitive, products->streams[thread], 4, list);
    if (status == dnnl_success)
        return;
    pthread_mutex_lock(&products->lock);
    if (products->failed == NB_OK) {
        products->failed = NB_MEMORY;
        snprintf(products->message, sizeof products->message,
            "oneDNN failed in a product of %d x %d x %d (its status %d)", p.m, p.n, p.k, (int)status);
    }
    pthread_mutex_unlock(&products->lock);
}
