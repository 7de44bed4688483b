#include "text/dataset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "base/file.h"
#include "text/dataset_row.h"

enum { BATCH_ROWS = 2048, SOURCES_MAX = 65535 };
#define UNPACKED_BYTES_MAX (UINT64_C(64) << 30)

/* A row on its way: its text (JSONL) or its value (array), then what became of it. */
struct unit {
    const char *text;
    size_t bytes;
    uint64_t line;
    json_t *value;
    nb_status status;
    char *message; /* of a status that is not NB_OK */
    struct nb_row_result result;
};

struct reading {
    struct nb_dataset *dataset;
    struct nb_row_reader reader;
    struct nb_dataset_file *file;
    uint16_t source;
    bool chosen; /* reader.type */
    struct unit *units;
    size_t unit_count;
    struct nb_row_worker *workers;
    int threads;
    uint64_t token_capacity;
    size_t row_capacity;
};

static nb_status add_row(struct reading *r, struct nb_row row, const nb_row_token *tokens)
{
    struct nb_dataset *d = r->dataset;
    if (d->row_count == r->row_capacity) {
        if (d->row_count == UINT32_MAX)
            return nb_fail(NB_UNSUPPORTED, "%s: more than %u rows", r->file->path, UINT32_MAX);
        size_t capacity = r->row_capacity ? r->row_capacity * 2 : 256;
        struct nb_row *rows = realloc(d->rows, capacity * sizeof *rows);
        if (!rows)
            return nb_fail(NB_MEMORY, "%s: no memory for %zu rows", r->file->path, capacity);
        d->rows = rows;
        r->row_capacity = capacity;
    }
    if (d->token_count + row.count > r->token_capacity) {
        uint64_t capacity = (d->token_count + row.count) * 3 / 2 + 4096;
        nb_row_token *larger = realloc(d->tokens, capacity * sizeof *larger);
        if (!larger)
            return nb_fail(NB_MEMORY, "%s: no memory for %llu tokens", r->file->path, (unsigned long long)capacity);
        d->tokens = larger;
        r->token_capacity = capacity;
    }
    row.first = d->token_count;
    row.source = r->source;
    if (row.count > 0)
        memcpy(d->tokens + d->token_count, tokens, row.count * sizeof *tokens);
    for (uint32_t i = 1; i < row.count; i++)
        row.trained_count += nb_row_token_trained(tokens[i]);
    d->token_count += row.count;
    d->rows[d->row_count++] = row;
    d->kept_count += row.dropped == NB_ROW_KEPT;
    return NB_OK;
}

/* Tokens of the piece at `at`, of `count` in all: sequence_len, but no piece of one token is left behind, in which
 * nothing would be predicted. */
static size_t piece_length(size_t at, size_t count, uint32_t sequence_len)
{
    size_t left = count - at;
    if (left <= sequence_len)
        return left;
    return left == (size_t)sequence_len + 1 && sequence_len > 2 ? sequence_len - 1 : sequence_len;
}

static nb_status add_result(struct reading *r, uint64_t line, struct nb_row_result *result)
{
    struct nb_dataset_file *file = r->file;
    uint32_t length = result->length > UINT32_MAX ? UINT32_MAX : (uint32_t)result->length;
    struct nb_row row = {.line = line, .length = length, .dropped = (uint8_t)result->dropped};
    file->rows++;
    file->trains_end = file->trains_end || result->trains_end;
    if (result->double_bos && file->double_bos_count++ == 0)
        file->double_bos_line = line;
    if (result->dropped) {
        if (file->dropped_count[result->dropped]++ == 0) {
            file->first_line[result->dropped] = line;
            file->first_problem[result->dropped] = result->problem;
            result->problem = NULL;
        }
        return add_row(r, row, NULL);
    }
    if (r->reader.type != NB_ROW_COMPLETION) {
        row.count = length;
        return add_row(r, row, result->tokens);
    }
    for (size_t at = 0; at < result->count;) {
        row.count = row.length = (uint32_t)piece_length(at, result->count, r->reader.options->sequence_len);
        /* With sequence_len 2 the last piece may be one token: nothing to learn from it. */
        if (row.count > 1)
            NB_TRY(add_row(r, row, result->tokens + at));
        at += row.count;
    }
    return NB_OK;
}

static void keep_message(struct unit *unit, nb_status status)
{
    unit->status = status;
    unit->message = strdup(nb_status_message());
}

static void read_unit(const struct reading *r, struct nb_row_worker *worker, struct unit *unit)
{
    if (!unit->value) {
        json_error_t error;
        unit->value = json_loadb(unit->text, unit->bytes, JSON_ALLOW_NUL, &error);
        if (!unit->value) {
            keep_message(unit, nb_fail(NB_FORMAT, "%s:%llu: not JSON: %s (column %d)", r->file->path,
                                       (unsigned long long)unit->line, error.text, error.column));
            return;
        }
    }
    nb_status status = nb_row_read(&r->reader, worker, unit->value, &unit->result);
    if (status != NB_OK)
        keep_message(unit, status);
    json_decref(unit->value);
    unit->value = NULL;
}

