/* Floating-point numbers as Python prints them: the shortest digits that read back as the same number. */
#ifndef NB_CHECKPOINT_REAL_H
#define NB_CHECKPOINT_REAL_H

#include <stdbool.h>

enum { NB_REAL_BYTES = 32 };

/* A finite `value` in repr()'s form ("0.1", "1e-05", "10000.0"), so that bytes agree with what json.dumps writes. With `single`
 * the digits only distinguish floats: for a number that was widened from fp32. Returns `out`. */
const char *nb_real_format(double value, bool single, char out[NB_REAL_BYTES]);

#endif
