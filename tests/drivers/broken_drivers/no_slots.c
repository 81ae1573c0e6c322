/* A model without a slot. */
#define LOAD info->slots = 0;
#include "v2_base.h"
