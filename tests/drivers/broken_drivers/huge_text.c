/* A text that is larger than there is memory. */
#define STEP event[0].text_size = (size_t)1 << 40;
#include "v2_base.h"
