/* A tiny model of many layers, all of them different, where the golden ones with their two are too shallow. */
#ifndef NB_TESTS_SUPPORT_DEEP_MODEL_H
#define NB_TESTS_SUPPORT_DEEP_MODEL_H

#include "base/status.h"

/* Writes FOLDER (a new one), a bf16 model of `layers` layers that is shaped as `model` is otherwise; its weights
 * are random, the same each time. */
nb_status nb_test_write_deep_model(const char *model, int layers, const char *folder);

#endif
