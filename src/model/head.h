/* The final norm, the head and the loss of a micro-batch's trained rows. Private to src/model/. */
#ifndef NB_MODEL_HEAD_H
#define NB_MODEL_HEAD_H

#include "model/decoder.h"
#include "model/work.h"

/* A micro-batch at the head. Owns nothing. */
struct nb_head {
    const struct nb_model *model;
    const struct nb_adapter *adapter; /* or NULL */
    const struct nb_work *work;
    nb_dptr norm;             /* the final norm's weights */
    struct nb_weight matrix;  /* [vocab, hidden] */
    bool trains;              /* leave the gradient of x, and accumulate that of the head's own adapter */
    bool input_gradient;      /* something below the head trains */
    nb_dptr step, slot;
    nb_dptr x;                /* [tokens, hidden] */
    nb_dptr trained_row, label; /* [trained rows] */
    nb_dptr losses;           /* fp32 [trained rows] */
    nb_dptr gradient;         /* [tokens, hidden]: zero but for the trained rows, after; null unless input_gradient */
    int tokens_max, trained_rows_max, loss_rows;
};

/* Columns of a logits row in memory: the vocabulary, up to a multiple of 8. */
int nb_head_logits_stride(const struct nb_model *model);

/* Losses and step->loss_sum, in chunks of loss_rows logits rows; the gradient is made in the same pass, as no weight here but
 * an adapter's trains. */
nb_status nb_head_run(const struct nb_head *head);

/* The logits [vocab] of row `token` of x. */
nb_status nb_head_logits(const struct nb_head *head, int token, nb_dptr logits);

#endif
