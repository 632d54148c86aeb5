/* The audio thread under a trap: audio_thread BUNDLE ONNXRUNTIME, or audio_thread SPOIL.
 *
 * One thread reads streams as an audio callback does. While it is in a call of the library, functions that take or free memory, lock, wait or
 * wake are faults: they are interposed below, for the library too. Every system call of that thread is one at any time, by seccomp, whose
 * filters never go again: the thread gets its streams by an atomic pointer, spins, and ends with the process. SPOIL: something of that kind
 * that the thread does itself, to show that it is caught. Ends with status 0, or 1 and the fault on stderr.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "musiclm.h"

/* --- the trap */

static __thread volatile int inside;             /* whether this thread is in a call that an audio callback makes */
static __thread unsigned long locked, allocated; /* calls by this thread: shows that the library's come here */
static _Atomic(const char *) fault;
static _Atomic int number; /* of the system call */

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

static void caught(const char *name) {
  atomic_store(&fault, name);
  for (;;) relax();
}

static void on_system_call(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  atomic_store(&number, info->si_syscall);
  caught("a system call");
}

#define TRAPPED(result, name, parameters, arguments, counter) \
  result name parameters {                                    \
    static result(*real) parameters;                          \
    if (inside) caught(#name);                                \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);     \
    counter;                                                  \
    return real arguments;                                    \
  }

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
void __libc_free(void *);

void *malloc(size_t bytes) {
  if (inside) caught("malloc");
  allocated++;
  return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) {
  if (inside) caught("calloc");
  return __libc_calloc(count, bytes);
}
void *realloc(void *old, size_t bytes) {
  if (inside) caught("realloc");
  return __libc_realloc(old, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
  if (inside) caught("aligned_alloc");
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void **to, size_t alignment, size_t bytes) {
  if (inside) caught("posix_memalign");
  return (*to = __libc_memalign(alignment, bytes)) ? 0 : 12;
}
void free(void *memory) {
  if (inside) caught("free");
  __libc_free(memory);
}

typedef const struct timespec *Time;
TRAPPED(int, pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex), locked++)
TRAPPED(int, pthread_mutex_trylock, (pthread_mutex_t * mutex), (mutex), (void)0)
TRAPPED(int, pthread_mutex_unlock, (pthread_mutex_t * mutex), (mutex), (void)0)
TRAPPED(int, pthread_rwlock_rdlock, (pthread_rwlock_t * lock), (lock), (void)0)
TRAPPED(int, pthread_rwlock_wrlock, (pthread_rwlock_t * lock), (lock), (void)0)
TRAPPED(int, pthread_cond_wait, (pthread_cond_t * ready, pthread_mutex_t *mutex), (ready, mutex), (void)0)
TRAPPED(int, pthread_cond_timedwait, (pthread_cond_t * ready, pthread_mutex_t *mutex, Time end), (ready, mutex, end), (void)0)
TRAPPED(int, pthread_cond_clockwait, (pthread_cond_t * ready, pthread_mutex_t *mutex, clockid_t clock, Time end), (ready, mutex, clock, end), (void)0)
TRAPPED(int, pthread_cond_signal, (pthread_cond_t * ready), (ready), (void)0)
TRAPPED(int, pthread_cond_broadcast, (pthread_cond_t * ready), (ready), (void)0)
TRAPPED(int, sem_wait, (sem_t * semaphore), (semaphore), (void)0)
TRAPPED(int, sem_post, (sem_t * semaphore), (semaphore), (void)0)

static const char *spoil = "";
static void *memory;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ready = PTHREAD_COND_INITIALIZER;

static void do_what_is_forbidden(void) {
  if (!strcmp(spoil, "malloc")) memory = malloc(100);
  if (!strcmp(spoil, "free")) free(memory);
  if (!strcmp(spoil, "pthread_mutex_lock")) pthread_mutex_lock(&mutex);
  if (!strcmp(spoil, "pthread_cond_wait")) pthread_cond_wait(&ready, &mutex);
  if (!strcmp(spoil, "pthread_cond_signal")) pthread_cond_signal(&ready);
  if (!strcmp(spoil, "a system call")) syscall(SYS_getppid);
}

/* --- the audio thread */

typedef struct {
  ml_stream *stream;
  size_t frames, channels; /* of a callback */
  _Atomic size_t heard;    /* frames of music */
  uint64_t underruns;
  const char *wrong;
} Job;

enum { MOST = 1024 };
static _Atomic(Job *) waiting;

static void callback(Job *job, float *const *out) {
  inside = 1;
  if (*spoil) do_what_is_forbidden();
  const uint32_t rate = ml_stream_rate(job->stream);
  const size_t latency = ml_stream_latency(job->stream), before = ml_stream_buffered(job->stream);
  const size_t got = ml_stream_read_rt(job->stream, out, job->channels, job->frames);
  job->underruns = ml_stream_underruns(job->stream);
  inside = 0;
  job->heard += got;
  if (got > job->frames || got < (before < job->frames ? before : job->frames)) job->wrong = "fewer frames than were there, or more than asked for";
  if (latency > rate) job->wrong = "a latency of more than a second";
  for (size_t frame = 0; frame < job->frames; frame++) {
    const float sample = out[0][frame];
    if (!isfinite(sample) || (frame >= got && sample != 0)) job->wrong = "something that is neither music nor silence";
    if (out[job->channels - 1][frame] != sample) job->wrong = "channels that differ";
  }
}

static int ended(Job *job) {
  inside = 1;
  const int all = ml_stream_ended(job->stream);
  inside = 0;
  return all;
}

static void *read_all(void *unused) {
  static float left[MOST], right[MOST];
  float *const out[] = {left, right};
  struct sock_filter trap[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP)};
  const struct sock_fprog filter = {1, trap};
  (void)unused;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) caught("no seccomp");
  if (*spoil) {
    inside = 1;
    do_what_is_forbidden();
  }
  for (;;) {
    Job *job = atomic_load(&waiting);
    if (!job) {
      relax();
      continue;
    }
    while (!ended(job)) {
      callback(job, out);
      for (int i = 0; i < 2000; i++) relax(); /* some 50 us: often sooner than there is something new */
    }
    callback(job, out); /* after the end there is silence */
    atomic_store(&waiting, NULL);
  }
  return NULL;
}

