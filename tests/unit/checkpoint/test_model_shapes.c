/* configs/models: every file there is read, and has the shape and the parameter count that its maker states. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "checkpoint/family.h"
#include "checkpoint/model_config.h"

/* Parameters as the model cards' safetensors summaries have them. */
static const struct shape {
    const char *name, *family;
    int64_t parameters;
    int hidden, layers, heads, kv_heads, head_dim, max_positions;
    double theta, epsilon;
    bool tied;
} shapes[] = {
    {"llama-2-7b", "llama", 6738415616, 4096, 32, 32, 32, 128, 4096, 1e4, 1e-5, false},
    {"llama-2-13b", "llama", 13015864320, 5120, 40, 40, 40, 128, 4096, 1e4, 1e-5, false},
    {"llama-2-70b", "llama", 68976648192, 8192, 80, 64, 8, 128, 4096, 1e4, 1e-5, false},
    {"llama-3-8b", "llama", 8030261248, 4096, 32, 32, 8, 128, 8192, 5e5, 1e-5, false},
    {"llama-3-70b", "llama", 70553706496, 8192, 80, 64, 8, 128, 8192, 5e5, 1e-5, false},
    {"mistral-7b", "mistral", 7248023552, 4096, 32, 32, 8, 128, 32768, 1e6, 1e-5, false},
    {"qwen3-8b", "qwen3", 8190735360, 4096, 36, 32, 8, 128, 40960, 1e6, 1e-6, false},
    {"qwen3-32b", "qwen3", 32762123264, 5120, 64, 64, 8, 128, 40960, 1e6, 1e-6, false},
    {"smollm2-135m", "llama", 134515008, 576, 30, 9, 3, 64, 8192, 1e5, 1e-5, true},
};
enum { SHAPE_COUNT = sizeof shapes / sizeof *shapes };

static void read_shape(const char *name, struct nb_model_config *config)
{
    char *path = nb_format("configs/models/%s.json", name), *text;
    size_t bytes;
    if (nb_file_read(path, 1 << 20, false, &text, &bytes) != NB_OK ||
        nb_model_config_parse(text, bytes, path, config) != NB_OK)
        fail_msg("%s", nb_status_message());
    free(text);
    free(path);
}

static void each_has_its_makers_shape(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        const struct shape *s = &shapes[i];
        struct nb_model_config c;
        read_shape(s->name, &c);
        if (nb_model_config_parameters(&c) != s->parameters)
            fail_msg("%s: %lld parameters, not %lld", s->name, (long long)nb_model_config_parameters(&c),
                (long long)s->parameters);
        assert_string_equal(c.family->name, s->family);
        assert_int_equal(c.hidden, s->hidden);
        assert_int_equal(c.layers, s->layers);
        assert_int_equal(c.heads, s->heads);
        assert_int_equal(c.kv_heads, s->kv_heads);
        assert_int_equal(c.head_dim, s->head_dim);
        assert_int_equal(c.max_positions, s->max_positions);
        assert_true(c.rope.theta == s->theta);
        assert_true(c.rms_epsilon == (float)s->epsilon);
        assert_int_equal(c.tied, s->tied);
        assert_int_equal(c.sliding_window, 0);
        assert_false(c.quantized);
    }
}

static void the_list_is_whole(void **state)
{
    (void)state;
    size_t files = 0;
    DIR *folder = opendir("configs/models");
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ".json") != 0)
            continue;
        *dot = 0;
        size_t i = 0;
        while (i < SHAPE_COUNT && strcmp(shapes[i].name, entry->d_name) != 0)
            i++;
        if (i == SHAPE_COUNT)
            fail_msg("configs/models/%s.json stands in no line of this test", entry->d_name);
        files++;
    }
    closedir(folder);
    assert_int_equal(files, SHAPE_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_has_its_makers_shape),
        cmocka_unit_test(the_list_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
