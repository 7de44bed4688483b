#include <stdlib.h>

#include "base/file.h"
#include "base/progress.h"
#include "base/random.h"
#include "bench/steps.h"
#include "model/generate.h"
#include "train/session.h"

enum { PROMPT = 64, TIMED_TOKENS = 64 };

struct generation {
    int prompt, timed;
    double seconds, prompt_seconds;
    double weight_bytes; /* read for one token: matrices and head, not the embedding's other rows */
};

static nb_status generate(struct nb_session *session, void *context)
{
    struct generation *g = context;
    struct nb_generator *generator = NULL;
    struct nb_generator_options options = {.context_max = g->prompt + g->timed + 8,
        .prompt_chunk = g->prompt,
        .sampling = {.top_p = 1},
        .pinned = session->pinned};
    int vocabulary = nb_model_config_of(session->model)->vocab;
    int32_t *ids = calloc((size_t)g->prompt, sizeof *ids), id;
    if (!ids)
        return nb_fail(NB_MEMORY, "no memory for a prompt");
    for (int i = 0; i < g->prompt; i++)
        ids[i] = (int32_t)nb_random_below(1, NB_RANDOM_SHUFFLE, 0, (uint64_t)i, (uint32_t)vocabulary);
    nb_status status = nb_generator_create(session->model, session->adapter, &options, session->arena, session->stream, &generator);
    double from = nb_clock_seconds();
    if (status == NB_OK)
        status = nb_generator_append(generator, ids, g->prompt);
    g->prompt_seconds = nb_clock_seconds() - from;
    for (int i = 0; status == NB_OK && i < 4 + g->timed; i++) {
        if (i == 4) /* the first ones record the work */
            from = nb_clock_seconds();
        status = nb_generator_next(generator, &id);
    }
    g->seconds = (nb_clock_seconds() - from) / g->timed;
    nb_generator_destroy(&generator);
    free(ids);
    return status;
}

/* Of all matrices as they lie in memory; an untied embedding is only looked up. */
static double weight_bytes_of(const struct nb_run *run)
{
    const struct nb_model_config *c = nb_checkpoint_config(run->checkpoint);
    double head = 2.0 * c->vocab * c->hidden;
    double query = (double)c->heads * c->head_dim, key = (double)c->kv_heads * c->head_dim;
    double block = c->hidden * (2 * query + 2 * key + 3.0 * c->intermediate);
    double bits = run->model.linear_format == NB_WEIGHT_BF16 ? 16 : run->model.nested ? 4 + 8.0 / 64 + 32.0 / (64 * 256) : 4.5;
    return head + c->layers * block * bits / 8;
}

nb_status nb_bench_generate(const struct nb_bench_options *options)
{
    struct nb_bench bench;
    struct nb_config config = {0};
    struct nb_run *run = NULL;
    if (!options->model)
        return nb_fail(NB_USAGE, "nibble bench generate needs --model, a checkpoint or a config.json");
    nb_status status = nb_bench_open(options, &bench);
    struct generation g = {.prompt = options->tokens[0] ? options->tokens[0] : options->quick ? 8 : PROMPT,
        .timed = options->steps ? options->steps : options->quick ? 4 : TIMED_TOKENS};
    char *set = nb_format("device=%s", nb_bench_device_name(options->device));
    const char *overrides[] = {set};
    if (status == NB_OK)
        status = nb_config_from_overrides(overrides, 1, &config);
    struct nb_run_args args = {
        .config = &config, .purpose = NB_PURPOSE_GENERATE, .model = options->model, .random_weights = true};
    if (status == NB_OK)
        status = nb_run_open(&args, &run);
    if (status == NB_OK)
        status = nb_session_run(run, g.prompt + g.timed + 8, generate, &g, NULL);
    if (status == NB_OK)
        g.weight_bytes = weight_bytes_of(run);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    free(set);
    double limit = bench.copy_bytes_per_second / (g.weight_bytes > 0 ? g.weight_bytes : 1);
    if (status == NB_OK && !options->json) {
        nb_bench_print_head(&bench, "generation, one sequence");
        fprintf(options->out, "%.1f tokens/s after %d tokens; %.1f would read all weights at the rate of a copy: %.0f%%\n", 1 / g.seconds,
            g.prompt, limit, 100 / g.seconds / limit);
    }
    if (status == NB_OK)
        status = nb_bench_report(&bench, "generate",
            json_pack("[{s:i, s:f, s:f, s:f, s:f}]", "prompt_tokens", g.prompt, "prompt_seconds", g.prompt_seconds,
                "tokens_per_second", 1 / g.seconds, "limit_tokens_per_second", limit, "share_of_limit", 1 / g.seconds / limit));
    nb_bench_close(&bench);
    return status;
}