/* --- the host */

static void fail(const char *what) {
  fprintf(stderr, "%s %s\n", what, ml_last_error());
  _exit(1);
}

static void look(void) {
  const char *found = atomic_load(&fault);
  if (!found) return;
  fprintf(stderr, "in the audio thread: %s (%d)\n", found, atomic_load(&number));
  _exit(1);
}

static ml_stream *start(ml_model *model, const char *rate, const char *seconds) {
  const ml_part prompt = {"calm piano", 1};
  ml_stream *stream;
  ml_options *options = ml_options_new();
  const char *set[][2] = {{"output_rate", rate}, {"seconds", seconds}, {"ahead_s", "0.2"}, {"plan", "low_latency"}, {"first_window_s", "0.1"}};
  for (size_t i = 0; i < sizeof set / sizeof *set; i++)
    if (ml_options_set(options, set[i][0], set[i][1])) fail("an option");
  if (ml_stream_start(model, &prompt, 1, options, &stream)) fail("no stream:");
  ml_options_free(options);
  return stream;
}

static void check_that_the_library_is_trapped(ml_stream *stream) {
  const unsigned long locks = locked, memory_taken = allocated;
  ml_options_free(ml_options_new());
  ml_stream_cancel(stream); /* locks */
  if (locked == locks || allocated == memory_taken) fail("the library's calls do not come here");
}

int main(int count, char **arguments) {
  struct sigaction action = {0};
  action.sa_sigaction = on_system_call, action.sa_flags = SA_SIGINFO;
  sigaction(SIGSYS, &action, NULL);
  memory = malloc(1);
  if (count == 2) spoil = arguments[1];
  pthread_t thread;
  if (pthread_create(&thread, NULL, read_all, NULL)) fail("no thread");
  while (count == 2) look(), usleep(1000);
  if (count != 3) return 2;

  ml_options *options = ml_options_new();
  ml_model *model;
  if (ml_options_set(options, "onnxruntime", arguments[2]) || ml_options_set(options, "threads", "1")) fail("an option");
  if (ml_model_open(arguments[1], options, &model)) fail("no model:");
  ml_options_free(options);
  static const char *const rates[] = {"8000", "16000", "22050", "44100", "48000", "96000"};
  static const size_t frames[] = {256, 64, 1, 1024, 333, 480};
  uint64_t underruns = 0;
  for (int round = 0; round < 12; round++) {
    const int cancelled = round % 2;
    Job job = {start(model, rates[round / 2], cancelled ? "endless" : "1"), frames[round / 2], 1 + (size_t)cancelled, 0, 0, NULL};
    atomic_store(&waiting, &job);
    for (int turn = 0; atomic_load(&waiting); turn++) {
      const ml_part other = {turn % 2 ? "loud drums" : "calm piano", 1};
      const ml_status status = ml_stream_set_prompt(job.stream, &other, 1, NULL);
      if (status != ML_OK && status != ML_ENDED) fail("another prompt:");
      if (cancelled && job.heard > 5000) check_that_the_library_is_trapped(job.stream);
      look(), usleep(500);
    }
    if (job.wrong) fail(job.wrong);
    if (!cancelled && job.heard != ml_stream_rate(job.stream)) fail("not a second of music");
    underruns += job.underruns;
    ml_stream_free(job.stream);
  }
  if (!underruns) fail("no underrun: nothing was read before it was there");
  printf("%llu underruns\n", (unsigned long long)underruns);
  fflush(stdout);
  _exit(0); /* the audio thread can only end with the process */
}
