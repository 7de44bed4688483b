/* The data side of set-up, for setup.c. */
#ifndef NB_TRAIN_SETUP_DATA_H
#define NB_TRAIN_SETUP_DATA_H

#include "train/setup.h"

/* Reads, checks and splits the config's data sets, plans the batches, and sizes a micro-batch and the run. */
nb_status nb_setup_training_data(struct nb_run *run);

/* Reads one file for evaluation and sizes its groups by its longest row. */
nb_status nb_setup_evaluation_data(struct nb_run *run, const char *path);

#endif
