/* zlib's crc32, on all cores: one alone is slower than a good disk. */
#ifndef NB_BASE_CRC32_H
#define NB_BASE_CRC32_H

#include <stdint.h>

/* The checksum of what `crc` is the checksum of (0: of nothing) followed by these bytes. */
uint32_t nb_crc32(uint32_t crc, const void *data, uint64_t bytes);

#endif
