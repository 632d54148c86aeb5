// One window of one stage as data. Python's runtime/sequence.py is the other side, and export/tables.py lays out the tables that the
// numbers made here point into.
#include "sequence.h"

#include <algorithm>
#include <string>
#include <utility>

#include "error.h"

namespace musiclm {

namespace {

constexpr int64_t kFar = int64_t{1} << 40;       // larger than any coordinate: clips to the last entry as a difference
constexpr int64_t kNever = 0, kAlways = -1;      // ds_rules.frame
constexpr int64_t kMostRows = int64_t{1} << 31;  // of the table, and what else the manifest counts; with kMostQuantizers sums fit 64 bits
constexpr int64_t kMostQuantizers = 1 << 16;

int64_t checked(const Decoder& decoder, const std::string& what, int64_t value, int64_t most) {
  if (value < 0 || value > most) {
    throw Error(ML_BAD_BUNDLE, decoder.graph + ": the manifest has " + what + " " + std::to_string(value) + ", expected 0 to " +
                                   std::to_string(most) + ": export the checkpoints again.");
  }
  return value;
}

// The first row of a kind of token in the table of embeddings.
int64_t row(const Decoder& decoder, const std::string& kind) {
  const auto found = decoder.rows.find(kind);
  if (found == decoder.rows.end()) {
    throw Error(ML_BAD_BUNDLE, decoder.graph + ": the manifest has no row '" + kind + "': export the checkpoints again.");
  }
  return checked(decoder, "row '" + kind + "'", found->second, kMostRows);
}

// Entries of a codebook: coarse logits have an end entry, fine ones do not.
int64_t codebook(const Decoder& decoder) {
  return checked(decoder, "vocabulary", decoder.vocabulary, kMostRows) - (decoder.rows.count("semantic") ? 1 : 0);
}

int64_t quantizers(const Decoder& decoder, const char* name, int64_t count) {
  if (count < 1) throw Error(ML_BAD_BUNDLE, decoder.graph + ": the manifest has no " + name + ": export the checkpoints again.");
  return checked(decoder, name, count, kMostQuantizers);
}

void add(Prompt& prompt, int64_t id, int64_t query, int64_t key) {
  prompt.ids.push_back(id);
  prompt.query.push_back(query);
  prompt.key.push_back(key);
}

// Adds tokens that stand as the rules say, counted from the sequence's first one.
void add_tokens(Prompt& prompt, const ds_rules& place, const std::vector<int64_t>& tokens) {
  for (int64_t index = 0; index < static_cast<int64_t>(tokens.size()); index++) {
    const int64_t key = place.origin + index / place.per_frame * place.stride + index % place.per_frame;
    add(prompt, place.first_row + index % place.quantizers * place.codebook + tokens[index], key + place.shift, key);
  }
}

// The part of the rules that says how tokens are drawn; where they stand is still to be filled in.
ds_rules drawing(const Decoder& decoder, int stage, int64_t frame, int64_t end, const Draw& draw) {
  ds_rules rules = {};
  rules.padding = row(decoder, "padding");
  rules.stage = stage;
  rules.frame = frame;
  rules.end = end;
  const double kept = (1 - draw.sampling.filter_thres) * static_cast<double>(decoder.vocabulary);
  rules.k = std::max<int64_t>(static_cast<int64_t>(kept), 1);
  return rules;
}

// A sequence of `tokens` tokens whose first ones are known.
Sequence begun(int stage, Prompt prompt, const ds_rules& rules, const std::vector<int64_t>& prefix, int64_t tokens, int64_t in_frames,
               const Draw& draw, Contexts context) {
  const int64_t known = static_cast<int64_t>(prefix.size());
  if (known > tokens || known % rules.quantizers) {
    throw Error(ML_BAD_ARGUMENT, "the music cannot go on from these tokens: a " + std::string(kStageNames[stage]) + " window of " +
                                     std::to_string(tokens) + " tokens would begin with " + std::to_string(known) +
                                     " that are known. Use the settings that they were made with.");
  }
  add_tokens(prompt, rules, prefix);
  return {stage, std::move(prompt), rules, known, in_frames, tokens - known, draw, std::move(context), {}};
}

// A window of a decoder that reads segments, one after the other, each with an end that nothing attends to: code 0, as in training. read: of
// each segment before the last, after the condition's codes.
Sequence segment_sequence(const Decoder& decoder, int stage, const std::vector<const std::vector<int64_t>*>& read, int64_t tokens, bool end_allowed,
                          const std::vector<int64_t>& prefix, const Draw& draw, Contexts context) {
  const Segment& last = decoder.segments.back();
  ds_rules rules = drawing(decoder, stage, end_allowed ? last.quantizers : kAlways, last.codebook, draw);
  rules.per_frame = rules.stride = rules.shift = 1;
  Prompt prompt;
  std::vector<int64_t> position_ids;
  const auto place = [&](const Segment& segment) {
    const int64_t first = static_cast<int64_t>(prompt.ids.size());
    add(prompt, checked(decoder, "row of a start", segment.start, kMostRows), first + 1, first);
    rules.first_row = checked(decoder, "row of a segment", segment.first, kMostRows);
    rules.codebook = checked(decoder, "codebook", segment.codebook, kMostRows);
    rules.quantizers = quantizers(decoder, "quantizers", segment.quantizers);
    rules.origin = first + 1;
    position_ids.push_back(0);
  };
  const auto number = [&](const Segment& segment, int64_t count) {
    for (int64_t i = 0; i < count; i++) position_ids.push_back(segment.positions.value_or(0) + i);
  };
  for (size_t i = 0; i < read.size(); i++) {
    const Segment& segment = decoder.segments[i];
    place(segment);
    add_tokens(prompt, rules, *read[i]);
    add(prompt, segment.first, static_cast<int64_t>(prompt.ids.size()) + 1, kFar);
    number(segment, static_cast<int64_t>(read[i]->size()) + 1);
  }
  place(last);
  // counted so that a frame's last token is the one on which an end is allowed, but not the first frame's
  const int64_t in_frames = static_cast<int64_t>(prefix.size()) + 1 - last.quantizers;
  Sequence made = begun(stage, std::move(prompt), rules, prefix, tokens, in_frames, draw, std::move(context));
  if (last.positions) {
    number(last, tokens);
    position_ids.resize(made.prompt.ids.size() + made.steps - 1);
    made.position_ids = std::move(position_ids);
  }
  return made;
}

const std::vector<int64_t>& codes_of(const Decoder& decoder, const Contexts& context) {
  if (!context || context->codes.empty()) throw Error(ML_FAILED, decoder.graph + ": a window was asked for without its condition's codes.");
  return context->codes;
}

}  // namespace

ds_sequence Sequence::described(std::vector<const float*>& layers) const {
  ds_sequence it = {};
  it.positions = static_cast<int64_t>(prompt.ids.size());
  it.ids = prompt.ids.data();
  it.query_coordinates = prompt.query.data();
  it.key_coordinates = prompt.key.data();
  it.position_ids = position_ids.empty() ? nullptr : position_ids.data();
  layers.clear();
  if (context) {  // else the stage has no condition
    for (const auto& keys : context->keys) layers.push_back(keys.data());
    for (const auto& values : context->values) layers.push_back(values.data());
    it.context = context->entries;
    it.context_keys = layers.data();
    it.context_values = layers.data() + context->keys.size();
    it.prefix_positions = context->prefix_positions;
    it.prefix = context->prefix_positions ? context->prefix.data() : nullptr;
  }
  it.guided = guided();
  it.rules = rules;
  it.known = known;
  it.in_frames = in_frames;
  it.steps = steps;
  it.seed = draw.seed;
  it.item = draw.item;
  it.first = draw.first;
  it.temperature = static_cast<float>(draw.sampling.temperature);
  it.scale = static_cast<float>(draw.sampling.cond_scale);
  return it;
}

Sequence semantic_sequence(const Decoder& decoder, int64_t length, bool end_allowed, const std::vector<int64_t>& prefix, const Draw& draw,
                           Contexts context) {
  if (!decoder.segments.empty()) {
    const auto& codes = codes_of(decoder, context);
    return segment_sequence(decoder, kSemantic, {&codes}, length, end_allowed, prefix, draw, context);
  }
  ds_rules rules = drawing(decoder, kSemantic, end_allowed ? kNever : kAlways, decoder.vocabulary - 1, draw);
  rules.first_row = row(decoder, "semantic");
  rules.quantizers = rules.origin = rules.per_frame = rules.stride = rules.shift = 1;
  Prompt prompt;
  add(prompt, row(decoder, "start"), 1, 0);
  return begun(kSemantic, std::move(prompt), rules, prefix, length, 0, draw, std::move(context));
}

Sequence coarse_sequence(const Decoder& decoder, const std::vector<int64_t>& semantic, int64_t frames, int64_t frame_tokens, bool end_allowed,
                         const std::vector<int64_t>& prefix, const Draw& draw, Contexts context) {
  if (!decoder.segments.empty()) {
    const auto& codes = codes_of(decoder, context);
    return segment_sequence(decoder, kCoarse, {&codes, &semantic}, frames * frame_tokens, end_allowed, prefix, draw, context);
  }
  ds_rules rules = drawing(decoder, kCoarse, end_allowed ? frame_tokens : kAlways, decoder.vocabulary - 1, draw);
  rules.first_row = row(decoder, "coarse");
  rules.codebook = codebook(decoder);
  rules.quantizers = rules.per_frame = rules.stride = quantizers(decoder, "coarse_quantizers", decoder.outputs());
  rules.origin = kFar + 1;
  rules.shift = 1;
  Prompt prompt;
  add(prompt, row(decoder, "semantic_start"), 1, 0);
  const int64_t first = row(decoder, "semantic");
  int64_t position = 0;
  for (const int64_t token : semantic) {
    position++;
    add(prompt, first + token, position + 1, position);
  }
  add(prompt, row(decoder, "coarse_start"), kFar + 1, kFar);
  const int64_t in_frames = static_cast<int64_t>(prefix.size());  // the first frame, on which no end is allowed, is the prefix's
  return begun(kCoarse, std::move(prompt), rules, prefix, frames * frame_tokens, in_frames, draw, std::move(context));
}

Sequence fine_sequence(const Decoder& decoder, const std::vector<int64_t>& coarse, int64_t frame_tokens, const std::vector<int64_t>& prefix,
                       const Draw& draw, Contexts context) {
  const int64_t coarse_quantizers = quantizers(decoder, "coarse_quantizers", decoder.coarse_quantizers.value_or(0));
  if (!decoder.segments.empty()) {
    const auto& codes = codes_of(decoder, context);
    const int64_t frames = static_cast<int64_t>(coarse.size()) / coarse_quantizers;
    return segment_sequence(decoder, kFine, {&codes, &coarse}, frames * frame_tokens, false, prefix, draw, context);
  }
  ds_rules rules = drawing(decoder, kFine, frame_tokens, -1, draw);
  rules.first_row = row(decoder, "fine");
  rules.codebook = codebook(decoder);
  rules.quantizers = rules.per_frame = quantizers(decoder, "fine_quantizers", decoder.fine_quantizers.value_or(0));
  rules.origin = coarse_quantizers;  // fine quantizers count on after the coarse ones
  rules.stride = 2 * (coarse_quantizers + rules.quantizers) - 1;
  if (decoder.bias) {
    const int64_t frames = checked(decoder, "frames of a bias", decoder.bias->frames.value_or(1), kMostRows);
    const int64_t stride = checked(decoder, "stride of a bias", decoder.bias->stride, kMostRows);
    rules.shift = (frames - 1) * stride + (stride - 1) / 2;
  }
  ds_rules read = rules;  // where the coarse codes stand
  read.first_row = row(decoder, "coarse");
  read.quantizers = read.per_frame = coarse_quantizers;
  read.origin = 0;
  Prompt prompt;
  add(prompt, row(decoder, "coarse_start"), kFar, -kFar);  // a start token: every pair with it clips to the last entry
  add_tokens(prompt, read, coarse);
  add(prompt, row(decoder, "fine_start"), kFar, -kFar);
  const int64_t tokens = static_cast<int64_t>(coarse.size()) / coarse_quantizers * rules.quantizers;  // whatever the residual groups
  return begun(kFine, std::move(prompt), rules, prefix, tokens, static_cast<int64_t>(prefix.size()), draw, std::move(context));
}

Sampling unguided(const Decoder& decoder, Sampling sampling) {
  if (!decoder.guidance) sampling.cond_scale = 1;
  return sampling;
}

std::vector<int64_t> unique_consecutive(const std::vector<int64_t>& tokens) {
  std::vector<int64_t> kept = tokens;
  kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
  return kept;
}

}  // namespace musiclm
