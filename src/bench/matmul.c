#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "bench/rig.h"
#include "device/cuda/plan.h"
#include "train/product_table.h"

enum { COPIES_MAX = 16, RANK = 16, BLOCK_OPS = 4, CHOICES_MAX = 256 };

/* Weights are taken in turn, so that caches do not serve them: copies of at least so many bytes together. */
static const uint64_t rotation_bytes = 160u << 20;

/* The four sizes of a model's seven matrices. */
struct model {
    const char *name;
    int hidden, key, intermediate;
};

static const struct model llama_8b = {"8B", 4096, 1024, 14336}, llama_70b = {"70B", 8192, 1024, 28672},
                          small = {"135M", 576, 192, 1536}, tiny = {"tiny", 64, 64, 128};

/* The ways that a product is measured. */
enum way { WAY_FUSED, WAY_SCRATCH, WAY_OVERLAPPED, WAY_BF16, WAYS };

/* A CPU has one way for 4-bit weights. */
static bool has_way(const struct nb_bench *bench, int way)
{
    return bench->cuda || way == WAY_FUSED || way == WAY_BF16;
}

static const char *way_name(const struct nb_bench *bench, int way)
{
    static const char *const names[WAYS] = {"fused", "scratch", "overlapped", "bf16"};
    return bench->cuda || way == WAY_BF16 ? names[way] : "4-bit";
}

struct matmul {
    struct nb_bench *bench;
    json_t *results;
    struct nb_product_choice fastest[CHOICES_MAX];
    int fastest_count;
};

/* ---- forcing a way ---- */

/* Every product takes `path`: one line for each matrix forward, and for each stack backward. */
struct forced {
    struct nb_product_choice choice[BLOCK_OPS * (NB_LINEAR_PARTS + 1)];
    struct nb_product_table table;
};

static void force(struct nb_bench *bench, struct forced *forced, enum nb_product_path path, const struct nb_linear *ops, int count)
{
    int n = 0;
    for (int i = 0; i < count; i++) {
        int stacked = 0;
        for (int p = 0; p < ops[i].parts; p++) {
            forced->choice[n++] = (struct nb_product_choice){ops[i].part[p].out, ops[i].in, ops[i].tokens_max, false, path};
            stacked += ops[i].part[p].out;
        }
        forced->choice[n++] = (struct nb_product_choice){stacked, ops[i].in, ops[i].tokens_max, true, path};
    }
    forced->table = (struct nb_product_table){
        .cublaslt_version = bench->device->profile.cublaslt_version, .count = n, .choice = forced->choice};
    snprintf(forced->table.device, sizeof forced->table.device, "%s", bench->device->profile.name);
    bench->device->profile.products = &forced->table;
}

/* ---- ops over rotating weights ---- */

/* One to four linear ops, forward or backward, whose weights have `copies` copies. */
struct work {
    struct nb_linear forward[BLOCK_OPS];
    struct nb_linear_backward backward[BLOCK_OPS];
    int ops, copies;
    bool runs_backward;
    struct nb_weight weight[BLOCK_OPS][NB_LINEAR_PARTS][COPIES_MAX];
};

static nb_status call_work(struct nb_bench *bench, void *context, int i)
{
    struct work *w = context;
    for (int op = 0; op < w->ops; op++) {
        for (int p = 0; p < w->forward[op].parts; p++)
            w->forward[op].part[p].weight = w->backward[op].part[p].weight = w->weight[op][p][i % w->copies];
        NB_TRY(w->runs_backward ? bench->device->linear_backward(bench->device, bench->stream, &w->backward[op])
                                : bench->device->linear(bench->device, bench->stream, &w->forward[op]));
    }
    return NB_OK;
}

static nb_status take_lora(struct nb_bench *bench, struct nb_lora *lora, int out, int in, int tokens)
{
    *lora = (struct nb_lora){.rank = RANK, .scale = 2};
    NB_TRY(nb_bench_take(bench, 2ull * RANK * (uint64_t)in, true, &lora->a));
    NB_TRY(nb_bench_take(bench, 2ull * RANK * (uint64_t)out, true, &lora->b));
    NB_TRY(nb_bench_take(bench, 2ull * RANK * (uint64_t)tokens, true, &lora->t));
    NB_TRY(nb_bench_take(bench, 4ull * RANK * (uint64_t)in, false, &lora->da));
    return nb_bench_take(bench, 4ull * RANK * (uint64_t)out, false, &lora->db);
}

/* y_i = x W_i^T with `parts` matrices [out[i], in]. */
struct op {
    int out[NB_LINEAR_PARTS], parts, in, tokens;
    bool adapter;
};

