/* An event of a kind that does not exist. */
#define STEP event[0].kind = 77;
#include "v2_base.h"
