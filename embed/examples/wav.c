/* A prompt to a file: wav BUNDLE TEXT OUT.wav [OPTION=VALUE ...]. Samples are written as they are made, as 32-bit floats. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "musiclm.h"

static void put(FILE *file, uint32_t value, int bytes) {
  for (int i = 0; i < bytes; i++) fputc((int)(value >> (8 * i) & 255), file);
}

static void header(FILE *file, uint32_t rate, uint32_t frames) {
  fputs("RIFF", file), put(file, 48 + 4 * frames, 4), fputs("WAVEfmt ", file), put(file, 16, 4);
  put(file, 3, 2), put(file, 1, 2), put(file, rate, 4), put(file, 4 * rate, 4), put(file, 4, 2), put(file, 32, 2); /* float, mono */
  fputs("fact", file), put(file, 4, 4), put(file, frames, 4), fputs("data", file), put(file, 4 * frames, 4);
}

int main(int count, char **arguments) {
  if (count < 4) return fprintf(stderr, "usage: wav BUNDLE TEXT OUT.wav [OPTION=VALUE ...]\n"), 2;
  ml_options *options = ml_options_new();
  ml_model *model = NULL;
  ml_stream *stream = NULL;
  ml_status status = options ? ML_OK : ML_NO_MEMORY;
  for (int i = 4; i < count && status == ML_OK; i++) {
    char *value = strchr(arguments[i], '=');
    if (value) *value++ = 0;
    status = ml_options_set(options, arguments[i], value);
  }
  const ml_part prompt = {arguments[2], 1.0f};
  if (status == ML_OK) status = ml_model_open(arguments[1], options, &model);
  if (status == ML_OK) status = ml_stream_start(model, &prompt, 1, options, &stream);
  FILE *file = status == ML_OK ? fopen(arguments[3], "wb") : NULL;
  uint32_t frames = 0;
  if (file) {
    float samples[4096];
    size_t got;
    header(file, ml_stream_rate(stream), 0);
    while ((status = ml_stream_read(stream, samples, 4096, -1, &got)) == ML_OK) {
      fwrite(samples, sizeof *samples, got, file), frames += (uint32_t)got;
    }
    rewind(file), header(file, ml_stream_rate(stream), frames);
    if (fclose(file) == 0 && status == ML_ENDED) printf("%s: %.2f s\n", arguments[3], (double)frames / ml_stream_rate(stream));
  } else if (status == ML_OK) {
    perror(arguments[3]);
  }
  if (status != ML_OK && status != ML_ENDED) fprintf(stderr, "%s: %s\n", ml_status_name(status), ml_last_error());
  ml_stream_free(stream), ml_model_free(model), ml_options_free(options);
  return status != ML_ENDED;
}
