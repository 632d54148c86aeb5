/* consumer BUNDLE TEXT SECONDS: a stream's samples on standard output, as float32. */
#include <musiclm.h>
#include <stdio.h>

int main(int count, char **arguments) {
  ml_model *model = NULL;
  ml_stream *stream = NULL;
  ml_options *options = ml_options_new();
  ml_part prompt = {NULL, 1.0f};
  ml_status status = count == 4 ? ml_options_set(options, "seconds", arguments[3]) : ML_BAD_ARGUMENT;
  if (ml_abi_version() >> 16 != ML_ABI_VERSION >> 16 || ml_abi_version() < ML_ABI_VERSION) return fputs("another library\n", stderr), 2;
  prompt.text = arguments[2];
  if (status == ML_OK) status = ml_model_open(arguments[1], NULL, &model);
  if (status == ML_OK) status = ml_stream_start(model, &prompt, 1, options, &stream);
  while (status == ML_OK) {
    float samples[999];
    size_t got;
    status = ml_stream_read(stream, samples, 999, -1, &got);
    if (status == ML_OK) fwrite(samples, sizeof *samples, got, stdout);
  }
  if (status != ML_ENDED) fprintf(stderr, "%s: %s\n", ml_status_name(status), ml_last_error());
  ml_stream_free(stream), ml_model_free(model), ml_options_free(options);
  return status != ML_ENDED;
}
