/* The first of the two bytes of a character. */
#define STEP event[0].text = "\xc3";  event[0].text_size = 1;
#include "v2_base.h"
