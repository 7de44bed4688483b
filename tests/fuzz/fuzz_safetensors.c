/* The reader of safetensors files, and every byte that an accepted one says is a tensor's. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "checkpoint/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct nb_safetensors *file;
    unsigned sum = 0;
    if (nb_safetensors_parse(data, bytes, "fuzz.safetensors", &file) != NB_OK)
        return 0;
    for (size_t i = 0; i < nb_safetensors_count(file); i++) {
        const struct nb_safetensors_tensor *tensor = nb_safetensors_at(file, i);
        if (nb_safetensors_find(file, tensor->name) != tensor)
            abort();
        for (uint64_t j = 0; j < tensor->bytes; j++)
            sum += tensor->data[j];
    }
    nb_safetensors_metadata(file, "format");
    nb_safetensors_close(&file);
    return (int)(sum & 0); /* libFuzzer wants 0; the sum keeps the reads */
}
