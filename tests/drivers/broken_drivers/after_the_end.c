/* A token after the end of its job. */
#define STEP event[2] = event[0]; events->count = 3;
#include "v2_base.h"
