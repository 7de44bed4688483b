#include "planned.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "config/device_profile.h"
#include "support/files.h"

void planned_again(struct planned *p)
{
    nb_test_must(nb_fit_choose(p->run));
    nb_test_must(nb_plan_measure(p->run, &p->measured));
}

struct planned *planned_open_changed(
    const char *folder, const char *model, const char *device, int tokens, const char *more, const char *change)
{
    struct planned *p = calloc(1, sizeof *p);
    struct nb_device_profile profile;
    assert_non_null(p);
    char *rows = nb_path_join(folder, "rows.jsonl");
    char *yaml = nb_format("base_model: configs/models/%s.json\nadapter: qlora\nlora_target_linear: true\n"
                           "datasets: [{path: %s, type: tokens}]\nlearning_rate: 1e-4\nmax_steps: 2\nsequence_len: %d\n%s",
        model, rows, tokens, more);
    nb_test_must(nb_file_write(rows, "{\"input_ids\": [1, 2, 3]}\n", 25));
    nb_test_must(nb_config_parse(yaml, strlen(yaml), "test.yml", &change, change ? 1 : 0, &p->config));
    nb_test_must(nb_config_validate_train(&p->config));
    if (device)
        nb_test_must(nb_device_profile_read(device, &profile));
    struct nb_run_args args = {
        .config = &p->config, .purpose = NB_PURPOSE_TRAIN, .profile = device ? &profile : NULL};
    nb_test_must(nb_run_open(&args, &p->run));
    nb_test_must(nb_plan_measure(p->run, &p->measured));
    free(yaml);
    free(rows);
    return p;
}

struct planned *planned_open(const char *folder, const char *model, const char *device, int tokens, const char *more)
{
    return planned_open_changed(folder, model, device, tokens, more, NULL);
}

void planned_close(struct planned *p)
{
    nb_run_destroy(&p->run);
    nb_config_destroy(&p->config);
    free(p);
}

bool planned_fits(const struct planned *p)
{
    return p->measured.peak_bytes <= p->run->available_bytes;
}
