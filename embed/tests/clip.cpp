// Drives clips with made-up tokens, for compare_clips.py, which says what a scenario is and does the same in Python: a scenario as JSON on
// each line of stdin, a report of everything that can be seen of its clips on stdout, ended by a line "end".
#include "clip.h"

#include <cstdio>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "error.h"

namespace {

using Json = nlohmann::json;
using namespace musiclm;

// SplitMix64: what both sides make up.
uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

std::optional<int64_t> number_or_none(const Json& value) {
  if (value.is_null()) return std::nullopt;
  return value.get<int64_t>();
}

Manifest manifest_of(const Json& model) {
  Manifest manifest = {};
  manifest.unique_consecutive = model["unique"];
  manifest.semantic_tokens_per_second = model["rate"];
  manifest.codec.sample_hz = model["hz"];
  manifest.codec.samples_per_frame = model["hop"];
  manifest.codec.groups = model["groups"];
  manifest.codec.lookahead_frames = model["lookahead"];
  manifest.codec.codebook_size = model["codes"];
  if (!model["seconds"].is_null()) manifest.seconds = model["seconds"].get<double>();
  for (int stage = 0; stage < kStages; stage++) {
    const Json& given = model["decoders"][stage];
    Decoder& decoder = manifest.decoders[stage];
    decoder.graph = std::string(kStageNames[stage]) + ".onnx";
    decoder.guidance = given["guidance"];
    decoder.vocabulary = given["vocabulary"];
    decoder.max_length = given["max_length"];
    decoder.coarse_quantizers = number_or_none(given["coarse_quantizers"]);
    decoder.fine_quantizers = number_or_none(given["fine_quantizers"]);
    decoder.rows = given["rows"].get<std::map<std::string, int64_t>>();
    decoder.conditioning = given["conditioning"];
    decoder.semantic_window = number_or_none(given["semantic_window"]);
    for (const Json& one : given["segments"]) decoder.segments.push_back({one[0], one[1], one[2], one[3], one[4], number_or_none(one[5])});
    if (!given["bias"].is_null()) decoder.bias = Bias{given["bias"][0], given["bias"][1], number_or_none(given["bias"][2])};
  }
  return manifest;
}

class Scenario {
 public:
  explicit Scenario(const Json& given) : given_(given), manifest_(manifest_of(given["model"])) {}

  void run() {
    try {
      print("default frames", {default_frames(manifest_)});
      plan_ = plan_of(given_);
      print_plan();
    } catch (const Error& error) {
      std::printf("refused: %s\n", error.what());
      return;
    }
    clip_ = std::make_unique<Clip>(manifest_, *plan_, sampling(), seed(), contexts(0), given_["ends"].get<bool>());
    const int64_t steps = given_["steps"];
    for (step_ = 0; step_ < steps && !clip_->done(); step_++) {
      if (!act()) {
        std::printf("stuck\n");
        break;
      }
      if (given_["change_every"] != 0 && step_ % given_["change_every"].get<int64_t>() == 3) change();
      if (given_["forget_every"] != 0 && step_ % given_["forget_every"].get<int64_t>() == 0) forget();
      for (const Json& cut : given_["cuts"]) {
        if (step_ == cut.get<int64_t>()) go_on();
      }
    }
    print_tokens();
  }

 private:
  struct Running {
    std::shared_ptr<Sequence> sequence;
    int64_t made;
  };

  static void print(const char* what, const std::vector<int64_t>& numbers) {
    std::printf("%s:", what);
    for (const int64_t number : numbers) std::printf(" %lld", static_cast<long long>(number));
    std::printf("\n");
  }

  uint64_t seed() const { return given_["seed"]; }
  uint64_t random(uint64_t salt) const { return mixed(mixed(seed() + salt) + static_cast<uint64_t>(step_)); }

  WindowPlan plan_of(const Json& planned) const {
    Window windows[kStages];
    for (int stage = 0; stage < kStages; stage++) {
      windows[stage] = {number_or_none(planned["windows"][stage][0]), number_or_none(planned["windows"][stage][1])};
    }
    return plan_windows(manifest_, number_or_none(planned["frames"]), planned["samples"], windows, number_or_none(planned["first"]),
                        planned["growth"]);
  }

  std::array<Sampling, kStages> sampling() const {
    std::array<Sampling, kStages> all;
    for (int stage = 0; stage < kStages; stage++) {
      const Json& given = given_["sampling"][stage];
      all[stage] = {given[0], given[1], given[2]};
    }
    return all;
  }

