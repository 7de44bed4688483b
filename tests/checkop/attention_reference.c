#include "attention_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int attention_stride(const struct attention_case *k, int heads)
{
    return heads * k->head_dim + k->stride_extra;
}

/* The first sequence that `sequence` repeats: perhaps itself. */
static int original_of(const struct attention_setup *s, int sequence)
{
    int first = 0;
    while (s->k.queries[first] != s->k.queries[sequence])
        first++;
    return first;
}

/* The row that row t repeats. */
static int original_row(const struct attention_setup *s, int t)
{
    int sequence = 0;
    while (s->query_starts[sequence + 1] <= t)
        sequence++;
    return s->query_starts[original_of(s, sequence)] + t - s->query_starts[sequence];
}

void attention_expect_repeats(
    struct checkop *c, const struct attention_setup *s, struct checkop_buffer *b, uint64_t begin, int stride, int width)
{
    if (!s->k.repeats)
        return;
    for (int t = 0; t < s->tokens; t++)
        checkop_expect_repeated(
            c, b, begin + (uint64_t)(original_row(s, t) * stride), begin + (uint64_t)(t * stride), (uint64_t)width);
}

struct checkop_buffer *attention_matrix(struct checkop *c, const struct attention_setup *s, const char *name, int rows,
    int rows_max, int heads, double deviation, double **values)
{
    int width = heads * s->k.head_dim, stride = attention_stride(&s->k, heads);
    struct checkop_buffer *buffer = checkop_input(c, name, s->dtype, (uint64_t)rows_max * (uint64_t)stride);
    checkop_fill_value(buffer, 0, checkop_count(buffer), NAN);
    *values = checkop_scratch(c, (uint64_t)rows * (uint64_t)width);
    for (int t = 0; t < rows; t++) {
        int original = s->k.repeats ? original_row(s, t) : t;
        for (int i = 0; i < width; i++) {
            checkop_set(buffer, (uint64_t)(t * stride + i),
                original < t ? (*values)[original * width + i] : deviation * checkop_random_normal(c));
            (*values)[t * width + i] = checkop_get(buffer, (uint64_t)(t * stride + i));
        }
    }
    return buffer;
}

static struct checkop_buffer *starts_buffer(struct checkop *c, const char *name, const int32_t *starts, int sequences)
{
    struct checkop_buffer *buffer = checkop_input(c, name, NB_DTYPE_I32, (uint64_t)sequences + 1);
    memcpy(checkop_image(buffer), starts, ((size_t)sequences + 1) * sizeof *starts);
    return buffer;
}

void attention_begin(struct checkop *c, const struct attention_case *k, enum nb_dtype dtype, struct attention_setup *s)
{
    checkop_case(c, "%s, queries %d %d %d.., keys %d.., %d heads on %d of %d, window %d, cap %g, size %g, scale %g%s",
        checkop_dtype_name(dtype), k->queries[0], k->queries[1], k->queries[2], k->keys[0], k->heads, k->kv_heads,
        k->head_dim, k->window, (double)k->soft_cap, k->magnitude, (double)k->scale, k->repeats ? ", repeated" : "");
    *s = (struct attention_setup){
        .k = *k, .dtype = dtype, .scale = k->scale != 0 ? k->scale : 1 / sqrtf((float)k->head_dim)};
    for (int i = 0; i < ATTENTION_SEQUENCES && k->queries[i] > 0; i++) {
        int keys = k->keys[i] ? k->keys[i] : k->queries[i];
        s->query_starts[i + 1] = s->query_starts[i] + k->queries[i];
        s->key_starts[i + 1] = s->key_starts[i] + keys;
        s->longest = keys > s->longest ? keys : s->longest;
        s->sequences = i + 1;
    }
    s->tokens = s->query_starts[s->sequences];
    s->key_tokens = s->key_starts[s->sequences];
    s->tokens_max = s->tokens + k->rows_extra;
    s->key_tokens_max = s->key_tokens + k->rows_extra;
    s->q_buffer =
        attention_matrix(c, s, "q", s->tokens, s->tokens_max, k->heads, k->magnitude == 0 ? 1 : k->magnitude, &s->q);
    s->k_buffer = attention_matrix(c, s, "k", s->key_tokens, s->key_tokens_max, k->kv_heads, 1, &s->k_values);
    s->v_buffer = attention_matrix(c, s, "v", s->key_tokens, s->key_tokens_max, k->kv_heads, 1, &s->v);
    s->query_starts_buffer = starts_buffer(c, "query_starts", s->query_starts, s->sequences);
    s->key_starts_buffer = starts_buffer(c, "key_starts", s->key_starts, s->sequences);
    s->slot_buffer = checkop_slot(c,
        &(struct nb_slot){
            .tokens = (uint32_t)s->tokens, .sequences = (uint32_t)s->sequences, .key_tokens = (uint32_t)s->key_tokens});
}

