/* It can load nothing, and says why. */
#define LOAD free(*model); snprintf(error->message, sizeof error->message, "%s is no model of ours", wanted->path); return GRANVILLE_BAD_REQUEST;
#include "v2_base.h"
