/* It says that it has loaded a model, and gives none. */
#define LOAD free(*model); *model = NULL;
#include "v2_base.h"
