/* The Mesos isolator's core. Every call comes back at once, whatever the daemon does; what it comes to is told by a callback, once, on
 * a thread of the core's own, or on the caller's if it cannot even begin. No call throws, and none lets a panic out: that is an error
 * (internal), and the agent goes on. Texts are UTF-8, and are the callee's to copy. */
#ifndef DUNNAGE_MESOS_H
#define DUNNAGE_MESOS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dunnage_isolator dunnage_isolator;

/* `error` is NULL when it went well, and then `answer` is JSON. Both are gone when the callback returns. */
typedef void (*dunnage_done)(void* with, const char* error, const char* answer);

/* `parameters`: a JSON object of texts: plugins, state_dir, driver, folders and dvdcli (with commas between), work_dir, binary.
 * NULL when it cannot be; then *error is a text for dunnage_text_free. */
dunnage_isolator* dunnage_isolator_new(const char* parameters, char** error);

/* Ends its thread; what was asked for and is not done is never told. */
void dunnage_isolator_free(dunnage_isolator* isolator);

/* `request`: {"environment": [["NAME", "value"], ...], "image": "/the/container's/root" or null}.
 * The answer: {"commands": [["/usr/local/bin/dunnage", "mesos", "bind", ...], ...]}, to be run in the container's namespace of mounts. */
void dunnage_isolator_prepare(dunnage_isolator* isolator, const char* container, const char* request, dunnage_done done, void* with);

/* The container has ended. It always goes well, within about 2 s: what cannot be let go of by then is tried again every few seconds.
 * The answer: null. */
void dunnage_isolator_cleanup(dunnage_isolator* isolator, const char* container, dunnage_done done, void* with);

/* The agent has started. `known`: a JSON list of the containers that live or that the agent will clean up. The answer, within
 * about 2 s: a list of those that were neither, and are let go of as by a cleanup. */
void dunnage_isolator_recover(dunnage_isolator* isolator, const char* known, dunnage_done done, void* with);

void dunnage_text_free(char* text);

#ifdef __cplusplus
}
#endif

#endif
