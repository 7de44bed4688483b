#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

/* Up to this many symbols, looking at all pairs before each merge is faster than a queue. */
enum { SHORT_WORD = 32 };

nb_status nb_token_list_add(struct nb_token_list *list, int32_t id, size_t begin, size_t end)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 256;
        struct nb_token *tokens = realloc(list->tokens, capacity * sizeof *tokens);
        if (!tokens)
            return nb_fail(NB_MEMORY, "no memory for %zu tokens", capacity);
        list->tokens = tokens;
        list->capacity = capacity;
    }
    list->tokens[list->count++] = (struct nb_token){id, (uint32_t)begin, (uint32_t)end};
    return NB_OK;
}

void nb_bpe_work_free(struct nb_bpe_work *work)
{
    free(work->symbols);
    free(work->queue);
    *work = (struct nb_bpe_work){0};
}

static uint32_t pair_rank(const struct nb_vocabulary *vocabulary, int32_t left, int32_t right)
{
    const struct nb_merge *merge = nb_vocabulary_pair(vocabulary, left, right);
    return merge ? merge->rank : NB_NO_RANK;
}

/* The word's bytes as symbols; returns their number. */
static size_t start_symbols(const struct nb_vocabulary *vocabulary, int32_t unk, struct nb_bpe_symbol *symbols,
    const char *text, size_t begin, size_t end)
{
    size_t count = 0;
    for (size_t i = begin; i < end; i++) {
        int32_t id = vocabulary->byte_id[(unsigned char)text[i]];
        if (id < 0)
            id = unk;
        if (id >= 0)
            symbols[count++] = (struct nb_bpe_symbol){id, (uint32_t)i, (uint32_t)i + 1, NONE, NONE, NB_NO_RANK};
    }
    for (size_t i = 0; i + 1 < count; i++)
        symbols[i].rank = pair_rank(vocabulary, symbols[i].id, symbols[i + 1].id);
    return count;
}

/* Merges in an array, closing the gap each time. Returns the number of symbols left. */
static size_t merge_short(const struct nb_vocabulary *vocabulary, struct nb_bpe_symbol *symbols, size_t count)
{
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (symbols[i].rank < symbols[best].rank)
                best = i;
        if (symbols[best].rank == NB_NO_RANK)
            break;
        symbols[best].id = nb_vocabulary_pair(vocabulary, symbols[best].id, symbols[best + 1].id)->id;
        symbols[best].end = symbols[best + 1].end;
        memmove(symbols + best + 1, symbols + best + 2, (count - best - 2) * sizeof *symbols);
        count--;
        symbols[best].rank =
            best + 1 < count ? pair_rank(vocabulary, symbols[best].id, symbols[best + 1].id) : NB_NO_RANK;
        if (best > 0)
            symbols[best - 1].rank = pair_rank(vocabulary, symbols[best - 1].id, symbols[best].id);
    }
    return count;
}

static nb_status queue_push(struct nb_bpe_work *work, uint64_t entry)
{
    if (work->queue_count == work->queue_capacity) {
        size_t capacity = work->queue_capacity ? work->queue_capacity * 2 : 256;
        uint64_t *queue = realloc(work->queue, capacity * sizeof *queue);
        if (!queue)
            return nb_fail(NB_MEMORY, "no memory for the merges of a long word");
        work->queue = queue;
        work->queue_capacity = capacity;
    }
    size_t i = work->queue_count++;
    for (; i > 0 && work->queue[(i - 1) / 2] > entry; i = (i - 1) / 2, work->operations++)
        work->queue[i] = work->queue[(i - 1) / 2];
    work->queue[i] = entry;
    work->operations++;
    return NB_OK;
}

static uint64_t queue_pop(struct nb_bpe_work *work)
{
    uint64_t least = work->queue[0], last = work->queue[--work->queue_count];
    size_t i = 0, count = work->queue_count;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < count && work->queue[child + 1] < work->queue[child])
            child++;
        if (child >= count || work->queue[child] >= last)
            break;
        work->queue[i] = work->queue[child];
        work->operations++;
        i = child;
    }
    if (count > 0)
        work->queue[i] = last;
    work->operations++;
    return least;
}

