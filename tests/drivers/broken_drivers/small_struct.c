/* Its vtable ends before it should. */
#define STRUCT_SIZE 64
#include "v2_base.h"
