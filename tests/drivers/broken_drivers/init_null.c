/* It has no context to give. */
#define INIT return NULL;
#include "v1_base.h"
