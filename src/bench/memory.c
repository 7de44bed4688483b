/* What each megabyte costs in time: real steps under a ladder of settings and row lengths. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/shipped.h"
#include "bench/memory_picture.h"
#include "bench/steps.h"
#include "checkpoint/checkpoint.h"

enum { RUNS_MAX = 256, MODELS_MAX = 2, RUNG_SETTINGS_MAX = 3, ACCUMULATION = 2 };

static const double mebibyte = 1024.0 * 1024.0;

/* What a rung asks of the run, beside memory. */
enum needs { ANYTHING, OWN_EMBEDDING, MICRO_BATCHES, A_GPU, WEIGHTS };

/* From most memory to least: each rung keeps what those above it set. A value in capitals is filled in: the kind of moments, a quarter of
 * a row in whole tiles, a folder. */
static const struct rung {
    const char *name;
    const char *setting[RUNG_SETTINGS_MAX + 1];
    enum needs needs;
} ladder[] = {
    {"resident", {"gradient_checkpointing=false", "optimizer=OPTIMIZER"}, ANYTHING},
    {"attention kept", {"gradient_checkpointing=attention"}, ANYTHING},
    {"recomputed", {"gradient_checkpointing=true"}, ANYTHING},
    {"+ paged", {"optimizer=PAGED", "resident_optimizer_bytes=0"}, ANYTHING},
    {"+ offloaded", {"activation_offloading=true"}, ANYTHING},
    {"+ host embedding", {"embedding_device=host"}, OWN_EMBEDDING},
    {"+ MLP in chunks", {"mlp_chunk_tokens=CHUNK"}, ANYTHING},
    {"+ streamed", {"resident_layers=0"}, ANYTHING},
    {"+ layer-major", {"accumulation_order=layer_major"}, MICRO_BATCHES},
    {"+ not pinned", {"pinned=false"}, A_GPU},
    {"+ from its file", {"pinned=auto", "weights_from=file", "quantized_cache=FOLDER"}, WEIGHTS},
};
enum { RUNGS = sizeof ladder / sizeof *ladder };

/* Under the first rung: nothing is left to nibble. */
static const char *const floor_settings[] = {"activation_offloading=false", "embedding_device=device", "mlp_chunk_tokens=0",
    "resident_layers=65536", "weights_from=host", "accumulation_order=batch_major"};
enum { FLOOR_SETTINGS = sizeof floor_settings / sizeof *floor_settings };

struct run {
    int model, rung;
    struct nb_bench_steps steps;
};

struct memory {
    const char *model[MODELS_MAX]; /* paths */
    int models;
    int length[NB_BENCH_LENGTHS_MAX]; /* ended by 0 */
    bool moments_8bit;                /* what a config says */
    int accumulation;                 /* the same; 0: without one */
    char *folder;                     /* for the quantized form of models with weights */
    bool cuda;
    struct run run[RUNS_MAX];
    int runs;
};

/* ---- what is printed and written ---- */

/* "llama-3-8b.json" of its path. */
static const char *model_name(const struct memory *m, int model)
{
    const char *slash = strrchr(m->model[model], '/');
    return slash && slash[1] ? slash + 1 : m->model[model];
}

static double rate(const struct nb_bench_steps *s)
{
    return s->tokens_a_step / s->seconds;
}

static void print_run(FILE *out, const struct run *r)
{
    const struct nb_bench_steps *s = &r->steps;
    fprintf(out, "%8d  %-16s %10.1f %10.1f %10.1f %10.1f %10.1f  %9.1f\n", s->tokens, ladder[r->rung].name,
        (double)s->planned_bytes / mebibyte, (double)s->high_water_bytes / mebibyte, (double)s->taken_bytes / mebibyte,
        (double)s->pinned_bytes / mebibyte, (double)s->host_peak_bytes / mebibyte, rate(s));
    fflush(out);
}

