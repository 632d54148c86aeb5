/* All of musiclm.h at once, for sanitizers and valgrind: stress BUNDLE ONNXRUNTIME FOLDER [ROUNDS]. Models and streams are made, read, asked,
 * changed, saved, cancelled and freed by many threads, in orders that a host should not need. Files go to FOLDER. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "musiclm.h"

#define CHECK(condition)                                                                                    \
  do {                                                                                                      \
    if (!(condition)) fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, ml_last_error()), exit(1); \
  } while (0)

static const ml_part calm[] = {{"calm piano", 1.0f}}, mixed[] = {{"loud drums", 0.7f}, {"strings &amp; flute", 0.3f}};
static char saved[4096];

static void nap(long microseconds) {
  const struct timespec time = {0, microseconds * 1000};
  nanosleep(&time, NULL);
}

static ml_options *options_of(const char *seconds, const char *rate, const char *seed) {
  ml_options *options = ml_options_new();
  CHECK(options && !ml_options_set(options, "seconds", seconds) && !ml_options_set(options, "output_rate", rate));
  CHECK(!ml_options_set(options, "seed", "7") && !ml_options_set(options, "seed", seed) && !ml_options_set(options, "ahead_s", "0.2"));
  CHECK(!ml_options_set(options, "plan", "low_latency") && !ml_options_set(options, "first_window_s", "0.06"));
  return options;
}

static ml_stream *start(ml_model *model, const char *seconds, const char *rate) {
  ml_options *options = options_of(seconds, rate, "3");
  ml_stream *stream = NULL;
  CHECK(!ml_stream_start(model, mixed, 2, options, &stream) && stream);
  ml_options_free(options);
  return stream;
}

/* --- what threads do to a stream */

static void *read_it(void *stream) {
  float samples[777];
  size_t got, all = 0;
  ml_status status;
  while ((status = ml_stream_read(stream, samples, 777, all % 2 ? 0.001 : -1, &got)) == ML_OK || status == ML_TIMEOUT) all += got;
  CHECK(status == ML_ENDED && ml_stream_ended(stream));
  return NULL;
}

static void *play_it(void *stream) {
  static float left[512], right[512];
  float *const out[] = {left, right};
  while (!ml_stream_ended(stream)) {
    CHECK(ml_stream_read_rt(stream, out, 2, 512) <= 512);
    nap(200);
  }
  return NULL;
}

static void *ask_it(void *stream) {
  while (!ml_stream_ended(stream)) {
    CHECK(ml_stream_buffered(stream) < 1000000 && ml_stream_latency(stream) < 1000);
    CHECK(ml_stream_rate(stream) >= 8000 && ml_stream_underruns(stream) < 1000000);
    nap(100);
  }
  return NULL;
}

static void *change_it(void *stream) {
  char path[4200];
  snprintf(path, sizeof path, "%s.%p", saved, stream);
  for (int turn = 0;; turn++) {
    double heard = -1;
    const ml_status status = ml_stream_set_prompt(stream, turn % 2 ? calm : mixed, turn % 2 ? 1 : 2, turn % 3 ? &heard : NULL);
    if (status == ML_ENDED) return NULL;
    CHECK(status == ML_OK && ml_stream_save(stream, path) == ML_OK);
    nap(500);
  }
}

static void *cancel_it(void *stream) {
  nap(3000);
  ml_stream_cancel(stream);
  return NULL;
}

static void *embed_with(void *model) {
  ml_info info;
  CHECK(!ml_model_info(model, &info) && info.latent_size < 4096);
  float *latent = malloc(info.latent_size * sizeof *latent);
  for (int i = 0; i < 3; i++) CHECK(latent && !ml_embed_text(model, i % 2 ? "calm piano" : "Ça va?", latent));
  free(latent);
  return NULL;
}

static void *generate_with(void *model) {
  ml_options *options = options_of("0.2", "22050", "5");
  float *wave;
  size_t frames;
  CHECK(!ml_generate(model, calm, 1, options, &wave, &frames) && frames == 4410);
  ml_free(wave), ml_options_free(options);
  return NULL;
}

static void together(void *(*const work[])(void *), void *const on[], int count) {
  pthread_t threads[8];
  for (int i = 0; i < count; i++) CHECK(!pthread_create(&threads[i], NULL, work[i], on[i]));
  for (int i = 0; i < count; i++) CHECK(!pthread_join(threads[i], NULL));
}

