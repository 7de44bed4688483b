/* Which device a run computes on, and how that device is opened. */
#ifndef NB_TRAIN_DEVICE_H
#define NB_TRAIN_DEVICE_H

#include "train/setup.h"

/* Profile, arithmetic and products' table from the config; opens nothing. `device: auto` takes the GPU where there is one that works, else
 * the CPU, and keeps why (run->device_note). Errors: those of nb_cuda_probe where the config asks for cuda; NB_USAGE for fp32 on a GPU. */
nb_status nb_run_choose_device(struct nb_run *run);

/* The same for a device that is not here: only plans follow. */
nb_status nb_run_assume_device(struct nb_run *run, const struct nb_device_profile *profile);

/* Opens run->device and prepares it for the products that a dry run saw: context, kernels, algorithms; then measures what memory it has
 * left (run->available_bytes), and the host (run->host_available_bytes). Where the matrix library has no algorithm that gives a row the
 * same bits at every number of rows, it is left alone, with a warning, and run->profile says so: plans made before no longer hold. Once a
 * run. */
nb_status nb_run_open_device(struct nb_run *run, const struct nb_product_site *sites, int count);

/* Replaces the table of products by the one that a checkpoint recorded, so that a resumed run takes the same ways. A recording of another
 * GPU or library is not used, with a warning: its sums would differ in the last bits anyhow. */
nb_status nb_run_take_products(struct nb_run *run, const char *path);

#endif
