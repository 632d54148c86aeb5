// The codec's decoder on its way through a clip, on the grid of chunks of Python's runtime/codec.py.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "bundle.h"
#include "onnx.h"

namespace musiclm {

int64_t chunk_frames(const Codec&);
int64_t first_chunk_frames(const Codec&);

class CodecStream {
 public:
  CodecStream(const Codec&, const Session&);
  int64_t missing() const;                                     // frames that complete the next chunk
  std::vector<float> feed(const std::vector<int64_t>& codes);  // [n, Q]; samples of every chunk that is complete now
  std::vector<float> finish();
  void stop() { runs_.stop(); }  // from any thread: what is decoded fails, now and later

 private:
  std::vector<float> decode(int64_t frames);
  const Codec& codec_;
  Runs runs_;
  std::vector<int64_t> waiting_;
  std::optional<Tensors> state_;
  int64_t wanted_;
};

}  // namespace musiclm
