#include "bench/rig.h"

enum { HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, QUERY = HEADS * HEAD_DIM, KEY = KV_HEADS * HEAD_DIM };

struct attention {
    struct nb_attention forward;
    struct nb_attention_backward backward;
};

static nb_status call_forward(struct nb_bench *bench, void *context, int i)
{
    const struct attention *attention = context;
    (void)i;
    return bench->device->attention(bench->device, bench->stream, &attention->forward);
}

static nb_status call_backward(struct nb_bench *bench, void *context, int i)
{
    const struct attention *attention = context;
    (void)i;
    return bench->device->attention_backward(bench->device, bench->stream, &attention->backward);
}

static nb_status take_buffers(struct nb_bench *bench, int tokens, struct nb_attention_backward *a)
{
    uint64_t query = 2 * (uint64_t)tokens * QUERY, key = 2 * (uint64_t)tokens * KEY;
    nb_dptr *const queries[] = {&a->q, &a->o, &a->d_o, &a->dq}, *const keys[] = {&a->k, &a->v, &a->dk, &a->dv};
    const int32_t starts[2] = {0, tokens};
    for (int i = 0; i < 4; i++) {
        NB_TRY(nb_bench_take(bench, query, true, queries[i]));
        NB_TRY(nb_bench_take(bench, key, true, keys[i]));
    }
    NB_TRY(nb_bench_take(bench, (uint64_t)tokens * HEADS * sizeof(float), false, &a->lse));
    NB_TRY(nb_bench_take(bench, sizeof starts, false, &a->query_starts));
    NB_TRY(bench->device->upload(bench->device, bench->stream, a->query_starts, starts, sizeof starts));
    a->key_starts = a->query_starts;
    a->slot = bench->slot;
    return nb_bench_set_tokens(bench, tokens);
}

static nb_status prepare(struct nb_bench *bench, int tokens, struct attention *attention)
{
    struct nb_device *device = bench->device;
    struct nb_attention_backward *b = &attention->backward;
    *attention = (struct attention){0};
    NB_TRY(take_buffers(bench, tokens, b));
    b->tokens_max = b->key_tokens_max = b->longest_max = tokens;
    b->sequences_max = 1;
    b->heads = HEADS;
    b->kv_heads = KV_HEADS;
    b->head_dim = HEAD_DIM;
    b->q_stride = b->o_stride = b->d_o_stride = b->dq_stride = QUERY;
    b->k_stride = b->v_stride = b->dk_stride = b->dv_stride = KEY;
    b->scale = 0.08838834764f; /* 1 / sqrt(128) */
    b->activation = NB_DTYPE_BF16;
    struct nb_attention *f = &attention->forward;
    *f = (struct nb_attention){
        .q = b->q, .k = b->k, .v = b->v, .o = b->o, .lse = b->lse,
        .query_starts = b->query_starts, .key_starts = b->key_starts, .slot = b->slot,
        .tokens_max = tokens, .key_tokens_max = tokens, .sequences_max = 1, .longest_max = tokens,
        .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM,
        .q_stride = QUERY, .k_stride = KEY, .v_stride = KEY, .o_stride = QUERY,
        .scale = b->scale, .activation = NB_DTYPE_BF16,
    };
    f->scratch.bytes = device->attention_scratch_bytes(&device->profile, f);
    b->scratch.bytes = device->attention_backward_scratch_bytes(&device->profile, b);
    NB_TRY(nb_bench_take(bench, f->scratch.bytes, false, &f->scratch.base));
    return nb_bench_take(bench, b->scratch.bytes, false, &b->scratch.base);
}

static nb_status measure(struct nb_bench *bench, int tokens, json_t *results)
{
    struct attention attention;
    struct nb_bench_time forward, backward;
    int mark = nb_bench_mark(bench);
    NB_TRY(prepare(bench, tokens, &attention));
    NB_TRY(nb_bench_time(bench, call_forward, &attention, &forward));
    NB_TRY(nb_bench_time(bench, call_backward, &attention, &backward));
    nb_bench_release_to(bench, mark);
    double flops = 4.0 * HEADS * HEAD_DIM * tokens * (tokens / 2.0);
    double rate = flops / forward.median / 1e12, back_rate = 2.5 * flops / backward.median / 1e12;
    double limit = bench->product_flops_per_second / 1e12;
    if (!bench->options->json)
        fprintf(bench->options->out, "%8d tokens  forward %9.3f ms %8.4g TFLOP/s %5.1f %%   backward %9.3f ms %8.4g TFLOP/s %5.1f %%\n",
            tokens, 1e3 * forward.median, rate, 100 * rate / limit, 1e3 * backward.median, back_rate, 100 * back_rate / limit);
    json_array_append_new(results,
        json_pack("{s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "tokens", tokens, "forward_seconds", forward.median, "forward_spread",
            forward.maximum - forward.minimum, "forward_tflops", rate, "backward_seconds", backward.median, "backward_spread",
            backward.maximum - backward.minimum, "backward_tflops", back_rate));
    return NB_OK;
}

nb_status nb_bench_attention(const struct nb_bench_options *options)
{
    static const int lengths[] = {2048, 8192, 32768}, quick[] = {128}, cpu[] = {512, 2048};
    struct nb_bench bench;
    json_t *results = json_array();
    nb_status status = nb_bench_open(options, &bench);
    const int *length = options->tokens[0] ? options->tokens : options->quick ? quick : bench.cuda ? lengths : cpu;
    int count = options->tokens[0] || options->quick ? 1 : bench.cuda ? 3 : 2;
    if (status == NB_OK && !options->json)
        nb_bench_print_head(&bench, "attention, causal, 32 query and 8 key heads of 128");
    for (int i = 0; status == NB_OK && i < count; i++)
        status = measure(&bench, length[i], results);
    if (status == NB_OK)
        status = nb_bench_report(&bench, "attention", json_incref(results));
    json_decref(results);
    nb_bench_close(&bench);
    return status;
}
