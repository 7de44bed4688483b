/* The device: memory, copies, streams, events, and one function an op. The table's implementations: cpu (the readable
 * specification), cuda (the fast one) and dry (counts, for planning).
 *
 * Rules for every op
 *   - It only enqueues on `stream`: no allocation, no synchronization, no host read of device memory. The args struct is copied.
 *   - The status it returns is about the arguments alone (NB_UNSUPPORTED, naming the op and the value); what goes wrong later
 *     surfaces at the device's stream_wait.
 *   - `step` and `slot` point at a struct nb_step / nb_slot in device memory. Sizes named _max are upper bounds known to the host;
 *     the valid count stands in the slot. Rows beyond it are neither read for a result nor written, unless an op says so.
 *   - Rows may come in chunks: with row_begin (row_begin_chunk of the linear ops) row i of an op's [tokens_max, ...] buffers is token
 *     row_begin + i, or, where rows_from says so, trained row row_begin + i. A chunk may hold fewer valid rows than its buffers, or
 *     none. Chunks that begin at multiples of NB_TILE_TOKENS give the bytes that all rows at once give, sums over rows included, if
 *     they run in order.
 *   - Activations are `activation` = F32 or BF16. Arithmetic inside is fp32; a result is rounded once, where it is stored.
 *   - Strides are in elements. "may be x": the same pointer and stride may be given. Anything else does not alias.
 *   - Pointers are aligned to 16 bytes, widths are multiples of 8 unless said otherwise. */
#ifndef NB_DEVICE_DEVICE_H
#define NB_DEVICE_DEVICE_H

#include "base/status.h"
#include "device/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct nb_device;
struct nb_stream; /* work in order */
struct nb_event;  /* a point in a stream's work */
struct nb_graph;  /* recorded work that is enqueued as one */

/* ---- tokens in, tokens out ---- */

/* x[t] = table[ids[t]] * scale.    x [tokens, width] activation; table [vocabulary, width] bf16; ids [tokens] i32, in range. */
struct nb_embedding {
    nb_dptr table, ids, x, slot;
    int tokens_max, width, vocabulary;
    float scale;
    enum nb_dtype activation;
};

/* y[i] = x[rows[i]] for i < slot->trained_rows - row_begin, at most rows_max: one chunk of the trained rows.
 *   x [tokens, width]; rows [trained_rows] i32, ascending; y [rows_max, width]; activation dtype. */
struct nb_gather_rows {
    nb_dptr x, rows, y, slot;
    int row_begin, rows_max, width;
    enum nb_dtype activation;
};

/* y[rows[i]] = x[i], the reverse; other rows of y are left as they are. */
struct nb_scatter_rows {
    nb_dptr x, rows, y, slot;
    int row_begin, rows_max, width;
    enum nb_dtype activation;
};

/* ---- normalization and position ---- */

/* y = w * round(x / rms(x)), rms(x)^2 = mean(x^2) + epsilon, row by row. Source: Zhang and Sennrich 2019, arXiv 1910.07467,
 * eq. 4; the normalized row is rounded to the activation dtype before w multiplies, as in the Hugging Face Llama.
 *   x [tokens, width], y the same, may be x;  w [width] bf16;  rms [tokens] fp32: 1/rms of each row, for the backward pass.
 * Sums in 16 fixed lanes. `rows_from`: what the rows are, and which count of the slot bounds them. */
enum nb_row_count { NB_ROWS_TOKENS, NB_ROWS_TRAINED_CHUNK };
struct nb_rmsnorm {
    nb_dptr x, w, y, rms, slot;
    int tokens_max, width;
    float epsilon;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    int row_begin;
};

/* dx = (accumulate ? dx : 0) + the gradient of nb_rmsnorm with respect to x, rounded once. With n = x * rms and d = w * dy:
 * rms * (d - n * mean(d * n)). The weight is frozen. x, rms as in the forward pass; dy [tokens, width]; dx may be dy when not
 * accumulating. */
