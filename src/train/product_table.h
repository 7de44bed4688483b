/* Files of the table that says which way each matrix product takes on a GPU (device/cuda/plan.h):
 *   {"device": "NVIDIA H200", "cublaslt": 130100,
 *    "products": [{"out": 4096, "in": 14336, "tokens": 2048, "backward": false, "path": "fused"}]}
 * `nibble bench matmul --write` leaves what it measured in the user's configuration folder; a checkpoint records what its
 * run took. */
#ifndef NB_TRAIN_PRODUCT_TABLE_H
#define NB_TRAIN_PRODUCT_TABLE_H

#include "base/status.h"
#include "device/cuda/plan.h"

/* What a run of these products takes, line by line. Owned: destroy it. Errors: NB_MEMORY. */
nb_status nb_product_table_record(const struct nb_device_profile *profile, const struct nb_product_site *sites, int count,
                             struct nb_product_table **table);

/* Errors: NB_IO; NB_FORMAT, naming the file and the line or the entry. */
nb_status nb_product_table_read(const char *path, struct nb_product_table **table);
nb_status nb_product_table_write(const char *path, const struct nb_product_table *table);

/* The user's table for this GPU and library: $XDG_CONFIG_HOME/nibble/products-DEVICE-VERSION.json, else below
 * $HOME/.config. The caller frees it. NULL where neither is set. */
char *nb_product_table_user_path(const struct nb_device_profile *profile);

/* Takes NULL; nulls the handle. */
void nb_product_table_destroy(struct nb_product_table **table);

#endif
