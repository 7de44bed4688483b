#include "quant/dynamic_map.h"