static nb_status update_rank(const struct nb_vocabulary *vocabulary, struct nb_bpe_work *work, uint32_t at)
{
    struct nb_bpe_symbol *symbol = &work->symbols[at];
    symbol->rank =
        symbol->next == NONE ? NB_NO_RANK : pair_rank(vocabulary, symbol->id, work->symbols[symbol->next].id);
    return symbol->rank == NB_NO_RANK ? NB_OK : queue_push(work, (uint64_t)symbol->rank << 32 | at);
}

/* Merges in a linked list, the next pair taken from the queue. An entry whose rank is not its symbol's any more is
 * stale: a rank names one pair, and no pair can come back at a place. */
static nb_status merge_long(const struct nb_vocabulary *vocabulary, struct nb_bpe_work *work, size_t count)
{
    struct nb_bpe_symbol *symbols = work->symbols;
    work->queue_count = 0;
    for (size_t i = 0; i < count; i++) {
        symbols[i].previous = i > 0 ? (uint32_t)i - 1 : NONE;
        symbols[i].next = i + 1 < count ? (uint32_t)i + 1 : NONE;
        if (symbols[i].rank != NB_NO_RANK)
            NB_TRY(queue_push(work, (uint64_t)symbols[i].rank << 32 | i));
    }
    while (work->queue_count > 0) {
        uint64_t entry = queue_pop(work);
        uint32_t at = (uint32_t)entry;
        struct nb_bpe_symbol *symbol = &symbols[at];
        if (symbol->rank != (uint32_t)(entry >> 32))
            continue;
        struct nb_bpe_symbol *right = &symbols[symbol->next];
        symbol->id = nb_vocabulary_pair(vocabulary, symbol->id, right->id)->id;
        symbol->end = right->end;
        symbol->next = right->next;
        right->rank = NB_NO_RANK;
        if (symbol->next != NONE)
            symbols[symbol->next].previous = at;
        work->operations++;
        NB_TRY(update_rank(vocabulary, work, at));
        if (symbol->previous != NONE)
            NB_TRY(update_rank(vocabulary, work, symbol->previous));
    }
    return NB_OK;
}

nb_status nb_bpe_word(const struct nb_bpe_rules *rules, struct nb_bpe_work *work, const char *text, size_t begin,
    size_t end, struct nb_token_list *list)
{
    const struct nb_vocabulary *vocabulary = rules->vocabulary;
    if (rules->whole_words) {
        int32_t id = nb_vocabulary_find(vocabulary, text + begin, end - begin);
        if (id >= 0 && !(vocabulary->tokens[id].flags & NB_TOKEN_ADDED))
            return nb_token_list_add(list, id, begin, end);
    }
    if (end - begin > work->capacity) {
        size_t capacity = (end - begin) * 2;
        struct nb_bpe_symbol *symbols = realloc(work->symbols, capacity * sizeof *symbols);
        if (!symbols)
            return nb_fail(NB_MEMORY, "no memory for a word of %zu bytes", end - begin);
        work->symbols = symbols;
        work->capacity = capacity;
    }
    size_t count = start_symbols(vocabulary, rules->unk, work->symbols, text, begin, end);
    if (count <= SHORT_WORD) {
        work->operations += count;
        count = merge_short(vocabulary, work->symbols, count);
        for (size_t i = 0; i < count; i++)
            NB_TRY(nb_token_list_add(list, work->symbols[i].id, work->symbols[i].begin, work->symbols[i].end));
        return NB_OK;
    }
    NB_TRY(merge_long(vocabulary, work, count));
    for (uint32_t i = 0; i != NONE; i = work->symbols[i].next)
        NB_TRY(nb_token_list_add(list, work->symbols[i].id, work->symbols[i].begin, work->symbols[i].end));
    return NB_OK;
}
