/* One safetensors file whose sizes are known only at its end: a quant_state's length depends on the digits of its offset. */
#ifndef NB_CHECKPOINT_BNB_SHARD_H
#define NB_CHECKPOINT_BNB_SHARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "checkpoint/safetensors.h"

/* A tensor that waits for the end of the file, with its bytes. */
struct nb_bnb_waiting {
    struct nb_safetensors_entry entry;
    unsigned char *data;
};

/* Room for the header is left at the start and filled at the end. Tensors of a multiple of 4 bytes are written as they come; the
 * others, the quant_states and little else, wait for the end, so that every fp32 tensor lies at a multiple of 4 as loaders need. */
struct nb_bnb_shard {
    FILE *file;
    char *path;
    uint64_t header_bytes;
    struct nb_safetensors_entry *entries; /* written, in order; names owned */
    size_t count, room;
    struct nb_bnb_waiting *waiting;
    size_t waiting_count, waiting_room;
};

/* An upper bound of what one entry takes in the header. */
uint64_t nb_bnb_shard_header_bytes(const char *name, int rank);

/* `header_bytes` is the sum of the above over all entries to come. Errors: NB_IO, NB_MEMORY. */
nb_status nb_bnb_shard_open(struct nb_bnb_shard *shard, const char *path, uint64_t header_bytes);

/* Adds a whole tensor; name and data are copied or written at once. */
nb_status nb_bnb_shard_add(struct nb_bnb_shard *shard, const struct nb_safetensors_entry *entry, const void *data);

/* Writes what waits and the header, syncs and closes. The shard is cleared, whatever is returned. */
nb_status nb_bnb_shard_finish(struct nb_bnb_shard *shard);

/* Closes without finishing; the file stays for its folder's owner to remove. Takes a cleared shard. */
void nb_bnb_shard_abandon(struct nb_bnb_shard *shard);

#endif
