#include "checkpoint/real.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS_MAX = 17 };

/* "d.ddde+xx" with the fewest digits. */
static void shortest(double value, bool single, char text[NB_REAL_BYTES])
{
    for (int digits = 1; digits <= DIGITS_MAX; digits++) {
        snprintf(text, NB_REAL_BYTES, "%.*e", digits - 1, value);
        if (single ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value)
            return;
    }
}

const char *nb_real_format(double value, bool single, char out[NB_REAL_BYTES])
{
    char text[NB_REAL_BYTES], digits[DIGITS_MAX + 1];
    int count = 0, position = 0;
    shortest(value, single, text);
    bool negative = text[0] == '-';
    int exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    for (const char *c = text; *c != 'e'; c++)
        if (*c >= '0' && *c <= '9')
            digits[count++] = *c;
    const char *sign = negative ? "-" : "";
    if (exponent < -4 || exponent >= 16) {
        position =
            snprintf(out, NB_REAL_BYTES, "%s%c%s%.*s", sign, digits[0], count > 1 ? "." : "", count - 1, digits + 1);
        snprintf(
            out + position, (size_t)(NB_REAL_BYTES - position), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        snprintf(out, NB_REAL_BYTES, "%s0.%.*s%.*s", sign, -exponent - 1, "000", count, digits);
    } else {
        int whole = exponent + 1 < count ? exponent + 1 : count, zeros = exponent + 1 - whole;
        snprintf(out, NB_REAL_BYTES, "%s%.*s%.*s.%.*s", sign, whole, digits, zeros, "0000000000000000",
            count > whole ? count - whole : 1, count > whole ? digits + whole : "0");
    }
    return out;
}
