/*
 * granville_driver.h: what a Granville driver in C, or in any language that speaks the C ABI, exports.
 *
 * A driver is a shared library that exports ONE of two interfaces:
 *
 *   v1  eight functions and the data symbol granville_driver_vtable. A model answers one prompt at a time, and
 *       a call gives the whole answer. An afternoon's work at most; drivers/echo/v1 is one.
 *   v2  the data symbol granville_driver_vtable_v2. A model is stepped: several jobs at once, tokens as they
 *       come, cancelled at any time. drivers/echo/v2 is one.
 *
 * The kernel looks for granville_driver_vtable_v2 first, then granville_driver_vtable, then the eight functions by
 * their names. The library lies in a folder beside a driver.json:
 *
 *   {"name": "acme-granville-tpu", "version": "1.0", "description": "...", "platform": "linux-x86_64",
 *    "lib_name": "libacme_granville_tpu.so"}
 *
 * where name and version are what the driver says of itself. `granville serve FILE --driver ./folder` tries it.
 *
 * This header is C99 and C++98 with <stdint.h>, and needs nothing else. Licence: Apache-2.0.
 */
#ifndef GRANVILLE_DRIVER_H
#define GRANVILLE_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GRANVILLE_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define GRANVILLE_EXPORT __attribute__((visibility("default")))
#else
#define GRANVILLE_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * WHAT HOLDS FOR BOTH
 *
 * Process.   A driver shares its process with others. It must not call exit or abort, install signal handlers, change
 *            the working directory or the locale, or write to standard output. C++ exceptions and longjmp must
 *            not leave a driver's function.
 * Text       is UTF-8, in and out. Text that is not is an error of the driver's (v1: of that answer; v2: of the
 *            model). Nothing is ever cut to fit: what is too long is an error.
 * Paths      are bytes as the operating system has them, without a NUL.
 * Encoding   of structures is the platform's own C ABI: natural alignment, no packing.
 * Unloading. The library stays loaded until the process ends.
 */

/* What a driver may give at once; more is an error. */
#define GRANVILLE_MAX_TEXT_BYTES (16u << 20) /* a v1 answer, and the text of one v2 event */
#define GRANVILLE_MAX_NAME_BYTES 256u        /* the driver's name and version, each */

/* ------------------------------------------------------------------------------------------------------------------
 * v1: a whole answer a call
 *
 * Threads.  init, deinit, load_model and unload_model are called one at a time. generate runs one at a time for each
 *           model; of two models it may run at the same time, in two threads. A model's load_model,
 *           generate and unload_model all come from one thread, which lives as long as the model.
 *           free_string comes from the thread of the generate whose string it is.
 * Order.    init is called before the first load_model, deinit after the last unload_model; after that init may
 *           come again. get_name and get_version may come at any time, also before init.
 * Ending.   generate cannot be interrupted. A client that cancels, or whose time is up, is told so at once, but
 *           the model takes its next job only when generate has returned. max_tokens bounds how long that is.
 *
 * A v1 model gets a single prompt as it was sent. Requests with a conversation, a session, a grammar, a schema, tools
 * or settings of sampling are refused before they reach it. Stop strings are cut by the kernel from the finished
 * answer. Usage is counted in bytes, four to a token.
 */

/*
 * Two shapes of generate are about: the one that was published first has four arguments, and a later one has a fifth,
 * `bool reset_cache`: true when nothing of an earlier prompt may be used for this one. The kernel always passes
 * five. That is right for both: under the C calling conventions in use (System V and Microsoft on x86-64, AAPCS64)
 * the fifth argument travels in a register or a stack slot of the caller's, which a function of four never looks at.
 * Define GRANVILLE_V1_RESET_CACHE before including this header to write the shape with five.
 */
#ifdef GRANVILLE_V1_RESET_CACHE
typedef const char *(*granville_v1_generate)(void *ctx, void *model, const char *prompt, uint32_t max_tokens,
                                             bool reset_cache);
#else
typedef const char *(*granville_v1_generate)(void *ctx, void *model, const char *prompt, uint32_t max_tokens);
#endif

