/* Of an ABI that is to come. */
#define ABI_VERSION 99
#include "v2_base.h"
