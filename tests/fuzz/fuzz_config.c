/* A config from anywhere: read, checked, written and read again. What was accepted must read back equal. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "config/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct nb_config config, again;
    char *text;
    size_t text_bytes;
    if (nb_config_parse((const char *)data, bytes, "input", NULL, 0, &config) != NB_OK)
        return 0;
    (void)nb_config_validate_train(&config); /* most inputs lack a key; what it fills in must be written too */
    if (nb_config_format(&config, &text, &text_bytes) != NB_OK)
        abort();
    if (nb_config_parse(text, text_bytes, "written", NULL, 0, &again) != NB_OK || nb_config_first_difference(&config, &again))
        abort();
    nb_config_destroy(&config);
    nb_config_destroy(&again);
    free(text);
    return 0;
}