static json_t *run_json(const struct memory *m, const struct run *r)
{
    const struct nb_bench_steps *s = &r->steps;
    return json_pack("{s:s, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "model", model_name(m, r->model), "tokens", s->tokens,
        "settings", ladder[r->rung].name, "planned_bytes", (json_int_t)s->planned_bytes, "peak_bytes", (json_int_t)s->high_water_bytes,
        "driver_bytes", (json_int_t)s->taken_bytes, "pinned_bytes", (json_int_t)s->pinned_bytes, "host_peak_bytes",
        (json_int_t)s->host_peak_bytes, "tokens_per_second", rate(s), "loss", s->loss);
}

static nb_status write_csv(const struct memory *m, const char *path)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return nb_fail_errno("%s", path);
    fputs("model,tokens,settings,planned_bytes,peak_bytes,driver_bytes,pinned_bytes,host_peak_bytes,tokens_per_second\n", out);
    for (int i = 0; i < m->runs; i++) {
        const struct run *r = &m->run[i];
        const struct nb_bench_steps *s = &r->steps;
        fprintf(out, "%s,%d,%s,%llu,%llu,%llu,%llu,%llu,%.1f\n", model_name(m, r->model), s->tokens, ladder[r->rung].name,
            (unsigned long long)s->planned_bytes, (unsigned long long)s->high_water_bytes, (unsigned long long)s->taken_bytes,
            (unsigned long long)s->pinned_bytes, (unsigned long long)s->host_peak_bytes, rate(s));
    }
    nb_status status = fclose(out) == 0 ? nb_file_write(path, text, bytes) : nb_fail_errno("%s", path);
    free(text);
    return status;
}

static nb_status draw(const struct memory *m, const char *device, const char *path)
{
    struct nb_picture_point point[RUNS_MAX];
    for (int i = 0; i < m->runs; i++) {
        const struct run *r = &m->run[i];
        point[i] = (struct nb_picture_point){.model = model_name(m, r->model),
            .setting = ladder[r->rung].name,
            .line = r->rung,
            .tokens = r->steps.tokens,
            .bytes = (double)r->steps.high_water_bytes,
            .tokens_per_second = rate(&r->steps)};
    }
    char *title = nb_format("Memory and speed of training steps on %s", device);
    nb_status status = nb_picture_write(title, point, m->runs, path);
    free(title);
    return status;
}

/* ---- the runs ---- */

/* Settings that save memory alone change no bit: what they would change is a defect, and the benchmark says so. */
static nb_status check_loss(const struct memory *m)
{
    const struct run *last = &m->run[m->runs - 1];
    for (int i = 0; i < m->runs; i++) {
        const struct run *r = &m->run[i];
        bool same = r->model == last->model && r->steps.tokens == last->steps.tokens;
        if (same && memcmp(&r->steps.loss, &last->steps.loss, sizeof r->steps.loss) != 0)
            return nb_fail(NB_NUMERIC, "%d tokens: the loss with \"%s\" is %.9g, with \"%s\" %.9g: this is a defect of nibble",
                r->steps.tokens, ladder[last->rung].name, last->steps.loss, ladder[r->rung].name, r->steps.loss);
    }
    return NB_OK;
}

/* The caller frees it. */
static char *filled_in(const struct memory *m, const char *setting, int tokens)
{
    int chunk = tokens / 4 / NB_TILE_TOKENS * NB_TILE_TOKENS, key = (int)(strchr(setting, '=') - setting);
    const char *value = setting + key + 1;
    if (strcmp(value, "OPTIMIZER") == 0)
        return nb_format("%.*s=%s", key, setting, m->moments_8bit ? "adamw_8bit" : "adamw_torch");
    if (strcmp(value, "PAGED") == 0)
        return nb_format("%.*s=%s", key, setting, m->moments_8bit ? "paged_adamw_8bit" : "paged_adamw_32bit");
    if (strcmp(value, "CHUNK") == 0)
        return nb_format("%.*s=%d", key, setting, chunk ? chunk : NB_TILE_TOKENS);
    if (strcmp(value, "FOLDER") == 0)
        return nb_format("%.*s=\"%s\"", key, setting, m->folder);
    return nb_format("%s", setting);
}

