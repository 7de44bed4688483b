#include "base/nearest.h"

#include <limits.h>
#include <string.h>

enum { WORD_MAX = 63 };

static int minimum(int a, int b)
{
    return a < b ? a : b;
}

/* Levenshtein's distance by rows; words beyond WORD_MAX bytes are never near. */
static int distance(const char *a, const char *b)
{
    size_t a_length = strlen(a), b_length = strlen(b);
    int row[WORD_MAX + 1];
    if (a_length > WORD_MAX || b_length > WORD_MAX)
        return INT_MAX;
    for (size_t j = 0; j <= b_length; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= a_length; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= b_length; j++) {
            int above = row[j];
            row[j] = minimum(minimum(above, row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[b_length];
}

struct nb_nearest nb_nearest_start(const char *word)
{
    return (struct nb_nearest){.word = word, .best = NULL, .distance = INT_MAX};
}

void nb_nearest_offer(struct nb_nearest *nearest, const char *candidate)
{
    int d = distance(nearest->word, candidate);
    if (d < nearest->distance) {
        nearest->distance = d;
        nearest->best = candidate;
    }
}

const char *nb_nearest_found(const struct nb_nearest *nearest)
{
    int limit = (int)strlen(nearest->word) / 3;
    return nearest->distance <= (limit < 2 ? 2 : limit) ? nearest->best : NULL;
}
