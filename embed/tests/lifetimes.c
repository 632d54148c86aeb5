/* A host that opens the library itself, as hosts of plug-ins do: lifetimes LIBRARY BUNDLE ONNXRUNTIME WHAT [ARGUMENT]
 *
 *   open N       opens a bundle N times and plays each tenth: prints resident KB after a fifth, at the end, and the threads that are left
 *   load N       opens and closes the library N times, and opens and plays a bundle each tenth time: prints the same
 *   exit HOW US  ends some microseconds after a stream began that another thread reads, by "return", "exit", "thread" (exit in the reading one),
 *                or "late" (it is freed while the process ends, after all that was opened later)
 *   cancel N     cancels N streams at odd moments: prints microseconds until each was gone
 *   change N     sets N prompts at odd moments: prints microseconds until each call returned
 *   two OTHER    two models at once, the second with the ONNX Runtime at OTHER: their samples must be equal
 *   thread       the host's thread rounds up and flushes small numbers, and a signal comes that it has blocked: neither is the library's
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fenv.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "musiclm.h"

#define FUNCTIONS(each)                                                                                                                             \
  each(ml_last_error) each(ml_options_new) each(ml_options_free) each(ml_options_set) each(ml_model_open) each(ml_model_free) each(ml_stream_start) \
      each(ml_stream_free) each(ml_stream_read) each(ml_stream_set_prompt) each(ml_stream_cancel) each(ml_generate) each(ml_free)
#define DECLARE(name) __typeof__(name) *name;
#define FIND(name) *(void **)&it.name = dlsym(library, #name);
static struct { FUNCTIONS(DECLARE) } it;

#define CHECK(condition)                                                                                        \
  do {                                                                                                          \
    if (!(condition)) fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, it.ml_last_error()), _exit(1); \
  } while (0)

static const ml_part prompt = {"calm piano", 1}, other = {"loud drums", 1};
static const char *bundle;
enum { FRAMES = 1600 };

static void *load(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fprintf(stderr, "%s\n", dlerror()), _exit(1);
  FUNCTIONS(FIND)
  return library;
}

static void nap(long microseconds) {
  const struct timespec time = {0, microseconds * 1000};
  nanosleep(&time, NULL);
}

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static long resident_kb(void) {
  long pages = 0;
  malloc_trim(0); /* what is free is no growth */
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%*s %ld", &pages) != 1) _exit(1);
  fclose(file);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static int threads(void) {
  int count = 0;
  DIR *folder = opendir("/proc/self/task");
  for (struct dirent *entry; (entry = readdir(folder));) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

static ml_model *open_with(const char *runtime) {
  ml_options *options = it.ml_options_new();
  ml_model *model = NULL;
  CHECK(!it.ml_options_set(options, "onnxruntime", runtime) && !it.ml_options_set(options, "threads", "2"));
  CHECK(!it.ml_model_open(bundle, options, &model));
  it.ml_options_free(options);
  return model;
}

static ml_stream *start(ml_model *model, const char *seconds) {
  ml_options *options = it.ml_options_new();
  ml_stream *stream = NULL;
  CHECK(!it.ml_options_set(options, "seconds", seconds) && !it.ml_options_set(options, "ahead_s", "60"));
  CHECK(!it.ml_stream_start(model, &prompt, 1, options, &stream));
  it.ml_options_free(options);
  return stream;
}

static void play(ml_model *model, const char *seconds) {
  float samples[FRAMES];
  size_t got;
  ml_stream *stream = start(model, seconds);
  CHECK(!it.ml_stream_read(stream, samples, FRAMES, -1, &got) && got);
  it.ml_stream_free(stream);
}

static void *fail_in_a_thread(void *unused) { /* the library stays as long as a thread that has a message of it */
  CHECK(it.ml_stream_start(NULL, &prompt, 1, NULL, NULL) != ML_OK);
  return unused;
}

static void grow(const char *path, const char *runtime, int times, int loads) {
  void *library = load(path);
  long before = 0;
  for (int i = 0; i < times; i++) {
    if (loads && i) library = load(path);
    if (!loads || i % 10 == 0) {
      ml_model *model = open_with(runtime);
      if (i % 10 == 0) play(model, "0.1");
      it.ml_model_free(model);
    }
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, fail_in_a_thread, NULL) && !pthread_join(thread, NULL));
    if (loads && (dlclose(library) || dlopen(path, RTLD_LAZY | RTLD_NOLOAD))) fprintf(stderr, "the library stays\n"), _exit(1);
    if (i == times / 5) before = resident_kb();
  }
  nap(20000);
  printf("%ld %ld %d\n", before, resident_kb(), threads() - 1);
}

static const char *how;
static ml_stream *left_stream;
static ml_model *left_model;

static void free_late(void) { it.ml_stream_free(left_stream), it.ml_model_free(left_model); }

