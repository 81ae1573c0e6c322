/*
 * A driver of ABI v2: it answers with its prompt, a word a step, on as many slots as are wanted, and can park.
 *
 * Where a real driver reads weights it reads nothing, and where it decodes it copies a word. All else is as it has to be:
 * jobs live in slots, a step goes over the slots once, and what it tells lies in an array of the model's own.
 */
#include "granville_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "granville-echo-v2"
#define VERSION "1.0.0"
#define CONTEXT_SIZE 4096 /* words, prompt and answer together, unless context_size says otherwise */
#define SPACE " \t\r\n"

struct granville_driver {
    unsigned models; /* whatever all models share: a device, a thread pool */
};

struct job {
    uint64_t number;
    char *text;  /* the prompt, with a NUL behind it */
    size_t at;   /* how much of it has been sent */
    uint32_t prompt_tokens, sent, most;
    bool told; /* that it is parked */
    struct job *next; /* in the list of those that run, or of those that are parked */
};

struct granville_model {
    struct granville_driver *driver;
    uint32_t slots, context_size;
    struct job *running, *parked;
    struct granville_event *events; /* of the last step: one a job */
    size_t event_count, event_room;
};

/* The size of the first word of a text, with the space before it. */
static size_t word(const char *text)
{
    size_t space = strspn(text, SPACE);

    return text[space] == '\0' ? 0 : space + strcspn(text + space, SPACE);
}

static uint32_t count_words(const char *text)
{
    uint32_t count = 0;
    size_t size;

    for (; (size = word(text)) > 0; text += size)
        count++;
    return count;
}

static void free_job(struct job *job)
{
    if (job != NULL)
        free(job->text);
    free(job);
}

/* Takes a job out of a list; NULL when it is not there. */
static struct job *take(struct job **list, uint64_t number)
{
    struct job *job;

    while (*list != NULL && (*list)->number != number)
        list = &(*list)->next;
    job = *list;
    if (job != NULL)
        *list = job->next;
    return job;
}

/* Puts a job at the end of a list. */
static void put(struct job **list, struct job *job)
{
    while (*list != NULL)
        list = &(*list)->next;
    job->next = NULL;
    *list = job;
}

/* Room for one event more; NULL without memory. It stays where it is until the next step. */
static struct granville_event *add_event(struct granville_model *model, uint64_t job, uint32_t kind)
{
    struct granville_event *event;

    if (model->event_count == model->event_room) {
        size_t room = model->event_room * 2 + 16;
        void *grown = realloc(model->events, room * sizeof *event);
        if (grown == NULL)
            return NULL;
        model->events = (struct granville_event *)grown;
        model->event_room = room;
    }
    event = &model->events[model->event_count++];
    memset(event, 0, sizeof *event);
    event->job = job;
    event->kind = kind;
    return event;
}

static granville_status fail(struct granville_error *error, granville_status status, const char *message)
{
    snprintf(error->message, sizeof error->message, "%s", message);
    return status;
}

static granville_status create(const struct granville_host *host, struct granville_driver **driver,
                               struct granville_error *error)
{
    (void)host;
    *driver = (struct granville_driver *)calloc(1, sizeof **driver);
    return *driver != NULL ? GRANVILLE_OK : fail(error, GRANVILLE_OUT_OF_MEMORY, "no memory for the driver");
}

static void destroy(struct granville_driver *driver)
{
    free(driver);
}

static granville_status load(struct granville_driver *driver, const struct granville_load *wanted,
                             struct granville_model **loaded, struct granville_model_info *info,
                             struct granville_error *error)
{
    struct granville_model *model;
    FILE *file;

    if (wanted->type != GRANVILLE_TYPE_INFERENCE && wanted->type != GRANVILLE_TYPE_RANKER)
        return fail(error, GRANVILLE_UNSUPPORTED, NAME " has models that answer with text, and no others");
    if (wanted->config_size != 2) { /* anything but {} */
        snprintf(error->message, sizeof error->message, NAME " has no settings, and was given %s", wanted->config);
        return GRANVILLE_BAD_REQUEST;
    }
    file = fopen(wanted->path, "rb");
    if (file == NULL) {
        snprintf(error->message, sizeof error->message, "%s cannot be opened", wanted->path);
        return GRANVILLE_BAD_REQUEST;
    }
    fclose(file); /* here a real driver reads it, and refuses what is no model of its kind */
    model = (struct granville_model *)calloc(1, sizeof *model);
    if (model == NULL)
        return fail(error, GRANVILLE_OUT_OF_MEMORY, "no memory for the model");
    model->driver = driver;
    model->slots = wanted->slots < GRANVILLE_MAX_SLOTS ? wanted->slots : GRANVILLE_MAX_SLOTS;
    model->context_size = wanted->context_size > 0 ? wanted->context_size : CONTEXT_SIZE;
    driver->models++;

    info->slots = model->slots;
    info->capabilities = GRANVILLE_CAN_INTERRUPT | GRANVILLE_CAN_PARK;
    info->memory_bytes = sizeof *model;
    info->context_size = model->context_size;
    snprintf(info->architecture, sizeof info->architecture, "echo");
    snprintf(info->description, sizeof info->description, "answers with its prompt");
    *loaded = model;
    return GRANVILLE_OK;
}

