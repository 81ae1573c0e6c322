/* Nothing is wrong: it has the functions and no vtable. */
#define NO_VTABLE
#include "v1_base.h"
