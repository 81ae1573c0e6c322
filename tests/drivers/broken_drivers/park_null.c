/* It can park, it says, and has no function for it. */
#define LOAD info->capabilities = GRANVILLE_CAN_PARK;
#include "v2_base.h"
