/* What the tests of files share: a folder of their own, statuses that must be good, files put together byte by byte. A failure ends
 * the test. */
#ifndef NB_TESTS_SUPPORT_FILES_H
#define NB_TESTS_SUPPORT_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A cmocka set-up and its tear-down: *state is the path (char *) of a new folder, which is removed with all that is in it. */
int nb_test_make_folder(void **state);
int nb_test_remove_folder(void **state);

/* NB_OK, or the message fails the test. */
void nb_test_must(nb_status status);

/* The last failure's message holds these words. */
void nb_test_says(const char *words);

/* A file being put together in the caller's memory of `capacity` bytes. */
struct nb_test_bytes {
    unsigned char *data;
    size_t bytes, capacity;
};

/* Each appends, little-endian. A text is GGUF's: its length as 64 bits, then its bytes. */
void nb_test_put(struct nb_test_bytes *file, const void *data, size_t bytes);
void nb_test_put_u32(struct nb_test_bytes *file, uint32_t value);
void nb_test_put_u64(struct nb_test_bytes *file, uint64_t value);
void nb_test_put_text(struct nb_test_bytes *file, const char *text);

#endif
