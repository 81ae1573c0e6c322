/* It has no version. */
#define VERSION NULL
#include "v1_base.h"
