#include "quant/codec.h"
