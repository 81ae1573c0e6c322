/* It writes past its buffer, over whatever comes behind. */
#define GENERATE volatile char *made = malloc(16); for (size_t at = 0; at < (size_t)1 << 40; at++) made[at] = 65; return (const char *)made;
#include "v1_base.h"
