#include "command/answer.h"

#include <stdlib.h>
#include <string.h>

/* The value of a numeric option, or its default. */
static double value_of(const struct nb_command *command, const struct nb_arguments *arguments, const char *name, double otherwise)
{
    int index = nb_option_index(command, name);
    return arguments->given[index] ? arguments->number[index] : otherwise;
}

void nb_answer_options_read(const struct nb_command *command, const struct nb_arguments *arguments, const struct nb_config *config,
                            struct nb_answer_options *options)
{
    int ignore_eos = nb_option_index(command, "ignore-eos");
    options->sampling.temperature = (float)value_of(command, arguments, "temperature", 0);
    options->sampling.top_k = (int)value_of(command, arguments, "top-k", 0);
    options->sampling.top_p = (float)value_of(command, arguments, "top-p", 1);
    options->sampling.seed = (uint64_t)value_of(command, arguments, "seed", (double)config->seed);
    options->max_tokens = (int)value_of(command, arguments, "max-tokens", 256);
    options->ignore_eos = ignore_eos >= 0 && arguments->given[ignore_eos];
}

nb_status nb_answer_generator_create(struct nb_session *session, int context_max, const struct nb_answer_options *options,
                                     struct nb_generator **generator)
{
    const struct nb_generator_options wanted = {
        .context_max = context_max, .prompt_chunk = NB_PROMPT_CHUNK, .sampling = options->sampling, .pinned = session->pinned};
    return nb_generator_create(session->model, session->adapter, &wanted, session->arena, session->stream, generator);
}

/* Whether an id ends an answer: the model's eos ids and the tokenizer's stop tokens. */
static bool is_stop(const struct nb_run *run, int32_t id)
{
    const struct nb_model_config *config = nb_checkpoint_config(run->checkpoint);
    for (int i = 0; i < config->eos_count; i++)
        if (config->eos[i] == id)
            return true;
    if (!run->tokenizer)
        return false;
    /* A model may name only its end of text, while its turns end with another token. */
    const char *end = run->chat_template ? nb_chat_template_end_of_turn(run->chat_template) : NULL;
    return nb_tokenizer_is_stop(run->tokenizer, id) || (end && nb_tokenizer_find(run->tokenizer, end, strlen(end)) == id);
}

static nb_status keep(struct nb_answer *answer, const char *text, size_t bytes)
{
    char *grown = realloc(answer->text, answer->text_bytes + bytes + 1);
    if (!grown)
        return nb_fail(NB_MEMORY, "no memory for the answer");
    memcpy(grown + answer->text_bytes, text, bytes);
    answer->text = grown;
    answer->text_bytes += bytes;
    grown[answer->text_bytes] = 0;
    return NB_OK;
}

/* Decoded bytes go out at once: a user reads along. */
static nb_status emit(struct nb_answer *answer, const char *text, size_t bytes)
{
    if (fwrite(text, 1, bytes, stdout) != bytes || fflush(stdout))
        return nb_fail_errno("cannot write to standard output");
    return keep(answer, text, bytes);
}

static nb_status show_token(const struct nb_tokenizer *tokenizer, int32_t id, struct nb_stream_decoder *decoder,
                            struct nb_answer *answer)
{
    size_t bytes;
    const char *raw = nb_tokenizer_decode_token(tokenizer, id, &bytes);
    if (!raw || nb_tokenizer_is_special(tokenizer, id))
        return NB_OK;
    char *text = malloc(NB_STREAM_DECODER_BYTES(bytes));
    if (!text)
        return nb_fail(NB_MEMORY, "no memory for the answer");
    size_t written = nb_stream_decoder_put(decoder, raw, bytes, text);
    nb_status status = emit(answer, text, written);
    free(text);
    return status;
}

nb_status nb_answer_generate(struct nb_session *session, struct nb_generator *generator, int context_max,
                             const struct nb_answer_options *options, bool shows, struct nb_answer *answer)
{
    const struct nb_run *run = session->run;
    struct nb_stream_decoder decoder = {0};
    *answer = (struct nb_answer){0};
    if (session->dry) {
        /* The second token is the first that runs alone. */
        int32_t id;
        NB_TRY(nb_generator_next(generator, &id));
        return nb_generator_tokens(generator) < context_max ? nb_generator_next(generator, &id) : NB_OK;
    }
    while (answer->tokens < options->max_tokens && nb_generator_tokens(generator) < context_max) {
        int32_t id;
        NB_TRY(nb_generator_next(generator, &id));
        bool stop = !options->ignore_eos && is_stop(run, id);
        if (!shows)
            printf("%s%d", answer->tokens ? "," : "", id);
        else if (!stop)
            NB_TRY(show_token(run->tokenizer, id, &decoder, answer));
        answer->tokens++;
        if (stop) {
            answer->stopped = true;
            answer->stop_id = id;
            break;
        }
    }
    if (shows) {
        char rest[NB_STREAM_DECODER_BYTES(0)];
        NB_TRY(emit(answer, rest, nb_stream_decoder_finish(&decoder, rest)));
    }
    return NB_OK;
}
