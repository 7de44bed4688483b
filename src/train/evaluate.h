/* Losses of a data set's rows, in file order, without gradients: train's evaluation and the evaluate verb. */
#ifndef NB_TRAIN_EVALUATE_H
#define NB_TRAIN_EVALUATE_H

#include <signal.h>

#include "train/session.h"

struct nb_progress;

/* Losses a row. Start with {0}; free with nb_evaluation_free. */
struct nb_evaluation {
    double loss_sum;      /* over all rows, added in order */
    uint64_t trained_tokens, tokens;
    uint32_t rows;
    double *row_loss_sum; /* [rows] sums in double, in the order of the row's tokens */
    uint32_t *row_tokens; /* [rows] trained positions; 0 for a row that was dropped */
};

struct nb_evaluate_args {
    struct nb_session *session;
    const struct nb_dataset *dataset;
    const uint32_t *rows; /* which, in this order; NULL: all, dropped ones among them */
    uint32_t row_count;   /* ignored when rows is NULL */
    struct nb_progress *progress;       /* rows done; may be NULL */
    const volatile sig_atomic_t *stop;  /* may be NULL; nonzero: NB_INTERRUPTED */
};

/* Makes a forward-only pass in the session's arena for run->eval_limits and releases it. A row's loss depends on the row alone, not on
 * how rows are grouped, but for the last bits of fp32 products: there a row's place in its tile decides the order of sums. On a dry
 * device one group is enqueued. Errors: NB_NUMERIC naming a row whose loss is not finite. */
nb_status nb_evaluate(const struct nb_evaluate_args *args, struct nb_evaluation *evaluation);

void nb_evaluation_free(struct nb_evaluation *evaluation);

#endif
