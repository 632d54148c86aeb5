#define _POSIX_C_SOURCE 200809L
#include "worker.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "prompt.h"

Note *note_new(int kind, const char *text, const char *extra) {
  const size_t first = strlen(text) + 1, second = strlen(extra) + 1;
  Note *note = calloc(1, sizeof *note + first + second);
  if (!note) return NULL;
  note->kind = kind, note->text = note->bytes, note->extra = note->bytes + first;
  memcpy(note->text, text, first), memcpy(note->extra, extra, second);
  return note;
}

static void note_free(Note *note) {
  if (note && (note->kind == FREE || note->kind == PLAYING)) ml_stream_free(note->stream);
  free(note);
}

unsigned ring_size(const Ring *ring) { return __atomic_load_n(&ring->written, __ATOMIC_ACQUIRE) - __atomic_load_n(&ring->read, __ATOMIC_ACQUIRE); }

static void ring_put(Ring *ring, Note *note) {
  ring->notes[ring->written % NOTES] = note;
  __atomic_store_n(&ring->written, ring->written + 1, __ATOMIC_RELEASE);
}

Note *ring_take(Ring *ring) {
  if (!ring_size(ring)) return NULL;
  Note *note = ring->notes[ring->read % NOTES];
  __atomic_store_n(&ring->read, ring->read + 1, __ATOMIC_RELEASE);
  return note;
}

/* Whether the object is gone, and nobody reads reports. */
static int quits(const Worker *worker) { return __atomic_load_n(&worker->quit, __ATOMIC_ACQUIRE); }

static void report(Worker *worker, Note *note) {
  const struct timespec millisecond = {0, 1000000};
  while (ring_size(&worker->reports) == NOTES && !quits(worker)) nanosleep(&millisecond, NULL);
  if (note && ring_size(&worker->reports) < NOTES) ring_put(&worker->reports, note);
  else note_free(note);
}

static void report_status(Worker *worker, ml_status status, int kind, double value) {
  Note *note = status == ML_OK ? note_new(kind, "", "") : note_new(FAILED, ml_last_error(), "");
  if (note) note->value = value;
  report(worker, note);
}

/* --- commands */

static void open_bundle(Worker *worker, const char *path) {
  ml_info info = {0, 0, 0, 0};
  ml_model_free(worker->model), worker->model = NULL; /* its streams keep what they need */
  ml_status status = ml_model_open(path, worker->options, &worker->model);
  if (status == ML_OK) status = ml_model_info(worker->model, &info);
  report_status(worker, status, OPENED, info.sample_rate);
}

static void set_option(Worker *worker, const Note *command) {
  const ml_status status = ml_options_set(worker->options, command->text, command->extra);
  if (status != ML_OK) report_status(worker, status, FAILED, 0);
}

static void set_prompt(Worker *worker, Note *command) {
  ml_part parts[PROMPT_PARTS];
  double heard = 0;
  free(worker->prompt), worker->prompt = strdup(command->text);
  if (!worker->current) return;
  const size_t count = prompt_parts(command->text, parts);
  const ml_status status = ml_stream_set_prompt(worker->current, parts, count, &heard);
  report_status(worker, status, HEARD, heard);
}

static void start_stream(Worker *worker, const Note *command) {
  ml_part parts[PROMPT_PARTS];
  char *copy = strdup(worker->prompt ? worker->prompt : "");
  Note *note = note_new(PLAYING, "", "");
  ml_status status = ml_options_set(worker->options, "output_rate", command->extra);
  if (status == ML_OK && copy && note) {
    status = ml_stream_start(worker->model, parts, prompt_parts(copy, parts), worker->options, &note->stream);
  }
  if (status == ML_OK && note && note->stream) {
    worker->current = note->stream, note->number = command->number;
    report(worker, note);
  } else {
    report_status(worker, status, FAILED, 0);
    free(note);
  }
  free(copy);
}

static void free_stream(Worker *worker, ml_stream *stream) {
  float sample;
  size_t got;
  if (ml_stream_ended(stream)) {
    const ml_status status = ml_stream_read(stream, &sample, 1, 0, &got);
    if (status != ML_ENDED) report_status(worker, status, FAILED, 0);
  }
  if (worker->current == stream) worker->current = NULL;
  ml_stream_free(stream);
}

static void execute(Worker *worker, Note *command) {
  switch (command->kind) {
    case OPEN:
      open_bundle(worker, command->text);
      break;
    case OPTION:
      set_option(worker, command);
      break;
    case PROMPT:
      set_prompt(worker, command);
      break;
    case PLAY:
      start_stream(worker, command);
      break;
    case SAVE:
      report_status(worker, ml_stream_save(worker->current, command->text), SAVED, 0);
      break;
    default:
      free_stream(worker, command->stream);
  }
}

/* --- the thread */

static void worker_free(Worker *worker) {
  for (Note *note; (note = ring_take(&worker->commands));) note_free(note);
  for (Note *note; (note = ring_take(&worker->reports));) note_free(note);
  ml_model_free(worker->model), ml_options_free(worker->options);
  sem_destroy(&worker->wake), free(worker->prompt), free(worker);
}

static void *work(void *argument) {
  Worker *worker = argument;
  for (;;) {
    while (sem_wait(&worker->wake)) continue; /* a signal */
    Note *command = ring_take(&worker->commands);
    if (!command) break; /* from worker_quit */
    if (quits(worker)) note_free(command);
    else execute(worker, command), free(command);
    __atomic_fetch_add(&worker->done, 1, __ATOMIC_RELEASE);
  }
  worker_free(worker);
  return NULL;
}

Worker *worker_start(void) {
  Worker *worker = calloc(1, sizeof *worker);
  pthread_t thread;
  if (!worker || sem_init(&worker->wake, 0, 0)) return free(worker), NULL;
  worker->options = ml_options_new();
  if (!worker->options || pthread_create(&thread, NULL, work, worker)) return worker_free(worker), NULL;
  pthread_detach(thread);
  return worker;
}

void worker_send(Worker *worker, Note *command) { ring_put(&worker->commands, command), sem_post(&worker->wake); }

void worker_quit(Worker *worker) {
  __atomic_store_n(&worker->quit, 1, __ATOMIC_RELEASE);
  worker_send(worker, NULL); /* the thread ends when it has taken this: not before the last use of *worker here */
}

unsigned worker_done(const Worker *worker) { return __atomic_load_n(&worker->done, __ATOMIC_ACQUIRE); }
