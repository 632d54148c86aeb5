// consumer BUNDLE TEXT SECONDS: a clip's samples on standard output, as float32.
#include <musiclm.h>

#include <cstdio>
#include <memory>
#include <stdexcept>

namespace {

struct Freed {
  void operator()(ml_options* options) const { ml_options_free(options); }
  void operator()(ml_model* model) const { ml_model_free(model); }
  void operator()(float* wave) const { ml_free(wave); }
};

void check(ml_status status) {
  if (status != ML_OK) throw std::runtime_error(ml_last_error());
}

void play(const char* bundle, const char* text, const char* seconds) {
  const std::unique_ptr<ml_options, Freed> options(ml_options_new());
  check(ml_options_set(options.get(), "seconds", seconds));
  ml_model* opened = nullptr;
  check(ml_model_open(bundle, nullptr, &opened));
  const std::unique_ptr<ml_model, Freed> model(opened);
  const ml_part prompt{text, 1.0f};
  float* made = nullptr;
  size_t frames = 0;
  check(ml_generate(model.get(), &prompt, 1, options.get(), &made, &frames));
  const std::unique_ptr<float, Freed> wave(made);
  std::fwrite(wave.get(), sizeof(float), frames, stdout);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count == 4) return play(arguments[1], arguments[2], arguments[3]), 0;
    throw std::runtime_error("usage: consumer BUNDLE TEXT SECONDS");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
