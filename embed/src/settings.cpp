#include "settings.h"

#include <charconv>
#include <cmath>
#include <iterator>
#include <tuple>

#include "codec.h"
#include "error.h"

namespace musiclm {
namespace {

const ml_option kModelOptions[] = {
    {"onnxruntime", "text", "", "", "path of ONNX Runtime's library; by default the first that is found"},
    {"threads", "integer", "1 to 1024", "", "of the steps and graphs; by default one per processor that this process may use"},
};

// clang-format off
#define ML_STAGE_OPTIONS(stage)                                                                                                   \
  {stage ".temperature", "number", "0, or at least 1e-30", "the bundle's", "of the " stage " stage; 0: the most likely token"},    \
      {stage ".filter_thres", "number", "0 to below 1", "the bundle's", "share of the vocabulary that top-k drops"},               \
      {stage ".cond_scale", "number", "finite", "the bundle's", "classifier-free guidance; 1 is none"},                            \
      {stage ".window", "integer", "1 to the trained window", "the trained window", "tokens (semantic) or frames of a window"},    \
      {stage ".overlap", "integer", "0 to below the window", "half of the window", "how much of it is the window's before; fine: 0"}
// clang-format on

const ml_option kStreamOptions[] = {
    {"seconds", "text", "above 0 and at most 86400, or endless", "one window of every stage", "length of the clip"},
    {"seed", "integer", "0 to 2^64 - 1", "0", "of the noise: the same seed gives the same clip"},
    {"stop", "choice", "exact, eos", "exact", "forbid an end before `seconds`, or allow it"},
    {"plan", "choice", "trained, low_latency", "trained", "windows as they were trained, or with short first ones, so that it sounds sooner"},
    {"first_window_s", "number", "0.01 to below 1e9", "0.4", "with low_latency: seconds of the first window of every stage"},
    {"window_growth", "number", "1.1 to below 1e9", "2", "and how many times as far each of the next goes"},
    {"ahead_s", "number", "above 0 and at most 86400", "10", "seconds that are made ahead of the reader"},
    {"output_rate", "integer", "8000 to 384000", "the bundle's", "Hz, of what is read"},
    ML_STAGE_OPTIONS("semantic"),
    ML_STAGE_OPTIONS("coarse"),
    ML_STAGE_OPTIONS("fine"),
};

#undef ML_STAGE_OPTIONS

constexpr int64_t kMostSeconds = 86400;  // a day, as Python's

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& got) {
  throw Error(ML_BAD_ARGUMENT, name + " must be " + expected + ", got \"" + got + "\".");
}

const std::string* found(const Options& options, const std::string& name) {
  const auto at = options.find(name);
  return at == options.end() ? nullptr : &at->second;
}

double number(const std::string& name, const std::string& text, const std::string& expected) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);  // not strtod, whose point is the locale's
  if (read.ec != std::errc() || read.ptr != end || !std::isfinite(value)) refuse(name, expected, text);
  return value;
}

uint64_t whole(const std::string& name, const std::string& text, uint64_t least, uint64_t most, const std::string& expected) {
  if (text.empty() || text.size() > 20 || text.find_first_not_of("0123456789") != std::string::npos) refuse(name, expected, text);
  uint64_t value = 0;
  for (const char digit : text) {
    const auto next = static_cast<unsigned __int128>(value) * 10 + (digit - '0');
    if (next > most) refuse(name, expected, text);
    value = static_cast<uint64_t>(next);
  }
  if (value < least) refuse(name, expected, text);
  return value;
}

bool chosen(const Options& options, const std::string& name, const std::string& standard, const std::string& other) {
  const std::string* text = found(options, name);
  if (text && *text != standard && *text != other) refuse(name, standard + " or " + other, *text);
  return text && *text == other;
}

Sampling sampling_of(const Options& options, const Manifest& manifest, int stage) {
  const std::string name = kStageNames[stage];
  const Decoder& decoder = manifest.decoders[stage];
  Sampling sampling = decoder.sampling;
  if (const std::string* text = found(options, name + ".temperature")) {
    const char* expected = "0 (greedy) or a number of at least 1e-30";
    sampling.temperature = number(name + ".temperature", *text, expected);
    if (sampling.temperature != 0 && sampling.temperature < 1e-30) refuse(name + ".temperature", expected, *text);
  }
  if (const std::string* text = found(options, name + ".filter_thres")) {
    sampling.filter_thres = number(name + ".filter_thres", *text, "in [0, 1)");
    if (sampling.filter_thres < 0 || sampling.filter_thres >= 1) refuse(name + ".filter_thres", "in [0, 1)", *text);
  }
  if (const std::string* text = found(options, name + ".cond_scale")) {
    if (!decoder.guidance) {
      throw Error(ML_BAD_ARGUMENT, name + ".cond_scale has no effect: this stage was trained without a null condition. Leave it out.");
    }
    sampling.cond_scale = number(name + ".cond_scale", *text, "a finite number");
  }
  return sampling;
}

}  // namespace

