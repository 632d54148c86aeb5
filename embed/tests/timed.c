/* timed BUNDLE TEXT [OPTION=VALUE ...]: how long until a stream's first samples, from the call of ml_model_open on; then clips.
 *
 * Prints "<seconds until the model is open> <seconds until the first 256 samples have been read>", and waits. For each path that is read from
 * standard input, a line each, it makes the clip again by ml_generate, prints the seconds that took, and writes the samples there.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "musiclm.h"

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int failed(void) { return fprintf(stderr, "%s\n", ml_last_error()), 1; }

static int set(ml_options *options, int count, char **given) {
  for (int i = 0; i < count; i++) {
    char *value = strchr(given[i], '=');
    if (value) *value++ = 0;
    if (ml_options_set(options, given[i], value)) return failed();
  }
  return 0;
}

int main(int count, char **arguments) {
  if (count < 3) return fprintf(stderr, "usage: timed BUNDLE TEXT [OPTION=VALUE ...]\n"), 2;
  ml_options *options = ml_options_new();
  if (set(options, count - 3, arguments + 3)) return 1;
  const ml_part prompt = {arguments[2], 1.0f};
  ml_model *model;
  ml_stream *stream;
  float first[256];
  size_t frames;
  const double began = now();
  if (ml_model_open(arguments[1], options, &model)) return failed();
  const double opened = now();
  if (ml_stream_start(model, &prompt, 1, options, &stream) || ml_stream_read(stream, first, 256, -1, &frames)) return failed();
  printf("%.6f %.6f\n", opened - began, now() - began), fflush(stdout);
  ml_stream_free(stream);

  for (char path[4096]; fgets(path, sizeof path, stdin);) {
    path[strcspn(path, "\n")] = 0;
    float *wave;
    const double started = now();
    if (ml_generate(model, &prompt, 1, options, &wave, &frames)) return failed();
    const double seconds = now() - started;
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(wave, sizeof *wave, frames, file) != frames || fclose(file)) return perror(path), 1;
    ml_free(wave);
    printf("%.6f\n", seconds), fflush(stdout);
  }
  ml_model_free(model), ml_options_free(options);
  return 0;
}