struct nb_rmsnorm_backward {
    nb_dptr x, w, rms, dy, dx, slot;
    int tokens_max, width;
    bool accumulate;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    int row_begin;
};

/* y = w * (x - mean(x)) / sqrt(variance(x) + epsilon) + b, row by row, variance the mean of the squared deviations; rounded once, at
 * the end. Source: Ba et al. 2016, arXiv 1607.06450, eq. 4.
 *   x, y, w, rows as in nb_rmsnorm;  b [width] bf16 or null;  moments [tokens, 2] fp32: mean and 1/sqrt(variance + epsilon) of each
 *   row, for the backward pass. y may be x. Sums in 16 fixed lanes; the variance from the deviations, in a second pass. */
struct nb_layernorm {
    nb_dptr x, w, b, y, moments, slot;
    int tokens_max, width;
    float epsilon;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    int row_begin;
};

/* dx = (accumulate ? dx : 0) + the gradient of nb_layernorm with respect to x, rounded once. With n = (x - mean) * scale, scale =
 * 1/sqrt(variance + epsilon), d = w * dy: scale * (d - mean(d) - n * mean(d * n)). w and b are frozen. dx may be dy when not
 * accumulating. */
struct nb_layernorm_backward {
    nb_dptr x, w, moments, dy, dx, slot;
    int tokens_max, width;
    bool accumulate;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    int row_begin;
};

/* Per head: optional RMS norm over head_dim (w bf16 [head_dim], as nb_rmsnorm, rounded as there; null w: none), then rotation of
 * the pairs (i, j = i + head_dim/2) by the angle of positions[t]: y_i = x_i cos - x_j sin, y_j = x_j cos + x_i sin, rounded
 * once. Source: Su et al. 2021, arXiv 2104.09864, eq. 34, in the half-split order of the Hugging Face Llama.
 *   x, y [tokens, heads, head_dim], row strides x_stride, y_stride; y may be x only without w;  positions [tokens] i32;
 *   cosine, sine [positions_max, head_dim/2] fp32;  rms [tokens, heads] fp32, written when w is given. */
struct nb_rope {
    nb_dptr x, y, w, rms, positions, cosine, sine, slot;
    int tokens_max, heads, head_dim, x_stride, y_stride;
    float epsilon;
    enum nb_dtype activation;
};

/* dx = the gradient of nb_rope with respect to x, rounded once: the rotation by the negative angle, and with w the gradient of the
 * norm before it, as in nb_rmsnorm_backward. dy, dx [tokens, heads, head_dim]; dx may be dy. x, w, rms: the forward pass's (x and rms
 * are read with w only). */
struct nb_rope_backward {
    nb_dptr x, w, rms, dy, dx, positions, cosine, sine, slot;
    int tokens_max, heads, head_dim, x_stride, dy_stride, dx_stride;
    enum nb_dtype activation;
};

/* ---- linear ---- */

/* A low-rank adapter on one weight: y += scale * (dropout(x) A^T) B^T.   a [rank, in], b [out, rank], in the activation dtype.
 * Source: Hu et al. 2021, arXiv 2106.09685; dropout on the branch's input as in PEFT: kept where the Philox number of
 * (step->random_step, module, slot->token_offset + token, feature) is >= dropout, and divided by (1 - dropout). The counter is
 * {feature / 4, token, random_step, low 32 bits of module}, the key seed ^ high bits of module (both words' layout: nb_dropout_keep). */
struct nb_lora {
    nb_dptr a, b;        /* null a: no adapter */
    nb_dptr t;           /* [tokens, rank] activation: dropout(x) A^T, written forward, read backward; t_stride == rank */
    nb_dptr da, db;      /* fp32, as a and b; accumulated into. Backward only */
    int rank;            /* 1 to 1024, any */
    float scale, dropout;
    uint64_t module;     /* nb_name_hash of the module's name */
};

enum { NB_LINEAR_PARTS = 3 };

