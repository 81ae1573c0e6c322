/* Its figures are no JSON. */
#define STATS "slots: 4"
#include "v2_base.h"
