/* Its backend is lost. */
#define STEP snprintf(error->message, sizeof error->message, "the device is lost"); return GRANVILLE_FAILED;
#include "v2_base.h"
