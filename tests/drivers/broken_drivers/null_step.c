/* A function that no driver can be without is not there. */
#define STEP_POINTER NULL
#include "v2_base.h"
