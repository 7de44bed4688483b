/* config.json and generation_config.json; an accepted config is written and read again, and must be the same. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct nb_model_config config, again;
    memset(&config, 0, sizeof config);
    nb_model_config_parse_generation((const char *)data, bytes, "fuzz.json", &config);
    if (nb_model_config_parse((const char *)data, bytes, "fuzz.json", &config) != NB_OK)
        return 0;
    if (nb_model_config_parameters(&config) <= 0)
        abort();
    char *text = nb_model_config_to_json(&config);
    if (!text || nb_model_config_parse(text, strlen(text), "again.json", &again) != NB_OK)
        abort();
    if (again.family != config.family || again.hidden != config.hidden || again.head_dim != config.head_dim ||
        again.kv_heads != config.kv_heads || again.tied != config.tied || again.sliding_window != config.sliding_window ||
        again.rms_epsilon != config.rms_epsilon || again.rope.theta != config.rope.theta)
        abort();
    free(text);
    return 0;
}