/* The type of the rows is told by the first. */
static nb_status choose(struct reading *r)
{
    struct unit *first = &r->units[0];
    if (!first->value) {
        json_error_t error;
        first->value = json_loadb(first->text, first->bytes, JSON_ALLOW_NUL, &error);
        if (!first->value)
            return nb_fail(NB_FORMAT, "%s:%llu: not JSON: %s (column %d)", r->file->path,
                (unsigned long long)first->line, error.text, error.column);
    }
    NB_TRY(nb_row_reader_choose(&r->reader, first->value));
    r->file->type = nb_row_type_name(r->reader.type);
    r->chosen = true;
    return NB_OK;
}

/* Reads the collected units, in parallel, and adds them in their order. Empties the list. */
static nb_status flush(struct reading *r)
{
    nb_status status = r->unit_count > 0 && !r->chosen ? choose(r) : NB_OK;
    if (status == NB_OK && r->unit_count > 0) {
        long count = (long)r->unit_count;
#pragma omp parallel for schedule(dynamic, 16) num_threads(r->threads)
        for (long i = 0; i < count; i++) {
#ifdef _OPENMP
            read_unit(r, &r->workers[omp_get_thread_num()], &r->units[i]);
#else
            read_unit(r, &r->workers[0], &r->units[i]);
#endif
        }
    }
    for (size_t i = 0; i < r->unit_count; i++) {
        struct unit *unit = &r->units[i];
        if (status == NB_OK && unit->status != NB_OK)
            status = nb_fail(unit->status, "%s", unit->message ? unit->message : "no memory");
        if (status == NB_OK)
            status = add_result(r, unit->line, &unit->result);
        json_decref(unit->value);
        free(unit->message);
        free(unit->result.tokens);
        free(unit->result.problem);
    }
    r->unit_count = 0;
    return status;
}

/* On an error the value is freed. */
static nb_status add_unit(struct reading *r, struct unit unit)
{
    r->units[r->unit_count++] = unit;
    return r->unit_count == BATCH_ROWS ? flush(r) : NB_OK;
}

static bool is_json_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static nb_status read_lines(struct reading *r, const char *data, size_t bytes)
{
    uint64_t line = 1;
    for (size_t at = 0; at < bytes; line++) {
        const char *newline = memchr(data + at, '\n', bytes - at);
        size_t end = newline ? (size_t)(newline - data) : bytes, begin = at, stop = end;
        while (begin < stop && is_json_space(data[begin]))
            begin++;
        while (stop > begin && is_json_space(data[stop - 1]))
            stop--;
        if (stop > begin)
            NB_TRY(add_unit(r, (struct unit){.text = data + begin, .bytes = stop - begin, .line = line}));
        at = newline ? end + 1 : end;
    }
    return flush(r);
}

/* One element after the other, so that the whole array never stands in memory as values. */
static nb_status read_array(struct reading *r, const char *data, size_t bytes)
{
    bool expect_element = false; /* after a comma */
    uint64_t element = 0;
    size_t at = 1;
    for (;;) {
        while (at < bytes && is_json_space(data[at]))
            at++;
        if (at < bytes && data[at] == ']' && !expect_element)
            break;
        json_error_t error;
        json_t *value =
            at < bytes ? json_loadb(data + at, bytes - at, JSON_ALLOW_NUL | JSON_DISABLE_EOF_CHECK, &error) : NULL;
        if (!value)
            return nb_fail(NB_FORMAT, "%s: element %llu of the array, at byte %zu: %s", r->file->path,
                (unsigned long long)element + 1, at, at < bytes ? error.text : "the file ends; is it complete?");
        at += (size_t)error.position;
        NB_TRY(add_unit(r, (struct unit){.value = value, .line = ++element}));
        while (at < bytes && is_json_space(data[at]))
            at++;
        expect_element = at < bytes && data[at] == ',';
        if (expect_element)
            at++;
        else if (at >= bytes || data[at] != ']')
            return nb_fail(NB_FORMAT, "%s: after element %llu of the array, at byte %zu: %s", r->file->path,
                (unsigned long long)element, at, at < bytes ? "',' or ']' expected" : "the file ends; is it complete?");
    }
    for (at++; at < bytes; at++)
        if (!is_json_space(data[at]))
            return nb_fail(NB_FORMAT, "%s: something follows the array at byte %zu", r->file->path, at);
    return flush(r);
}

static nb_status read_contents(struct reading *r, const char *data, size_t bytes)
{
    if (bytes >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
        data += 3;
        bytes -= 3;
    }
    size_t at = 0;
    while (at < bytes && is_json_space(data[at]))
        at++;
    if (at == bytes)
        return nb_fail(NB_FORMAT, "%s: the data set is empty", r->file->path);
    if (data[at] == '[')
        return read_array(r, data + at, bytes - at);
    return read_lines(r, data, bytes);
}

