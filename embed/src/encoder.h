// From a prompt to the conditioning of each stage: MuLaN's text tower, the conditioner, the context graphs.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bundle.h"
#include "clip.h"
#include "onnx.h"
#include "tokenizer.h"

namespace musiclm {

using Blend = std::vector<std::pair<std::string, float>>;  // texts and weights; one text: weight 1

class Encoder {
 public:
  Encoder(const Bundle&, std::shared_ptr<OnnxRuntime>, int threads);
  std::vector<float> latent(const Blend&);  // float32 [dim_latent] of length 1, Python's runtime/prompts.latents_of, to the bit
  StageContexts contexts(const std::vector<float>& latent);

 private:
  const Session& session(const std::string& graph);  // opened when it is first used
  std::vector<float> embed(const std::string& text);
  const Bundle& bundle_;
  std::shared_ptr<OnnxRuntime> runtime_;
  int threads_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::mutex opening_;
  std::map<std::string, std::unique_ptr<Session>> sessions_;
};

}  // namespace musiclm
