/* Of an ABI that never was. */
#define ABI_VERSION 1
#include "v2_base.h"
