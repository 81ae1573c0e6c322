/* Events of no size. */
#define STEP events->event_size = 0;
#include "v2_base.h"