/* All eight, in this order. No pointer may be NULL. */
typedef struct DriverVTable {
    void *(*init)(void);
    void (*deinit)(void *ctx);
    void *(*load_model)(void *ctx, const char *path);
    void (*unload_model)(void *ctx, void *model);
    granville_v1_generate generate;
    void (*free_string)(const char *str);
    const char *(*get_name)(void);
    const char *(*get_version)(void);
} DriverVTable;

/* The data symbol itself, not a pointer to it. A library that has it need not export the functions, and one that
 * exports the functions need not have it. */
extern GRANVILLE_EXPORT DriverVTable granville_driver_vtable;

/* Returns the driver's context, one for all its models, or NULL when it cannot start. The driver owns it. */
GRANVILLE_EXPORT void *granville_driver_init(void);

/* Frees the context. No model is loaded any more. Never called with NULL. */
GRANVILLE_EXPORT void granville_driver_deinit(void *ctx);

/* Loads the model in the file `path` (valid until the call returns). NULL when it cannot be loaded. The same file
 * may be loaded twice: these are two models. */
GRANVILLE_EXPORT void *granville_driver_load_model(void *ctx, const char *path);

/* Frees a model. Never called with NULL, never twice, never while it generates. */
GRANVILLE_EXPORT void granville_driver_unload_model(void *ctx, void *model);

/* The answer to a prompt, of at most `max_tokens` (at least 1) tokens. `prompt` is valid until the call returns.
 * The string returned, NUL-terminated UTF-8 of at most GRANVILLE_MAX_TEXT_BYTES, is the driver's: the kernel copies
 * it and gives it back to free_string exactly once, before it calls generate for this model again. It is the
 * model's words and nothing else: NULL means that the model failed at this prompt, and the client is told that
 * (driver_failed); an error written as an answer would be believed. */
#ifdef GRANVILLE_V1_RESET_CACHE
GRANVILLE_EXPORT const char *granville_driver_generate(void *ctx, void *model, const char *prompt,
                                                       uint32_t max_tokens, bool reset_cache);
#else
GRANVILLE_EXPORT const char *granville_driver_generate(void *ctx, void *model, const char *prompt,
                                                       uint32_t max_tokens);
#endif

/* Takes back what generate returned. Never called with NULL. */
GRANVILLE_EXPORT void granville_driver_free_string(const char *str);

/* The driver's name and version, as in its driver.json: NUL-terminated, of at most GRANVILLE_MAX_NAME_BYTES, valid and
 * unchanged while the library is loaded. They are never given to free_string. */
GRANVILLE_EXPORT const char *granville_driver_get_name(void);
GRANVILLE_EXPORT const char *granville_driver_get_version(void);

/* ------------------------------------------------------------------------------------------------------------------
 * v2: a model that is stepped
 *
 * The driver exports one constant, granville_driver_vtable_v2, with its functions. The kernel submits jobs while the
 * model has free slots and calls `step` again and again as long as a job runs; each step does a little of the work
 * of every job and tells what came of it as events.
 *
 *   create -> load -> { submit | step | cancel | park | resume | limit_cache }* -> unload -> destroy
 *                     interrupt and stats from any thread between load and unload
 *
 * Threads.   A model's calls all come from one thread, which lives as long as the model, and never two at once; only
 *            `interrupt` and `stats` may come from any other thread at any time, also while a call runs, but
 *            neither before load has returned nor once unload is called. create, destroy, load and unload are never
 *            called two at a time, for all models of the driver together. Apart from that, two models' calls
 *            may run at the same time.
 * Ownership. Whoever made a thing frees it. What the kernel passes (structures, text, arrays) is the kernel's and valid
 *            until that call returns: copy what is needed later. What the driver gives (the events of a step with
 *            all that they point to) is the driver's, and must stay as it is until the next call to the same model
 *            that is not `interrupt` or `stats`. Nothing has to be freed by the other side, on errors neither.
 * Text       is a pointer and a size in bytes. Behind text that the kernel passes stands a NUL that is not counted;
 *            text that the driver gives need not have one. An empty text may have a NULL pointer. JSON is UTF-8 text.
 * Growth.    Structures only ever grow at their end. Each begins with its size as its maker compiled it, and its
 *            reader uses the smaller of that and its own sizeof: fields beyond are not there, and read as zero. A
 *            writer into a structure of the other side (granville_model_info, granville_events) writes no field that
 *            ends beyond the struct_size it finds there. New bits and new kinds come with new capabilities, so that no
 *            side meets what it did not ask for. abi_version changes only if that rule is ever broken.
 * Reserved   fields are zero.
 */

