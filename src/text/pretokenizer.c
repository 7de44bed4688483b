#include "text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

/* Unicode's White_Space, as the inside of a character class. PCRE2's own \s counts U+180E too, which left White_Space
 * in Unicode 6.3. */
#define SPACES \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

enum {
    EXPRESSION_BYTES_MAX = 1 << 16,
    STACK_BYTES_START = 32 << 10,
    STACK_BYTES_MAX = 8 << 20,
    BACKTRACKS_MAX = 10000000
};

/* Spells out \s and \S. Returns the bytes written to out, which holds bytes * sizeof SPACES. A \S inside a class stays
 * PCRE2's. */
static size_t spell_out_spaces(const char *expression, size_t bytes, char *out)
{
    size_t written = 0;
    bool in_class = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = expression[i];
        const char *spelled = NULL;
        if (c == '\\' && i + 1 < bytes) {
            char next = expression[++i];
            if (next == 's')
                spelled = in_class ? SPACES : "[" SPACES "]";
            else if (next == 'S' && !in_class)
                spelled = "[^" SPACES "]";
            if (!spelled) {
                out[written++] = c;
                out[written++] = next;
                continue;
            }
            size_t length = strlen(spelled);
            memcpy(out + written, spelled, length);
            written += length;
            continue;
        }
        if (c == '[' && !in_class)
            in_class = true;
        else if (c == ']' && in_class)
            in_class = false;
        out[written++] = c;
    }
    return written;
}

nb_status nb_pretokenizer_add(
    struct nb_pretokenizer *pretokenizer, enum nb_split_kind kind, const char *expression, size_t bytes, bool literal)
{
    if (pretokenizer->count == NB_PRETOKENIZER_STEPS_MAX)
        return nb_fail(NB_UNSUPPORTED, "more than %d pre-tokenizer steps", NB_PRETOKENIZER_STEPS_MAX);
    struct nb_split_step step = {kind, NULL};
    if (kind != NB_SPLIT_DIGITS) {
        if (bytes == 0 || bytes > EXPRESSION_BYTES_MAX)
            return nb_fail(NB_FORMAT, "a pre-tokenizer's expression of %zu bytes", bytes);
        char *spelled = malloc(bytes * sizeof "[^" SPACES "]");
        if (!spelled)
            return nb_fail(NB_MEMORY, "no memory for an expression");
        size_t length = bytes;
        if (literal)
            memcpy(spelled, expression, bytes);
        else
            length = spell_out_spaces(expression, bytes, spelled);
        uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
        int code;
        PCRE2_SIZE offset;
        pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)spelled, length, options, &code, &offset, NULL);
        free(spelled);
        if (!compiled) {
            PCRE2_UCHAR words[128] = {0};
            pcre2_get_error_message(code, words, sizeof words);
            return nb_fail(NB_FORMAT, "the pre-tokenizer's expression \"%.*s\" does not compile: %s",
                           (int)(bytes < 200 ? bytes : 200), expression, (const char *)words);
        }
        /* Without a just-in-time compiler the same matches are found more slowly. */
        (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
        step.expression = compiled;
    }
    pretokenizer->steps[pretokenizer->count++] = step;
    return NB_OK;
}

void nb_pretokenizer_free(struct nb_pretokenizer *pretokenizer)
{
    for (int i = 0; i < pretokenizer->count; i++)
        pcre2_code_free(pretokenizer->steps[i].expression);
    pretokenizer->count = 0;
}

void nb_split_work_free(struct nb_split_work *work)
{
    pcre2_match_data_free(work->match_data);
    pcre2_match_context_free(work->match_context);
    pcre2_jit_stack_free(work->stack);
    *work = (struct nb_split_work){0};
}

static nb_status prepare(struct nb_split_work *work)
{
    if (work->match_data)
        return NB_OK;
    work->match_context = pcre2_match_context_create(NULL);
    work->stack = pcre2_jit_stack_create(STACK_BYTES_START, STACK_BYTES_MAX, NULL);
    work->match_data = pcre2_match_data_create(1, NULL);
    if (!work->match_context || !work->match_data) {
        nb_split_work_free(work);
        return nb_fail(NB_MEMORY, "no memory for matching");
    }
    pcre2_set_match_limit(work->match_context, BACKTRACKS_MAX);
    if (work->stack)
        pcre2_jit_stack_assign(work->match_context, NULL, work->stack);
    return NB_OK;
}

struct splitter {
    const struct nb_pretokenizer *pretokenizer;
    struct nb_split_work *work;
    const char *text;
    const struct nb_piece_sink *sink;
};

static nb_status split(const struct splitter *s, int step, size_t begin, size_t end);

static nb_status pass_on(const struct splitter *s, int step, size_t begin, size_t end)
{
    if (begin == end)
        return NB_OK;
    if (step == s->pretokenizer->count)
        return s->sink->piece(s->sink->user, s->text, begin, end);
    return split(s, step, begin, end);
}

/* Unicode's categories Nd, Nl and No. */
static bool is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

static nb_status split_digits(const struct splitter *s, int step, size_t begin, size_t end)
{
    size_t start = begin;
    for (size_t i = begin; i < end;) {
        size_t length;
        if (!is_numeric(nb_utf8_decode(s->text + i, &length))) {
            i += length;
            continue;
        }
        NB_TRY(pass_on(s, step + 1, start, i));
        NB_TRY(pass_on(s, step + 1, i, i + length));
        i += length;
        start = i;
    }
    return pass_on(s, step + 1, start, end);
}

static nb_status split(const struct splitter *s, int step, size_t begin, size_t end)
{
    const struct nb_split_step *how = &s->pretokenizer->steps[step];
    if (how->kind == NB_SPLIT_DIGITS)
        return split_digits(s, step, begin, end);
    /* The piece alone is the subject: an expression must not look at what lies around it. */
    PCRE2_SPTR subject = (PCRE2_SPTR)s->text + begin;
    size_t bytes = end - begin, done = 0, at = 0;
    while (at < bytes) {
        int code = pcre2_match(how->expression, subject, bytes, at, PCRE2_NO_UTF_CHECK, s->work->match_data,
                               s->work->match_context);
        if (code == PCRE2_ERROR_NOMATCH)
            break;
        if (code < 0)
            return nb_fail(NB_UNSUPPORTED,
                "the pre-tokenizer's expression needs more than PCRE2's limits on this text (error %d)", code);
        const PCRE2_SIZE *match = pcre2_get_ovector_pointer(s->work->match_data);
        size_t from = match[0], to = match[1];
        if (to <= from || from < at) { /* an empty match, or \K's: cuts nothing off */
            size_t length;
            (void)nb_utf8_decode((const char *)subject + at, &length);
            at = from > at && from < bytes ? from : at + length;
            continue;
        }
        if (how->kind == NB_SPLIT_ISOLATE)
            NB_TRY(pass_on(s, step + 1, begin + done, begin + from));
        /* The next step uses the match data too. */
        NB_TRY(pass_on(s, step + 1, begin + from, begin + to));
        done = at = to;
    }
    return how->kind == NB_SPLIT_ISOLATE ? pass_on(s, step + 1, begin + done, end) : NB_OK;
}

nb_status nb_pretokenizer_split(const struct nb_pretokenizer *pretokenizer, struct nb_split_work *work,
    const char *text, size_t begin, size_t end, const struct nb_piece_sink *sink)
{
    NB_TRY(prepare(work));
    struct splitter splitter = {pretokenizer, work, text, sink};
    return pass_on(&splitter, 0, begin, end);
}
