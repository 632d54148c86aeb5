// What the records of a manifest must agree in, so that a clip comes to an end and no number overflows. See manifest.h.
#include <algorithm>

#include "error.h"
#include "manifest.h"
#include "record.h"

namespace musiclm {

namespace {

// As Python's runtime/bundle.py: tokens of segments that do not go together are ones that a clip would wait for without end.
void check_segments(const Manifest& manifest, int stage, Faults& faults) {
  const Decoder& decoder = manifest.decoders[stage];
  const std::string where = std::string(kManifestName) + ": " + kStageNames[stage] + ": segments: ";
  if (decoder.segments.empty() != (decoder.conditioning != "tokens")) {
    faults.note(where + "a stage has them if its condition is tokens, and none else");
  }
  if (decoder.segments.empty()) return;
  const int64_t quantizers[] = {1, manifest.decoders[kCoarse].outputs(), manifest.decoders[kFine].outputs()};
  const std::vector<int> read[kStages] = {{kSemantic}, {kSemantic, kCoarse}, {kCoarse, kFine}};
  const auto sizes = [](int64_t count, int64_t codes) { return std::to_string(count) + " x " + std::to_string(codes); };
  std::string expected = "clap " + sizes(manifest.conditioner.quantizers, manifest.conditioner.codebook_size), found;
  for (const int one : read[stage]) {
    expected += std::string(", ") + kStageNames[one] + " " + sizes(quantizers[one], manifest.decoders[one].vocabulary - 1);
  }
  for (const Segment& one : decoder.segments) found += (found.empty() ? "" : ", ") + one.name + " " + sizes(one.quantizers, one.codebook);
  if (found != expected) faults.note(where + "expected " + expected + ", names, quantizers and codes, got " + found);
  if (decoder.semantic_window.has_value() != (stage == kCoarse)) {
    faults.note(std::string(kManifestName) + ": " + kStageNames[stage] + ": semantic_window: " + (stage == kCoarse ? "missing" : "of coarse alone"));
  }
  __int128 row = 1;
  for (const Segment& one : decoder.segments) {  // one after the other in the table
    if (one.start != row || one.first != row + 1) {
      faults.note(where + one.name + " begins at rows " + std::to_string(one.start) + " and " + std::to_string(one.first) +
                  ", not where the one before ends");
    }
    row += 2 + static_cast<__int128>(one.quantizers) * one.codebook;
  }
  const auto table = decoder.step.weights.find("rows");
  if (table != decoder.step.weights.end() && table->second.shape.size() == 2 && row != static_cast<__int128>(table->second.shape[0])) {
    faults.note(where + "they take other rows than the table's " + std::to_string(table->second.shape[0]));
  }
}

}  // namespace

void check_consistency(const Manifest& manifest, Faults& faults) {
  constexpr int64_t kLeastHz = 1000, kMostHz = 384000;
  const std::vector<std::string> rows[kStages] = {{"padding", "start", "semantic"},
                                                  {"padding", "semantic_start", "coarse_start", "semantic", "coarse"},
                                                  {"padding", "coarse_start", "fine_start", "coarse", "fine"}};
  const bool none[] = {manifest.decoders[0].segments.empty(), manifest.decoders[1].segments.empty(), manifest.decoders[2].segments.empty()};
  if (none[0] != none[1] || none[1] != none[2]) {
    faults.note(std::string(kManifestName) + ": some stages read segments and some do not: export the checkpoints again");
    return;
  }
  for (int stage = 0; stage < kStages; stage++) {
    const Decoder& decoder = manifest.decoders[stage];
    const std::string where = std::string(kManifestName) + ": " + kStageNames[stage] + ": ";
    const bool tokens = decoder.conditioning == "tokens";
    int64_t heads = 0;
    for (const auto& [name, place] : decoder.step.weights) {
      const size_t dot = name.rfind(".weight");
      heads += name.rfind("head.", 0) == 0 && dot != std::string::npos && dot + 7 == name.size();
    }
    if (decoder.outputs() != heads) {
      faults.note(where + "it predicts " + std::to_string(decoder.outputs()) + " quantizers, its weights are for " + std::to_string(heads));
    }
    check_segments(manifest, stage, faults);
    for (const std::string& row : tokens ? std::vector<std::string>{"padding"} : rows[stage]) {
      if (!decoder.rows.count(row)) faults.note(where + "rows: the field " + python_repr(row) + " is missing");
    }
    if (!tokens && decoder.conditioning != "none" && decoder.conditioning != "cross_attention" && decoder.conditioning != "prefix") {
      faults.note(where + "conditioning: expected none, cross_attention, prefix or tokens, got " + short_repr(decoder.conditioning));
    }
    if (decoder.context.has_value() != (decoder.conditioning != "none" && !tokens)) {
      faults.note(where + "a stage has a context graph if it is conditioned on embeddings, and none else: export the checkpoints again");
    }
    if ((decoder.context || tokens) && !manifest.conditioner.namespaces.count(kStageNames[stage])) {
      faults.note(std::string(kManifestName) + ": conditioner: namespaces: the field " + python_repr(kStageNames[stage]) + " is missing");
    }
    const bool has[] = {decoder.coarse_quantizers.has_value(), decoder.fine_quantizers.has_value()};
    if (has[0] != (stage > 0) || has[1] != (stage > 1)) {
      faults.note(where + "coarse has coarse_quantizers, fine has fine_quantizers too, no stage has others: export the checkpoints again");
    }
  }
  const std::optional<int64_t>& read = manifest.decoders[kFine].coarse_quantizers;
  const std::optional<int64_t>& made = manifest.decoders[kCoarse].coarse_quantizers;
  if (read && made && *read != *made) {  // a clip would make too few fine tokens, and wait for the others for ever
    faults.note(std::string(kManifestName) + ": fine: coarse_quantizers: expected " + std::to_string(*made) + ", as coarse has, got " +
                std::to_string(*read));
  }
  if (manifest.codec.sample_hz < kLeastHz || manifest.codec.sample_hz > kMostHz) {  // a stream keeps seconds of samples
    faults.note(std::string(kManifestName) + ": codec: sample_hz: expected at least " + std::to_string(kLeastHz) + " and at most " +
                std::to_string(kMostHz) + ", got " + std::to_string(manifest.codec.sample_hz));
  }
  const int64_t columns = manifest.columns(1) + manifest.columns(2);
  if (manifest.codec.quantizers != columns) {
    faults.note(std::string(kManifestName) + ": codec: quantizers: expected " + std::to_string(columns) + ", as coarse and fine have, got " +
                std::to_string(manifest.codec.quantizers));
  }
  for (const auto& [name, dimensions] : manifest.codec.states) {
    int64_t numbers = 1;
    for (int64_t dimension : dimensions) numbers = std::min<int64_t>(numbers * dimension, INT32_MAX);  // no product overflows
    if (numbers == INT32_MAX) faults.note(std::string(kManifestName) + ": codec: states: " + name + ": expected fewer than 2^31 numbers");
  }
  if (manifest.seconds && !(*manifest.seconds > 0 && *manifest.seconds <= 86400)) {
    faults.note(std::string(kManifestName) + ": seconds: expected more than 0 and at most 86400, got " + Json(*manifest.seconds).dump());
  }
  if (manifest.semantic_tokens_per_second <= 0 || manifest.semantic_tokens_per_second > 1e6) {
    faults.note(std::string(kManifestName) + ": semantic_tokens_per_second: expected more than 0 and at most 1e6, got " +
                Json(manifest.semantic_tokens_per_second).dump());
  }
}

}  // namespace musiclm