/* For each part: y = (accumulate ? y : 0) + round(output_scale * (x W^T + bias + lora)), W rows [row_begin, row_begin + out).
 *   x [tokens, in], shared by the parts;  y [tokens, out], row stride y_stride;  bias [out] bf16 or null.
 * Accumulated in fp32 over `in`, adapter and bias added in fp32, rounded once; accumulate adds to y in fp32 and rounds again.
 * 4-bit weights are dequantized to bf16 (quant/matrix.h), whatever the activation. The result of a row depends on neither the
 * other rows' values nor the thread count.
 * rows_from as in nb_rmsnorm. `in` and the strides are multiples of 8 (and t_stride is rank); `out` is any (a
 * vocabulary's), and so is a 4-bit weight's rows * columns.
 * Where a library multiplies (cuBLASLt, on the device's own choice of path), it adds x W^T to the rest, which is rounded for
 * itself before, and leaves anything in rows of y beyond the valid ones, up to tokens_max. */
struct nb_linear_part {
    struct nb_weight weight;
    int row_begin, out;
    nb_dptr bias, y;
    int y_stride;
    bool accumulate;
    float output_scale; /* 1 unless the family scales */
    struct nb_lora lora;
};
struct nb_linear {
    nb_dptr x, step, slot;
    int tokens_max, in, x_stride, parts;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    int row_begin_chunk;
    nb_dptr rows; /* i32 [trained rows]: which token each is, for dropout's counters. Null: row i is token row_begin_chunk + i */
    int site_tokens; /* what tokens_max is before a caller cuts its tokens into chunks: the choice of the way to multiply goes by it, so
                        that no chunk takes another way (0: tokens_max) */
    struct nb_linear_part part[NB_LINEAR_PARTS];
    struct nb_scratch scratch;
};

/* Backward of nb_linear, the weights frozen:
 *   u = round(output_scale * scale * dy B)
 *   dx = (accumulate_dx ? dx : 0) + round(sum over parts of output_scale * dy W + mask(u A))
 *   da += u^T dropout(x);  db += output_scale * scale * dy^T t     (sums over tokens in tiles of NB_TILE_TOKENS, in order)
 * dropout's factor 1 / (1 - dropout) multiplies the fp32 sums, here and in t. A library adds part after part to dx, rounding each time, and
 * leaves anything in its rows beyond the valid ones.
 * part[i].y is dy here (read), stride y_stride. dx [tokens, in], null when not wanted; may not be x. */
struct nb_linear_backward {
    nb_dptr x, dx, step, slot;
    int tokens_max, in, x_stride, dx_stride, parts;
    bool accumulate_dx;
    enum nb_dtype activation;
    enum nb_row_count rows_from;
    int row_begin_chunk;
    nb_dptr rows; /* i32 [trained rows]: which token each is, for dropout's counters. Null: row i is token row_begin_chunk + i */
    int site_tokens; /* as in nb_linear */
    struct nb_linear_part part[NB_LINEAR_PARTS];
    struct nb_scratch scratch;
};

/* ---- attention ---- */

/* o = softmax(soft_cap(scale * q k^T) + mask) v, sequence by sequence of one unpadded token buffer; softmax in fp32.
 * Query i of a sequence with n queries and m keys stands at position m - n + i; key j is visible if j <= position (causal) and
 * position - j < window (0: no window). soft_cap(s) = cap * tanh(s / cap), 0: none. Head h reads kv head h / (heads / kv_heads).
 *   q, o [query tokens, heads, head_dim];  k, v [key tokens, kv_heads, head_dim];  row strides q_stride, ...
 *   query_starts, key_starts [sequences + 1] i32 (cu_seqlens; the same pointer without a KV cache)
 *   lse [heads, tokens_max] fp32: log of the sum of exponentials, natural, for the backward pass; may be null
 * head_dim: a multiple of 8 up to 256. longest_max bounds a sequence's keys. Nothing of size longest x longest is kept. */
