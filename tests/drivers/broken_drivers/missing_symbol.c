/* No vtable, and not all of the functions. */
#define NO_VTABLE
#define NO_GENERATE
#include "v1_base.h"