/* The caller frees each. */
static int list_settings(const struct memory *m, int rung, int tokens, bool possible[RUNGS], char *settings[NB_BENCH_SETTINGS_MAX])
{
    int count = 0;
    for (int i = 0; i < FLOOR_SETTINGS; i++)
        settings[count++] = nb_format("%s", floor_settings[i]);
    if (!m->accumulation)
        settings[count++] = nb_format("gradient_accumulation_steps=%d", ACCUMULATION);
    for (int r = 0; r <= rung; r++)
        for (const char *const *s = ladder[r].setting; possible[r] && *s; s++)
            settings[count++] = filled_in(m, *s, tokens);
    return count;
}

/* Which rungs a model can take. */
static nb_status choose_rungs(const struct memory *m, int model, bool possible[RUNGS])
{
    struct nb_checkpoint *checkpoint = NULL;
    NB_TRY(nb_checkpoint_open(m->model[model], &checkpoint));
    for (int r = 0; r < RUNGS; r++)
        switch (ladder[r].needs) {
        case ANYTHING: possible[r] = true; break;
        case OWN_EMBEDDING: possible[r] = !nb_checkpoint_config(checkpoint)->tied; break;
        case MICRO_BATCHES: possible[r] = m->accumulation != 1; break;
        case A_GPU: possible[r] = m->cuda; break;
        case WEIGHTS: possible[r] = nb_checkpoint_has_weights(checkpoint); break;
        }
    nb_checkpoint_close(&checkpoint);
    return NB_OK;
}

/* run->model and rung say what. */
static nb_status measure(const struct nb_bench_options *o, const struct memory *m, int tokens, bool possible[RUNGS], struct run *run)
{
    struct nb_bench_options one = *o;
    char *settings[NB_BENCH_SETTINGS_MAX];
    one.model = m->model[run->model];
    int count = list_settings(m, run->rung, tokens, possible, settings);
    struct nb_bench_steps_args args = {.tokens = tokens, .settings = (const char *const *)settings, .setting_count = count};
    nb_status status = nb_bench_run_steps(&one, &args, &run->steps);
    for (int i = 0; i < count; i++)
        free(settings[i]);
    return status;
}

static nb_status climb(const struct nb_bench_options *o, int model, int tokens, struct memory *m, json_t *results)
{
    bool possible[RUNGS];
    NB_TRY(choose_rungs(m, model, possible));
    for (int rung = 0; rung < RUNGS && m->runs < RUNS_MAX; rung++) {
        struct run *run = &m->run[m->runs];
        *run = (struct run){.model = model, .rung = rung};
        if (!possible[rung])
            continue;
        nb_status status = measure(o, m, tokens, possible, run);
        if (status == NB_MEMORY) {
            fprintf(stderr, "%s, %d tokens, %s: %s\n", model_name(m, model), tokens, ladder[rung].name, nb_status_message());
            continue;
        }
        NB_TRY(status);
        m->runs++;
        if (!o->json)
            print_run(o->out, run);
        json_array_append_new(results, run_json(m, run));
        NB_TRY(check_loss(m));
    }
    return NB_OK;
}

static nb_status run_ladder(const struct nb_bench *bench, const struct nb_bench_options *o, struct memory *m, json_t *results)
{
    if (!o->json) {
        char *head = o->config ? nb_format("memory in MiB and time of training steps of %s", o->config)
                               : nb_format("memory in MiB and time of training steps, rank 16 on every linear, two micro-batches");
        nb_bench_print_head(bench, head);
        free(head);
    }
    for (int model = 0; model < m->models; model++) {
        if (!o->json)
            fprintf(o->out, "%s%s\n%8s  %-16s %10s %10s %10s %10s %10s  %9s\n", model ? "\n" : "", model_name(m, model), "tokens",
                "settings", "planned", "peak", "driver", "pinned", "host peak", "tokens/s");
        for (int i = 0; m->length[i]; i++)
            NB_TRY(climb(o, model, m->length[i], m, results));
    }
    NB_TRY(nb_bench_report(bench, "memory", json_incref(results)));
    if (o->csv)
        NB_TRY(write_csv(m, o->csv));
    return o->svg && m->runs ? draw(m, bench->device->profile.name, o->svg) : NB_OK;
}

