// One clip on its way. Python's runtime/clip.py is the other side: the same windows begin, they read the same, and are drawn the same way.
//
// With `unique_consecutive` each coarse window reads a semantic run of its own. Without it the semantic windows follow one another, and
// each coarse window reads the slice that sounds with it. A fine window reads its own coarse frames and may begin when these are there, in
// the middle of a coarse window.
#include "clip.h"

#include <algorithm>
#include <string>

#include "error.h"

namespace musiclm {

namespace {

constexpr int64_t kMostColumns = 1 << 20;  // tokens of a frame: a clip's then fit 64 bits

void check_range(int stage, const std::vector<int64_t>& tokens, int64_t limit) {
  if (tokens.empty()) return;
  const auto [least, most] = std::minmax_element(tokens.begin(), tokens.end());
  if (*least < 0 || *most >= limit) {
    throw Error(ML_BAD_ARGUMENT, std::string(kStageNames[stage]) + " tokens to go on from must lie in [0, " + std::to_string(limit) + "), got " +
                                     std::to_string(*least) + " to " + std::to_string(*most) + ".");
  }
}

// Refuses tokens that no clip of this model has made, as Python's runtime/resume.py does: they come from a file.
void check_known(const Manifest& manifest, const Tokens& known) {
  check_range(kSemantic, known.semantic, manifest.decoders[kSemantic].vocabulary - 1);
  int64_t before = INT64_MAX;
  for (const int stage : {kCoarse, kFine}) {
    const std::vector<int64_t>& tokens = stage == kCoarse ? known.coarse : known.fine;
    const int64_t count = static_cast<int64_t>(tokens.size()), columns = manifest.columns(stage);
    check_range(stage, tokens, manifest.codec.codebook_size);
    if (count % columns || count / columns > before) {
      throw Error(ML_BAD_ARGUMENT, std::to_string(count) + " " + kStageNames[stage] + " tokens to go on from: expected frames of " +
                                       std::to_string(columns) + ", of fine no more than of coarse.");
    }
    before = count / columns;
  }
  if (!manifest.unique_consecutive) return;
  const int64_t count = static_cast<int64_t>(known.semantic.size());
  int64_t begins = 0, ends = 0;
  bool in_order = true;  // a run begins in the one before it, or where that ends
  for (const auto& [start, stop] : known.runs) {
    in_order = in_order && begins <= start && start <= ends && ends <= stop;
    begins = start;
    ends = stop;
  }
  if (!known.runs.empty() && (!in_order || ends != count)) {
    throw Error(ML_BAD_ARGUMENT, "runs to go on from must cover the " + std::to_string(count) + " semantic tokens in order, got others.");
  }
}

}  // namespace

Clip::Clip(const Manifest& manifest, WindowPlan plan, const std::array<Sampling, kStages>& sampling, uint64_t seed, StageContexts contexts, bool ends)
    : Clip(manifest, std::move(plan), sampling, seed, std::move(contexts), ends, Tokens{}) {}

Clip::Clip(const Manifest& manifest, WindowPlan plan, const std::array<Sampling, kStages>& sampling, uint64_t seed, StageContexts contexts, bool ends,
           const Tokens& known)
    : manifest_(manifest), plan_(std::move(plan)), sampling_(sampling), seed_(seed), ends_(ends) {
  conditionings_.push_back({0, 0, std::move(contexts)});
  for (int stage = 0; stage < kStages; stage++) {
    const Decoder& decoder = manifest.decoders[stage];
    sampling_[stage] = unguided(decoder, sampling[stage]);
    if (decoder.outputs() > kMostColumns || manifest.codec.groups > kMostColumns / decoder.outputs()) {
      throw Error(ML_BAD_BUNDLE, decoder.graph + ": the manifest has more than " + std::to_string(kMostColumns) +
                                     " tokens in a frame: export the checkpoints again.");
    }
    columns_[stage] = stage == kSemantic ? 1 : manifest.columns(stage);
  }
  check_known(manifest, known);
  tapes_[kSemantic].append(known.semantic);
  tapes_[kCoarse].append(known.coarse);
  tapes_[kFine].append(known.fine);
  if (!plan_.timed() && !known.semantic.empty()) {
    for (const Range& run : known.runs) runs_.emplace(static_cast<int64_t>(runs_.size()), run);
    if (runs_.empty()) runs_[0] = {0, static_cast<int64_t>(known.semantic.size())};
  }
  next_[kSemantic] = plan_.timed() ? window_at(tapes_[kSemantic].size(), *plan_.semantic) : static_cast<int64_t>(runs_.size());
  next_[kCoarse] = window_at(frames(kCoarse), plan_.coarse);
  next_[kFine] = open_ = window_at(frames(kFine), plan_.fine);
  settle();
}

// The number of the window that makes a position, or of the one after the last.
int64_t Clip::window_at(int64_t position, const Spans& spans) {
  return spans.total && position >= *spans.total ? spans.size() : spans.window_of(position);
}

// --- what there is

int64_t Clip::frames(int stage) const { return tapes_[stage].size() / columns_[stage]; }

// Frames of the whole clip once they are certain: as planned, or fewer if it has ended. None until then, or without end.
std::optional<int64_t> Clip::total() const {
  if (complete_[kCoarse]) return frames(kCoarse);
  return ends_ ? std::nullopt : plan_.frames();
}

bool Clip::done() const {
  return std::all_of(complete_.begin(), complete_.end(), [](bool complete) { return complete; });
}

// Complete semantic runs, and whole frames; without those that were forgotten.
Tokens Clip::tokens() const {
  Tokens kept;
  const Tape &semantic = tapes_[kSemantic], &coarse = tapes_[kCoarse], &fine = tapes_[kFine];
  for (const auto& [window, run] : runs_) kept.runs.push_back(run);
  kept.semantic = semantic.read(semantic.first(), plan_.timed() ? semantic.size() : runs_.empty() ? 0 : runs_.rbegin()->second.second);
  kept.coarse = coarse.read(coarse.first(), frames(kCoarse) * columns_[kCoarse]);
  kept.fine = fine.read(fine.first(), frames(kFine) * columns_[kFine]);
  return kept;
}

std::vector<int64_t> Clip::codes(int64_t start, int64_t stop) const {
  if (start > stop || stop > std::min(frames(kCoarse), frames(kFine))) {
    throw Error(ML_FAILED, "codes of frames " + std::to_string(start) + " to " + std::to_string(stop) + " were asked for, of which " +
                               std::to_string(std::min(frames(kCoarse), frames(kFine))) + " are made.");
  }
  std::vector<int64_t> codes;
  codes.reserve((stop - start) * (columns_[kCoarse] + columns_[kFine]));
  const std::vector<int64_t> parts[] = {tapes_[kCoarse].read(start * columns_[kCoarse], stop * columns_[kCoarse]),
                                        tapes_[kFine].read(start * columns_[kFine], stop * columns_[kFine])};
  for (int64_t frame = 0; frame < stop - start; frame++) {
    for (const int stage : {kCoarse, kFine}) {
      const auto first = parts[stage - kCoarse].begin() + frame * columns_[stage];
      codes.insert(codes.end(), first, first + columns_[stage]);
    }
  }
  return codes;
}

// --- what runs

bool Clip::runs(int stage) const {
  return std::any_of(running_.begin(), running_.end(), [stage](const Running& one) { return one.stage == stage; });
}

bool Clip::ready(int stage) const {
  if (complete_[stage]) return false;
  const int64_t window = next_[stage];
  if (stage == kSemantic) return !runs(kSemantic) && (plan_.timed() || wants_run(window));
  if (stage == kCoarse) return !runs(kCoarse) && can_read(window);
  const std::optional<Span> span = fine_span(window);
  return span && frames(kCoarse) >= span->stop;
}

std::shared_ptr<Sequence> Clip::begin(int stage) {
  if (!ready(stage)) throw Error(ML_FAILED, std::string("no ") + kStageNames[stage] + " window of this clip can begin now.");
  const int64_t window = next_[stage];
  auto [made, first] = stage == kSemantic ? semantic_window(window) : stage == kCoarse ? coarse_window(window) : fine_window(window);
  auto sequence = std::make_shared<Sequence>(std::move(made));
  running_.push_back({sequence, stage, window, first});
  next_[stage] = window + 1;
  return sequence;
}

int64_t Clip::needed_at_frame(int stage) const {
  int64_t window = next_[stage];
  if (stage == kSemantic && plan_.timed()) window = reader_of((*plan_.semantic)[window].fresh);
  // a fine window begins when all its coarse frames are made, the last of which may be another coarse window's
  if (stage != kFine) window = plan_.fine.window_of(plan_.coarse[window].fresh);
  return plan_.fine[window].fresh;
}

void Clip::take(const Sequence& sequence, const std::vector<int64_t>& tokens, bool done) {
  const auto found = std::find_if(running_.begin(), running_.end(), [&](const Running& one) { return one.sequence.get() == &sequence; });
  if (found == running_.end()) throw Error(ML_FAILED, "tokens came of a window that does not run.");
  const auto [kept, stage, window, first] = *found;  // a copy: the sequence lives until the end
  if (stage == kFine) {
    std::vector<int64_t>& waiting = early_[window];
    waiting.insert(waiting.end(), tokens.begin(), tokens.end());
    if (done) whole_.insert(window);
    pass_on_fine();
  } else {
    tapes_[stage].append(tokens);
  }
  if (!done) return;
  running_.erase(found);
  if (stage == kSemantic) end_semantic(window, first);
  if (stage == kCoarse && frames(kCoarse) < plan_.coarse[window].stop) complete_[kCoarse] = true;
  settle();
}

// --- other prompts, and what is forgotten

int64_t Clip::change(StageContexts contexts) {
  const int64_t run = next_[kSemantic];
  int64_t window = next_[kCoarse];
  if (!plan_.timed()) {
    window = std::max(window, run);
  } else if (!complete_[kSemantic] && plan_.semantic->has(run)) {
    window = reader_of((*plan_.semantic)[run].fresh);
  }
  if (complete_[kCoarse] || past_last_coarse(window)) {
    throw Error(ML_ENDED, "the last window of this clip has begun: a change would not be heard.");
  }
  const int64_t frame = plan_.coarse[window].fresh;
  const auto later = [frame](const Conditioning& one) { return one.frame >= frame; };
  conditionings_.erase(std::remove_if(conditionings_.begin(), conditionings_.end(), later), conditionings_.end());
  conditionings_.push_back({run, frame, std::move(contexts)});
  // a fine window reads all its coarse frames, and the codec's first chunk all its frames
  const int64_t heard = std::max(plan_.fine[plan_.fine.window_of(frame)].fresh, frames(kFine));
  return heard >= manifest_.codec.lookahead_frames ? heard : 0;
}

std::pair<int64_t, int64_t> Clip::conditioned_from() const { return {conditionings_.back().run, conditionings_.back().frame}; }

void Clip::condition(int64_t run, int64_t frame, StageContexts contexts) { conditionings_.push_back({run, frame, std::move(contexts)}); }

int64_t Clip::begins_at() const {
  int64_t semantic = 0;
  if (plan_.timed()) {
    const Ratio& rate = plan_.tokens_per_frame;
    semantic = static_cast<int64_t>((tapes_[kSemantic].first() * rate.denominator + rate.numerator - 1) / rate.numerator);
  } else if (!runs_.empty()) {
    semantic = plan_.coarse[runs_.begin()->first].fresh;
  }
  return std::max({semantic, tapes_[kCoarse].first() / columns_[kCoarse], tapes_[kFine].first() / columns_[kFine]});
}

void Clip::forget(int64_t before) {
  const int64_t kept = std::min({before, plan_.coarse[next_[kCoarse]].start, plan_.fine[next_[kFine]].start});
  for (const int stage : {kCoarse, kFine}) tapes_[stage].forget(kept * columns_[stage]);
  const int64_t window = plan_.coarse.window_of(kept);
  if (plan_.timed()) {
    tapes_[kSemantic].forget(plan_.seen(window).first);
  } else if (!runs_.empty()) {
    runs_.erase(runs_.begin(), runs_.lower_bound(std::min(window, runs_.rbegin()->first)));  // the next run begins with the last one's end
    tapes_[kSemantic].forget(runs_.begin()->second.first);
  }
  std::vector<Conditioning> read;  // those of which a later one has not taken the place
  for (size_t i = 0; i < conditionings_.size(); i++) {
    if (i + 1 == conditionings_.size() || conditionings_[i + 1].frame > kept) read.push_back(conditionings_[i]);
  }
  conditionings_ = std::move(read);
}

// --- semantic

// The next coarse window that reads semantic tokens from this one on; the one after the last if none does.
int64_t Clip::reader_of(int64_t token) const {
  int64_t window = next_[kCoarse];
  while (!past_last_coarse(window) && plan_.seen(window).second <= token) window++;
  return window;
}

bool Clip::past_last_coarse(int64_t window) const { return plan_.frames() && window >= plan_.coarse.size(); }

// Whether the run of this coarse window can begin, where semantic tokens carry no time.
bool Clip::wants_run(int64_t window) const {
  if (past_last_coarse(window)) return false;
  // where a clip may end early, whether it goes on is known when the coarse window before is complete
  return !ends_ || window == 0 || frames(kCoarse) >= plan_.coarse[window].fresh;
}

std::pair<Sequence, int64_t> Clip::semantic_window(int64_t window) const {
  const Tape& tape = tapes_[kSemantic];
  int64_t start, length;
  if (plan_.timed()) {
    const Span span = (*plan_.semantic)[window];
    start = span.start;
    length = span.stop - span.start;
  } else {
    const auto before = runs_.find(window - 1);
    const int64_t prefix = before == runs_.end() ? 0 : plan_.semantic_prefix(window, before->second.second - before->second.first);
    start = tape.size() - prefix;
    length = std::min(prefix + plan_.run(window), plan_.semantic_length);
  }
  return {semantic_sequence(manifest_.decoders[kSemantic], length, ends_ || manifest_.unique_consecutive, tape.read(start),
                            draw(kSemantic, tape.size()), contexts_of(&Conditioning::run, window)[kSemantic]),
          start};
}

void Clip::end_semantic(int64_t window, int64_t first) {
  const int64_t tokens = tapes_[kSemantic].size();
  if (plan_.timed()) {
    const Spans& spans = *plan_.semantic;
    if (!spans.has(window + 1) || tokens < spans[window].stop) complete_[kSemantic] = true;
  } else {
    runs_[window] = {first, tokens};
    if (past_last_coarse(window + 1)) complete_[kSemantic] = true;
  }
}

// --- coarse

// Whether the semantic tokens that a coarse window reads are complete.
bool Clip::can_read(int64_t window) const {
  if (!plan_.timed()) return runs_.count(window) > 0;
  return complete_[kSemantic] || tapes_[kSemantic].size() >= plan_.seen(window).second;
}

std::pair<Sequence, int64_t> Clip::coarse_window(int64_t window) const {
  const Span span = plan_.coarse[window];
  const int64_t columns = columns_[kCoarse];
  const Range seen = plan_.timed() ? plan_.seen(window) : runs_.at(window);
  std::vector<int64_t> semantic = tapes_[kSemantic].read(seen.first, seen.second);
  if (!plan_.timed()) semantic = unique_consecutive(semantic);
  const Tape& tape = tapes_[kCoarse];
  return {coarse_sequence(manifest_.decoders[kCoarse], semantic, span.stop - span.start, columns, ends_, tape.read(span.start * columns),
                          draw(kCoarse, tape.size()), contexts_of(&Conditioning::frame, span.fresh)[kCoarse]),
          span.start * columns};
}

// --- fine

// A fine window, or none while it is not certain where it ends; the last one ends with the clip.
std::optional<Span> Clip::fine_span(int64_t window) const {
  const std::optional<int64_t> whole = total();
  const Spans spans = whole ? plan_.fine.over(*whole) : plan_.fine;
  if (!spans.has(window)) return std::nullopt;
  const Span span = spans[window];
  const bool certain = whole || !plan_.frames() || span.stop < *plan_.frames();
  return certain ? std::optional<Span>(span) : std::nullopt;
}

std::pair<Sequence, int64_t> Clip::fine_window(int64_t window) const {
  const Span span = fine_span(window).value();
  const int64_t first = span.start * columns_[kFine];
  const Tape& tape = tapes_[kFine];
  const int64_t known = std::max<int64_t>(tape.size() - first, 0);  // of a clip that was cut off
  const std::vector<int64_t> coarse = tapes_[kCoarse].read(span.start * columns_[kCoarse], span.stop * columns_[kCoarse]);
  return {fine_sequence(manifest_.decoders[kFine], coarse, columns_[kFine], tape.read(tape.size() - known), draw(kFine, first + known),
                        contexts_of(&Conditioning::frame, span.fresh)[kFine]),
          first};
}

// Puts the tokens of fine windows that waited for earlier ones behind these.
void Clip::pass_on_fine() {
  for (auto waiting = early_.find(open_); waiting != early_.end(); waiting = early_.find(open_)) {
    tapes_[kFine].append(waiting->second);
    early_.erase(waiting);
    if (!whole_.erase(open_)) break;
    open_++;
  }
}

// Finds out which stages make nothing more.
void Clip::settle() {
  const int64_t window = next_[kCoarse];
  if (plan_.timed() && !plan_.semantic->has(next_[kSemantic]) && !runs(kSemantic)) complete_[kSemantic] = true;
  if (!runs(kCoarse)) {
    const bool ended = ends_ && complete_[kSemantic] && window > 0 && !past_last_coarse(window) && !is_reached(window);
    if (past_last_coarse(window) || ended) complete_[kCoarse] = true;
  }
  if (!complete_[kCoarse]) return;
  if (!plan_.timed() && !runs(kSemantic)) complete_[kSemantic] = true;
  if (frames(kFine) >= frames(kCoarse)) complete_[kFine] = true;
}

// Whether the complete semantic tokens go on to this coarse window: a clip may end where they do.
bool Clip::is_reached(int64_t window) const { return plan_.timed() ? plan_.reached(window, tapes_[kSemantic].size()) : runs_.count(window) > 0; }

Draw Clip::draw(int stage, int64_t first) const { return {seed_, 0, first, sampling_[stage]}; }

// The last conditioning that holds at a semantic window, or at a frame.
const StageContexts& Clip::contexts_of(int64_t Conditioning::*from, int64_t place) const {
  const auto last = std::find_if(conditionings_.rbegin(), conditionings_.rend(), [&](const auto& one) { return one.*from <= place; });
  if (last == conditionings_.rend()) {
    throw Error(ML_FAILED, "nothing conditions window or frame " + std::to_string(place) + " of this clip.");
  }
  return last->contexts;
}

}  // namespace musiclm