  // Conditioning number `prompt`: of each stage none, a prefix, or a context of two layers, whose numbers say where they belong.
  StageContexts contexts(int64_t prompt) {
    while (static_cast<int64_t>(prompts_.size()) <= prompt) {
      StageContexts made;
      for (int stage = 0; stage < kStages; stage++) {
        auto context = std::make_shared<Context>();
        const std::string kind = given_["model"]["decoders"][stage]["conditioning"];
        const auto mark = static_cast<float>(100 * prompts_.size() + 10 * stage);
        if (kind == "prefix") {
          context->prefix_positions = static_cast<int64_t>(prompts_.size()) + 1;
          context->prefix.assign(context->prefix_positions * 3, mark);
        } else if (kind == "cross_attention") {
          context->entries = static_cast<int64_t>(prompts_.size()) + 2;
          for (int layer = 0; layer < 2; layer++) {
            context->keys.emplace_back(context->entries * 3, mark + static_cast<float>(2 * layer));
            context->values.emplace_back(context->entries * 3, mark + static_cast<float>(2 * layer + 1));
          }
        }
        for (const Json& one : given_["model"]["decoders"][stage]["segments"]) {
          context->codes.assign(one[3].get<int64_t>(), static_cast<int64_t>(prompts_.size()) % one[4].get<int64_t>());
          break;  // the first is the condition's
        }
        made[stage] = context;
      }
      prompts_.push_back(made);
    }
    return prompts_[prompt];
  }

  // Begins a window, or hands over some tokens of one that runs: whatever chance says. Returns whether there was anything to do.
  bool act() {
    std::vector<int> ready;
    for (int stage = 0; stage < kStages; stage++) {
      if (clip_->ready(stage)) ready.push_back(stage);
    }
    if (ready.empty() && running_.empty()) return false;
    const uint64_t choice = random(1) % (ready.size() + running_.size());
    if (choice < ready.size()) {
      begin(ready[choice]);
    } else {
      hand_over(choice - ready.size());
    }
    print("state", {clip_->frames(kCoarse), clip_->frames(kFine), clip_->runs(kSemantic), clip_->runs(kCoarse), clip_->runs(kFine)});
    return true;
  }

  void begin(int stage) {
    print("needed", {stage, clip_->needed_at_frame(stage)});
    running_.push_back({clip_->begin(stage), 0});
    const Sequence& s = *running_.back().sequence;
    std::vector<const float*> layers;
    const ds_sequence d = s.described(layers);
    print("ids", {d.ids, d.ids + d.positions});
    if (d.position_ids) print("positions", {d.position_ids, d.position_ids + d.positions + d.steps - 1});
    print("query", {d.query_coordinates, d.query_coordinates + d.positions});
    print("key", {d.key_coordinates, d.key_coordinates + d.positions});
    const ds_rules& r = d.rules;
    print("place", {r.first_row, r.codebook, r.quantizers, r.origin, r.per_frame, r.stride, r.shift, r.padding});
    print("rules", {r.stage, r.frame, r.end, r.k});
    print("counts", {s.stage, d.known, d.in_frames, d.steps, d.item, d.first, d.guided});
    std::vector<int64_t> marks;
    for (const float* layer : layers) marks.push_back(static_cast<int64_t>(*layer));
    if (d.prefix) marks.push_back(static_cast<int64_t>(*d.prefix));
    print("layers", marks);
    print("context", {d.context, d.prefix_positions, d.context > 0 && d.context_values[1] == layers[3], prompt_of(s)});
    uint32_t temperature, scale;
    std::memcpy(&temperature, &d.temperature, 4);
    std::memcpy(&scale, &d.scale, 4);
    std::printf("draw: %llu %08x %08x\n", static_cast<unsigned long long>(d.seed), temperature, scale);
  }

  int64_t prompt_of(const Sequence& sequence) const {
    for (size_t prompt = 0; prompt < prompts_.size(); prompt++) {
      if (prompts_[prompt][sequence.stage] == sequence.context) return static_cast<int64_t>(prompt);
    }
    return 0;
  }

  // Whether the end may be drawn at a step, as the native step has it.
  static bool forbids_end(const Sequence& s, int64_t step) {
    if (s.rules.frame <= 0) return s.rules.frame < 0;
    const int64_t index = s.in_frames + step;
    return index == 0 || index % s.rules.frame != 0;
  }

