#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "command/answer.h"

static const struct nb_option options[] = {
    {.name = "adapter", .type = NB_OPTION_TEXT, .value = "DIR", .help = "a PEFT adapter to put on top"},
    {.name = "system", .type = NB_OPTION_TEXT, .value = "TEXT", .help = "a system message to begin with"},
    NB_OPTIONS_SAMPLING,
    NB_OPTION_SET,
    {0},
};

/* The cache is taken at once, so a context of 100k tokens that nobody fills would cost memory for nothing. */
enum { CONTEXT_MAX = 8192 };

struct message {
    const char *role; /* a literal */
    char *content;    /* owned */
};

struct conversation {
    const struct nb_run *run;
    const char *system;
    struct nb_answer_options options;
    int context;
    struct message *messages;
    size_t count;
    size_t cached_bytes; /* of the rendering, whose tokens the generator holds */
};

static nb_status add_message(struct conversation *conversation, const char *role, const char *content, size_t bytes)
{
    struct message *grown = realloc(conversation->messages, (conversation->count + 1) * sizeof *grown);
    char *copy = malloc(bytes + 1);
    if (grown)
        conversation->messages = grown;
    if (!grown || !copy) {
        free(copy);
        return nb_fail(NB_MEMORY, "no memory for the conversation");
    }
    memcpy(copy, content, bytes);
    copy[bytes] = 0;
    conversation->messages[conversation->count++] = (struct message){role, copy};
    return NB_OK;
}

static nb_status clear(struct conversation *conversation)
{
    for (size_t i = 0; i < conversation->count; i++)
        free(conversation->messages[i].content);
    conversation->count = 0;
    conversation->cached_bytes = 0;
    return conversation->system ? add_message(conversation, "system", conversation->system, strlen(conversation->system)) : NB_OK;
}

static nb_status render(const struct conversation *conversation, bool prompt, struct nb_rendering *rendering)
{
    struct nb_chat_message *views = calloc(conversation->count + 1, sizeof *views);
    if (!views)
        return nb_fail(NB_MEMORY, "no memory for the conversation");
    for (size_t i = 0; i < conversation->count; i++)
        views[i] = (struct nb_chat_message){conversation->messages[i].role, conversation->messages[i].content,
                                            strlen(conversation->messages[i].content)};
    nb_status status = nb_chat_template_render(conversation->run->chat_template, views, conversation->count, prompt, rendering);
    free(views);
    return status;
}

/* Hands the generator the part of the rendering that it does not hold yet. A turn ends with a special token, so tokenizing from
 * there gives what tokenizing the whole would. */
static nb_status append_rest(struct conversation *conversation, struct nb_generator *generator, const struct nb_rendering *rendering)
{
    struct nb_token_list list = {0};
    int32_t *ids = NULL;
    nb_status status = nb_tokenizer_encode(conversation->run->tokenizer, rendering->text + conversation->cached_bytes,
                                           rendering->bytes - conversation->cached_bytes, &list);
    if (status == NB_OK && nb_generator_tokens(generator) + (int64_t)list.count >= conversation->context)
        status = nb_fail(NB_USAGE, "the conversation has filled the context of %d tokens; /new begins another", conversation->context);
    if (status == NB_OK && !(ids = calloc(list.count + 1, sizeof *ids)))
        status = nb_fail(NB_MEMORY, "no memory for the conversation");
    for (size_t i = 0; status == NB_OK && i < list.count; i++)
        ids[i] = list.tokens[i].id;
    if (status == NB_OK)
        status = nb_generator_append(generator, ids, (int)list.count);
    if (status == NB_OK)
        conversation->cached_bytes = rendering->bytes;
    free(ids);
    nb_token_list_free(&list);
    return status;
}

/* After an answer: the cache holds its text and, where it ended by itself, the end of the turn. */
static void advance(struct conversation *conversation, const struct nb_answer *answer)
{
    conversation->cached_bytes += answer->text_bytes;
    size_t bytes;
    if (answer->stopped && nb_tokenizer_decode_token(conversation->run->tokenizer, answer->stop_id, &bytes))
        conversation->cached_bytes += bytes;
}

static nb_status answer_turn(struct conversation *conversation, struct nb_session *session, struct nb_generator *generator,
                             const char *line)
{
    struct nb_rendering rendering = {0};
    struct nb_answer answer = {0};
    nb_status status = add_message(conversation, "user", line, strlen(line));
    if (status == NB_OK)
        status = render(conversation, true, &rendering);
    if (status == NB_OK)
        status = append_rest(conversation, generator, &rendering);
    if (status == NB_OK)
        status = nb_answer_generate(session, generator, conversation->context, &conversation->options, true, &answer);
    if (status == NB_OK) {
        putchar('\n');
        advance(conversation, &answer);
        status = add_message(conversation, "assistant", answer.text, answer.text_bytes);
    }
    free(answer.text);
    nb_rendering_free(&rendering);
    return status;
}

