/* It has no answer. */
#define GENERATE return NULL;
#include "v1_base.h"
