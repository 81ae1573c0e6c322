/* It takes no job. */
#define SUBMIT snprintf(error->message, sizeof error->message, "70 tokens do not fit into 64"); return GRANVILLE_PROMPT_TOO_LONG;
#include "v2_base.h"