static nb_status create_generator(const struct conversation *conversation, struct nb_session *session, struct nb_generator **generator)
{
    return nb_answer_generator_create(session, conversation->context, &conversation->options, generator);
}

static nb_status begin_again(struct conversation *conversation, struct nb_session *session, struct nb_generator **generator)
{
    nb_generator_destroy(generator);
    NB_TRY(clear(conversation));
    return create_generator(conversation, session, generator);
}

static nb_status read_turns(struct conversation *conversation, struct nb_session *session, struct nb_generator **generator)
{
    char *line = NULL;
    size_t capacity = 0;
    nb_status status = NB_OK;
    ssize_t length;
    while (status == NB_OK) {
        if (nb_log_is_terminal())
            fputs("> ", stderr);
        if ((length = getline(&line, &capacity, stdin)) < 0)
            break;
        while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r'))
            line[--length] = 0;
        if (strcmp(line, "/quit") == 0)
            break;
        if (strcmp(line, "/new") == 0)
            status = begin_again(conversation, session, generator);
        else if (length > 0)
            status = answer_turn(conversation, session, *generator, line);
        if (status == NB_USAGE || status == NB_FORMAT) { /* the line cannot be answered; what was said before stands */
            nb_warn("%s", nb_status_message());
            free(conversation->messages[--conversation->count].content);
            status = NB_OK;
        }
    }
    free(line);
    return status;
}

/* What a turn takes at most: a whole piece of a prompt, then a token alone. */
static nb_status plan_turn(const struct conversation *conversation, struct nb_session *session, struct nb_generator *generator)
{
    static const int32_t ids[NB_PROMPT_CHUNK];
    struct nb_answer answer;
    int count = conversation->context - 1 < NB_PROMPT_CHUNK ? conversation->context - 1 : NB_PROMPT_CHUNK;
    NB_TRY(nb_generator_append(generator, ids, count));
    return nb_answer_generate(session, generator, conversation->context, &conversation->options, true, &answer);
}

static nb_status converse(struct nb_session *session, void *context)
{
    struct conversation *conversation = context;
    struct nb_generator *generator = NULL;
    NB_TRY(create_generator(conversation, session, &generator));
    nb_status status;
    if (session->dry) {
        status = plan_turn(conversation, session, generator);
    } else {
        nb_log("context of %d tokens; /new begins again, /quit or Ctrl-D ends", conversation->context);
        status = read_turns(conversation, session, &generator);
    }
    nb_generator_destroy(&generator);
    return status;
}

static nb_status run(const struct nb_arguments *arguments)
{
    struct nb_opened opened;
    struct conversation conversation = {.system = arguments->text[nb_option_index(&nb_command_chat, "system")]};
    NB_TRY(nb_open_run(arguments, NB_PURPOSE_GENERATE, arguments->text[nb_option_index(&nb_command_chat, "adapter")], NULL, &opened));
    nb_answer_options_read(&nb_command_chat, arguments, &opened.config, &conversation.options);
    conversation.run = opened.run;
    conversation.context = opened.run->sequence_len;
    if (!nb_config_was_set(&opened.config, "sequence_len") && conversation.context > CONTEXT_MAX)
        conversation.context = CONTEXT_MAX;
    nb_status status = NB_OK;
    if (!opened.run->tokenizer)
        status = nb_fail(NB_USAGE, "%s", opened.run->tokenizer_problem);
    else if (!opened.run->chat_template)
        status = nb_fail(NB_USAGE, "%s", opened.run->chat_template_problem);
    if (status == NB_OK)
        status = clear(&conversation);
    if (status == NB_OK)
        status = nb_session_run(opened.run, conversation.context, converse, &conversation, NULL);
    conversation.system = NULL;
    clear(&conversation);
    free(conversation.messages);
    nb_opened_close(&opened);
    return status;
}

const struct nb_command nb_command_chat = {
    .name = "chat",
    .argument = "MODEL",
    .summary = "talk to a model",
    .description = "Reads a line, answers, and remembers the conversation, as far as the context reaches (sequence_len; without it the\n"
                   "model's own, at most 8192 tokens). /new begins again, /quit or the end of input ends.",
    .example = "nibble chat SmolLM2-135M-Instruct.Q4_1.gguf --adapter out --temperature 0.7 --top-p 0.9",
    .options = options,
    .run = run,
};
