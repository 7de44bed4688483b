/* A file of cached weights, of a known shape. The first byte chooses: the rest is the file, or changes to a good one,
 * three bytes each (an offset's two, and what stands there then). Whatever comes, it is refused, or every unit can be
 * read; and of a changed one exactly what was changed is found. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "model/unit_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { UNITS = 3, TAIL = 20480, GOOD_BYTES = TAIL + 4 * (UNITS + 1) };

static const uint64_t sizes[UNITS] = {256, 5000, 512}, offsets[UNITS] = {4096, 8192, 16384};
static const char key[] = "a key\n";

static void make_good(uint8_t file[GOOD_BYTES])
{
    const struct {
        char magic[8];
        uint32_t version, units;
        uint64_t file_bytes, key_bytes, sizes[UNITS];
    } header = {"NBUNITS", 1, UNITS, GOOD_BYTES, sizeof key - 1, {256, 5000, 512}};
    uint32_t sum[UNITS + 1];
    memset(file, 0, GOOD_BYTES);
    memcpy(file, &header, sizeof header);
    memcpy(file + sizeof header, key, sizeof key - 1);
    for (int unit = 0; unit < UNITS; unit++) {
        for (uint64_t i = 0; i < sizes[unit]; i++)
            file[offsets[unit] + i] = (uint8_t)(i * 7 + i / 256);
        sum[unit] = (uint32_t)crc32_z(0, file + offsets[unit], sizes[unit]);
    }
    sum[UNITS] = (uint32_t)crc32_z(0, (const uint8_t *)sum, UNITS * sizeof *sum);
    memcpy(file + TAIL, sum, sizeof sum);
}

static bool unit_is_good(const struct nb_unit_file *file, int unit)
{
    uint8_t read[5000];
    uint32_t crc = 0;
    uint64_t half = sizes[unit] / 2;
    if (nb_unit_file_read(file, unit, 0, read, half, &crc) != NB_OK ||
        nb_unit_file_read(file, unit, half, read + half, sizes[unit] - half, &crc) != NB_OK)
        abort();
    return nb_unit_file_verify(file, unit, crc) == NB_OK;
}

/* `good` NULL: nobody knows what must be found. */
static void open_and_read(const uint8_t *data, size_t bytes, const uint8_t *good)
{
    const struct nb_unit_file_shape shape = {.key = key, .units = UNITS, .bytes = sizes};
    struct nb_unit_file *file;
    char path[64];
    int memory = memfd_create("fuzz", MFD_CLOEXEC);
    if (memory < 0 || (bytes && write(memory, data, bytes) != (ssize_t)bytes))
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory);
    bool opens = nb_unit_file_open(path, &shape, &file) == NB_OK;
    if (good && opens != (memcmp(data, good, 4096) == 0 && memcmp(data + TAIL, good + TAIL, GOOD_BYTES - TAIL) == 0))
        abort();
    for (int unit = 0; opens && unit < UNITS; unit++) {
        bool is_good = unit_is_good(file, unit);
        if (good && is_good != (memcmp(data + offsets[unit], good + offsets[unit], sizes[unit]) == 0))
            abort();
    }
    nb_unit_file_close(&file);
    close(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t good[GOOD_BYTES], changed[GOOD_BYTES];
    if (bytes == 0 || data[0] % 2 == 0) {
        open_and_read(data + (bytes > 0), bytes - (bytes > 0), NULL);
        return 0;
    }
    make_good(good);
    memcpy(changed, good, GOOD_BYTES);
    for (size_t i = 1; i + 3 <= bytes; i += 3)
        changed[(size_t)(data[i] | data[i + 1] << 8) % GOOD_BYTES] = data[i + 2];
    open_and_read(changed, GOOD_BYTES, good);
    return 0;
}
