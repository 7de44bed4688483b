#include "model/generate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "command/answer.h"
#include "text/messages.h"

static const struct nb_option options[] = {
    {.name = "adapter", .type = NB_OPTION_TEXT, .value = "DIR", .help = "a PEFT adapter to put on top"},
    {.name = "prompt", .type = NB_OPTION_TEXT, .value = "TEXT", .help = "a user's message; with --raw plain text to go on from"},
    {.name = "messages", .type = NB_OPTION_TEXT, .value = "FILE", .help = "a conversation: a JSON array of role and content"},
    {.name = "token-ids", .type = NB_OPTION_TEXT, .value = "1,2,3", .help = "ids to go on from; prints the new ids on one line"},
    NB_OPTIONS_SAMPLING,
    {.name = "raw", .type = NB_OPTION_FLAG, .help = "do not apply the chat template"},
    {.name = "ignore-eos", .type = NB_OPTION_FLAG, .help = "go on after an end-of-sequence token"},
    NB_OPTION_SET,
    {0},
};

/* What is asked for, ready for both sessions. */
struct request {
    int32_t *ids;
    int count;
    int context; /* tokens in the cache at most */
    bool shows;  /* text, not ids */
    struct nb_answer_options options;
};

static nb_status parse_ids(const char *text, const struct nb_run *run, struct request *request)
{
    int vocabulary = nb_checkpoint_config(run->checkpoint)->vocab;
    request->ids = calloc(strlen(text) + 1, sizeof *request->ids);
    if (!request->ids)
        return nb_fail(NB_MEMORY, "no memory for the prompt");
    for (const char *at = text; *at;) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno || id < 0 || id >= vocabulary || (*end && *end != ','))
            return nb_fail(NB_USAGE, "--token-ids: \"%.20s\" is not an id from 0 to %d; ids are separated by commas", at,
                           vocabulary - 1);
        request->ids[request->count++] = (int32_t)id;
        at = *end ? end + 1 : end;
    }
    return NB_OK;
}

static nb_status encode_text(const struct nb_run *run, const char *text, size_t bytes, bool adds_bos, struct request *request)
{
    struct nb_token_list list = {0};
    nb_status status = nb_tokenizer_encode(run->tokenizer, text, bytes, &list);
    if (status == NB_OK) {
        request->ids = calloc(list.count + 1, sizeof *request->ids);
        if (!request->ids)
            status = nb_fail(NB_MEMORY, "no memory for the prompt");
    }
    if (status == NB_OK) {
        if (adds_bos)
            request->ids[request->count++] = nb_tokenizer_bos(run->tokenizer);
        for (size_t i = 0; i < list.count; i++)
            request->ids[request->count++] = list.tokens[i].id;
    }
    nb_token_list_free(&list);
    return status;
}

static nb_status encode_messages(const struct nb_run *run, const struct nb_chat_message *messages, size_t count,
                                 struct request *request)
{
    if (!run->chat_template)
        return nb_fail(NB_USAGE, "%s; or give --raw to generate without a template", run->chat_template_problem);
    struct nb_rendering rendering = {0};
    nb_status status = nb_chat_template_render(run->chat_template, messages, count, true, &rendering);
    if (status == NB_OK)
        status = encode_text(run, rendering.text, rendering.bytes, false, request);
    nb_rendering_free(&rendering);
    return status;
}

static nb_status encode_file(const struct nb_run *run, const char *path, struct request *request)
{
    struct nb_messages *messages = NULL;
    NB_TRY(nb_messages_read(path, &messages));
    nb_status status = encode_messages(run, nb_messages_items(messages), nb_messages_count(messages), request);
    nb_messages_destroy(&messages);
    return status;
}

static nb_status make_prompt(const struct nb_run *run, const struct nb_arguments *arguments, struct request *request)
{
    const char *prompt = arguments->text[nb_option_index(&nb_command_generate, "prompt")];
    const char *file = arguments->text[nb_option_index(&nb_command_generate, "messages")];
    const char *token_ids = arguments->text[nb_option_index(&nb_command_generate, "token-ids")];
    bool raw = arguments->given[nb_option_index(&nb_command_generate, "raw")];
    if (!!prompt + !!file + !!token_ids != 1)
        return nb_fail(NB_USAGE, "nibble generate needs one of --prompt, --messages and --token-ids; for example: %s",
                       nb_command_generate.example);
    request->shows = !token_ids;
    if (token_ids)
        return parse_ids(token_ids, run, request);
    if (!run->tokenizer)
        return nb_fail(NB_USAGE, "%s; --token-ids works without a tokenizer", run->tokenizer_problem);
    if (file && raw)
        return nb_fail(NB_USAGE, "--messages needs the chat template, and --raw leaves it out");
    if (file)
        return encode_file(run, file, request);
    if (raw)
        return encode_text(run, prompt, strlen(prompt), nb_tokenizer_adds_bos(run->tokenizer), request);
    struct nb_chat_message message = {.role = "user", .content = prompt, .content_bytes = strlen(prompt)};
    return encode_messages(run, &message, 1, request);
}

static nb_status generate(struct nb_session *session, void *context)
{
    const struct request *request = context;
    struct nb_generator *generator = NULL;
    struct nb_answer answer = {0};
    NB_TRY(nb_answer_generator_create(session, request->context, &request->options, &generator));
    nb_status status = nb_generator_append(generator, request->ids, request->count);
    if (status == NB_OK)
        status = nb_answer_generate(session, generator, request->context, &request->options, request->shows, &answer);
    if (status == NB_OK && !session->dry) {
        putchar('\n');
        if (!answer.stopped && answer.tokens < request->options.max_tokens)
            nb_warn("the answer ends because the context of %d tokens is full", request->context);
    }
    free(answer.text);
    nb_generator_destroy(&generator);
    return status;
}

/* The cache holds the prompt and the answer, as far as the context reaches. */
static nb_status set_context(const struct nb_run *run, struct request *request)
{
    if (request->count == 0)
        return nb_fail(NB_USAGE, "the prompt has no tokens");
    if (request->count >= run->sequence_len)
        return nb_fail(NB_USAGE, "the prompt has %d tokens, and the context of %d leaves no room for an answer", request->count,
                       run->sequence_len);
    int room = run->sequence_len - request->count;
    request->context = request->count + (request->options.max_tokens < room ? request->options.max_tokens : room);
    return NB_OK;
}

static nb_status run(const struct nb_arguments *arguments)
{
    const char *adapter = arguments->text[nb_option_index(&nb_command_generate, "adapter")];
    struct nb_opened opened;
    struct request request = {0};
    NB_TRY(nb_open_run(arguments, NB_PURPOSE_GENERATE, adapter, NULL, &opened));
    nb_answer_options_read(&nb_command_generate, arguments, &opened.config, &request.options);
    nb_status status = make_prompt(opened.run, arguments, &request);
    if (status == NB_OK)
        status = set_context(opened.run, &request);
    if (status == NB_OK)
        status = nb_session_run(opened.run, request.context, generate, &request, NULL);
    free(request.ids);
    nb_opened_close(&opened);
    return status;
}

const struct nb_command nb_command_generate = {
    .name = "generate",
    .argument = "MODEL",
    .summary = "answer a prompt",
    .description = "Streams an answer to standard output. The chat template is applied unless --raw is given. With temperature 0, the\n"
                   "default, the likeliest token is taken each time; otherwise tokens are drawn, the same ones for the same seed.",
    .example = "nibble generate SmolLM2-135M-Instruct.Q4_1.gguf --prompt \"What is the capital of France?\"",
    .options = options,
    .run = run,
};
