/* An agent, as far as the module's core can see one: threads that must not wait, answers on other threads, plugins that never answer, a
 * panic, and an end in the middle of things. Prints "ok", or what was wrong. */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "dunnage_mesos.h"

#define TASKS 8
/* What a wait may take more than it should, on a machine that is busy. */
#define SLACK 3
/* What a call may hold its thread for. */
#define HELD 0.005
#define ROUNDS 8

struct call {
  pthread_mutex_t lock;
  pthread_cond_t bell;
  int told;
  char* error;
  char* answer;
  double held;
  double begun;
  double at;
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
  call->begun = now();
  pthread_mutex_init(&call->lock, NULL);
  pthread_cond_init(&call->bell, NULL);
}

static void done(void* with, const char* error, const char* answer)
{
  struct call* call = with;
  pthread_mutex_lock(&call->lock);
  if (call->told++ != 0) fail("told twice", error);
  call->at = now();
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

/* A text that grows. */
struct text {
  char* start;
  size_t length;
};

static void add(struct text* text, const char* format, const char* word, long number)
{
  size_t room = strlen(format) + strlen(word) + 32;
  text->start = realloc(text->start, text->length + room);
  text->length += snprintf(text->start + text->length, room, format, word, number);
}

static void ask(dunnage_isolator* core, const char* container, const char* request, struct call* call)
{
  begin(call);
  dunnage_isolator_prepare(core, container, request, done, call);
  call->held = now() - call->begun;
}

static void prepare(dunnage_isolator* core, const char* container, const char* driver, const char* volume, struct call* call)
{
  char request[512];
  snprintf(request, sizeof request,
           "{\"environment\": [[\"DVDI_VOLUME_NAME\", \"%s\"], [\"DVDI_VOLUME_DRIVER\", \"%s\"], "
           "[\"DVDI_VOLUME_OPTS\", \"size=64M\"], [\"DVDI_VOLUME_CONTAINERPATH\", \"/tmp/%s\"]]}", volume, driver, volume);
  ask(core, container, request, call);
}

static void cleanup(dunnage_isolator* core, const char* container, struct call* call)
{
  begin(call);
  dunnage_isolator_cleanup(core, container, done, call);
  call->held = now() - call->begun;
}

static void recover(dunnage_isolator* core, const char* known, struct call* call)
{
  begin(call);
  dunnage_isolator_recover(core, known, done, call);
  call->held = now() - call->begun;
}

/* A plugin that takes every call and never answers one; or, later, says yes to each. */
static atomic_int answers;

static void* plugin(void* listening)
{
  int taken[64], count = 0;
  for (;;) {
    int stream = accept((int)(long)listening, NULL, NULL);
    if (!answers) {
      if (count == 64) fail("the plugin that hangs was called too often", NULL);
      taken[count++] = stream;
      continue;
    }
    while (count > 0) close(taken[--count]);
    char read_here[4096];
    const char* yes = "HTTP/1.0 200 OK\r\nContent-Length: 31\r\n\r\n{\"Implements\":[\"VolumeDriver\"]}";
    if (read(stream, read_here, sizeof read_here) > 0 && write(stream, yes, strlen(yes)) > 0) close(stream);
  }
  return NULL;
}

/* How many files there are of containers. */
static int written(const char* state)
{
  DIR* folder = opendir(state);
  int count = 0;
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

/* The refusal of what is too much names it; what is another's costs nothing; and nothing is left of either. */
static void much(dunnage_isolator* core, const char* state)
{
  char* long_value = malloc((1 << 20) + 1);
  memset(long_value, 'x', 1 << 20);
  long_value[1 << 20] = 0;
  const char* good = "[\"DVDI_VOLUME_NAME\", \"v0\"], [\"DVDI_VOLUME_DRIVER\", \"dunnage\"], [\"DVDI_VOLUME_OPTS\", \"size=64M\"]";
  const char* words[] = {"\"OTHER\", \"%s\"", "\"DVDI_VOLUME_NAME1\", \"%s\"", "\"X%s%ld\", \"value\"", "\"DVDI_VOLUME_OPTS%s1%ld\", \"size=1\""};
  const char* says[] = {NULL, "DVDI_VOLUME_NAME1}: its value has more than 4096 bytes", NULL, "one more than 512 variables"};
  for (int n = 0; n < 4; n++) {
    struct text request = {NULL, 0};
    char format[64];
    add(&request, "{\"environment\": [%s", good, 0);
    snprintf(format, sizeof format, ", [%s]", words[n]);
    for (long count = 0; count < (n < 2 ? 1 : 10000); count++) add(&request, format, n < 2 ? long_value : "", count);
    add(&request, "]}%s", "", 0);
    double best = 1;
    for (int round = 0; round < ROUNDS; round++) {
      struct call call;
      ask(core, "much", request.start, &call);
      wait_for(&call);
      if (says[n] == NULL ? call.error != NULL : call.error == NULL || strstr(call.error, says[n]) == NULL) fail(words[n], call.error);
      if (call.held < best) best = call.held;
      cleanup(core, "much", &call);
      wait_for(&call);
      if (written(state) != 0) fail("something is left of it", words[n]);
    }
    printf("%s: held for %.3f ms\n", words[n], best * 1e3);
    if (best > HELD) fail("a large request held its thread", words[n]);
    free(request.start);
  }
  free(long_value);
}

/* What has to be let go of at a plugin that hangs, when the agent starts and when a container ends. */
static void stuck(dunnage_isolator* core, const char* state)
{
  static struct call calls[ROUNDS][2];
  double best[] = {1, 1};
  char file[256];
  snprintf(file, sizeof file, "%s/stuck.json", state);
  for (int round = 0; round < ROUNDS; round++) {
    FILE* checkpoint = fopen(file, "w");
    if (checkpoint == NULL || fputs("{\"container\":\"stuck\",\"volumes\":[{\"driver\":\"hangs\",\"name\":\"x\"}]}", checkpoint) < 0) fail("no file", file);
    fclose(checkpoint);
    recover(core, "[]", &calls[round][0]);
    cleanup(core, "stuck", &calls[round][1]);
    for (int n = 0; n < 2; n++) {
      if (calls[round][n].held < best[n]) best[n] = calls[round][n].held;
    }
  }
  for (int n = 0; n < 2 * ROUNDS; n++) {
    struct call* call = &calls[n / 2][n % 2];
    wait_for(call);
    if (call->at - call->begun > 2 + SLACK) fail("the agent waits for a plugin that hangs", n % 2 == 0 ? "recover" : "cleanup");
  }
  printf("recover held its thread for %.3f ms, cleanup for %.3f ms\n", best[0] * 1e3, best[1] * 1e3);
  if (best[0] > HELD || best[1] > HELD) fail("a call held its thread", NULL);
  /* Nobody asks for it: what was left is let go of when the plugin does its work again. */
  if (access(file, F_OK) != 0) fail("it is forgotten", NULL);
  answers = 1;
  double begun = now();
  while (access(file, F_OK) == 0) {
    if (now() - begun > 10 + SLACK) fail("it is not let go of by itself", NULL);
    usleep(20 * 1000);
  }
  answers = 0;
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
  alarm(120);
  char* error = NULL;
  if (dunnage_isolator_new("{\"plugin\": \"x\"}", &error) != NULL) fail("a wrong parameter was taken", NULL);
  if (error == NULL || strstr(error, "plugin") == NULL) fail("it does not say which parameter is wrong", error);
  dunnage_text_free(error);

  char parameters[1024];
  snprintf(parameters, sizeof parameters, "{\"plugins\": \"%s\", \"state_dir\": \"%s\", \"binary\": \"%s\"}", argv[1], argv[2], argv[3]);
  core = dunnage_isolator_new(parameters, &error);
  if (core == NULL) fail("it does not start", error);

  much(core, argv[2]);

  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s/hangs.sock", argv[1]);
  int hangs = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(hangs, (struct sockaddr*)&address, sizeof address) != 0 || listen(hangs, 16) != 0) fail("no plugin that hangs", address.sun_path);
  pthread_t threads[TASKS];
  pthread_create(&threads[0], NULL, plugin, (void*)(long)hangs);
  pthread_detach(threads[0]);
  static struct call never[ROUNDS];
  double longest = 1;
  for (int n = 0; n < ROUNDS; n++) {
    char container[32];
    snprintf(container, sizeof container, "waits%d", n);
    prepare(core, container, "hangs", "x", &never[n]);
    if (never[n].held < longest) longest = never[n].held;
  }
  printf("prepare held its thread for %.3f ms\n", longest * 1e3);
  if (longest > HELD) fail("a call held its thread", "prepare");

  double begun = now();
  for (long n = 0; n < TASKS; n++) pthread_create(&threads[n], NULL, task, (void*)n);
  for (long n = 0; n < TASKS; n++) pthread_join(threads[n], NULL);
  double all = now() - begun;
  longest = 0;
  for (int n = 0; n < TASKS; n++) {
    if (calls[n].held > longest) longest = calls[n].held;
  }
  printf("the longest of %d at once %.3f ms; they were prepared in %.0f ms\n", TASKS, longest * 1e3, all * 1e3);
  if (longest > all / 4) fail("a call waited for the daemon", NULL);
  for (int n = 0; n < ROUNDS; n++) {
    wait_for(&never[n]);
    if (never[n].error == NULL || strstr(never[n].error, "does not answer within 5 s") == NULL) fail("a plugin that hangs", never[n].error);
    if (never[n].at - never[n].begun > 5 + SLACK) fail("a plugin that hangs was waited for too long", NULL);
  }

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

  recover(core, "[\"task0\", \"waits\"]", &call);
  wait_for(&call);
  if (call.error != NULL || strstr(call.answer, "task7") == NULL || strstr(call.answer, "task0") != NULL) fail("recover", call.answer);
  cleanup(core, "task0", &call);
  wait_for(&call);
  if (call.error != NULL) fail("cleanup", call.error);

  stuck(core, argv[2]);

  /* It ends in the middle of a call, which is never told. */
  prepare(core, "late", "hangs", "x", &call);
  dunnage_isolator_free(core);
  dunnage_isolator_free(NULL);
  usleep(100 * 1000);
  printf("ok\n");
  return 0;
}
