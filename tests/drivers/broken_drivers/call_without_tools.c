/* It calls a tool, and there are none. */
#define STEP event[1].code = GRANVILLE_FINISH_TOOL;
#include "v2_base.h"
