/* Its answer is not UTF-8. */
#define GENERATE return copy("good \xff\xfe bad");
#include "v1_base.h"
