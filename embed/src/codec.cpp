// See codec.h: a clip is cut into the same chunks however its codes arrive, so that its samples are the same to the bit.
#include "codec.h"

#include <algorithm>

#include "error.h"

namespace musiclm {

namespace {

constexpr double kChunkSeconds = 0.3;               // of a chunk at most, where a frame is no longer, as in Python
constexpr int64_t kMostNumbers = int64_t{1} << 30;  // of a state: no codec keeps as many, and more cannot be counted

Tensors first_state(const Codec& codec) {
  Tensors state;
  state.emplace("state.frames", Tensor::of({1}, std::vector<int64_t>{0}));
  for (const auto& [name, dimensions] : codec.states) {
    std::vector<int64_t> shape{1};
    shape.insert(shape.end(), dimensions.begin(), dimensions.end());
    int64_t count = 1;
    for (int64_t size : dimensions) {
      if (size < 0 || size > kMostNumbers / std::max<int64_t>(count, 1)) {
        throw Error(ML_BAD_BUNDLE, "the codec's state " + name + " has more numbers than can be kept: export the bundle again");
      }
      count *= size;
    }
    state.emplace("state." + name, Tensor::of(std::move(shape), std::vector<float>(static_cast<size_t>(count))));
  }
  return state;
}

}  // namespace

int64_t chunk_frames(const Codec& codec) {
  const double frames = kChunkSeconds * static_cast<double>(codec.sample_hz) / static_cast<double>(codec.samples_per_frame);
  return std::max<int64_t>(static_cast<int64_t>(frames + 1e-6), 1);
}

// Half of the others, so that a clip is heard early, and no fewer frames than the codec looks ahead.
int64_t first_chunk_frames(const Codec& codec) { return std::max({codec.lookahead_frames, codec.min_frames, (chunk_frames(codec) + 1) / 2}); }

CodecStream::CodecStream(const Codec& codec, const Session& session) : codec_(codec), runs_(session), wanted_(first_chunk_frames(codec)) {}

int64_t CodecStream::missing() const { return wanted_ - static_cast<int64_t>(waiting_.size()) / codec_.quantizers; }

std::vector<float> CodecStream::feed(const std::vector<int64_t>& codes) {
  waiting_.insert(waiting_.end(), codes.begin(), codes.end());
  std::vector<float> made;
  while (missing() <= 0) {
    const std::vector<float> wave = decode(wanted_);
    made.insert(made.end(), wave.begin(), wave.end());
    wanted_ = chunk_frames(codec_);
  }
  return made;
}

// Decodes the last frames, of a chunk that is not complete. In a clip shorter than the codec's least the last frame is repeated, and then
// cut.
std::vector<float> CodecStream::finish() {
  const int64_t left = static_cast<int64_t>(waiting_.size()) / codec_.quantizers;
  std::vector<float> wave;
  if (left > 0) {
    const std::vector<int64_t> last(waiting_.end() - codec_.quantizers, waiting_.end());
    const int64_t frames = state_ ? left : std::max(left, codec_.min_frames);
    for (int64_t frame = left; frame < frames; frame++) waiting_.insert(waiting_.end(), last.begin(), last.end());
    wave = decode(frames);
    wave.resize(static_cast<size_t>(left * codec_.samples_per_frame));
  }
  state_.reset();
  return wave;
}

std::vector<float> CodecStream::decode(int64_t frames) {
  Tensors inputs = state_ ? std::move(*state_) : first_state(codec_);
  const auto end = waiting_.begin() + frames * codec_.quantizers;
  inputs.emplace("codes", Tensor::of({1, frames, codec_.quantizers}, std::vector<int64_t>(waiting_.begin(), end)));
  Tensors outputs = runs_.run(inputs);
  waiting_.erase(waiting_.begin(), end);
  inputs.erase("codes");
  Tensors state;
  for (const auto& [name, before] : inputs) {  // from "state.<name>" to "next.<name>"
    state.emplace(name, take(outputs, codec_.stream, "next" + name.substr(name.find('.')), before.shape, before.is_float));
  }
  state_ = std::move(state);
  return take(outputs, codec_.stream, "wave", {1, frames * codec_.samples_per_frame}).floats;
}

}  // namespace musiclm
