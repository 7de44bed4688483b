/* A file of cached weights, of a known shape: whatever stands in it, it is refused, or every unit can be read and its checksum told. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/unit_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const uint64_t sizes[] = {256, 5000, 512};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const struct nb_unit_file_shape shape = {.key = "a key\n", .units = 3, .bytes = sizes};
    struct nb_unit_file *file;
    char path[64];
    unsigned char unit[5000];
    int memory = memfd_create("fuzz", MFD_CLOEXEC);
    if (memory < 0 || (bytes && write(memory, data, bytes) != (ssize_t)bytes))
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    if (nb_unit_file_open(path, &shape, &file) == NB_OK) {
        for (int i = 0; i < shape.units; i++) {
            uint32_t crc = 0;
            if (nb_unit_file_read(file, i, 0, unit, sizes[i] / 2, &crc) != NB_OK ||
                nb_unit_file_read(file, i, sizes[i] / 2, unit, sizes[i] - sizes[i] / 2, &crc) != NB_OK)
                abort();
            (void)nb_unit_file_verify(file, i, crc);
        }
        nb_unit_file_close(&file);
    }
    close(memory);
    return 0;
}