/* A plain file is mapped, a gzipped one unpacked. */
static nb_status read_file(struct reading *r, const char *path)
{
    struct nb_mapped_file file;
    NB_TRY(nb_mapped_file_open(path, &file));
    bool gzipped = file.bytes >= 2 && file.data[0] == 0x1f && file.data[1] == 0x8b;
    nb_status status = NB_OK;
    if (gzipped) {
        char *data = NULL;
        size_t bytes;
        status = nb_file_read(path, UNPACKED_BYTES_MAX, true, &data, &bytes);
        if (status == NB_OK)
            status = read_contents(r, data, bytes);
        free(data);
    } else {
        status = read_contents(r, (const char *)file.data, (size_t)file.bytes);
    }
    nb_mapped_file_close(&file);
    return status;
}

static void forget_units(struct reading *r)
{
    for (size_t i = 0; i < r->unit_count; i++)
        json_decref(r->units[i].value);
    r->unit_count = 0;
}

static nb_status start(struct reading *r, const struct nb_dataset_options *options, size_t sources)
{
    if (sources == 0 || sources > SOURCES_MAX)
        return nb_fail(NB_USAGE, "datasets names no file to read, or more than %d", SOURCES_MAX);
    if (options->sequence_len < 2)
        return nb_fail(NB_USAGE, "sequence_len %u is too short: a row needs 2 tokens, one to predict from the other",
                       options->sequence_len);
    r->threads = 1;
#ifdef _OPENMP
    r->threads = options->threads > 0 ? options->threads : omp_get_max_threads();
#endif
    r->dataset = calloc(1, sizeof *r->dataset);
    r->units = calloc(BATCH_ROWS, sizeof *r->units);
    r->workers = calloc((size_t)r->threads, sizeof *r->workers);
    if (r->dataset)
        r->dataset->sources = calloc(sources, sizeof *r->dataset->sources);
    if (!r->dataset || !r->units || !r->workers || !r->dataset->sources)
        return nb_fail(NB_MEMORY, "no memory to read data sets");
    return NB_OK;
}

/* `data` replaces the file of a single source when it is not NULL. */
static nb_status read_sources(const struct nb_dataset_source *sources, size_t count,
    const struct nb_dataset_options *options, const char *data, size_t bytes, struct nb_dataset **dataset)
{
    struct reading r = {0};
    *dataset = NULL;
    nb_status status = start(&r, options, count);
    for (size_t i = 0; status == NB_OK && i < count; i++) {
        r.file = &r.dataset->sources[i];
        r.source = (uint16_t)i;
        r.chosen = false;
        r.reader = (struct nb_row_reader){options, &sources[i], NB_ROW_CHAT};
        r.file->path = strdup(sources[i].path);
        r.dataset->source_count = i + 1;
        if (!r.file->path)
            status = nb_fail(NB_MEMORY, "no memory to read data sets");
        else
            status = data ? read_contents(&r, data, bytes) : read_file(&r, sources[i].path);
        if (status == NB_OK && !r.chosen)
            status = nb_fail(NB_FORMAT, "%s: the data set is empty", sources[i].path);
        forget_units(&r);
    }
    for (int i = 0; r.workers && i < r.threads; i++)
        nb_row_worker_free(&r.workers[i]);
    free(r.workers);
    free(r.units);
    if (status != NB_OK)
        nb_dataset_destroy(&r.dataset);
    *dataset = r.dataset;
    return status;
}

nb_status nb_dataset_read(const struct nb_dataset_source *sources, size_t count,
    const struct nb_dataset_options *options, struct nb_dataset **dataset)
{
    return read_sources(sources, count, options, NULL, 0, dataset);
}

nb_status nb_dataset_read_bytes(const char *data, size_t bytes, const struct nb_dataset_source *source,
                                const struct nb_dataset_options *options, struct nb_dataset **dataset)
{
    return read_sources(source, 1, options, data ? data : "", bytes, dataset);
}

void nb_dataset_destroy(struct nb_dataset **dataset)
{
    struct nb_dataset *d = *dataset;
    if (!d)
        return;
    for (size_t i = 0; d->sources && i < d->source_count; i++) {
        free(d->sources[i].path);
        for (int reason = 0; reason < NB_ROW_DROPPED_COUNT; reason++)
            free(d->sources[i].first_problem[reason]);
    }
    free(d->sources);
    free(d->rows);
    free(d->tokens);
    free(d);
    *dataset = NULL;
}

void nb_dataset_copy_row(const struct nb_dataset *dataset, uint32_t row, int32_t *ids, int32_t *labels)
{
    for (uint32_t i = 0; i < dataset->rows[row].count; i++) {
        nb_row_token token = dataset->tokens[dataset->rows[row].first + i];
        ids[i] = nb_row_token_id(token);
        if (labels)
            labels[i] = nb_row_token_trained(token) ? ids[i] : NB_LABEL_IGNORED;
    }
}
