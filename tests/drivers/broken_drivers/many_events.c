/* More events than a step can have. */
#define STEP events->count = (size_t)1 << 40;
#include "v2_base.h"