static nb_status add_op(struct nb_bench *bench, struct work *w, struct op op)
{
    int in = op.in, tokens = op.tokens, parts = op.parts;
    struct nb_linear *a = &w->forward[w->ops];
    *a = (struct nb_linear){.slot = bench->slot, .step = bench->step, .tokens_max = tokens, .in = in, .x_stride = in,
        .parts = parts, .activation = NB_DTYPE_BF16};
    NB_TRY(nb_bench_take(bench, 2 * (uint64_t)tokens * (uint64_t)in, true, &a->x));
    for (int p = 0; p < parts; p++) {
        struct nb_linear_part *part = &a->part[p];
        *part = (struct nb_linear_part){.out = op.out[p], .y_stride = op.out[p], .output_scale = 1};
        NB_TRY(nb_bench_take(bench, 2 * (uint64_t)tokens * (uint64_t)op.out[p], true, &part->y));
        if (op.adapter)
            NB_TRY(take_lora(bench, &part->lora, op.out[p], in, tokens));
    }
    struct nb_linear_backward *b = &w->backward[w->ops++];
    *b = (struct nb_linear_backward){.x = a->x, .slot = a->slot, .step = a->step, .tokens_max = tokens, .in = in,
        .x_stride = in, .dx_stride = in, .parts = parts, .activation = NB_DTYPE_BF16};
    memcpy(b->part, a->part, sizeof b->part);
    return nb_bench_take(bench, 2 * (uint64_t)tokens * (uint64_t)in, false, &b->dx);
}

static nb_status take_weights(struct nb_bench *bench, struct work *w, enum nb_weight_format format)
{
    uint64_t bytes = 0;
    for (int op = 0; op < w->ops; op++)
        for (int p = 0; p < w->forward[op].parts; p++)
            bytes += (uint64_t)w->forward[op].in * (uint64_t)w->forward[op].part[p].out * (format == NB_WEIGHT_BF16 ? 4 : 1) / 2;
    uint64_t copies = bench->options->quick ? 1 : rotation_bytes / bytes + 1;
    w->copies = copies > COPIES_MAX ? COPIES_MAX : (int)copies;
    for (int op = 0; op < w->ops; op++)
        for (int p = 0; p < w->forward[op].parts; p++)
            for (int c = 0; c < w->copies; c++)
                NB_TRY(nb_bench_weight(bench, format, w->forward[op].part[p].out, w->forward[op].in, &w->weight[op][p][c]));
    for (int op = 0; op < w->ops; op++)
        for (int p = 0; p < w->forward[op].parts; p++)
            w->forward[op].part[p].weight = w->backward[op].part[p].weight = w->weight[op][p][0];
    return NB_OK;
}

static nb_status take_scratch(struct nb_bench *bench, struct work *w)
{
    const struct nb_device_profile *profile = &bench->device->profile;
    for (int op = 0; op < w->ops; op++) {
        struct nb_scratch *f = &w->forward[op].scratch, *b = &w->backward[op].scratch;
        f->bytes = bench->device->linear_scratch_bytes(profile, &w->forward[op]);
        b->bytes = bench->device->linear_backward_scratch_bytes(profile, &w->backward[op]);
        NB_TRY(nb_bench_take(bench, f->bytes, false, &f->base));
        NB_TRY(nb_bench_take(bench, b->bytes, false, &b->base));
    }
    return NB_OK;
}

/* Seconds of the ops in one way and direction. */
static nb_status time_way(
    struct nb_bench *bench, struct work *w, enum way way, bool backward, struct nb_bench_time *time)
{
    struct forced forced;
    int mark = nb_bench_mark(bench);
    w->runs_backward = backward;
    if (way != WAY_BF16)
        force(bench, &forced, (enum nb_product_path)way, w->forward, w->ops);
    nb_status status = take_scratch(bench, w);
    if (status == NB_OK)
        status = nb_bench_set_tokens(bench, w->forward[0].tokens_max);
    if (status == NB_OK)
        status = nb_bench_time(bench, call_work, w, time);
    bench->device->profile.products = NULL;
    nb_bench_release_to(bench, mark);
    return status;
}

/* Multiply-adds of the frozen weights, twice: the adapter's own are not counted as work done. */
static double flops_of(const struct work *w)
{
    double flops = 0;
    for (int op = 0; op < w->ops; op++)
        for (int p = 0; p < w->forward[op].parts; p++)
            flops += 2.0 * w->forward[op].tokens_max * w->forward[op].in * w->forward[op].part[p].out;
    return flops;
}

/* ---- one line: all ways of one work ---- */

