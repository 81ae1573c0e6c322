/* Its step never returns. */
#define _DEFAULT_SOURCE
#include <unistd.h>
#define STEP for (;;) sleep(1);
#include "v2_base.h"
