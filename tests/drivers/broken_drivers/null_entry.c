/* A NULL in the vtable of v1. */
#define GENERATE_POINTER NULL
#include "v1_base.h"