struct line {
    const char *model, *what;
    int tokens;
    bool backward;
    struct nb_bench_time time[WAYS];
};

static void print_line(const struct matmul *m, const struct line *line, double flops)
{
    FILE *out = m->bench->options->out;
    fprintf(out, "%-4s %-12s %6d %-8s", line->model, line->what, line->tokens, line->backward ? "backward" : "forward");
    for (int way = 0; way < WAYS; way++)
        if (has_way(m->bench, way))
            fprintf(out, "  %8.4g %4.0f%%", flops / line->time[way].median / 1e12,
                100 * line->time[WAY_BF16].median / line->time[way].median);
    fprintf(out, "\n");
    fflush(out);
}

static void record_line(struct matmul *m, const struct line *line, double flops)
{
    for (int way = 0; way < WAYS; way++) {
        const struct nb_bench_time *t = &line->time[way];
        if (!has_way(m->bench, way))
            continue;
        json_array_append_new(m->results,
            json_pack("{s:s, s:s, s:i, s:b, s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "model", line->model, "matrix", line->what, "tokens",
                line->tokens, "backward", (int)line->backward, "path", way_name(m->bench, way), "seconds", t->median, "minimum_seconds",
                t->minimum, "maximum_seconds", t->maximum, "tflops", flops / t->median / 1e12, "share_of_product_rate",
                flops / t->median / m->bench->product_flops_per_second, "share_of_bf16",
                line->time[WAY_BF16].median / t->median));
    }
}

/* A size that two ops have keeps its first line. */
static void add_choice(struct matmul *m, struct nb_product_choice choice)
{
    for (int i = 0; i < m->fastest_count; i++) {
        const struct nb_product_choice *c = &m->fastest[i];
        if (c->out == choice.out && c->in == choice.in && c->tokens == choice.tokens && c->backward == choice.backward)
            return;
    }
    if (m->fastest_count < CHOICES_MAX)
        m->fastest[m->fastest_count++] = choice;
}

static void keep_fastest(struct matmul *m, const struct line *line, const struct nb_linear *op)
{
    int best = WAY_FUSED, stacked = 0;
    for (int way = WAY_FUSED; way < WAY_BF16; way++)
        if (has_way(m->bench, way) && line->time[way].median < line->time[best].median)
            best = way;
    for (int p = 0; p < op->parts; p++) {
        stacked += op->part[p].out;
        if (!line->backward)
            add_choice(m, (struct nb_product_choice){op->part[p].out, op->in, line->tokens, false, (enum nb_product_path)best});
    }
    if (line->backward)
        add_choice(m, (struct nb_product_choice){stacked, op->in, line->tokens, true, (enum nb_product_path)best});
}

/* Matrices that share their input are one op, as in a block; each op's fastest way goes into the table. */
enum which { OP_Q_K_V, OP_O, OP_GATE_UP, OP_DOWN, OP_BLOCK, WHICH_COUNT };

static const char *const which_names[WHICH_COUNT] = {"q k v", "o", "gate up", "down", "block, r=16"};

struct subject {
    const struct model *model;
    enum which which;
};

static nb_status build(struct nb_bench *bench, const struct subject *s, int tokens, bool adapter, struct work *w)
{
    const struct model *m = s->model;
    bool all = s->which == OP_BLOCK, adapts = all && adapter;
    const struct op ops[OP_BLOCK] = {
        [OP_Q_K_V] = {{m->hidden, m->key, m->key}, 3, m->hidden, tokens, adapts},
        [OP_O] = {{m->hidden}, 1, m->hidden, tokens, adapts},
        [OP_GATE_UP] = {{m->intermediate, m->intermediate}, 2, m->hidden, tokens, adapts},
        [OP_DOWN] = {{m->hidden}, 1, m->intermediate, tokens, adapts},
    };
    *w = (struct work){0};
    for (int op = 0; op < OP_BLOCK; op++)
        if (all || (int)s->which == op)
            NB_TRY(add_op(bench, w, ops[op]));
    return NB_OK;
}

static nb_status measure_ways(struct matmul *m, const struct subject *s, struct line line[2], struct work *w)
{
    struct nb_bench *bench = m->bench;
    for (int four_bits = 0; four_bits < 2; four_bits++) {
        int mark = nb_bench_mark(bench);
        NB_TRY(build(bench, s, line->tokens, four_bits, w));
        NB_TRY(take_weights(bench, w, four_bits ? NB_WEIGHT_NF4 : NB_WEIGHT_BF16));
        for (int backward = 0; backward < 2; backward++)
            for (int way = four_bits ? WAY_FUSED : WAY_BF16; way < (four_bits ? WAY_BF16 : WAYS); way++)
                if (has_way(bench, way))
                    NB_TRY(time_way(bench, w, (enum way)way, backward, &line[backward].time[way]));
        nb_bench_release_to(bench, mark);
    }
    return NB_OK;
}