#define GRANVILLE_ABI_VERSION_2 2u

/* Bounds of v2: what is over one of them is an error of the driver's. */
#define GRANVILLE_MAX_EVENTS 65536u          /* events of one step */
#define GRANVILLE_MAX_EVENT_TOKENS 65536u    /* token ids of one event */
#define GRANVILLE_MAX_EVENT_VALUES (1u << 24) /* numbers of one event */
#define GRANVILLE_MAX_SLOTS 1024u
#define GRANVILLE_MAX_STATS_BYTES (1u << 20)
#define GRANVILLE_MAX_STRUCT_BYTES 65536u

/* What functions return, and why a job failed, with what the client reads. Zero is success; a number that is not here
 * counts as GRANVILLE_FAILED. */
typedef int32_t granville_status;
enum {
    GRANVILLE_OK = 0,
    GRANVILLE_FAILED = 1,          /* driver_failed (502): the backend failed */
    GRANVILLE_BAD_REQUEST = 2,     /* bad_request (400): it makes no sense, such as a grammar that does not parse */
    GRANVILLE_PROMPT_TOO_LONG = 3, /* prompt_too_long (413): no room for a token; the message has both numbers */
    GRANVILLE_UNSUPPORTED = 4,     /* unsupported (422): this model cannot do it */
    GRANVILLE_OUT_OF_MEMORY = 5    /* driver_failed (502) */
};

/* Where a function that fails says why. The kernel owns it, it is never NULL, and it is empty before the call.
 * The driver writes a sentence for a person, NUL-terminated UTF-8, for example by
 *     snprintf(error->message, sizeof error->message, "%s is no model of ours", load->path);
 * Here alone text may be cut, in the middle of a character too. It is read only when the function fails. */
#define GRANVILLE_ERROR_BYTES 1024
struct granville_error {
    char message[GRANVILLE_ERROR_BYTES];
};

/* What a model can do (granville_model_info.capabilities). What is not set is never asked for: a request that needs it
 * is refused with 422. But INTERRUPT and STOP: without these the kernel waits, or does the work itself. */
#define GRANVILLE_CAN_INTERRUPT (UINT64_C(1) << 0) /* `interrupt` ends a step early; without it a step may be long */
#define GRANVILLE_CAN_STOP (UINT64_C(1) << 1)      /* it ends at stop strings; without it the kernel looks for them */
#define GRANVILLE_CAN_MESSAGES (UINT64_C(1) << 2)  /* conversations and sessions; without it a single user turn */
#define GRANVILLE_CAN_SAMPLE (UINT64_C(1) << 3)    /* it heeds the request's settings of sampling */
#define GRANVILLE_CAN_PARK (UINT64_C(1) << 4)      /* park and resume */
#define GRANVILLE_CAN_RESUME (UINT64_C(1) << 5)    /* it goes on after `produced` tokens of an earlier life */
#define GRANVILLE_CAN_CONSTRAIN (UINT64_C(1) << 6) /* grammars and JSON schemas */
#define GRANVILLE_CAN_TOOLS (UINT64_C(1) << 7)     /* calls of tools */
#define GRANVILLE_CAN_SCORE (UINT64_C(1) << 8)     /* GRANVILLE_TASK_SCORE beside its slots */
#define GRANVILLE_CAN_DROP (UINT64_C(1) << 9)      /* drop_oldest of the request; with CAN_MESSAGES */

