/* It aborts in a step. */
#define STEP abort();
#include "v2_base.h"