struct nb_attention {
    nb_dptr q, k, v, o, lse, query_starts, key_starts, slot;
    int tokens_max, key_tokens_max, sequences_max, longest_max;
    int heads, kv_heads, head_dim, q_stride, k_stride, v_stride, o_stride;
    int window;
    float scale, soft_cap;
    enum nb_dtype activation;
    struct nb_scratch scratch;
};

/* dq, dk, dv from d_o, given the forward pass's q, k, v, o, lse; d_o has the layout of o. dq, dk, dv have the layouts of q, k, v
 * (own strides), are overwritten and alias nothing. Source: Dao et al. 2022, arXiv 2205.14135, appendix B. Deterministic. */
struct nb_attention_backward {
    nb_dptr q, k, v, o, lse, d_o, dq, dk, dv, query_starts, key_starts, slot;
    int tokens_max, key_tokens_max, sequences_max, longest_max;
    int heads, kv_heads, head_dim, q_stride, k_stride, v_stride, o_stride, d_o_stride, dq_stride, dk_stride, dv_stride;
    int window;
    float scale, soft_cap;
    enum nb_dtype activation;
    struct nb_scratch scratch;
};

/* Copies the new tokens' k and v rows to the cache at rows slot->cache_tokens ...    k, v [tokens, width] strides k_stride,
 * v_stride;  k_cache, v_cache [capacity, width] contiguous. One sequence. */
struct nb_kv_append {
    nb_dptr k, v, k_cache, v_cache, slot;
    int tokens_max, width, k_stride, v_stride, capacity;
    enum nb_dtype activation;
};

/* ---- element by element ---- */

/* y = silu(gate) * up, silu(g) = g / (1 + exp(-g)); silu rounded to the activation dtype before the product, as the reference
 * does. All [tokens, width] contiguous; y may be gate or up. Source: Shazeer 2020, arXiv 2002.05202. */
struct nb_swiglu {
    nb_dptr gate, up, y, slot;
    int tokens_max, width, row_begin;
    enum nb_dtype activation;
};

/* With s = 1 / (1 + exp(-gate)): d_up = dy * round(silu(gate)), d_gate = dy * up * s * (1 + gate * (1 - s)).
 * d_gate may be gate, d_up may be up. */
struct nb_swiglu_backward {
    nb_dptr gate, up, dy, d_gate, d_up, slot;
    int tokens_max, width, row_begin;
    enum nb_dtype activation;
};

/* y = gelu(gate) * up with the tanh form, gelu(g) = g/2 * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g^3))), rounded to the activation dtype
 * before the product. Layout and aliasing as in nb_swiglu. Source: Shazeer 2020, and Hendrycks and Gimpel 2016, arXiv 1606.08415. */
struct nb_geglu {
    nb_dptr gate, up, y, slot;
    int tokens_max, width, row_begin;
    enum nb_dtype activation;
};

/* d_up = dy * round(gelu(gate)), d_gate = dy * up * gelu'(gate), gelu' the derivative of the tanh form. d_gate may be gate, d_up may
 * be up. */
struct nb_geglu_backward {
    nb_dptr gate, up, dy, d_gate, d_up, slot;
    int tokens_max, width, row_begin;
    enum nb_dtype activation;
};

/* y = a + b, rounded once. [tokens, width]; y may be a or b. */
struct nb_add {
    nb_dptr a, b, y, slot;
    int tokens_max, width, row_begin;
    enum nb_dtype activation;
};

/* ---- loss ---- */

/* For each row of a chunk of logits: loss[row_begin + i] = logsumexp(logits[i]) - logits[i][labels[row_begin + i]], fp32; and, if
 * `gradient`, logits[i] = softmax(logits[i]) - onehot(label), in place. Not divided by any count.
 *   logits [rows_max, vocabulary], row stride logits_stride, activation dtype; labels [trained rows] i32; loss [trained rows] fp32.
 * Rows: trained rows row_begin .. row_begin + rows_max that exist. vocabulary is any; logits_stride a multiple of 8. */
