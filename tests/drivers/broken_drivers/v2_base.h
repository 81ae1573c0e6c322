/* A v2 driver that works, but for what is defined before this file is included: each job gets one token, "fine", and has
 * then ended. Its one slot's job is `model->job`. */
#include "granville_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef NAME
#define NAME "granville-broken"
#endif
#ifndef VERSION
#define VERSION "1.0"
#endif
#ifndef STRUCT_SIZE
#define STRUCT_SIZE sizeof(struct granville_driver_v2)
#endif
#ifndef ABI_VERSION
#define ABI_VERSION GRANVILLE_ABI_VERSION_2
#endif
#ifndef CREATE
#define CREATE
#endif
#ifndef LOAD
#define LOAD
#endif
#ifndef SUBMIT
#define SUBMIT
#endif
#ifndef STEP
#define STEP
#endif
#ifndef STEP_POINTER
#define STEP_POINTER step
#endif
#ifndef STATS
#define STATS "{\"jobs\": 1}"
#endif

struct granville_driver {
    int unused;
};

struct granville_model {
    uint64_t job;
    struct granville_event events[4];
};

static granville_status create(const struct granville_host *host, struct granville_driver **driver,
                               struct granville_error *error)
{
    (void)host, (void)error;
    *driver = calloc(1, sizeof **driver);
    CREATE
    return GRANVILLE_OK;
}

static void destroy(struct granville_driver *driver)
{
    free(driver);
}

static granville_status load(struct granville_driver *driver, const struct granville_load *wanted,
                             struct granville_model **model, struct granville_model_info *info,
                             struct granville_error *error)
{
    (void)driver, (void)wanted, (void)error;
    *model = calloc(1, sizeof **model);
    info->slots = 1;
    info->context_size = 64;
    strcpy(info->architecture, "broken");
    LOAD
    return GRANVILLE_OK;
}

static void unload(struct granville_model *model)
{
    free(model);
}

static granville_status submit(struct granville_model *model, const struct granville_request *request,
                               struct granville_error *error)
{
    (void)error;
    model->job = request->job;
    SUBMIT
    return GRANVILLE_OK;
}

static granville_status step(struct granville_model *model, double prefill_ms, struct granville_events *events,
                             struct granville_error *error)
{
    struct granville_event *event = model->events;

    (void)prefill_ms, (void)error;
    memset(event, 0, sizeof model->events);
    event[0].job = event[1].job = model->job;
    event[0].kind = GRANVILLE_EVENT_TOKEN;
    event[0].text = "fine";
    event[0].text_size = 4;
    event[1].kind = GRANVILLE_EVENT_FINISHED;
    event[1].code = GRANVILLE_FINISH_STOP;
    events->event_size = sizeof *event;
    events->items = event;
    events->count = 2;
    STEP
    return GRANVILLE_OK;
}

static void cancel(struct granville_model *model, uint64_t job)
{
    (void)step; /* where the vtable has none */
    if (model->job == job)
        model->job = 0;
}

static size_t stats(struct granville_model *model, char *buffer, size_t capacity)
{
    const char *text = STATS;

    (void)model;
    if (strlen(text) <= capacity)
        memcpy(buffer, text, strlen(text));
    return strlen(text);
}

const struct granville_driver_v2 granville_driver_vtable_v2 = {
    STRUCT_SIZE, ABI_VERSION,  NAME,   VERSION, create, destroy, load,  unload,
    submit,      STEP_POINTER, cancel, NULL,    NULL,   NULL,    stats, NULL,
};
