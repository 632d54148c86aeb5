// A slot: the caches of one sequence under its condition, or without any, and what its prompt feeds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "model.h"

namespace decoder_step {

// Memory that begins with a cache line and is not written when it is taken: pages of a cache that is never filled are never used.
struct Lines {
  explicit Lines(size_t floats) : data(Aligned<float>().allocate(floats)) {}
  ~Lines() { Aligned<float>().deallocate(data, 0); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;
  float* const data;
};

// How the floats of a slot are divided: keys and values of all layers, the context's of all layers, the prefix, the convolution's inputs
// of all layers twice, the logits of the last frame.
struct SlotSizes {
  SlotSizes(const ds_weights& w, int64_t capacity, int64_t context, int64_t prefix_positions);
  size_t cache, context, prefix, logits;  // floats: of one layer's keys or values, twice; of the whole; of one output projection
  size_t convolved;                       // floats: inputs of one layer's convolution at two positions
  size_t layers, outputs;
  size_t floats() const { return 2 * layers * (cache + context + convolved) + prefix + outputs * logits; }
};

class Slot {
 public:
  // Without condition there is no prefix, and every entry of the context is the null one, which is the first. std::bad_alloc
  Slot(const ds_weights& w, const ds_sequence& sequence, bool conditioned);

  // Positions of the prompt that have not been fed; the last one is the first decode step's.
  int64_t waiting() const { return fed < prompt() - 1 ? prompt() - 1 - fed : 0; }
  int64_t prompt() const { return static_cast<int64_t>(ids.size()); }
  float* keys(int layer) { return memory_.data + 2 * layer * sizes_.cache; }
  float* values(int layer) { return keys(layer) + sizes_.cache; }
  const float* context_keys(int layer) const { return context_begin() + 2 * layer * sizes_.context; }
  const float* context_values(int layer) const { return context_keys(layer) + sizes_.context; }
  float* logits(int output) { return memory_.data + sizes_.floats() - (sizes_.outputs - output) * sizes_.logits; }
  // The embedding that a position of the conditioning prefix makes its keys and values of, in every layer; nullptr for any other position.
  const float* prefix_of(int64_t position) const {
    return position < prefix_positions ? prefix_begin() + position * dim_ : nullptr;
  }
  // The inputs of a layer's convolution at the two positions before `position`, [panels][2][kPanel], older first; and where a step leaves
  // those of the two positions up to `position`. The first decode step reads what the prompt left, and leaves its own in other memory: a
  // slot with the same prompt, which joins later, copies the prompt's.
  float* convolved_before(int layer, int64_t position) { return convolved(layer, position >= prompt()); }
  float* convolved_up_to(int layer, int64_t position) { return convolved(layer, position >= prompt() - 1); }
  // Whether this slot's prompt leaves the same keys and values in the caches.
  bool feeds_the_same(const Slot& other) const;
  // Takes what the same prompt has left in another slot's caches, whether or not that one has gone on.
  void copy(Slot& source);

  const int64_t capacity, prefix_positions, context;  // positions; keys of the context
  std::vector<int64_t> ids, query;       // [prompt], the prefix included: rows of the table, of no meaning in the prefix; coordinates
  std::vector<int64_t> key_coordinates;  // [capacity]
  std::vector<int64_t> position_ids;     // [capacity], of no meaning in the prefix; or none
  int64_t fed = 0;                       // positions in the caches
  int64_t like = 0;                      // the same number for slots that feed the same

 private:
  float* context_begin() const { return memory_.data + 2 * sizes_.layers * sizes_.cache; }
  float* prefix_begin() const { return context_begin() + 2 * sizes_.layers * sizes_.context; }
  float* convolved(size_t layer, bool decoding) const {
    return prefix_begin() + sizes_.prefix + (decoding * sizes_.layers + layer) * sizes_.convolved;
  }
  const int64_t dim_, head_dim_, width_;  // floats of an embedding, of a key there, of a key in the caches
  const SlotSizes sizes_;
  Lines memory_;
};

}  // namespace decoder_step
