/* Nothing is wrong: generate has its fifth argument. */
#define GRANVILLE_V1_RESET_CACHE
#define GENERATE return copy(reset_cache ? "anew" : "on");
#include "v1_base.h"
