/* It takes as many tenths of a second as it may say tokens; nothing is wrong. */
#define _DEFAULT_SOURCE
#include <unistd.h>
#define GENERATE while (max_tokens-- > 0) usleep(100000); return copy("fine");
#include "v1_base.h"