static void free_jobs(struct job *job)
{
    while (job != NULL) {
        struct job *next = job->next;
        free_job(job);
        job = next;
    }
}

static void unload(struct granville_model *model)
{
    model->driver->models--;
    free_jobs(model->running);
    free_jobs(model->parked);
    free(model->events);
    free(model);
}

static granville_status submit(struct granville_model *model, const struct granville_request *request,
                               struct granville_error *error)
{
    struct job *job;

    if (request->kind != GRANVILLE_TASK_GENERATE)
        return fail(error, GRANVILLE_UNSUPPORTED, NAME " answers with text alone");
    job = (struct job *)calloc(1, sizeof *job);
    if (job == NULL || (job->text = (char *)malloc(request->text_size + 1)) == NULL) {
        free_job(job);
        return fail(error, GRANVILLE_OUT_OF_MEMORY, "no memory for the job");
    }
    memcpy(job->text, request->text, request->text_size); /* what the kernel passes is gone after this call */
    job->text[request->text_size] = '\0';
    job->number = request->job;
    job->most = request->max_tokens;
    job->prompt_tokens = count_words(job->text);
    if (job->prompt_tokens >= model->context_size) {
        snprintf(error->message, sizeof error->message, "the prompt has %u tokens and the context %u",
                 (unsigned)job->prompt_tokens, (unsigned)model->context_size);
        free_job(job);
        return GRANVILLE_PROMPT_TOO_LONG;
    }
    put(&model->running, job);
    return GRANVILLE_OK;
}

/* One word of one job. False without memory. */
static bool decode(struct granville_model *model, struct job *job)
{
    size_t size = job->sent < job->most ? word(job->text + job->at) : 0;
    struct granville_event *event;

    if (size > 0) {
        event = add_event(model, job->number, GRANVILLE_EVENT_TOKEN);
        if (event == NULL)
            return false;
        event->text = job->text + job->at;
        event->text_size = size;
        job->at += size;
        job->sent++;
        return true;
    }
    event = add_event(model, job->number, GRANVILLE_EVENT_FINISHED);
    if (event == NULL)
        return false;
    event->code = word(job->text + job->at) > 0 ? GRANVILLE_FINISH_LENGTH : GRANVILLE_FINISH_STOP;
    event->prompt_tokens = job->prompt_tokens;
    event->completion_tokens = job->sent;
    free_job(take(&model->running, job->number)); /* no event points into its text in this step */
    return true;
}

static granville_status step(struct granville_model *model, double prefill_ms, struct granville_events *events,
                             struct granville_error *error)
{
    struct job *job, *next;

    (void)prefill_ms; /* there is nothing to prefill */
    model->event_count = 0; /* those of the step before have been read */
    for (job = model->parked; job != NULL; job = job->next) {
        if (!job->told && add_event(model, job->number, GRANVILLE_EVENT_PARKED) == NULL)
            return fail(error, GRANVILLE_OUT_OF_MEMORY, "no memory for events");
        job->told = true;
    }
    for (job = model->running; job != NULL; job = next) {
        next = job->next;
        if (!decode(model, job))
            return fail(error, GRANVILLE_OUT_OF_MEMORY, "no memory for events");
    }
    events->event_size = sizeof *model->events;
    events->items = model->events;
    events->count = model->event_count;
    return GRANVILLE_OK;
}

static void cancel(struct granville_model *model, uint64_t number)
{
    struct job *job = take(&model->running, number);

    free_job(job != NULL ? job : take(&model->parked, number));
}

static granville_status park(struct granville_model *model, uint64_t number, struct granville_error *error)
{
    struct job *job = take(&model->running, number);

    (void)error;
    if (job == NULL)
        return GRANVILLE_OK; /* it has ended meanwhile */
    job->told = false; /* the next step tells, unless it is cancelled before */
    put(&model->parked, job);
    return GRANVILLE_OK;
}

static granville_status resume(struct granville_model *model, uint64_t number, struct granville_error *error)
{
    struct job *job = take(&model->parked, number);

    if (job == NULL)
        return fail(error, GRANVILLE_FAILED, "a job is to go on that is not parked");
    put(&model->running, job);
    return GRANVILLE_OK;
}

/* Comes from any thread. A step here is short; one that computes would look at a flag, now and then, which this sets. */
static void interrupt(struct granville_model *model)
{
    (void)model;
}

/* Comes from any thread, so it looks at nothing that a step changes. */
static size_t stats(struct granville_model *model, char *buffer, size_t capacity)
{
    char text[64];
    size_t size = (size_t)snprintf(text, sizeof text, "{\"slots\": %u}", (unsigned)model->slots);

    if (size <= capacity)
        memcpy(buffer, text, size);
    return size;
}

const struct granville_driver_v2 granville_driver_vtable_v2 = {
    sizeof(struct granville_driver_v2),
    GRANVILLE_ABI_VERSION_2,
    NAME,
    VERSION,
    create,
    destroy,
    load,
    unload,
    submit,
    step,
    cancel,
    park,
    resume,
    interrupt,
    stats,
    NULL, /* limit_cache: nothing is cached */
};
