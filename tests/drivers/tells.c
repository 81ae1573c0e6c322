/* A v2 driver with every capability, which answers with what it was given. The texts of an embedding are taken to be two;
 * of other values there are three: 0.5, 1.5 and 2.5. */
#include "granville_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct granville_model {
    uint64_t job;
    uint32_t kind;
    char text[4096];
    int32_t tokens[16];
    size_t token_count;
    uint64_t cache;
    uint32_t drop_oldest;
    int interrupted;
    struct granville_event events[2];
    float values[6];
};

static granville_status create(const struct granville_host *host, struct granville_driver **driver,
                               struct granville_error *error)
{
    if (host->struct_size != sizeof *host || host->abi_version != 2 || host->version[0] == '\0') {
        snprintf(error->message, sizeof error->message, "host is not as it should be");
        return GRANVILLE_FAILED;
    }
    *driver = malloc(1);
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
    (void)driver, (void)error;
    *model = calloc(1, sizeof **model);
    info->slots = wanted->slots;
    info->capabilities = ~UINT64_C(0);
    info->context_size = wanted->context_size;
    info->memory_bytes = wanted->kv_ram_bytes + wanted->kv_disk_bytes;
    strcpy(info->architecture, "tells");
    snprintf(info->description, sizeof info->description, "%u %u %u %u %s %s %s %.*s", wanted->struct_size, wanted->type,
             wanted->threads, wanted->verbose, wanted->path, wanted->kv_dir == NULL ? "-" : wanted->kv_dir,
             wanted->fingerprint, (int)wanted->config_size, wanted->config);
    return GRANVILLE_OK;
}

static void unload(struct granville_model *model)
{
    free(model);
}

static granville_status submit(struct granville_model *model, const struct granville_request *request,
                               struct granville_error *error)
{
    char *end = model->text;

    (void)error;
    model->job = request->job;
    model->kind = request->kind;
    model->token_count = request->produced_count;
    model->drop_oldest = request->drop_oldest;
    for (size_t at = 0; at < request->produced_count; at++) {
        model->tokens[at] = request->produced[at];
        end += sprintf(end, "%d ", model->tokens[at]);
    }
    sprintf(end, "reset=%u %.*s", request->reset_cache, (int)request->json_size, request->json);
    return GRANVILLE_OK;
}

static granville_status step(struct granville_model *model, double prefill_ms, struct granville_events *events,
                             struct granville_error *error)
{
    static const char call[] = "{\"name\": \"go\", \"arguments\": {\"far\": true}}";
    static const float values[6] = {0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f};
    struct granville_event *event = model->events;

    (void)prefill_ms, (void)error;
    memset(event, 0, sizeof model->events);
    event[0].job = event[1].job = model->job;
    event[0].prompt_tokens = event[1].prompt_tokens = 3;
    event[0].cached_tokens = event[1].cached_tokens = 2;
    event[0].completion_tokens = event[1].completion_tokens = 1;
    events->event_size = sizeof *event;
    events->items = event;
    if (model->kind != GRANVILLE_TASK_GENERATE) {
        memcpy(model->values, values, sizeof values);
        event[0].kind = GRANVILLE_EVENT_OUTPUT;
        event[0].values = model->values;
        event[0].value_count = model->kind == GRANVILLE_TASK_EMBED ? 6 : 3;
        events->count = 1;
        return GRANVILLE_OK;
    }
    event[0].kind = GRANVILLE_EVENT_TOKEN;
    event[0].text = model->text;
    event[0].text_size = strlen(model->text);
    event[0].tokens = model->tokens;
    event[0].token_count = model->token_count;
    event[1].kind = GRANVILLE_EVENT_FINISHED;
    event[1].dropped_turns = model->drop_oldest ? 4 : 0;
    event[1].code = GRANVILLE_FINISH_TOOL;
    event[1].text = call;
    event[1].text_size = sizeof call - 1;
    events->count = 2;
    return GRANVILLE_OK;
}

static void cancel(struct granville_model *model, uint64_t job)
{
    (void)model, (void)job;
}

static granville_status park(struct granville_model *model, uint64_t job, struct granville_error *error)
{
    (void)model, (void)job;
    snprintf(error->message, sizeof error->message, "nothing is parked here");
    return GRANVILLE_FAILED;
}

static void interrupt(struct granville_model *model)
{
    model->interrupted = 1;
}

static size_t stats(struct granville_model *model, char *buffer, size_t capacity)
{
    char text[64];
    size_t size = (size_t)snprintf(text, sizeof text, "{\"cache\": %llu}", (unsigned long long)model->cache);

    if (model->interrupted) { /* more than the first buffer has room for */
        size = 20000;
        if (size <= capacity) {
            memset(buffer, ' ', size);
            memcpy(buffer, "{\"interrupted\": 1}", 18);
        }
    } else if (size <= capacity)
        memcpy(buffer, text, size);
    return size;
}

static void limit_cache(struct granville_model *model, uint64_t kv_ram_bytes)
{
    model->cache = kv_ram_bytes;
}

const struct granville_driver_v2 granville_driver_vtable_v2 = {
    sizeof(struct granville_driver_v2), GRANVILLE_ABI_VERSION_2, "granville-tells", "1", create, destroy, load, unload,
    submit, step, cancel, park, park, interrupt, stats, limit_cache,
};
