#include "support/files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"

int nb_test_make_folder(void **state)
{
    char name[] = "/tmp/nibble-test-XXXXXX";
    *state = mkdtemp(name) ? strdup(name) : NULL;
    return *state ? 0 : -1;
}

int nb_test_remove_folder(void **state)
{
    nb_status status = nb_remove_folder(*state);
    bool left = nb_path_exists(*state);
    free(*state);
    return status == NB_OK && !left ? 0 : -1;
}

void nb_test_must(nb_status status)
{
    if (status != NB_OK)
        fail_msg("%s", nb_status_message());
}

void nb_test_says(const char *words)
{
    if (!strstr(nb_status_message(), words))
        fail_msg("\"%s\" does not say \"%s\"", nb_status_message(), words);
}

void nb_test_put(struct nb_test_bytes *file, const void *data, size_t bytes)
{
    assert_true(bytes <= file->capacity - file->bytes);
    memcpy(file->data + file->bytes, data, bytes);
    file->bytes += bytes;
}

void nb_test_put_u32(struct nb_test_bytes *file, uint32_t value)
{
    nb_test_put(file, &value, sizeof value);
}

void nb_test_put_u64(struct nb_test_bytes *file, uint64_t value)
{
    nb_test_put(file, &value, sizeof value);
}

void nb_test_put_text(struct nb_test_bytes *file, const char *text)
{
    nb_test_put_u64(file, strlen(text));
    nb_test_put(file, text, strlen(text));
}
