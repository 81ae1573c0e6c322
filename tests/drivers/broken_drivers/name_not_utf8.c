/* Its name is not UTF-8. */
#define NAME "granville-\xff"
#include "v1_base.h"
