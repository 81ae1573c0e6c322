/* An event of a job that nobody gave it. */
#define STEP event[0].job = 77;
#include "v2_base.h"
