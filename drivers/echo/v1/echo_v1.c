/*
 * A driver of ABI v1: it answers with its prompt, up to max_tokens words of it.
 *
 * Where a real driver reads weights it reads nothing, and where it computes it copies. All else is as it has to be.
 */
#include "granville_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME "granville-echo-v1"
#define VERSION "1.0.0"

struct context {
    unsigned models; /* whatever all models share: a device, a thread pool */
};

struct model {
    unsigned long answers; /* weights and caches */
};

void *granville_driver_init(void)
{
    return calloc(1, sizeof(struct context));
}

void granville_driver_deinit(void *ctx)
{
    free(ctx);
}

void *granville_driver_load_model(void *ctx, const char *path)
{
    struct context *context = ctx;
    struct model *model;
    FILE *file = fopen(path, "rb");

    if (file == NULL)
        return NULL; /* here a real driver reads the file, and refuses what is no model of its kind */
    fclose(file);
    model = calloc(1, sizeof *model);
    if (model != NULL)
        context->models++;
    return model;
}

void granville_driver_unload_model(void *ctx, void *model)
{
    struct context *context = ctx;

    context->models--;
    free(model);
}

/* The size of the first `count` words of a text. */
static size_t words(const char *text, uint32_t count)
{
    size_t end = 0, at = 0;

    while (count-- > 0) {
        at += strspn(text + at, " \t\r\n");
        if (text[at] == '\0')
            break;
        at += strcspn(text + at, " \t\r\n");
        end = at;
    }
    return end;
}

const char *granville_driver_generate(void *ctx, void *model, const char *prompt, uint32_t max_tokens)
{
    size_t size = words(prompt, max_tokens);
    char *answer = malloc(size + 1);

    (void)ctx;
    if (answer == NULL)
        return NULL; /* an answer that failed is NULL, and never a text that says so */
    memcpy(answer, prompt, size);
    answer[size] = '\0';
    ((struct model *)model)->answers++;
    return answer;
}

void granville_driver_free_string(const char *str)
{
    free((void *)str);
}

const char *granville_driver_get_name(void)
{
    return NAME;
}

const char *granville_driver_get_version(void)
{
    return VERSION;
}

DriverVTable granville_driver_vtable = {
    granville_driver_init,         granville_driver_deinit,   granville_driver_load_model,
    granville_driver_unload_model, granville_driver_generate, granville_driver_free_string,
    granville_driver_get_name,     granville_driver_get_version,
};