/* What a model is loaded for. */
enum {
    GRANVILLE_TYPE_INFERENCE = 1, /* GRANVILLE_TASK_GENERATE */
    GRANVILLE_TYPE_RANKER = 2,    /* GRANVILLE_TASK_GENERATE and, with the capability, GRANVILLE_TASK_SCORE */
    GRANVILLE_TYPE_STT = 3,       /* speech to text; no kind of job for it so far */
    GRANVILLE_TYPE_TTS = 4,       /* text to speech; likewise */
    GRANVILLE_TYPE_EMBEDDING = 5, /* GRANVILLE_TASK_EMBED */
    GRANVILLE_TYPE_RERANK = 6     /* GRANVILLE_TASK_RERANK */
};

/* The two handles. The driver defines these structures; the kernel only passes the pointers. Neither is ever NULL. */
struct granville_driver;
struct granville_model;

/* Who calls (to create). */
struct granville_host {
    uint32_t struct_size;
    uint32_t abi_version; /* the newest that the kernel knows */
    const char *version;  /* of Granville, for a log */
};

/* What to load. */
struct granville_load {
    uint32_t struct_size;
    uint32_t type;         /* GRANVILLE_TYPE_...; a driver that has no such models returns GRANVILLE_UNSUPPORTED */
    const char *path;      /* of the model's file */
    uint32_t slots;        /* jobs at once that are wanted, 1 or more; the driver may give fewer */
    uint32_t context_size; /* tokens a slot, prompt and answer together; 0: the smaller of the model's own and 4096 */
    uint32_t threads;      /* 0: as many as there are cores */
    uint32_t verbose;      /* 1: write a log to standard error; 0: be silent */
    uint64_t kv_ram_bytes; /* how much memory cached and parked states may take; limit_cache changes it later */
    uint64_t kv_disk_bytes;
    const char *kv_dir;      /* a folder of this model's own for states on disk, which the driver makes, mode 0700, or
                                NULL: none are kept there */
    const char *fingerprint; /* tells the file from others; empty: keep nothing of it on disk */
    const char *config;      /* JSON object: driver.json's "config" and what the user set over it; {} when there is
                                nothing. A key that the driver does not know is an error that names it */
    size_t config_size;
};

/* What was loaded: the kernel passes it zeroed, with struct_size set, and load fills it. */
struct granville_model_info {
    uint32_t struct_size;
    uint32_t slots;         /* jobs that it takes at once, 1 to GRANVILLE_MAX_SLOTS, no more than were wanted */
    uint64_t capabilities;  /* GRANVILLE_CAN_... */
    uint64_t memory_bytes;  /* weights and KV cache together */
    uint32_t context_size;  /* tokens a slot; 0 where that means nothing */
    uint32_t reserved;
    char architecture[64];  /* one word, such as llama; NUL-terminated */
    char description[256];  /* for a person; may be empty */
};

/* A job. */
enum {
    GRANVILLE_TASK_GENERATE = 1, /* text from a prompt: TOKEN events, then FINISHED */
    GRANVILLE_TASK_SCORE = 2,    /* how likely each label is to follow the prompt: one OUTPUT. It takes no slot: it
                                    comes beside all that run */
    GRANVILLE_TASK_EMBED = 3,    /* a vector for each text: one OUTPUT */
    GRANVILLE_TASK_RERANK = 4    /* how well each document answers the query: one OUTPUT */
};

struct granville_request {
    uint32_t struct_size;
    uint32_t kind;       /* GRANVILLE_TASK_... */
    uint64_t job;        /* names the job in calls and events. Not 0, and never used again in the model's life */
    uint32_t max_tokens; /* GENERATE: of the whole answer, `produced` among them; there it ends with FINISH_LENGTH */
    uint32_t urgency;    /* 0 critical, 1 high, 2 normal, 3 low: whose prefill comes first */
    const char *text;    /* GENERATE: the last message as plain text. SCORE: the prompt. RERANK: the query */
    size_t text_size;
    const char *json; /* all the rest, a JSON object; see below */
    size_t json_size;
    const int32_t *produced; /* CAN_RESUME: ids of tokens that an earlier life of the model has sent for this job; */
    size_t produced_count;   /* mostly none. They are read after the prompt and not sent again */
    uint32_t reset_cache;    /* 1: forget what is kept of the session, and take nothing from a cache */
    uint32_t drop_oldest;    /* CAN_DROP, 1: where the conversation leaves no room for an answer its oldest turns may be
                                left out, as few as have to go: no system messages, and questions with their answers */
};

