/* Nothing is wrong: it was built with a header of which every structure has grown. */
#define STRUCT_SIZE sizeof(struct granville_driver_v2) + 64
#define STEP \
    static struct { struct granville_event event; uint64_t more[2]; } grown[2]; \
    grown[0].event = event[0]; \
    grown[1].event = event[1]; \
    grown[0].more[0] = 77; \
    events->event_size = sizeof grown[0]; \
    events->items = &grown[0].event;
#include "v2_base.h"
