/* Nothing that can be told from outside: it answers with an error in words. */
#define GENERATE return copy("Error: out of memory");
#include "v1_base.h"