/*
 * granville_request.json. Keys that may be missing are in brackets; a driver passes over keys that it does not know.
 *
 * GENERATE  "messages": [{"role": "user", "content": "...", ["token_ids": [1, 2]]}, ...]
 *               always there; without CAN_MESSAGES it has one, whose content is `text`. token_ids are of what this
 *               model said itself: where they spell the content they stand for it
 *           "sampling": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0,
 *                        "seed": 7 or null}
 *               always there; temperature 0 is greedy, top_k 0 is off, seed null is drawn anew for each job
 *           "stop": ["...", ...]
 *               always there, empty without CAN_STOP; neither a stop string nor what follows it is sent
 *           ["session": "..."]
 *               the conversation that this is a turn of: its state may be kept under this name, and the next turn
 *               comes when this one has ended
 *           ["constraint": {"kind": "gbnf" or "json_schema", "source": "..."}]
 *               what the whole answer has to be
 *           ["tools": [{"name": "...", "description": "...", "parameters": {a JSON Schema}}, ...],
 *            "tool_choice": "auto", "none", "required" or a tool's name]
 * SCORE     "labels": ["...", ...]      1 or more; OUTPUT has a natural logarithm of a probability for each
 * EMBED     "texts": ["...", ...]       1 or more; OUTPUT has a vector for each, all of the same length
 * RERANK    "documents": ["...", ...]   1 or more; OUTPUT has a score for each
 */

/* What a step tells of a job. Its events end with one FINISHED, OUTPUT or FAILED: from then on its slot is free. */
enum {
    GRANVILLE_EVENT_TOKEN = 1,    /* text: a piece of the answer that is final, of whole characters: what a token leaves
                                     half is held back, and a text may be empty. tokens: the ids behind it, if there
                                     are any; together they are all that was sampled, but for what ended the answer */
    GRANVILLE_EVENT_FINISHED = 2, /* of GENERATE. code: GRANVILLE_FINISH_...; with FINISH_TOOL text is
                                     {"name": "...", "arguments": {...}}. The three counts */
    GRANVILLE_EVENT_OUTPUT = 3,   /* of SCORE, EMBED, RERANK: values, and the counts. EMBED: vector behind vector */
    GRANVILLE_EVENT_FAILED = 4,   /* this job alone. code: why, a granville_status; text: a sentence for the client */
    GRANVILLE_EVENT_PARKED = 5    /* after `park`: it is off its slot, its state kept */
};
enum {
    GRANVILLE_FINISH_STOP = 1,   /* the model ended its answer, or a stop string did */
    GRANVILLE_FINISH_LENGTH = 2, /* max_tokens, or the context is full */
    GRANVILLE_FINISH_TOOL = 3    /* it calls a tool */
};

struct granville_event {
    uint64_t job;
    uint32_t kind; /* GRANVILLE_EVENT_TOKEN, ... */
    int32_t code;
    const char *text;
    size_t text_size;
    const int32_t *tokens;
    size_t token_count;
    const float *values; /* finite */
    size_t value_count;
    uint32_t prompt_tokens;     /* FINISHED, OUTPUT: how many tokens were read, */
    uint32_t cached_tokens;     /* how many of these came from a cache and were not computed, */
    uint32_t completion_tokens; /* and how many were sampled */
    uint32_t dropped_turns;     /* FINISHED, with drop_oldest: how many messages were left out */
};