struct nb_cross_entropy {
    nb_dptr logits, labels, loss, slot;
    int row_begin, rows_max, vocabulary, logits_stride;
    bool gradient;
    enum nb_dtype activation;
};

/* step->loss_sum += sum of loss[0 .. slot->trained_rows), in double, partial sums of NB_TILE_TOKENS rows added in order. */
struct nb_loss_sum {
    nb_dptr loss, step, slot;
    int rows_max;
};

/* ---- optimizer ---- */

/* partial[i] = sum of squares of gradient[i * 256 .. (i + 1) * 256), in 16 fixed lanes, fp32; count a multiple of 256. */
struct nb_square_sum {
    nb_dptr gradient, partial;
    uint64_t count;
};

/* Reads partial[0 .. count), adds in order in double, and sets step->gradient_norm, clip_scale and finite. */
struct nb_clip_scale {
    nb_dptr partial, step;
    uint64_t count;
};

/* One registered tensor's AdamW update (numerics.md's order; quant/adamw.h is the arithmetic), g = gradient * inverse_count *
 * clip_scale; then copy = round(master). Does nothing if step->finite is 0. The gradient is zeroed either way.
 *   master, gradient fp32 [count]; copy [count] in copy_dtype (F32 or BF16), may not alias master
 *   moments fp32: m, v fp32 [count].   8-bit: m, v U8 codes [count]; m_absmax, v_absmax fp32 [ceil(count / 256)]; m_map, v_map
 *   fp32 [256]: exactly nb_dynamic_map's, signed and unsigned, so a device may use tables of its own instead. */
struct nb_adamw {
    nb_dptr master, gradient, copy, m, v, m_absmax, v_absmax, m_map, v_map, step;
    uint64_t count;
    double beta1, beta2, epsilon, weight_decay; /* doubles: 1 - 0.999f is off by 1e-5 of itself */
    bool moments_8bit;
    enum nb_dtype copy_dtype;
};

/* y[i] = x[i] in another dtype (F32 to BF16 or F32, BF16 to F32). */
struct nb_cast {
    nb_dptr x, y;
    enum nb_dtype from, to;
    uint64_t count;
};

/* ---- weights ---- */

/* Quantizes w [rows, columns] bf16 into the parts of `to` (format NF4 or FP4, nested or not; quant/matrix.h), maps and offset
 * included. count of weights is any. A weight that is not finite is NB_FORMAT at stream_wait. */
struct nb_quantize {
    nb_dptr w;
    struct nb_weight to;
    struct nb_scratch scratch; /* nested: the scales before they are quantized */
};

/* w [rows, columns] bf16 = the matrix dequantized. */
struct nb_dequantize {
    struct nb_weight from;
    nb_dptr w;
};

/* ---- generation ---- */

/* next[0] = the id chosen from logits [vocabulary] (one row). temperature 0: the largest, the lowest id on a tie. Otherwise from
 * softmax(logits / temperature) among the top_k largest (0: all) and, of these, the smallest set whose share reaches top_p (1: all),
 * larger logits first, lower ids first on a tie. The chosen set is walked by rising id until the running probability, in double,
 * exceeds uniform * total; uniform: nb_random_uniform(seed, NB_RANDOM_SAMPLE, 0, slot->sample_index).
 * -1 where a logit is NaN or plus infinity: there is nothing to choose by. */
struct nb_sample {
    nb_dptr logits, next, slot;
    int vocabulary, top_k;
    float temperature, top_p;
    uint64_t seed;
    enum nb_dtype activation;
    struct nb_scratch scratch;
};

/* Every op, in the order of this header. One line an op: the table, the dry device, the check functions and the tests' coverage
 * list come from it. */
