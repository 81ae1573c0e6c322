/* It fails at the job, and does not say why. */
#define STEP event[1].kind = GRANVILLE_EVENT_FAILED; event[1].code = 1234;
#include "v2_base.h"
