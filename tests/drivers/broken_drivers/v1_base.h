/* A v1 driver that works, but for what is defined before this file is included. It answers "fine". */
#include "granville_driver.h"

#include <stdlib.h>
#include <string.h>

#ifndef NAME
#define NAME "granville-broken"
#endif
#ifndef VERSION
#define VERSION "1.0"
#endif
#ifndef INIT
#define INIT return malloc(1);
#endif
#ifndef LOAD
#define LOAD return malloc(1);
#endif
#ifndef UNLOAD
#define UNLOAD free(model);
#endif
#ifndef GENERATE
#define GENERATE return copy("fine");
#endif
#ifndef GENERATE_POINTER
#define GENERATE_POINTER granville_driver_generate
#endif

static char *copy(const char *text)
{
    char *made = malloc(strlen(text) + 1);

    return made == NULL ? NULL : strcpy(made, text);
}

void *granville_driver_init(void)
{
    INIT
}

void granville_driver_deinit(void *ctx)
{
    free(ctx);
}

void *granville_driver_load_model(void *ctx, const char *path)
{
    (void)ctx, (void)path, (void)copy;
    LOAD
}

void granville_driver_unload_model(void *ctx, void *model)
{
    (void)ctx, (void)model;
    UNLOAD
}

#ifdef GRANVILLE_V1_RESET_CACHE
#define MORE , bool reset_cache
#else
#define MORE
#endif

#ifndef NO_GENERATE
const char *granville_driver_generate(void *ctx, void *model, const char *prompt, uint32_t max_tokens MORE)
{
    (void)ctx, (void)model, (void)prompt, (void)max_tokens;
    GENERATE
}
#endif

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

#ifndef NO_VTABLE
DriverVTable granville_driver_vtable = {
    granville_driver_init,         granville_driver_deinit,    granville_driver_load_model,
    granville_driver_unload_model, GENERATE_POINTER,           granville_driver_free_string,
    granville_driver_get_name,     granville_driver_get_version,
};
#endif
