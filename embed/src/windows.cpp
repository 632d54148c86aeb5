// How a clip is cut into windows. Python's runtime/windows.py is the other side: both must give the same numbers, so what Python computes
// with fractions is computed with fractions here, and what it computes with floats by the same operations in the same order.
#include "windows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "error.h"

namespace musiclm {

namespace {

constexpr int64_t kMostCount = int64_t{1} << 31;                // of a model's own numbers: products with a `Ratio` then fit 128 bits
constexpr double kLeastRate = 1.0 / 1024, kMostRate = 1 << 30;  // semantic tokens a second, for the same reason
constexpr int64_t kPlanned = 32;                                // runs of an endless clip: those of all later windows are alike

struct Size {
  int64_t length, overlap;
};

void check_count(const char* what, int64_t count) {
  if (count < 1 || count > kMostCount) {
    throw Error(ML_BAD_BUNDLE, std::string("the bundle's ") + what + " is " + std::to_string(count) + ", expected 1 to " +
                                   std::to_string(kMostCount) + ": export the checkpoints again.");
  }
}

void check_counts(const Manifest& manifest) {
  check_count("sample rate", manifest.codec.sample_hz);
  check_count("number of samples per frame", manifest.codec.samples_per_frame);
  for (const Decoder& decoder : manifest.decoders) check_count("longest window", decoder.max_length);
}

// Semantic tokens in the time of a codec frame. A double is a whole number of 53 bits over a power of 2: below 2^84 / 2^93 here.
Ratio tokens_per_frame(const Manifest& manifest) {
  const double rate = manifest.semantic_tokens_per_second;
  if (!(rate >= kLeastRate && rate <= kMostRate)) {
    throw Error(ML_BAD_BUNDLE, "the bundle has " + std::to_string(rate) + " semantic tokens a second, expected " + std::to_string(kLeastRate) +
                                   " to " + std::to_string(kMostRate) + ": export the checkpoints again.");
  }
  int exponent;
  const double mantissa = std::frexp(rate, &exponent);  // from 0.5 to 1
  const __int128 numerator = static_cast<__int128>(std::ldexp(mantissa, 53)) * manifest.codec.samples_per_frame;
  const __int128 denominator = (static_cast<__int128>(1) << (53 - exponent)) * manifest.codec.sample_hz;
  __int128 divisor = numerator, rest = denominator;
  while (rest) divisor = std::exchange(rest, divisor % rest);
  return {numerator / divisor, denominator / divisor};
}

// Frames of the longest coarse window: those trained, and no more than a semantic window's tokens cover where they carry time.
int64_t most_coarse_frames(const Manifest& manifest, const Ratio& rate) {
  int64_t most = manifest.decoders[kCoarse].max_length;
  if (!manifest.unique_consecutive) {
    // at a rate that is no whole number a slice may hold one token more
    const int64_t tokens = manifest.decoders[kSemantic].max_length - (rate.denominator > 1);
    most = static_cast<int64_t>(std::min<__int128>(most, tokens * rate.denominator / rate.numerator));
  }
  return std::max<int64_t>(most, 1);
}

std::array<Size, kStages> checked(const Manifest& manifest, const Ratio& rate, const Window (&windows)[kStages]) {
  for (const Window& window : windows) {
    if (window.length && *window.length < 1) {
      throw Error(ML_BAD_ARGUMENT, "a window's length must be a whole number of at least 1, got " + std::to_string(*window.length) + ".");
    }
    if (window.overlap && *window.overlap < 0) {
      throw Error(ML_BAD_ARGUMENT, "a window's overlap must be a whole number of at least 0, got " + std::to_string(*window.overlap) + ".");
    }
  }
  std::array<Size, kStages> sizes;
  for (int stage = 0; stage < kStages; stage++) {
    const Window& window = windows[stage];
    const std::string name = kStageNames[stage], unit = stage == kSemantic ? " tokens" : " frames";
    const int64_t most = stage == kCoarse ? most_coarse_frames(manifest, rate) : manifest.decoders[stage].max_length;
    const int64_t length = window.length.value_or(most);
    if (length > most) {
      throw Error(ML_BAD_ARGUMENT, "a " + name + " window of " + std::to_string(length) + unit + " is longer than the model's, which has " +
                                       std::to_string(most) + ".");
    }
    if (stage == kFine && window.overlap.value_or(0)) {
      throw Error(ML_BAD_ARGUMENT, "fine windows do not overlap, got an overlap of " + std::to_string(*window.overlap) + ". Leave it out.");
    }
    const int64_t overlap = window.overlap.value_or(stage == kFine ? 0 : length / 2);
    if (overlap >= length) {
      throw Error(ML_BAD_ARGUMENT, name + " windows of " + std::to_string(length) + unit + " cannot overlap by " + std::to_string(overlap) +
                                       ": a window must have something new.");
    }
    sizes[stage] = {length, overlap};
  }
  return sizes;
}

// Where windows stop that begin with `first` and grow up to `length`; empty without `first`. reads_all: whether each reads from 0 on, or
// goes on where the one before has stopped.
std::vector<int64_t> growing(std::optional<int64_t> first, double growth, int64_t length, bool reads_all) {
  std::vector<int64_t> stops;
  int64_t start = 0, before = 0;
  while (first && (stops.empty() || before - start < length)) {
    start = reads_all ? 0 : before;
    const int64_t most = start + length;
    const double asked = std::nearbyint(static_cast<double>(*first) * std::pow(growth, static_cast<double>(stops.size())));  // half to even
    const int64_t stop = asked < static_cast<double>(most) ? static_cast<int64_t>(asked) : most;
    before = std::min(std::max(stop, before + 1), most);
    stops.push_back(before);
  }
  return stops;
}

int64_t semantic_tokens(const Manifest& manifest, int64_t samples) {
  const double seconds = static_cast<double>(samples) / static_cast<double>(manifest.codec.sample_hz);
  return static_cast<int64_t>(std::ceil(seconds * manifest.semantic_tokens_per_second));
}

}  // namespace

Spans::Spans(std::optional<int64_t> total_, int64_t length_, int64_t overlap_, std::vector<int64_t> first_)
    : total(total_), length(length_), overlap(overlap_), first(std::move(first_)) {
  if (first.empty()) first.push_back(length);
}

int64_t Spans::stop(int64_t index) const {
  const int64_t beyond = index + 1 - static_cast<int64_t>(first.size());
  return beyond <= 0 ? first[index] : first.back() + beyond * (length - overlap);
}

int64_t Spans::size() const { return window_of(std::max<int64_t>(total.value(), 1) - 1) + 1; }

bool Spans::has(int64_t index) const { return index == 0 || (index > 0 && (!total || stop(index - 1) < *total)); }

Span Spans::operator[](int64_t index) const {
  if (!has(index)) throw Error(ML_FAILED, "window " + std::to_string(index) + " of a clip was asked for, beyond its last one.");
  const int64_t fresh = index > 0 ? stop(index - 1) : 0, end = stop(index);
  const int64_t start = !overlap ? fresh : index < static_cast<int64_t>(first.size()) ? 0 : fresh - overlap;
  return {start, fresh, total ? std::min(end, *total) : end};
}

int64_t Spans::window_of(int64_t position) const {
  const auto found = std::upper_bound(first.begin(), first.end(), position);
  if (found != first.end()) return found - first.begin();
  return static_cast<int64_t>(first.size()) + (position - first.back()) / (length - overlap);
}

Spans Spans::over(int64_t total_) const { return Spans(total_, length, overlap, first); }

int64_t Ratio::floor_of(int64_t times) const { return static_cast<int64_t>(times * numerator / denominator); }

int64_t Ratio::ceil_of(int64_t times) const { return static_cast<int64_t>((times * numerator + denominator - 1) / denominator); }

// Of windows that grow two, as the third takes longer than the first one plays.
int64_t WindowPlan::lead() const {
  const int64_t second = coarse.first.size() > 1 ? coarse.first[1] : 0;
  return frames() ? std::min(second, *frames()) : second;
}

int64_t WindowPlan::run(int64_t window) const { return runs[std::min(window, static_cast<int64_t>(runs.size()) - 1)]; }

int64_t WindowPlan::semantic_prefix(int64_t window, int64_t before) const {
  if (window == 0) return 0;
  if (semantic_overlap) return std::min(before, *semantic_overlap);
  const Span previous = coarse[window - 1], span = coarse[window];
  return before * (span.fresh - span.start) / (previous.stop - previous.start);
}

std::pair<int64_t, int64_t> WindowPlan::seen(int64_t window) const {
  if (frames() && coarse.size() == 1) return {0, most_read.value_or(semantic_length)};  // also what lies beyond its time
  const Span span = coarse[window];
  const int64_t first = tokens_per_frame.floor_of(span.start), stop = tokens_per_frame.ceil_of(span.stop);
  return {first, most_read ? std::min(stop, first + *most_read) : stop};
}

bool WindowPlan::reached(int64_t window, int64_t tokens) const { return tokens > tokens_per_frame.floor_of(coarse[window].fresh); }

WindowPlan plan_windows(const Manifest& manifest, std::optional<int64_t> frames, int64_t samples, const Window (&windows)[kStages],
                        std::optional<int64_t> first_frames, double growth) {
  check_counts(manifest);
  const Ratio rate = tokens_per_frame(manifest);
  const auto [semantic, coarse, fine] = checked(manifest, rate, windows);
  const std::vector<int64_t> coarse_stops = growing(first_frames, growth, coarse.length, true);
  const Spans over_coarse(frames, coarse.length, coarse.overlap, coarse_stops);
  const Spans over_fine(frames, fine.length, 0, growing(first_frames, growth, fine.length, false));
  if (!manifest.unique_consecutive) {
    std::vector<int64_t> ends;  // a semantic window that begins a clip ends with what its coarse window sees
    for (const int64_t stop : coarse_stops) {
      if (rate.ceil_of(stop) < semantic.length) ends.push_back(rate.ceil_of(stop));
    }
    if (first_frames) ends.push_back(semantic.length);
    const std::optional<int64_t> steps = frames ? std::optional<int64_t>(semantic_tokens(manifest, samples)) : std::nullopt;
    const Spans over_semantic(steps, semantic.length, semantic.overlap, ends);
    const std::optional<int64_t>& most_read = manifest.decoders[kCoarse].semantic_window;
    return {over_coarse, over_fine, over_semantic, {}, rate, manifest.decoders[kSemantic].max_length, std::nullopt, most_read};
  }
  std::vector<int64_t> runs;
  const int64_t hop = manifest.codec.samples_per_frame;
  for (int64_t window = 0; over_coarse.has(window) && (frames || window < kPlanned); window++) {
    const Span span = over_coarse[window];
    const int64_t heard = (frames ? std::min(span.stop * hop, samples) : span.stop * hop) - span.fresh * hop;
    runs.push_back(std::min(semantic_tokens(manifest, std::max<int64_t>(heard, 0)), semantic.length));
  }
  return {over_coarse, over_fine, std::nullopt, runs, rate, semantic.length, windows[kSemantic].overlap, std::nullopt};
}

int64_t default_frames(const Manifest& manifest) {
  check_counts(manifest);
  const Codec& codec = manifest.codec;
  if (manifest.seconds) return static_cast<int64_t>(std::ceil(*manifest.seconds * codec.sample_hz / codec.samples_per_frame));
  return std::min(most_coarse_frames(manifest, tokens_per_frame(manifest)), manifest.decoders[kFine].max_length);
}

}  // namespace musiclm
