/* It has parked a job of its own accord. */
#define STEP event[0].kind = GRANVILLE_EVENT_PARKED;
#include "v2_base.h"
