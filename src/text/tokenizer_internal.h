/* What a tokenizer is made of; for the files that fill one. */
#ifndef NB_TEXT_TOKENIZER_INTERNAL_H
#define NB_TEXT_TOKENIZER_INTERNAL_H

#include "text/added_tokens.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

/* GPT-2's expression (openai/gpt-2, src/encoder.py), the one that ByteLevel pre-tokenizers use. */
#define NB_EXPRESSION_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

struct nb_tokenizer {
    struct nb_vocabulary vocabulary;
    struct nb_pretokenizer pretokenizer;
    struct nb_added_tokens added;            /* found in the text as it is */
    struct nb_added_tokens added_normalized; /* found in the normalized text */
    bool nfc;
    bool whole_words;  /* ignore_merges: a word that is a token is not taken apart */
    int32_t model_unk; /* for a byte without a token; -1: such bytes are left out */
    int32_t bos, eos, pad, unk;
    bool adds_bos;
    char *chat_template;
};

/* An empty tokenizer, its ids -1. Errors: NB_MEMORY. */
nb_status nb_tokenizer_create(struct nb_tokenizer **tokenizer);

/* Registers the added token `id`, whose text the vocabulary has. Errors: NB_MEMORY. */
nb_status nb_tokenizer_add_token(
    struct nb_tokenizer *tokenizer, int32_t id, const struct nb_added_token *how, bool normalized);

/* Last step of opening: looks bytes up, sorts added tokens, points them at their texts. */
void nb_tokenizer_finish(struct nb_tokenizer *tokenizer);

/* Marks an id as one that ends generation; ids outside the vocabulary are let be. */
void nb_tokenizer_mark_stop(struct nb_tokenizer *tokenizer, int64_t id);

#endif
