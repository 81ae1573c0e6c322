/* It aborts. */
#define GENERATE abort();
#include "v1_base.h"
