/* The worker's half: everything that takes time or memory. It opens bundles, starts and frees streams. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "plugin.h"
#include "prompt.h"

typedef struct {
  LV2_Worker_Respond_Function function;
  LV2_Worker_Respond_Handle handle;
} Reply;

static LV2_Worker_Status reply(const Reply *to, const Message *message) { return to->function(to->handle, message_size(message), message); }

static void log_error(Plugin *self, const char *what) {
  if (self->log) self->log->printf(self->log->handle, self->uris.log_error, "musiclm: %s\n", what);
}

static void fail(Plugin *self, const Reply *to, const char *why) {
  const Message failed = {.kind = FAILED};
  log_error(self, why);
  reply(to, &failed);
}

static ml_status open_model(Plugin *self) {
  const char *path = self->worker.texts[BUNDLE];
  ml_model_free(self->worker.model), self->worker.model = NULL; /* its streams keep what they need */
  return ml_model_open(*path ? path : self->worker.shipped_bundle, NULL, &self->worker.model);
}

/* Sets an option to a number with or without decimals. Not by %f, whose decimal point depends on the locale. */
static ml_status set_number(ml_options *options, const char *name, double value, int decimals) {
  char text[32];
  const long thousandths = lround(value * 1000);
  snprintf(text, sizeof text, decimals ? "%ld.%03ld" : "%ld", thousandths / 1000, thousandths % 1000);
  return ml_options_set(options, name, text);
}

static ml_status create_stream(Plugin *self, const Message *request, ml_stream **stream) {
  char text[TEXT_BYTES];
  ml_part parts[PROMPT_PARTS];
  const size_t count = prompt_parts(strcpy(text, self->worker.texts[PROMPT]), parts);
  ml_options *options = ml_options_new();
  ml_status status = ml_options_set(options, "seconds", "endless");
  if (status == ML_OK) status = ml_options_set(options, "plan", "low_latency");
  if (status == ML_OK) status = set_number(options, "output_rate", self->rate, 0);
  if (status == ML_OK) status = set_number(options, "seed", request->seed, 0);
  if (status == ML_OK) status = set_number(options, "ahead_s", request->ahead, 1);
  if (status == ML_OK && request->guidance > 0) status = set_number(options, "coarse.cond_scale", request->guidance, 1);
  if (status == ML_OK) status = ml_stream_start(self->worker.model, parts, count, options, stream);
  ml_options_free(options);
  return status;
}

static void start_stream(Plugin *self, const Reply *to) {
  size_t place = 0;
  self->worker.start_pending = 1;
  if (!self->worker.model && open_model(self) != ML_OK) {
    fail(self, to, ml_last_error());
    return;
  }
  while (place < STREAMS && self->worker.live[place]) place++;
  if (place == STREAMS) {
    fail(self, to, "too many streams at once.");
    return;
  }
  Message made = {.kind = STREAM, .number = self->worker.start.number};
  if (create_stream(self, &self->worker.start, &made.stream) != ML_OK) {
    fail(self, to, ml_last_error());
  } else if (reply(to, &made) != LV2_WORKER_SUCCESS) {
    ml_stream_free(made.stream);
    log_error(self, "the host takes no answer.");
  } else {
    self->worker.live[place] = self->worker.current = made.stream;
    self->worker.start_pending = 0;
  }
}

static void set_parameter(Plugin *self, const Reply *to, const Message *message) {
  pthread_mutex_lock(&self->worker.lock);
  strcpy(self->worker.texts[message->which], message->text);
  pthread_mutex_unlock(&self->worker.lock);
  Message changed = *message;
  changed.kind = CHANGED;
  reply(to, &changed);
  if (message->which == BUNDLE && open_model(self) != ML_OK) {
    fail(self, to, ml_last_error());
  } else if (self->worker.start_pending || (message->which == BUNDLE && self->worker.current)) {
    start_stream(self, to);
  } else if (self->worker.current) {
    char text[TEXT_BYTES];
    ml_part parts[PROMPT_PARTS];
    const size_t count = prompt_parts(strcpy(text, message->text), parts);
    Message heard = {.kind = HEARD};
    if (ml_stream_set_prompt(self->worker.current, parts, count, &heard.seconds) == ML_OK) reply(to, &heard);
    else fail(self, to, ml_last_error());
  }
}

static void free_stream(Plugin *self, ml_stream *stream) {
  float sample;
  size_t got;
  if (ml_stream_ended(stream) && ml_stream_read(stream, &sample, 1, 0, &got) != ML_ENDED) log_error(self, ml_last_error());
  for (size_t i = 0; i < STREAMS; i++) {
    if (self->worker.live[i] == stream) self->worker.live[i] = NULL;
  }
  if (self->worker.current == stream) self->worker.current = NULL;
  ml_stream_free(stream);
}

LV2_Worker_Status work(LV2_Handle handle, LV2_Worker_Respond_Function respond, LV2_Worker_Respond_Handle to, uint32_t size, const void *data) {
  Plugin *self = handle;
  const Reply answer = {respond, to};
  Message message = {.kind = SET};
  memcpy(&message, data, size);
  switch (message.kind) {
    case SET:
      set_parameter(self, &answer, &message);
      break;
    case START:
      self->worker.start = message;
      start_stream(self, &answer);
      break;
    case FREE:
      free_stream(self, message.stream);
      break;
    default:
      return LV2_WORKER_ERR_UNKNOWN;
  }
  return LV2_WORKER_SUCCESS;
}

uint32_t message_size(const Message *message) {
  const int with_text = message->kind == SET || message->kind == CHANGED;
  return (uint32_t)(offsetof(Message, text) + (with_text ? strlen(message->text) + 1 : 0));
}

int worker_open(Plugin *self, const char *folder) {
  snprintf(self->worker.shipped_bundle, TEXT_BYTES, "%s/bundle", folder);
  return pthread_mutex_init(&self->worker.lock, NULL) == 0;
}

void worker_close(Plugin *self) {
  for (size_t i = 0; i < STREAMS; i++) ml_stream_free(self->worker.live[i]);
  ml_model_free(self->worker.model);
  pthread_mutex_destroy(&self->worker.lock);
}
