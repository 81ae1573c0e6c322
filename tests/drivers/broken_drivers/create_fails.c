/* It cannot start. */
#define CREATE free(*driver); snprintf(error->message, sizeof error->message, "there is no such device here"); return GRANVILLE_FAILED;
#include "v2_base.h"
