/* The knobs: one row for each thing that may be chosen. Private to src/train/. */
#ifndef NB_TRAIN_FIT_KNOBS_H
#define NB_TRAIN_FIT_KNOBS_H

#include "train/setup.h"

struct nb_knob {
    const char *key;
    bool everywhere; /* not in training alone */
    bool leaves;     /* moves something from the device's memory to the host's */
    bool (*is_auto)(const struct nb_config *config);
    /* From 0, the fastest, to notches - 1, the most frugal. 1 where there is nothing to choose. */
    int (*notches)(const struct nb_run *run);
    /* The most frugal notch that costs next to nothing; NULL: 0. */
    int (*cheap)(const struct nb_run *run);
    /* Writes what the knob decides into the run; run->notch has the other knobs' notches. */
    void (*set)(struct nb_run *run, int notch);
    /* What the config would say for it, or "auto, with ..." where it has no word for that. The caller frees it. */
    char *(*say)(const struct nb_run *run, int notch);
    /* Writes what the config says, or where that is auto and nothing may be chosen, what is then done. */
    void (*give)(struct nb_run *run);
};

/* In the order in which they are relaxed. */
extern const struct nb_knob nb_knobs[NB_KNOBS];

/* Whether the run may choose it; and whether it might, if the config did not give it. */
bool nb_knob_is_free(const struct nb_run *run, enum nb_knob_name knob);
bool nb_knob_applies(const struct nb_run *run, enum nb_knob_name knob);

/* Every knob's notch, or the config's value, into the run. */
void nb_knobs_apply(struct nb_run *run);

#endif
