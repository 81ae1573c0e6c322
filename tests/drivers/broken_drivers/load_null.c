/* It can load nothing. */
#define LOAD return NULL;
#include "v1_base.h"