static void *read_on(void *stream) {
  float samples[FRAMES];
  size_t got;
  for (int i = 0;; i++) {
    if (it.ml_stream_read(stream, samples, FRAMES, -1, &got) != ML_OK) nap(1000);
    if (i == 3 && !strcmp(how, "thread")) exit(0);
  }
}

static int leave(const char *runtime, long microseconds) {
  pthread_t reader;
  if (!strcmp(how, "late")) atexit(free_late); /* as a static object of the host, made before the library is opened */
  left_model = open_with(runtime), left_stream = start(left_model, "endless");
  if (strcmp(how, "late")) CHECK(!pthread_create(&reader, NULL, read_on, left_stream));
  nap(microseconds);
  if (!strcmp(how, "thread")) pthread_join(reader, NULL);
  if (!strcmp(how, "exit")) exit(0);
  return 0;
}

static void measure(ml_model *model, int times, int cancels) {
  ml_stream *stream = start(model, "endless");
  for (int i = 0; i < times; i++) {
    nap(2000 + i * 7919 % 29 * 1000);
    const double begin = now_us();
    if (cancels) it.ml_stream_cancel(stream), it.ml_stream_free(stream);
    else CHECK(!it.ml_stream_set_prompt(stream, i % 2 ? &prompt : &other, 1, NULL));
    printf("%.0f\n", now_us() - begin);
    if (cancels) stream = start(model, "endless");
  }
  it.ml_stream_free(stream);
}

typedef struct {
  ml_model *model;
  float *wave;
  size_t frames;
} Clip;

static void *generate(void *given) {
  Clip *clip = given;
  ml_options *options = it.ml_options_new();
  CHECK(!it.ml_options_set(options, "seconds", "1"));
  CHECK(!it.ml_generate(clip->model, &prompt, 1, options, &clip->wave, &clip->frames));
  it.ml_options_free(options);
  return NULL;
}

static int equal(const Clip *a, const Clip *b) { return a->frames == b->frames && !memcmp(a->wave, b->wave, a->frames * sizeof(float)); }

static int is_mapped(const char *path) {
  char line[4096];
  int found = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps)) found |= strstr(line, path) != NULL;
  if (maps) fclose(maps);
  return found;
}

static void two(const char *runtime, const char *copy) {
  Clip clips[2] = {{open_with(runtime), NULL, 0}, {open_with(copy), NULL, 0}};
  pthread_t thread;
  CHECK(!pthread_create(&thread, NULL, generate, &clips[1]));
  generate(&clips[0]);
  CHECK(!pthread_join(thread, NULL) && equal(&clips[0], &clips[1]));
  CHECK(is_mapped(runtime) && is_mapped(copy));
  for (int i = 0; i < 2; i++) it.ml_free(clips[i].wave), it.ml_model_free(clips[i].model);
}

static volatile sig_atomic_t handled;
static void handle(int number) { (void)number, handled++; }

static void keep_the_threads_state(const char *runtime) {
  Clip usual = {open_with(runtime), NULL, 0}, here = usual;
  generate(&usual);
  it.ml_model_free(usual.model);
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); /* small numbers are zero, going in and coming out */
#endif
  fesetround(FE_UPWARD);
  signal(SIGUSR1, handle);
  here.model = open_with(runtime);
  generate(&here);
  CHECK(equal(&usual, &here) && fegetround() == FE_UPWARD);
#if defined(__x86_64__)
  CHECK((__builtin_ia32_stmxcsr() & 0x8040) == 0x8040);
#endif
  ml_stream *stream = start(here.model, "endless");
  sigset_t one;
  sigemptyset(&one), sigaddset(&one, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &one, NULL);
  kill(getpid(), SIGUSR1);
  nap(20000);
  CHECK(!handled);
  pthread_sigmask(SIG_UNBLOCK, &one, NULL);
  CHECK(handled == 1);
  it.ml_stream_free(stream), it.ml_model_free(here.model), it.ml_free(usual.wave), it.ml_free(here.wave);
}

int main(int count, char **arguments) {
  if (count < 5) return 2;
  const char *runtime = arguments[3], *what = arguments[4], *argument = count > 5 ? arguments[5] : "";
  bundle = arguments[2], how = argument;
  if (!strcmp(what, "open") || !strcmp(what, "load")) return grow(arguments[1], runtime, atoi(argument), *what == 'l'), 0;
  load(arguments[1]);
  if (!strcmp(what, "exit")) return leave(runtime, count > 6 ? atol(arguments[6]) : 0);
  if (!strcmp(what, "two")) return two(runtime, argument), 0;
  if (!strcmp(what, "thread")) return keep_the_threads_state(runtime), 0;
  ml_model *model = open_with(runtime);
  measure(model, atoi(argument), !strcmp(what, "cancel"));
  it.ml_model_free(model);
  return 0;
}
