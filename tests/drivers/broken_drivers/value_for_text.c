/* A value where text was asked for. */
#define STEP event[0].kind = GRANVILLE_EVENT_OUTPUT;
#include "v2_base.h"
