/* An agent, as far as the module's core can see one: threads that must not wait, answers on other threads, plugins that never answer, a
 * panic, and an end in the middle of things. Prints "ok", or what was wrong. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "dunnage_mesos.h"

#define TASKS 8

struct call {
  pthread_mutex_t lock;
  pthread_cond_t bell;
  int told;
  char* error;
  char* answer;
  double held;
};

static double now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char* what, const char* why)
{
  printf("%s: %s\n", what, why == NULL ? "" : why);
  exit(1);
}

static void begin(struct call* call)
{
  memset(call, 0, sizeof *call);
  pthread_mutex_init(&call->lock, NULL);
  pthread_cond_init(&call->bell, NULL);
}

static void done(void* with, const char* error, const char* answer)
{
  struct call* call = with;
  pthread_mutex_lock(&call->lock);
  if (call->told++ != 0) fail("told twice", error);
  call->error = error == NULL ? NULL : strdup(error);
  call->answer = answer == NULL ? NULL : strdup(answer);
  pthread_cond_signal(&call->bell);
  pthread_mutex_unlock(&call->lock);
}

static void wait_for(struct call* call)
{
  pthread_mutex_lock(&call->lock);
  while (call->told == 0) pthread_cond_wait(&call->bell, &call->lock);
  pthread_mutex_unlock(&call->lock);
}

static void prepare(dunnage_isolator* core, const char* container, const char* driver, const char* volume, struct call* call)
{
  char request[512];
  snprintf(request, sizeof request,
           "{\"environment\": [[\"DVDI_VOLUME_NAME\", \"%s\"], [\"DVDI_VOLUME_DRIVER\", \"%s\"], "
           "[\"DVDI_VOLUME_OPTS\", \"size=64M\"], [\"DVDI_VOLUME_CONTAINERPATH\", \"/tmp/%s\"]]}", volume, driver, volume);
  begin(call);
  double before = now();
  dunnage_isolator_prepare(core, container, request, done, call);
  call->held = now() - before;
}

static dunnage_isolator* core;
static struct call calls[TASKS];

static void* task(void* number)
{
  long n = (long)number;
  char container[32], volume[32];
  snprintf(container, sizeof container, "task%ld", n);
  snprintf(volume, sizeof volume, "v%ld", n / 2); /* two share each */
  prepare(core, container, "dunnage", volume, &calls[n]);
  wait_for(&calls[n]);
  if (calls[n].error != NULL) fail(container, calls[n].error);
  if (strstr(calls[n].answer, "\"mesos\",\"bind\"") == NULL) fail(container, calls[n].answer);
  return NULL;
}

int main(int argc, char** argv)
{
  if (argc != 4) fail("usage", "agent PLUGINS STATE BINARY");
  /* What is never told is a failure, and not a test without an end. */
  alarm(60);
  char* error = NULL;
  if (dunnage_isolator_new("{\"plugin\": \"x\"}", &error) != NULL) fail("a wrong parameter was taken", NULL);
  if (error == NULL || strstr(error, "plugin") == NULL) fail("it does not say which parameter is wrong", error);
  dunnage_text_free(error);

  char parameters[1024];
  snprintf(parameters, sizeof parameters, "{\"plugins\": \"%s\", \"state_dir\": \"%s\", \"binary\": \"%s\"}", argv[1], argv[2], argv[3]);
  core = dunnage_isolator_new(parameters, &error);
  if (core == NULL) fail("it does not start", error);

  /* A plugin that takes every call and never answers one. */
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s/hangs.sock", argv[1]);
  int hangs = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(hangs, (struct sockaddr*)&address, sizeof address) != 0 || listen(hangs, 16) != 0) fail("no plugin that hangs", address.sun_path);
  static struct call never;
  prepare(core, "waits", "hangs", "x", &never);

  pthread_t threads[TASKS];
  double begun = now();
  for (long n = 0; n < TASKS; n++) pthread_create(&threads[n], NULL, task, (void*)n);
  for (long n = 0; n < TASKS; n++) pthread_join(threads[n], NULL);
  double all = now() - begun, longest = never.held;
  for (int n = 0; n < TASKS; n++) {
    if (calls[n].held > longest) longest = calls[n].held;
  }
  printf("the longest call held its thread for %.3f ms; %d containers were prepared in %.0f ms\n", longest * 1e3, TASKS, all * 1e3);
  if (longest > all / 4) fail("a call waited for the daemon", NULL);
  if (never.told != 0) fail("a plugin that hangs answered", never.error);

  /* A panic is an error, and the next call goes well. */
  struct call call;
  prepare(core, "panics-in-a-debug-build", "dunnage", "v0", &call);
  wait_for(&call);
  if (call.error == NULL || strstr(call.error, "panicked") == NULL) fail("the panic was not told", call.error);
  const char* at_once = "panics-at-once-in-a-debug-build";
  if (dunnage_isolator_new(at_once, &error) != NULL || strstr(error, "panicked") == NULL) fail("a panic of new", error);
  dunnage_text_free(error);
  void (*cleanup_and_recover[])(dunnage_isolator*, const char*, dunnage_done, void*) = {dunnage_isolator_cleanup, dunnage_isolator_recover};
  for (int n = 0; n < 3; n++) {
    begin(&call);
    if (n < 2) cleanup_and_recover[n](core, at_once, done, &call);
    else dunnage_isolator_prepare(core, "c", at_once, done, &call);
    wait_for(&call);
    if (call.error == NULL || strstr(call.error, "panicked") == NULL) fail("a panic on the agent's own thread", call.error);
  }
  prepare(core, "after", "dunnage", "v0", &call);
  wait_for(&call);
  if (call.error != NULL) fail("nothing goes on after a panic", call.error);

  /* What is no text, no JSON, or no container. */
  begin(&call);
  dunnage_isolator_prepare(core, "c", "\xff\xfe{", done, &call);
  wait_for(&call);
  if (call.error == NULL) fail("what is no JSON was taken", call.answer);
  begin(&call);
  dunnage_isolator_prepare(core, NULL, NULL, done, &call);
  wait_for(&call);
  if (call.error == NULL) fail("nothing was taken for a request", call.answer);

  begin(&call);
  dunnage_isolator_recover(core, "[\"task0\", \"waits\"]", done, &call);
  wait_for(&call);
  if (call.error != NULL || strstr(call.answer, "task7") == NULL || strstr(call.answer, "task0") != NULL) fail("recover", call.answer);
  begin(&call);
  dunnage_isolator_cleanup(core, "task0", done, &call);
  wait_for(&call);
  if (call.error != NULL) fail("cleanup", call.error);

  /* It ends in the middle of a call, which is never told. */
  prepare(core, "late", "hangs", "x", &call);
  dunnage_isolator_free(core);
  dunnage_isolator_free(NULL);
  usleep(100 * 1000);
  printf("ok\n");
  return 0;
}
