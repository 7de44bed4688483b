#include "quant/matrix.h"
