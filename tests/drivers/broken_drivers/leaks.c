/* It keeps a megabyte of every model. */
#define LOAD char *made = malloc(1 << 20); if (made != NULL) memset(made, 1, 1 << 20); return made;
#define UNLOAD
#include "v1_base.h"
