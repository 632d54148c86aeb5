// A loaded bundle: its weights, its graphs, and the threads that its steps share.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>

#include "bundle.h"
#include "codec.h"
#include "encoder.h"
#include "onnx.h"
#include "weights.h"

namespace musiclm {

struct Model {                                                              // immutable but for what is opened when it is first used
  Model(const std::string& path, const std::string& runtime, int threads);  // threads: 0 for one per processor that this process may use

  Bundle bundle;
  std::shared_ptr<OnnxRuntime> runtime;
  std::unique_ptr<ds_pool, void (*)(ds_pool*)> pool;
  std::array<std::unique_ptr<Transformer>, kStages> transformers;
  std::unique_ptr<Encoder> encoder;
  std::unique_ptr<Session> codec;
  std::mutex turn;  // of the pool: one step at a time
};

}  // namespace musiclm