/* What one query of one head sees: keys [begin, end) of the buffer, their weights, the tanh of their capped scores, and
 * lse. */
struct row {
    int begin, end;
    double *weights, *tanhs, lse;
};

/* `q` points at the query's head, `k` at the first key's head. */
static void weigh(
    const struct attention_setup *s, const double *q, const double *k, int sequence, int query, struct row *row)
{
    int n = s->query_starts[sequence + 1] - s->query_starts[sequence],
        m = s->key_starts[sequence + 1] - s->key_starts[sequence];
    int position = m - n + query, width = s->k.kv_heads * s->k.head_dim;
    row->begin =
        s->key_starts[sequence] + (s->k.window > 0 && position >= s->k.window ? position - s->k.window + 1 : 0);
    row->end = s->key_starts[sequence] + position + 1;
    double largest = -INFINITY, sum = 0, cap = (double)s->k.soft_cap;
    for (int j = row->begin; j < row->end; j++) {
        double score = 0;
        for (int i = 0; i < s->k.head_dim; i++)
            score += q[i] * k[j * width + i];
        score *= (double)s->scale;
        row->tanhs[j] = cap > 0 ? tanh(score / cap) : 0;
        row->weights[j] = cap > 0 ? cap * row->tanhs[j] : score;
        largest = fmax(largest, row->weights[j]);
    }
    for (int j = row->begin; j < row->end; j++)
        sum += exp(row->weights[j] - largest);
    row->lse = largest + log(sum);
    for (int j = row->begin; j < row->end; j++)
        row->weights[j] = exp(row->weights[j] - row->lse);
}

void attention_forward(
    const struct attention_setup *s, const double *q, const double *k, const double *v, double *o, double *lse)
{
    int width = s->k.head_dim, q_width = s->k.heads * width, kv_width = s->k.kv_heads * width;
    struct row row = {.weights = malloc((size_t)s->key_tokens * sizeof(double)),
        .tanhs = malloc((size_t)s->key_tokens * sizeof(double))};
    for (int sequence = 0; sequence < s->sequences; sequence++) {
        for (int t = s->query_starts[sequence]; t < s->query_starts[sequence + 1]; t++) {
            for (int head = 0; head < s->k.heads; head++) {
                int kv = head / (s->k.heads / s->k.kv_heads) * width;
                weigh(
                    s, q + (int64_t)t * q_width + head * width, k + kv, sequence, t - s->query_starts[sequence], &row);
                double *out = o + (int64_t)t * q_width + head * width;
                for (int i = 0; i < width; i++) {
                    out[i] = 0;
                    for (int j = row.begin; j < row.end; j++)
                        out[i] += row.weights[j] * v[j * kv_width + kv + i];
                }
                if (lse)
                    lse[(int64_t)head * s->tokens + t] = row.lse;
            }
        }
    }
    free(row.weights);
    free(row.tanhs);
}

void attention_gradient(const struct attention_setup *s, const double *d_o, double *dq, double *dk, double *dv)
{
    int width = s->k.head_dim, q_width = s->k.heads * width, kv_width = s->k.kv_heads * width;
    struct row row = {.weights = malloc((size_t)s->key_tokens * sizeof(double)),
        .tanhs = malloc((size_t)s->key_tokens * sizeof(double))};
    double *d_weights = malloc((size_t)s->key_tokens * sizeof(double));
    for (int sequence = 0; sequence < s->sequences; sequence++) {
        for (int t = s->query_starts[sequence]; t < s->query_starts[sequence + 1]; t++) {
            for (int head = 0; head < s->k.heads; head++) {
                int kv = head / (s->k.heads / s->k.kv_heads) * width;
                const double *q = s->q + (int64_t)t * q_width + head * width,
                             *out = d_o + (int64_t)t * q_width + head * width;
                weigh(s, q, s->k_values + kv, sequence, t - s->query_starts[sequence], &row);
                double mean = 0;
                for (int j = row.begin; j < row.end; j++) {
                    d_weights[j] = 0;
                    for (int i = 0; i < width; i++) {
                        d_weights[j] += out[i] * s->v[j * kv_width + kv + i];
                        dv[j * kv_width + kv + i] += row.weights[j] * out[i];
                    }
                    mean += row.weights[j] * d_weights[j];
                }
                for (int j = row.begin; j < row.end; j++) {
                    double d_score =
                        row.weights[j] * (d_weights[j] - mean) * (1 - row.tanhs[j] * row.tanhs[j]) * (double)s->scale;
                    for (int i = 0; i < width; i++) {
                        dq[(int64_t)t * q_width + head * width + i] += d_score * s->k_values[j * kv_width + kv + i];
                        dk[j * kv_width + kv + i] += d_score * q[i];
                    }
                }
            }
        }
    }
    free(d_weights);
    free(row.weights);
    free(row.tanhs);
}
