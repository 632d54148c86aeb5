// One clip on its way, as Python's runtime/clip.py: which window of which stage can run, what it reads, what it has made. It runs nothing.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "sequence.h"
#include "tape.h"
#include "windows.h"

namespace musiclm {

struct Tokens {
  std::vector<int64_t> semantic, coarse, fine;    // coarse and fine: whole frames, one after the other
  std::vector<std::pair<int64_t, int64_t>> runs;  // of the semantic tokens, where they carry no time
};

using StageContexts = std::array<Contexts, kStages>;

class Clip {
 public:
  Clip(const Manifest&, WindowPlan, const std::array<Sampling, kStages>&, uint64_t seed, StageContexts, bool ends);
  // One that goes on from tokens of a clip that was cut off (Python: Known(tokens), no stage complete). Throws Error(ML_BAD_ARGUMENT) for
  // tokens that no clip of this model has made.
  Clip(const Manifest&, WindowPlan, const std::array<Sampling, kStages>&, uint64_t seed, StageContexts, bool ends, const Tokens&);

  bool ready(int stage) const;
  std::shared_ptr<Sequence> begin(int stage);
  void take(const Sequence&, const std::vector<int64_t>& tokens, bool done);
  bool runs(int stage) const;
  bool done() const;
  int64_t frames(int stage) const;                                // complete frames of coarse (1) or fine (2)
  int64_t needed_at_frame(int stage) const;                       // the first frame that is not made before the stage's next window has begun
  std::vector<int64_t> codes(int64_t start, int64_t stop) const;  // [frames, Q]
  Tokens tokens() const;
  int64_t change(StageContexts);  // the first frame that sounds otherwise; throws Error(ML_ENDED)
  std::pair<int64_t, int64_t> conditioned_from() const;
  void condition(int64_t run, int64_t frame, StageContexts);
  void forget(int64_t before);  // frames: an endless clip has bounded memory
  int64_t begins_at() const;    // the first frame of which all tokens are kept
  const WindowPlan& plan() const { return plan_; }

 private:
  using Range = std::pair<int64_t, int64_t>;  // the first token, and one past the last

  struct Running {
    std::shared_ptr<Sequence> sequence;
    int stage;
    int64_t window, first;  // its first token of the stage
  };

  struct Conditioning {
    int64_t run, frame;  // from which semantic window, and from which frame on
    StageContexts contexts;
  };

  static int64_t window_at(int64_t position, const Spans&);
  int64_t reader_of(int64_t token) const;
  void settle();
  std::optional<int64_t> total() const;
  bool past_last_coarse(int64_t window) const;
  bool wants_run(int64_t window) const;
  bool can_read(int64_t window) const;
  bool is_reached(int64_t window) const;
  std::optional<Span> fine_span(int64_t window) const;
  std::pair<Sequence, int64_t> semantic_window(int64_t window) const;
  std::pair<Sequence, int64_t> coarse_window(int64_t window) const;
  std::pair<Sequence, int64_t> fine_window(int64_t window) const;
  void end_semantic(int64_t window, int64_t first);
  void pass_on_fine();
  Draw draw(int stage, int64_t first) const;
  const StageContexts& contexts_of(int64_t Conditioning::*from, int64_t place) const;

  const Manifest& manifest_;
  WindowPlan plan_;
  std::array<Sampling, kStages> sampling_;
  uint64_t seed_;
  bool ends_;                                // whether the clip may end before its length
  std::vector<Conditioning> conditionings_;  // the first one first
  std::array<int64_t, kStages> columns_;     // tokens of a frame; 1 of semantic
  std::array<Tape, kStages> tapes_;
  std::map<int64_t, Range> runs_;  // of semantic tokens that carry no time: what each coarse window reads
  std::vector<Running> running_;
  std::array<int64_t, kStages> next_ = {};         // number of the next window of each stage
  std::array<bool, kStages> complete_ = {};        // stages that make nothing more
  int64_t open_ = 0;                               // number of the fine window whose tokens come next; those of later ones wait
  std::map<int64_t, std::vector<int64_t>> early_;  // by window
  std::set<int64_t> whole_;                        // numbers of complete fine windows that wait
};

}  // namespace musiclm
