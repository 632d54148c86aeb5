// The options of a model and of a stream: their names, types and bounds, and what they mean for a bundle.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "musiclm.h"
#include "windows.h"

namespace musiclm {

using Options = std::map<std::string, std::string>;

struct ModelSettings {
  std::string onnxruntime;
  int threads = 0;
};

// Of a clip.
struct Settings {
  std::optional<int64_t> samples;  // at the bundle's rate; none: without end
  std::optional<int64_t> frames;
  uint64_t seed = 0;
  bool ends = false;
  std::array<Sampling, kStages> sampling;
  double ahead = 10.0;       // seconds
  uint32_t output_rate = 0;  // Hz
};

bool is_option(const std::string& name);
ModelSettings model_settings(const Options&);  // throws Error(ML_BAD_ARGUMENT), as the others
Settings stream_settings(const Options&, const Manifest&);
WindowPlan planned(const Options&, const Settings&, const Manifest&);

}  // namespace musiclm
