/* Answers as they come: the generator, the text decoder and the stop rules that generate and chat share. */
#ifndef NB_COMMAND_ANSWER_H
#define NB_COMMAND_ANSWER_H

#include "command/open.h"
#include "model/generate.h"
#include "train/session.h"

/* The options that choose tokens, alike in generate and chat. */
#define NB_OPTIONS_SAMPLING                                                                                                        \
    {.name = "max-tokens", .type = NB_OPTION_INTEGER, .value = "N", .help = "the longest answer (default 256)", .minimum = 1,      \
     .maximum = 1 << 24},                                                                                                          \
    {.name = "temperature", .type = NB_OPTION_NUMBER, .value = "T", .help = "0, the default, takes the likeliest token",           \
     .minimum = 0, .maximum = 100},                                                                                                \
    {.name = "top-k", .type = NB_OPTION_INTEGER, .value = "K", .help = "draw among the K likeliest (default all)", .minimum = 0,   \
     .maximum = 1 << 24},                                                                                                          \
    {.name = "top-p", .type = NB_OPTION_NUMBER, .value = "P", .help = "draw among the likeliest that make up P (default 1)",       \
     .minimum = 0, .maximum = 1},                                                                                                  \
    {.name = "seed", .type = NB_OPTION_INTEGER, .value = "S", .help = "of the draws (default: the key seed)", .minimum = 0,        \
     .maximum = 9007199254740992.0}

struct nb_answer_options {
    struct nb_sampling sampling;
    int max_tokens;
    bool ignore_eos;
};

/* Reads them from a verb's arguments; the seed is the configuration's where --seed is not given. */
void nb_answer_options_read(const struct nb_command *command, const struct nb_arguments *arguments, const struct nb_config *config,
                            struct nb_answer_options *options);

/* Prompts are taken in pieces of this many tokens. */
enum { NB_PROMPT_CHUNK = 256 };

/* The session's generator for prompts and answers of `context_max` tokens together. */
nb_status nb_answer_generator_create(struct nb_session *session, int context_max, const struct nb_answer_options *options,
                                     struct nb_generator **generator);

/* What an answer came to. */
struct nb_answer {
    int tokens;
    bool stopped;      /* by a stop token, which the generator holds too */
    int32_t stop_id;
    char *text;        /* without special tokens; owned; NULL when `shows` was false */
    size_t text_bytes;
};

/* Generates until a stop token, max_tokens, or `context_max` tokens in the cache. `shows`: decoded text goes to stdout as it comes
 * and is kept; otherwise each id is printed, separated by commas. Free answer->text. */
nb_status nb_answer_generate(struct nb_session *session, struct nb_generator *generator, int context_max,
                             const struct nb_answer_options *options, bool shows, struct nb_answer *answer);

#endif