/* --- orders */

static void refuse_all(ml_model *model, const char *bundle) {
  ml_model *none = NULL;
  ml_stream *stream = NULL;
  float sample;
  size_t got;
  ml_options *options = options_of("endless", "16000", "1");
  CHECK(ml_options_set(options, "tempo", "120") == ML_BAD_ARGUMENT && ml_options_set(NULL, "seed", "1") == ML_BAD_ARGUMENT);
  CHECK(ml_model_open("/nowhere", NULL, &none) == ML_BAD_BUNDLE && ml_model_open(NULL, NULL, &none) == ML_BAD_ARGUMENT);
  CHECK(ml_model_open(bundle, NULL, NULL) == ML_BAD_ARGUMENT && ml_model_info(NULL, NULL) == ML_BAD_ARGUMENT);
  CHECK(ml_stream_start(model, NULL, 0, NULL, &stream) == ML_BAD_ARGUMENT && ml_stream_start(model, calm, 1, NULL, NULL) == ML_BAD_ARGUMENT);
  CHECK(ml_generate(model, calm, 1, options, NULL, NULL) == ML_BAD_ARGUMENT && ml_embed_text(model, "", &sample) == ML_BAD_ARGUMENT);
  CHECK(ml_stream_resume(model, "/nowhere", 0, &stream) == ML_BAD_ARGUMENT && ml_stream_save(NULL, "x") == ML_BAD_ARGUMENT);
  CHECK(ml_stream_read(NULL, &sample, 1, 0, &got) == ML_BAD_ARGUMENT && !none && !stream && strlen(ml_last_error()) > 0);
  ml_options_free(options);
  ml_model_free(NULL), ml_stream_free(NULL), ml_options_free(NULL), ml_free(NULL), ml_stream_cancel(NULL);
}

static void one_round(const char *bundle, const char *runtime) {
  ml_options *options = ml_options_new();
  CHECK(options && !ml_options_set(options, "onnxruntime", runtime) && !ml_options_set(options, "threads", "2"));
  ml_model *model = NULL;
  CHECK(!ml_model_open(bundle, options, &model) && model);
  refuse_all(model, bundle);

  ml_stream *pulled = start(model, "0.6", "16000"), *played = start(model, "0.6", "48000"), *cancelled = start(model, "endless", "44100");
  {
    void *(*const work[])(void *) = {read_it, play_it, read_it, change_it, change_it, cancel_it, ask_it, embed_with};
    void *const on[] = {pulled, played, cancelled, pulled, played, cancelled, played, model};
    together(work, on, 8);
  }
  CHECK(ml_stream_set_prompt(cancelled, calm, 1, NULL) == ML_ENDED && !ml_stream_save(cancelled, saved));
  ml_stream_free(pulled);

  ml_stream *resumed = NULL, *never_read = start(model, "endless", "16000"), *hardly_begun = start(model, "endless", "8000");
  CHECK(!ml_stream_resume(model, saved, 0.1, &resumed));
  ml_stream_free(hardly_begun);
  {
    void *(*const work[])(void *) = {generate_with, generate_with, cancel_it, change_it, read_it};
    void *const on[] = {model, model, resumed, resumed, resumed};
    together(work, on, 5);
  }
  ml_model_free(model); /* before its streams */
  void *(*const work[])(void *) = {cancel_it, change_it, ask_it};
  void *const on[] = {never_read, never_read, cancelled};
  together(work, on, 3);
  ml_stream_free(never_read), ml_stream_free(resumed), ml_stream_free(cancelled), ml_stream_free(played);
  ml_options_free(options);
}

int main(int count, char **arguments) {
  if (count < 4) return 2;
  CHECK(ml_abi_version() == ML_ABI_VERSION && strlen(ml_version()) > 0 && !strcmp(ml_status_name((ml_status)99), "unknown status"));
  CHECK(ml_model_option(0) && ml_stream_option(0) && !ml_model_option(1000) && !ml_stream_option((size_t)-1) && !*ml_last_error());
  snprintf(saved, sizeof saved, "%s/saved.json", arguments[3]);
  for (int round = 0; round < (count > 4 ? atoi(arguments[4]) : 1); round++) one_round(arguments[1], arguments[2]);
  return 0;
}
