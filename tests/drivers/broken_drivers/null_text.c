/* A text that is nowhere. */
#define STEP event[0].text = NULL;
#include "v2_base.h"