#define NB_OPS(OP)                                                                                                          \
    OP(embedding) OP(gather_rows) OP(scatter_rows) OP(rmsnorm) OP(rmsnorm_backward) OP(layernorm) OP(layernorm_backward)    \
    OP(rope) OP(rope_backward) OP(linear) OP(linear_backward) OP(attention) OP(attention_backward) OP(kv_append)            \
    OP(swiglu) OP(swiglu_backward) OP(geglu) OP(geglu_backward) OP(add) OP(cross_entropy) OP(loss_sum) OP(square_sum)       \
    OP(clip_scale) OP(adamw) OP(cast) OP(quantize) OP(dequantize) OP(sample)

/* What host_take gives where copies from page-locked memory run faster, and beside the device's work. */
enum nb_host_memory {
    NB_HOST_PINNED,            /* page-locked, or NB_MEMORY */
    NB_HOST_PINNED_IF_GRANTED, /* pageable from the first refusal on, which is warned of: then this is NB_HOST_PAGEABLE */
    NB_HOST_PAGEABLE,
};

/* The table. An op that is NULL is unsupported there and reported before a run starts (nb_device_require_all). */
struct nb_device {
    struct nb_device_profile profile;
    bool dry; /* owns no memory and runs nothing: what host_take gave is not to be touched, what downloads would bring does not come */

    /* Slabs: taken once, at set-up. 256-byte aligned, contents undefined. Errors: NB_MEMORY. */
    nb_status (*memory_take)(struct nb_device *, uint64_t bytes, nb_dptr *);
    void (*memory_give_back)(struct nb_device *, nb_dptr);
    /* Host memory that copies can reach, of the kind that host_memory says where kinds differ; the owner may set that between calls. */
    enum nb_host_memory host_memory;
    nb_status (*host_take)(struct nb_device *, uint64_t bytes, void **);
    void (*host_give_back)(struct nb_device *, void *);

    nb_status (*stream_create)(struct nb_device *, struct nb_stream **);
    void (*stream_destroy)(struct nb_device *, struct nb_stream **); /* waits first */
    nb_status (*event_create)(struct nb_device *, struct nb_event **);
    void (*event_destroy)(struct nb_device *, struct nb_event **);
    nb_status (*event_record)(struct nb_device *, struct nb_stream *, struct nb_event *);
    nb_status (*stream_wait_event)(struct nb_device *, struct nb_stream *, struct nb_event *); /* the stream waits, the host goes on */
    nb_status (*stream_wait)(struct nb_device *, struct nb_stream *); /* the host waits; errors of enqueued work surface here */

    /* Enqueued copies. Host memory stays untouched by the host until the stream has passed them. */
    nb_status (*upload)(struct nb_device *, struct nb_stream *, nb_dptr to, const void *from, uint64_t bytes);
    nb_status (*download)(struct nb_device *, struct nb_stream *, void *to, nb_dptr from, uint64_t bytes);
    nb_status (*copy)(struct nb_device *, struct nb_stream *, nb_dptr to, nb_dptr from, uint64_t bytes);
    nb_status (*fill_zero)(struct nb_device *, struct nb_stream *, nb_dptr to, uint64_t bytes);

    /* Before the arena is taken: loads every kernel, and chooses and runs once each library's algorithm for these products (what the dry
     * device saw: nb_dry_device_sites), so that no memory is taken behind the plan's back later. NULL where there is nothing to do. */
    nb_status (*prepare)(struct nb_device *, const struct nb_product_site *sites, int count);
    /* Bytes that memory_take should be asked for at most: what is free, less the driver's own needs to come, for graphs. NULL on a
     * CPU: profile.memory_bytes. */
    nb_status (*memory_available)(struct nb_device *, uint64_t *bytes);

    /* What is enqueued on `stream` between begin and end is recorded, not run; launch enqueues all of it, to read and write the same
     * addresses. Between begin and end nothing may be waited for, and an event counts only if it was recorded between them. A graph
     * that launches wait for must outlive them. All NULL where a device has no graphs. */
    nb_status (*graph_begin)(struct nb_device *, struct nb_stream *);
    nb_status (*graph_end)(struct nb_device *, struct nb_stream *, struct nb_graph **);
    nb_status (*graph_launch)(struct nb_device *, struct nb_stream *, struct nb_graph *);
    void (*graph_destroy)(struct nb_device *, struct nb_graph **);