/* The events of a step: the kernel passes it zeroed, with struct_size set, and step fills it. */
struct granville_events {
    uint32_t struct_size;
    uint32_t event_size; /* sizeof(struct granville_event): how far apart the items lie. Also with no events */
    const struct granville_event *items; /* in the order in which they happened */
    size_t count;
};

/* The driver. Members marked optional may be NULL; no other may. */
struct granville_driver_v2 {
    uint32_t struct_size; /* sizeof(struct granville_driver_v2) */
    uint32_t abi_version; /* GRANVILLE_ABI_VERSION_2 */
    const char *name;     /* as in driver.json: NUL-terminated UTF-8 of at most GRANVILLE_MAX_NAME_BYTES */
    const char *version;

    /* Makes the driver's context, one for all its models, before the first load; after `destroy` it may be called
     * again. On success sets *driver; on failure, here and in load, nothing is to be freed by the kernel. */
    granville_status (*create)(const struct granville_host *host, struct granville_driver **driver,
                               struct granville_error *error);

    /* Frees the context. All its models have been unloaded. */
    void (*destroy)(struct granville_driver *driver);

    /* Loads a model; on success sets *model and fills *info. A file that is no model, a setting that is wrong and
     * memory that is short are failures with a message for the person who started the daemon. */
    granville_status (*load)(struct granville_driver *driver, const struct granville_load *load,
                             struct granville_model **model, struct granville_model_info *info,
                             struct granville_error *error);

    /* Frees a model, whatever runs on it. */
    void (*unload)(struct granville_model *model);

    /* Takes a job; a slot is free for it. Returns at once: the work is done in steps. On failure this job alone has
     * ended, with the error of the status and the message, and there must be no event of it. */
    granville_status (*submit)(struct granville_model *model, const struct granville_request *request,
                               struct granville_error *error);

    /* Does a bounded piece of work: at most one decode of all running jobs, and prefill for at most `prefill_ms`
     * milliseconds (below zero: as the driver thinks right, so that other streams do not stand still). Returns what
     * came of it, which may be no event at all. Called only while a job runs; waits for nothing but the work itself.
     * A failure means that the whole model is lost: its jobs run again or fail with driver_failed, and after unload
     * it is loaded anew. */
    granville_status (*step)(struct granville_model *model, double prefill_ms, struct granville_events *events,
                             struct granville_error *error);

    /* Forgets a job that runs or is parked. When it returns the slot is free, and no event of the job comes any
     * more. A job that is not known has ended already: nothing is to be done. */
    void (*cancel)(struct granville_model *model, uint64_t job);

    /* Optional; CAN_PARK. Takes a running job off its slot with its state kept; a later step tells PARKED, or that it
     * ended before. A failure means that the model is lost. */
    granville_status (*park)(struct granville_model *model, uint64_t job, struct granville_error *error);

    /* Optional; CAN_PARK. Puts a parked job on a free slot. It gives just the tokens that it would have given. */
    granville_status (*resume)(struct granville_model *model, uint64_t job, struct granville_error *error);

    /* Optional; CAN_INTERRUPT. From any thread: end the step that runs soon, as a flag that it looks at now and then.
     * The beginning of the next step clears it. Returns at once. */
    void (*interrupt)(struct granville_model *model);

    /* Optional. From any thread: figures for `granville status`, a JSON object of numbers and strings, such as
     * {"threads": 4, "kv_ram_bytes": 0, "kv_parked_bytes": 0}. Writes at most `capacity` bytes to `buffer`, without a
     * NUL, and returns the size of the whole; when that is more than `capacity`, what was written is not read, and the
     * kernel calls again with more room, up to GRANVILLE_MAX_STATS_BYTES. Returns at once. */
    size_t (*stats)(struct granville_model *model, char *buffer, size_t capacity);

    /* Optional. How much memory cached and parked states may take from now on. */
    void (*limit_cache)(struct granville_model *model, uint64_t kv_ram_bytes);
};

extern GRANVILLE_EXPORT const struct granville_driver_v2 granville_driver_vtable_v2;

#ifdef __cplusplus
}
#endif

#endif /* GRANVILLE_DRIVER_H */