  void hand_over(uint64_t which) {
    Running& running = running_[which];
    const Sequence& s = *running.sequence;
    const uint64_t left = s.steps - running.made, count = random(2) % 3 == 0 ? left : random(3) % (left + 1);
    std::vector<int64_t> tokens;
    bool done = left == count && random(4) % 4 != 0;  // sometimes that it was the last one is known later
    for (uint64_t i = 0; i < count; i++, running.made++) {
      const uint64_t hash = mixed(mixed(seed() + 16 + s.stage) + static_cast<uint64_t>(s.draw.first + running.made));
      const uint64_t every = given_["end_every"][s.stage];
      if (s.rules.end >= 0 && every && hash / 1024 % every == 0 && !forbids_end(s, running.made)) {
        done = true;
        break;
      }
      tokens.push_back(static_cast<int64_t>(hash % given_["tokens"][s.stage].get<uint64_t>()));
    }
    print("takes", tokens);
    clip_->take(s, tokens, done);
    if (done) running_.erase(running_.begin() + which);
  }

  void change() {
    const int64_t prompt = static_cast<int64_t>(prompts_.size());
    const StageContexts made = contexts(prompt);
    try {
      const int64_t heard = clip_->change(made);
      const auto [run, frame] = clip_->conditioned_from();
      print("changed", {heard, run, frame});
      changes_.push_back({run, frame, prompt});
    } catch (const Error& error) {
      std::printf("not changed: %s %d\n", error.what(), error.status);
    }
  }

  void forget() {
    clip_->forget(std::max<int64_t>(clip_->frames(kFine) - given_["kept"].get<int64_t>(), 0));
    print("begins at", {clip_->begins_at()});
    print_tokens();
  }

  // Cuts the clip off and goes on with another one from its tokens, with the windows that the scenario has for that.
  void go_on() {
    print_tokens();
    Tokens tokens = clip_->tokens();
    if (!given_["damage"].is_null()) damage(tokens);
    running_.clear();
    plan_ = plan_of(given_["later"].is_null() ? given_ : given_["later"]);
    clip_ = std::make_unique<Clip>(manifest_, *plan_, sampling(), seed(), contexts(0), given_["ends"].get<bool>(), tokens);
    for (const auto& [run, frame, prompt] : changes_) clip_->condition(run, frame, contexts(prompt));
    print("goes on", {clip_->frames(kCoarse), clip_->frames(kFine)});
  }

  // Changes a token, or the beginning of a run.
  void damage(Tokens& tokens) const {
    const int64_t what = given_["damage"][0], place = given_["damage"][1], value = given_["damage"][2];
    std::vector<int64_t>* const lines[kStages] = {&tokens.semantic, &tokens.coarse, &tokens.fine};
    if (what < kStages && !lines[what]->empty()) (*lines[what])[place % lines[what]->size()] = value;
    if (what == kStages && tokens.runs.size() > 1) tokens.runs[place % tokens.runs.size()].first += value;
  }

  void print_plan() const {
    const int64_t overlap = plan_->semantic_overlap.value_or(-1);
    print("plan", {plan_->frames().value_or(-1), plan_->timed(), plan_->lead(), plan_->semantic_length, overlap});
    for (const Spans* spans : {&plan_->coarse, &plan_->fine, plan_->semantic ? &*plan_->semantic : nullptr}) {
      if (!spans) continue;
      std::vector<int64_t> all;
      for (int64_t window = 0; window < 40 && spans->has(window); window++) {
        const Span span = (*spans)[window];
        all.insert(all.end(), {span.start, span.fresh, span.stop});
      }
      if (spans->total) all.push_back(spans->size());
      print("spans", all);
    }
    print("runs", plan_->runs);
  }

  void print_tokens() const {
    const Tokens tokens = clip_->tokens();
    print("semantic", tokens.semantic);
    print("coarse", tokens.coarse);
    print("fine", tokens.fine);
    std::vector<int64_t> bounds;
    for (const auto& [start, stop] : tokens.runs) bounds.insert(bounds.end(), {start, stop});
    print("semantic runs", bounds);
    print("codes", clip_->codes(clip_->begins_at(), clip_->frames(kFine)));
    print("done", {clip_->done()});
  }

  const Json& given_;
  Manifest manifest_;
  std::optional<WindowPlan> plan_;
  std::unique_ptr<Clip> clip_;
  std::vector<StageContexts> prompts_;
  std::vector<std::array<int64_t, 3>> changes_;  // semantic window, frame, number of the conditioning
  std::vector<Running> running_;
  int64_t step_ = 0;
};

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const Json given = Json::parse(line);
    try {
      Scenario(given).run();
    } catch (const Error& error) {
      std::printf("stopped: %d\n", error.status);
    }
    std::printf("end\n");
  }
}
