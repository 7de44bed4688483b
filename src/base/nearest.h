/* The known word nearest to a mistyped one, for "did you mean". */
#ifndef NB_BASE_NEAREST_H
#define NB_BASE_NEAREST_H

struct nb_nearest {
    const char *word, *best;
    int distance;
};

/* Starts a search for `word`, which must outlive it. */
struct nb_nearest nb_nearest_start(const char *word);

/* Offers a candidate, which must outlive the search. The first of equally near ones wins. */
void nb_nearest_offer(struct nb_nearest *nearest, const char *candidate);

/* The nearest candidate by Levenshtein's distance, or NULL when none is within a third of the word's length (at least 2). */
const char *nb_nearest_found(const struct nb_nearest *nearest);

#endif