/* ---- what is run ---- */

/* Of a config: its model, its kind of moments, rows of a quarter, half and all of its length, and its device, unless those are given. */
static nb_status follow_config(struct nb_bench_options *o, struct memory *m)
{
    struct nb_config config;
    NB_TRY(nb_config_read(o->config, NULL, 0, &config));
    nb_status status = nb_config_validate_train(&config);
    if (status == NB_OK) {
        m->moments_8bit = nb_config_moments_8bit(&config);
        m->accumulation = (int)config.gradient_accumulation_steps;
        if (o->device == NB_CONFIG_DEVICE_AUTO)
            o->device = config.device;
        int length = (int)config.sequence_len;
        for (int i = 0; i < 3; i++)
            m->length[i] = length >= 64 ? length >> (2 - i) : i == 0 ? length : 0;
        m->models = 1;
        m->model[0] = o->model ? o->model : nb_format("%s", config.base_model);
    }
    nb_config_destroy(&config);
    return status;
}

static nb_status choose_shapes(const struct nb_bench_options *o, bool cuda, struct memory *m)
{
    static const char *const gpu[MODELS_MAX] = {"llama-3-8b", "llama-3-70b"}, *const cpu[MODELS_MAX] = {"smollm2-135m", NULL};
    const char *const *names = cuda ? gpu : cpu;
    if (o->model) {
        m->model[m->models++] = o->model;
        return NB_OK;
    }
    for (int i = 0; i < MODELS_MAX && names[i]; i++) {
        char *path;
        NB_TRY(nb_shipped_file("models", names[i], ".json", &path));
        m->model[m->models++] = path;
    }
    return NB_OK;
}

static nb_status make_folder(struct memory *m)
{
    const char *base = getenv("TMPDIR");
    m->folder = nb_format("%s/nibble-bench-XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(m->folder) ? NB_OK : nb_fail_errno("%s: cannot make a folder", m->folder);
}

static void choose_lengths(const struct nb_bench_options *o, bool cuda, struct memory *m)
{
    static const int gpu[] = {2048, 4096, 8192, 0}, cpu[] = {128, 256, 512, 0}, quick[] = {32, 64, 0};
    const int *length = o->tokens[0] ? o->tokens : m->length[0] ? m->length : o->quick ? quick : cuda ? gpu : cpu;
    if (length != m->length)
        for (int i = 0; i == 0 || length[i - 1]; i++)
            m->length[i] = length[i];
}

nb_status nb_bench_memory(const struct nb_bench_options *options)
{
    struct nb_bench bench = {0};
    struct nb_bench_options o = *options;
    struct memory *m = calloc(1, sizeof *m);
    if (!m)
        return nb_fail(NB_MEMORY, "no memory for a benchmark");
    m->moments_8bit = true;
    json_t *results = json_array();
    nb_status status = o.config ? follow_config(&o, m) : NB_OK;
    if (status == NB_OK)
        status = nb_bench_open(&o, &bench);
    if (status == NB_OK && !o.config)
        status = choose_shapes(&o, bench.cuda, m);
    if (status == NB_OK) {
        choose_lengths(&o, bench.cuda, m);
        m->cuda = bench.cuda;
        status = make_folder(m);
    }
    if (status == NB_OK)
        status = run_ladder(&bench, &o, m, results);
    if (m->folder)
        nb_remove_folder(m->folder);
    free(m->folder);
    json_decref(results);
    for (int i = 0; i < m->models; i++)
        if (m->model[i] != o.model)
            free((char *)m->model[i]);
    free(m);
    nb_bench_close(&bench);
    return status;
}