bool is_option(const std::string& name) {
  for (const ml_option& option : kModelOptions)
    if (name == option.name) return true;
  for (const ml_option& option : kStreamOptions)
    if (name == option.name) return true;
  return false;
}

ModelSettings model_settings(const Options& options) {
  ModelSettings settings;
  if (const std::string* text = found(options, "onnxruntime")) settings.onnxruntime = *text;
  if (const std::string* text = found(options, "threads")) settings.threads = static_cast<int>(whole("threads", *text, 1, 1024, "from 1 to 1024"));
  return settings;
}

Settings stream_settings(const Options& options, const Manifest& manifest) {
  const Codec& codec = manifest.codec;
  Settings settings;
  const std::string* seconds = found(options, "seconds");
  if (!seconds) {
    settings.frames = default_frames(manifest);
    settings.samples = *settings.frames * codec.samples_per_frame;
  } else if (*seconds != "endless") {
    const std::string expected = "endless, or a number above 0 and at most " + std::to_string(kMostSeconds);
    const double length = number("seconds", *seconds, expected);
    if (length <= 0 || length > kMostSeconds) refuse("seconds", expected, *seconds);
    settings.samples = std::max<int64_t>(std::llrint(length * codec.sample_hz), 1);
    settings.frames = std::max((*settings.samples + codec.samples_per_frame - 1) / codec.samples_per_frame, codec.min_frames);
  }
  if (const std::string* text = found(options, "seed")) settings.seed = whole("seed", *text, 0, UINT64_MAX, "a whole number from 0 to 2^64 - 1");
  settings.ends = chosen(options, "stop", "exact", "eos");
  for (int stage = 0; stage < kStages; stage++) settings.sampling[stage] = sampling_of(options, manifest, stage);
  if (const std::string* text = found(options, "ahead_s")) {
    settings.ahead = number("ahead_s", *text, "a number of seconds above 0");
    if (settings.ahead <= 0 || settings.ahead > kMostSeconds) refuse("ahead_s", "a number above 0 and at most 86400", *text);
  }
  const std::string* rate = found(options, "output_rate");
  settings.output_rate = static_cast<uint32_t>(rate ? whole("output_rate", *rate, 8000, 384000, "from 8000 to 384000 Hz") : codec.sample_hz);
  return settings;
}

WindowPlan planned(const Options& options, const Settings& settings, const Manifest& manifest) {
  const Codec& codec = manifest.codec;
  Window windows[kStages];
  for (int stage = 0; stage < kStages; stage++) {
    const std::string name = kStageNames[stage];
    if (const std::string* text = found(options, name + ".window")) {
      windows[stage].length = static_cast<int64_t>(whole(name + ".window", *text, 1, INT32_MAX, "a whole number of at least 1"));
    }
    if (const std::string* text = found(options, name + ".overlap")) {
      windows[stage].overlap = static_cast<int64_t>(whole(name + ".overlap", *text, 0, INT32_MAX, "a whole number of at least 0"));
    }
  }
  std::optional<int64_t> first;
  double growth = 2.0, first_window = 0.4;
  for (const auto& [name, least, value] : {std::tuple{"first_window_s", 0.01, &first_window}, std::tuple{"window_growth", 1.1, &growth}}) {
    if (const std::string* text = found(options, name)) {
      const std::string expected = std::string("a number of at least ") + (least < 1 ? "0.01" : "1.1");
      *value = number(name, *text, expected);
      if (*value < least || *value >= 1e9) refuse(name, expected, *text);
    }
  }
  if (chosen(options, "plan", "trained", "low_latency")) {
    first = std::max<int64_t>(std::llrint(first_window * codec.sample_hz / codec.samples_per_frame), first_chunk_frames(codec));
  }
  return plan_windows(manifest, settings.frames, settings.samples.value_or(0), windows, first, growth);
}

}  // namespace musiclm

extern "C" const ml_option* ml_model_option(size_t index) {
  return index < std::size(musiclm::kModelOptions) ? &musiclm::kModelOptions[index] : nullptr;
}

extern "C" const ml_option* ml_stream_option(size_t index) {
  return index < std::size(musiclm::kStreamOptions) ? &musiclm::kStreamOptions[index] : nullptr;
}
