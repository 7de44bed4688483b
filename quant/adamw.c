#include "quant/adamw.h"
