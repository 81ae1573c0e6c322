/* An answer of 100 MB. */
#define BYTES 100000000
#define GENERATE char *made = malloc(BYTES + 1); memset(made, 65, BYTES); made[BYTES] = 0; return made;
#include "v1_base.h"