static nb_status measure_subject(struct matmul *m, const struct subject *s, int tokens)
{
    struct work *w = malloc(sizeof *w);
    if (!w)
        return nb_fail(NB_MEMORY, "no memory for a benchmark");
    struct line line[2] = {{.model = s->model->name, .what = which_names[s->which], .tokens = tokens}};
    line[1] = line[0];
    line[1].backward = true;
    nb_status status = measure_ways(m, s, line, w);
    for (int backward = 0; status == NB_OK && backward < 2; backward++) {
        double flops = flops_of(w);
        if (!m->bench->options->json)
            print_line(m, &line[backward], flops);
        record_line(m, &line[backward], flops);
        if (s->which != OP_BLOCK)
            keep_fastest(m, &line[backward], &w->forward[0]);
    }
    free(w);
    return status;
}

static nb_status measure_model(struct matmul *m, const struct model *model, const int *tokens, int count)
{
    for (int which = 0; which < WHICH_COUNT; which++)
        for (int t = 0; t < count; t++)
            NB_TRY(measure_subject(m, &(struct subject){model, (enum which)which}, tokens[t]));
    return NB_OK;
}

static nb_status write_table(const struct matmul *m)
{
    const struct nb_device_profile *profile = &m->bench->device->profile;
    struct nb_product_table table = {
        .cublaslt_version = profile->cublaslt_version, .count = m->fastest_count, .choice = m->fastest};
    snprintf(table.device, sizeof table.device, "%s", profile->name);
    char *path = nb_product_table_user_path(profile);
    if (!path)
        return nb_fail(NB_USAGE, "nibble bench matmul --write: neither XDG_CONFIG_HOME nor HOME is set");
    char *folder = nb_format("%s", path);
    *strrchr(folder, '/') = 0;
    nb_status status = nb_make_folder(folder);
    if (status == NB_OK)
        status = nb_product_table_write(path, &table);
    if (status == NB_OK)
        nb_log("wrote %s: runs on this GPU take these ways from now on", path);
    free(folder);
    free(path);
    return status;
}

static nb_status measure_all(struct matmul *m)
{
    static const int gpu_tokens[] = {1, 16, 64, 512, 2048, 4096, 8192}, cpu_tokens[] = {1, 16, 512}, quick_tokens[] = {16, 128};
    const struct nb_bench_options *o = m->bench->options;
    const int *tokens = o->tokens[0] ? o->tokens : o->quick ? quick_tokens : m->bench->cuda ? gpu_tokens : cpu_tokens;
    int count = o->tokens[0] ? 1 : o->quick ? 2 : m->bench->cuda ? 7 : 3;
    if (o->quick)
        return measure_model(m, &tiny, tokens, count);
    if (!m->bench->cuda)
        return measure_model(m, &small, tokens, count);
    NB_TRY(measure_model(m, &llama_8b, tokens, count));
    return measure_model(m, &llama_70b, tokens, count);
}

nb_status nb_bench_matmul(const struct nb_bench_options *options)
{
    struct nb_bench bench;
    struct matmul *m = calloc(1, sizeof *m);
    if (!m)
        return nb_fail(NB_MEMORY, "no memory for a benchmark");
    *m = (struct matmul){.bench = &bench, .results = json_array()};
    nb_status status = nb_bench_open(options, &bench);
    if (status == NB_OK && options->write && !bench.cuda)
        status = nb_fail(NB_USAGE, "nibble bench matmul --write: only a GPU has a choice of ways");
    if (status == NB_OK && !options->json) {
        nb_bench_print_head(&bench, "products with NF4 weights");
        fprintf(options->out, "TFLOP/s of the frozen weights' products, and the share of what bf16 weights reach\n%-4s %-12s %6s %-8s",
            "", "matrix", "tokens", "");
        for (int way = 0; way < WAYS; way++)
            if (has_way(&bench, way))
                fprintf(options->out, "  %14s", way_name(&bench, way));
        fprintf(options->out, "\n");
    }
    if (status == NB_OK)
        status = measure_all(m);
    if (status == NB_OK)
        status = nb_bench_report(&bench, "matmul", json_incref(m->results));
    if (status == NB_OK && options->write)
        status = write_table(m);
    json_decref(m->results);
    free(m);
    nb_bench_close(&bench);
    return status;
}