    /* A dry device's: what follows counts so many times, until the next call. NULL on others. */
    void (*repeat)(struct nb_device *, int times);

    /* The ops, and what scratch each asks for with these args: plain C, reads shapes and the profile alone, callable without the
     * device. Pointers in the args may be null there. */
#define NB_OP_ENTRY(name)                                                                \
    nb_status (*name)(struct nb_device *, struct nb_stream *, const struct nb_##name *); \
    uint64_t (*name##_scratch_bytes)(const struct nb_device_profile *, const struct nb_##name *);
    NB_OPS(NB_OP_ENTRY)
#undef NB_OP_ENTRY

    void (*destroy)(struct nb_device *);
};

/* Destroys whatever kind of device it is, and nulls the handle. Takes NULL. */
void nb_device_destroy(struct nb_device **device);

/* NB_UNSUPPORTED, naming device and op, if an op of the table is NULL. */
nb_status nb_device_require_all(const struct nb_device *device);

/* Checks shapes, dtypes and alignment of each op's args, the same for all devices (src/device/check.c): nb_check_rmsnorm, ... */
#define NB_OP_CHECK(name) nb_status nb_check_##name(const struct nb_##name *args);
NB_OPS(NB_OP_CHECK)
#undef NB_OP_CHECK

/* Options of the CPU device. */
struct nb_cpu_options {
    int threads;            /* 0: all */
    bool deferred;          /* tests: work runs only when waited for, streams interleaved by `seed`, and device memory is unreadable
                               outside of ops and copies: a forgotten event or a host dereference shows */
    uint64_t deferred_seed;
};

/* Destroy with nb_device_destroy. Errors: NB_MEMORY. */
nb_status nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device);

/* The profile nb_cpu_device_create would have. */
void nb_cpu_profile(const struct nb_cpu_options *options, struct nb_device_profile *profile);

/* Whose matrix products it uses: "oneDNN 2.6.3" or "own loops". */
const char *nb_cpu_backend_description(void);

/* An nb_arena_mark for an arena over this device's memory (not deferred), for checked builds: fresh memory is NaN, released memory
 * NaN and unreadable under the address sanitizer. Call it once for the whole slab, unusable, before the arena. */
void nb_cpu_memory_mark(void *context, uint64_t address, uint64_t bytes, bool usable);

/* What a device does at once, one thing at a time each. */
enum nb_dry_engine { NB_DRY_COMPUTE, NB_DRY_UPLOAD, NB_DRY_DOWNLOAD, NB_DRY_ENGINES };

/* What the dry device counted. */
struct nb_dry_counts {
    uint64_t memory_bytes, host_bytes; /* taken now */
    uint64_t host_bytes_max;           /* taken at once, at most */
    uint64_t ops;
    double flops;                      /* of the linear and attention ops */
    uint64_t uploaded_bytes, downloaded_bytes;
    double seconds;                    /* no less than this the target would have taken until the last wait (dry/dry.c) */
    double busy[NB_DRY_ENGINES];       /* seconds that an engine works, waits apart */
};

/* A device of `target`'s kind that owns no memory and runs nothing: addresses are invented, ops are checked (nb_check_*) and
 * counted, scratch_bytes is the target kind's. Uploads and downloads touch no host memory. Destroy with nb_device_destroy. Errors:
 * NB_MEMORY. */
nb_status nb_dry_device_create(const struct nb_device_profile *target, struct nb_device **device);

/* `device` is a dry one. Valid while it is. */
const struct nb_dry_counts *nb_dry_device_counts(const struct nb_device *device);

/* The different matrix products that a dry device of a CUDA target saw, in the order of their first call; *count of them. Valid while the
 * device is, until its next op. */
const struct nb_product_site *nb_dry_device_sites(const struct nb_device *device, int *count);

#ifdef __cplusplus
}
#endif

#endif
