/* It ends the process. */
#define GENERATE exit(7);
#include "v1_base.h"
