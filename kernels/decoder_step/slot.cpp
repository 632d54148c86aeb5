// See slot.h.
#include "slot.h"

#include <algorithm>
#include <cstring>

namespace decoder_step {

namespace {

// Of a position of the prefix: farther than any query, so that every query clips to entry 0 of the bias table, which is no bias.
constexpr int64_t kPrefixKey = int64_t{1} << 62;

}  // namespace

SlotSizes::SlotSizes(const ds_weights& w, int64_t capacity, int64_t context_, int64_t prefix_positions)
    : cache(up(capacity * w.cache_dim)),
      context(up(context_ * w.head_dim)),
      prefix(up(prefix_positions * w.dim)),
      logits(up(w.vocabulary)),
      convolved(w.convolution ? 2 * up(2 * static_cast<size_t>(w.inner)) : 0),
      layers(w.depth),
      outputs(w.outputs) {}

Slot::Slot(const ds_weights& w, const ds_sequence& sequence, bool conditioned)
    : capacity((conditioned ? sequence.prefix_positions : 0) + sequence.positions + std::max<int64_t>(sequence.steps - 1, 0)),
      prefix_positions(conditioned ? sequence.prefix_positions : 0),
      context(sequence.context),
      ids(prefix_positions, 0),
      query(prefix_positions, 0),
      key_coordinates(capacity),
      dim_(w.dim),
      head_dim_(w.head_dim),
      width_(w.cache_dim),
      sizes_(w, capacity, sequence.context, prefix_positions),
      memory_(sizes_.floats()) {
  ids.insert(ids.end(), sequence.ids, sequence.ids + sequence.positions);
  query.insert(query.end(), sequence.query_coordinates, sequence.query_coordinates + sequence.positions);
  std::fill_n(key_coordinates.begin(), prefix_positions, kPrefixKey);
  std::copy_n(sequence.key_coordinates, sequence.positions, key_coordinates.begin() + prefix_positions);
  if (w.positions) {
    position_ids.assign(capacity, 0);
    std::copy_n(sequence.position_ids, sequence.positions + sequence.steps - 1, position_ids.begin() + prefix_positions);
  }
  const int64_t C = context, D = w.head_dim;
  for (int layer = 0; layer < w.depth && C; layer++) {
    float *keys = context_begin() + 2 * layer * sizes_.context, *values = keys + sizes_.context;
    for (int64_t c = 0; c < C; c++) {
      const int64_t entry = conditioned ? c : 0;
      for (int64_t d = 0; d < D; d++) keys[c * D + d] = sequence.context_keys[layer][d * C + entry];  // as the keys of a cache lie
      std::memcpy(values + c * D, sequence.context_values[layer] + entry * D, D * sizeof(float));
    }
  }
  if (prefix_positions) std::memcpy(prefix_begin(), sequence.prefix, prefix_positions * dim_ * sizeof(float));
  std::memset(convolved(0, false), 0, sizes_.layers * sizes_.convolved * sizeof(float));  // before position 0
  std::memset(logits(0), 0, sizes_.outputs * sizes_.logits * sizeof(float));
}

bool Slot::feeds_the_same(const Slot& other) const {
  if (prefix_positions != other.prefix_positions || context != other.context || ids != other.ids || query != other.query) return false;
  if (!std::equal(key_coordinates.begin(), key_coordinates.begin() + prompt(), other.key_coordinates.begin())) return false;
  if (!position_ids.empty() && !std::equal(position_ids.begin(), position_ids.begin() + prompt(), other.position_ids.begin())) return false;
  const auto equal = [](const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; };
  for (int layer = 0; layer < static_cast<int>(sizes_.layers) && context; layer++) {
    if (!equal(context_keys(layer), other.context_keys(layer), context * head_dim_)) return false;
    if (!equal(context_values(layer), other.context_values(layer), context * head_dim_)) return false;
  }
  return !prefix_positions || equal(prefix_of(0), other.prefix_of(0), prefix_positions * dim_);
}

void Slot::copy(Slot& source) {
  const int64_t last = std::min(source.fed, prompt() - 1);
  if (last <= fed) return;
  const size_t at = fed * width_, floats = (last - fed) * width_;
  for (int layer = 0; layer < static_cast<int>(sizes_.layers); layer++) {
    std::memcpy(keys(layer) + at, source.keys(layer) + at, floats * sizeof(float));
    std::memcpy(values(layer) + at, source.values(layer) + at, floats * sizeof(float));
  }
  std::memcpy(convolved(0, false), source.convolved(0, false), sizes_.layers * sizes_.convolved * sizeof(float));
  fed = last;
}

}  // namespace decoder_step
