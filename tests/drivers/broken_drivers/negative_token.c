/* A token that cannot be. */
#define STEP static const int32_t tokens[] = {5, -1}; event[0].tokens = tokens; event[0].token_count = 2;
#include "v2_base.h"
