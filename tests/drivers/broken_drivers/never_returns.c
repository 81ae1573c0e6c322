/* It never returns. */
#define _DEFAULT_SOURCE
#include <unistd.h>
#define GENERATE for (;;) sleep(1);
#include "v1_base.h"
