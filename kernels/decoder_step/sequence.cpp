// See sequence.h.
#include "sequence.h"

#include <algorithm>
#include <cmath>

namespace decoder_step {

namespace {

constexpr int64_t kNever = 0, kAlways = -1;       // ds_rules.frame
constexpr int64_t kFarthest = int64_t{1} << 60;   // coordinate that is taken: differences of two then have room in 64 bits
constexpr int64_t kLongest = int64_t{1} << 24;    // positions, tokens, and what is counted in them: bytes of a slot then have room too
constexpr float kLeastTemperature = 1e-30f;       // below it logits divided by it are infinite

bool within(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

const char* fault_of(const ds_weights& w, const ds_rules& r) {
  if (!within(r.quantizers, 1, kLongest) || !within(r.per_frame, 1, kLongest)) return "a frame has less than one token";
  if (!within(r.codebook, 0, kLongest) || !within(r.first_row, 0, kLongest)) return "tokens have no rows in the table of embeddings";
  if (!within(r.end, -1, w.vocabulary - 1)) return "the end token is not in the vocabulary";
  const int64_t highest = w.vocabulary - (r.end == w.vocabulary - 1 ? 2 : 1);  // token that is fed
  if (r.first_row + (r.quantizers - 1) * r.codebook + highest >= w.table_rows) return "tokens lie beyond the table of embeddings";
  if (!within(r.origin, -kFarthest, kFarthest) || !within(r.shift, -kFarthest, kFarthest) || !within(r.stride, 0, 1 << 28)) {
    return "coordinates of tokens are out of range";
  }
  if (!within(r.stage, 0, UINT32_MAX)) return "the number of the stage is out of range";
  if (!within(r.frame, kAlways, kLongest)) return "the tokens of a frame are out of range";
  if (!within(r.k, 1, w.vocabulary)) return "top-k keeps less than one token or more than the vocabulary";
  return nullptr;
}

}  // namespace

const char* fault_of(const ds_model& model, const ds_sequence& s) {
  const ds_weights& w = model.sizes;
  if (!within(s.positions, 1, kLongest)) return "a prompt has less than one position or too many";
  if (!within(s.steps, 0, kLongest) || !within(s.known, 0, kLongest) || !within(s.in_frames, -kLongest, kLongest)) return "a number of tokens is out of range";
  if ((model.layers[0].cross_q.data != nullptr) != (s.context > 0)) return "a context and a model with cross-attention go together";
  if (!within(s.context, 0, kLongest) || !within(s.prefix_positions, 0, kLongest)) return "a condition's length is out of range";
  for (int64_t i = 0; i < s.positions; i++) {
    if (!within(s.ids[i], 0, w.table_rows - 1)) return "the prompt has a row that is not in the table of embeddings";
    if (!within(s.query_coordinates[i], -kFarthest, kFarthest) || !within(s.key_coordinates[i], -kFarthest, kFarthest)) {
      return "the prompt has a coordinate that is out of range";
    }
  }
  if ((w.positions > 0) != (s.position_ids != nullptr)) return "position ids and a model with absolute positions go together";
  for (int64_t i = 0; w.positions && i < s.positions + s.steps - 1; i++) {
    if (!within(s.position_ids[i], 0, w.positions - 1)) return "a position id is not in the table of absolute positions";
  }
  if (!within(s.item, 0, UINT32_MAX) || !within(s.first, 0, UINT32_MAX - s.steps)) return "an item's or a token's number has more than 32 bits";
  if (!std::isfinite(s.scale)) return "the scale of guidance is not finite";
  if (s.temperature != 0 && !(s.temperature >= kLeastTemperature && std::isfinite(s.temperature))) {
    return "the temperature is neither 0 nor a number of at least 1e-30";
  }
  return fault_of(w, s.rules);
}

Sequence::Sequence(int64_t id_, const ds_model& model, const ds_sequence& given)
    : id(id_),
      vocabulary(model.sizes.vocabulary),
      outputs(model.sizes.outputs),
      rules(given.rules),
      known(given.known),
      in_frames(given.in_frames),
      steps(given.steps),
      first(given.first),
      seed(given.seed),
      item(static_cast<uint32_t>(given.item)),
      temperature(given.temperature),
      scale(given.scale),
      slot(new Slot(model.sizes, given, true)),
      done(given.steps == 0),
      next_id(slot->ids.back()),
      next_query(slot->query.back()),
      next_key(given.key_coordinates[given.positions - 1]) {
  if (given.guided) without_condition.reset(new Slot(model.sizes, given, false));
  if (!done) slots.push_back(slot.get());
  if (!done && given.guided) slots.push_back(without_condition.get());
  tokens.reserve(steps);
}

// Upstream's rule for coarse and fine: the last entry is excluded but on the first quantizer of a frame after the sequence's first frame.
bool Sequence::forbids_end() const {
  if (rules.frame == kNever || rules.frame == kAlways) return rules.frame == kAlways;
  const int64_t index = in_frames + sampled;
  return index == 0 || index % rules.frame != 0;
}

void Sequence::draw(Drawing& room) {
  Draw draw = {};
  const int output = static_cast<int>(sampled % outputs);
  draw.logits = slot->logits(output);
  draw.without_condition = without_condition ? without_condition->logits(output) : nullptr;
  draw.vocabulary = vocabulary;
  draw.scale = scale;
  draw.temperature = temperature;
  draw.k = rules.k;
  draw.forbids_last = forbids_end();
  draw.seed = seed;
  draw.item = item;
  draw.stage = static_cast<uint32_t>(rules.stage);
  draw.token = static_cast<uint32_t>(first + sampled);
  draw.noise = noise;
  drawn_ = sample(draw, room);
}

void Sequence::take() {
  for (Slot* each : slots) each->fed++;
  if (noise) noise += vocabulary;
  sampled++;
  if (drawn_ == rules.end) {
    done = true;
    return;
  }
  tokens.push_back(drawn_);
  done = sampled == steps;
  const int64_t index = known + sampled - 1;
  next_id = rules.first_row + index % rules.quantizers * rules.codebook + drawn_;
  next_key = rules.origin + index / rules.per_frame * rules.stride + index % rules.per_frame;
  next_query = next_key + rules.shift;
}

}  // namespace decoder_step
