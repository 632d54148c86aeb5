// See encoder.h. Latents are Python's to the bit: products and sums are rounded one by one, in numpy's order.
#include "encoder.h"

#include <cmath>
#include <cstdio>

#include "error.h"

namespace musiclm {

namespace {

// As Python names a blend.
std::string name_of(const Blend& parts) {
  std::string name;
  for (const auto& [text, weight] : parts) {
    char number[32];
    std::snprintf(number, sizeof number, "%g", static_cast<double>(weight));
    name += (name.empty() ? "" : " + ") + (parts.size() == 1 ? text : std::string(number) + " x " + text);
  }
  return name;
}

// What a stage's context graph makes; sizes are checked, since the decoder reads the arrays without knowing them.
void read_context(const Decoder& decoder, Tensors& arrays, Context* context) {
  const std::string& graph = *decoder.context;
  if (decoder.conditioning == "prefix") {
    Tensor prefix = take(arrays, graph, "prefix_embeddings", {1, -1, decoder.dim});
    context->prefix_positions = prefix.shape[1];
    context->prefix = std::move(prefix.floats);
    return;
  }
  const int64_t size = decoder.step.dim_head;
  for (int64_t layer = 0; layer < decoder.depth; layer++) {
    const std::string name = "context." + std::to_string(layer);
    Tensor keys = take(arrays, graph, name + ".key", {1, size, layer == 0 ? -1 : context->entries});
    context->entries = keys.shape[2];
    context->keys.push_back(std::move(keys.floats));
    context->values.push_back(take(arrays, graph, name + ".value", {1, context->entries, size}).floats);
  }
}

}  // namespace

Encoder::Encoder(const Bundle& bundle, std::shared_ptr<OnnxRuntime> runtime, int threads)
    : bundle_(bundle), runtime_(std::move(runtime)), threads_(threads) {
  const Mulan& mulan = bundle.manifest.mulan;
  tokenizer_ = open_tokenizer(bundle.path(mulan.tokenizer), mulan.tokenizer_from_file);
}

const Session& Encoder::session(const std::string& graph) {
  std::lock_guard<std::mutex> lock(opening_);
  std::unique_ptr<Session>& session = sessions_[graph];
  if (!session) session = runtime_->session(bundle_.path(graph), threads_, false);
  return *session;
}

std::vector<float> Encoder::embed(const std::string& text) {
  const Mulan& mulan = bundle_.manifest.mulan;
  std::vector<int64_t> ids = tokenizer_->encode(text, mulan.max_tokens), mask;
  for (int64_t id : ids) mask.push_back(id != mulan.pad_id);  // a token may have the padding's id: training masked it as well
  const auto count = static_cast<int64_t>(ids.size());
  Tensors inputs;
  inputs.emplace("input_ids", Tensor::of({1, count}, std::move(ids)));
  inputs.emplace("attention_mask", Tensor::of({1, count}, std::move(mask)));
  Tensors outputs = session(mulan.text).run(inputs);
  return take(outputs, mulan.text, "latent", {1, mulan.dim_latent}).floats;
}

std::vector<float> Encoder::latent(const Blend& parts) {
  if (parts.empty()) throw Error(ML_BAD_ARGUMENT, "no prompt: give a text that says what the music should be like");
  std::vector<float> total, first;
  for (const auto& [text, weight] : parts) {
    if (!std::isfinite(weight)) throw Error(ML_BAD_ARGUMENT, "a weight must be a finite number, got " + std::to_string(weight));
    std::vector<float> scaled = embed(text);
    if (first.empty()) first = scaled;
    for (float& number : scaled) number *= weight;
    if (total.empty()) {
      total = std::move(scaled);
    } else {
      for (size_t i = 0; i < total.size(); i++) total[i] += scaled[i];  // a loop of its own: not joined with the product
    }
  }
  double squares = 0;
  for (const float number : total) squares += static_cast<double>(number) * number;
  const auto length = static_cast<float>(std::sqrt(squares));
  if (length < 1e-3f) throw Error(ML_BAD_ARGUMENT, "the parts of " + name_of(parts) + " cancel each other: give them other weights.");
  if (parts.size() == 1 && parts[0].second > 0) return first;
  for (float& number : total) number /= length;
  return total;
}

StageContexts Encoder::contexts(const std::vector<float>& latent) {
  const Manifest& manifest = bundle_.manifest;
  const std::string& conditioner = manifest.conditioner.graph;
  Tensors inputs;
  inputs.emplace("latent", Tensor::of({1, static_cast<int64_t>(latent.size())}, latent));
  Tensors made = session(conditioner).run(inputs);
  StageContexts contexts;
  for (int stage = 0; stage < kStages; stage++) {
    const Decoder& decoder = manifest.decoders[stage];
    auto context = std::make_shared<Context>();
    if (!decoder.segments.empty()) {
      const std::string name = std::string("codes.") + kStageNames[stage];
      context->codes = take(made, conditioner, name, {1, decoder.segments.front().quantizers}, false).integers;
    }
    if (decoder.context) {
      Tensors conditioning;
      conditioning.emplace("conditioning", take(made, conditioner, std::string("conditioning.") + kStageNames[stage], {1, -1, -1}));
      Tensors arrays = session(*decoder.context).run(conditioning);
      read_context(decoder, arrays, context.get());
    }
    contexts[stage] = std::move(context);
  }
  return contexts;
}

}  // namespace musiclm
