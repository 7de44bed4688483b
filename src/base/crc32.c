#include "base/crc32.h"

#include <zlib.h>

enum { PIECE_BYTES = 1 << 18, PIECES = 64 };

/* Up to PIECES pieces at a time, each for itself, and put together in their order. */
uint32_t nb_crc32(uint32_t crc, const void *data, uint64_t bytes)
{
    const unsigned char *from = data;
    while (bytes) {
        const uint64_t group_max = (uint64_t)PIECES * PIECE_BYTES, group = bytes < group_max ? bytes : group_max;
        const int pieces = (int)((group + PIECE_BYTES - 1) / PIECE_BYTES);
        uint32_t part[PIECES];
#pragma omp parallel for schedule(static) if (pieces > 1)
        for (int i = 0; i < pieces; i++) {
            uint64_t begin = (uint64_t)i * PIECE_BYTES, rest = group - begin;
            part[i] = (uint32_t)crc32_z(0, from + begin, rest < PIECE_BYTES ? (size_t)rest : PIECE_BYTES);
        }
        for (int i = 0; i < pieces; i++) {
            uint64_t rest = group - (uint64_t)i * PIECE_BYTES;
            crc = (uint32_t)crc32_combine(crc, part[i], (z_off_t)(rest < PIECE_BYTES ? rest : PIECE_BYTES));
        }
        from += group;
        bytes -= group;
    }
    return crc;
}
