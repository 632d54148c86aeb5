// One window of one stage as data, as Python's runtime/sequence.py makes it: what its prompt feeds, where its tokens stand, how they are drawn.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bundle.h"
#include "decoder_step.h"

namespace musiclm {

// Of one stage and one prompt.
struct Context {
  std::vector<std::vector<float>> keys, values;  // by layer: [dim_head, C], [C, dim_head]
  int64_t entries = 0;                           // C
  std::vector<float> prefix;                     // [P, dim]
  int64_t prefix_positions = 0;                  // P
  std::vector<int64_t> codes;                    // of the condition, where the stage reads them as tokens
};

using Contexts = std::shared_ptr<const Context>;  // of one stage

struct Prompt {  // positions
  std::vector<int64_t> ids, query, key;
};

struct Draw {
  uint64_t seed;
  int64_t item, first;
  Sampling sampling;
};

struct Sequence {
  int stage;
  Prompt prompt;
  ds_rules rules;
  int64_t known, in_frames, steps;
  Draw draw;
  Contexts context;
  std::vector<int64_t> position_ids;  // rows of the table of absolute positions, of the prompt and of what is sampled; empty without one

  bool guided() const { return draw.sampling.cond_scale != 1; }
  // As `ds_batch_join` takes it. The arrays are this sequence's; `layers` holds the pointers to the context's.
  ds_sequence described(std::vector<const float*>& layers) const;
};

Sequence semantic_sequence(const Decoder&, int64_t length, bool end_allowed, const std::vector<int64_t>& prefix, const Draw&, Contexts);
Sequence coarse_sequence(const Decoder&, const std::vector<int64_t>& semantic, int64_t frames, int64_t frame_tokens, bool end_allowed,
                         const std::vector<int64_t>& prefix, const Draw&, Contexts);
Sequence fine_sequence(const Decoder&, const std::vector<int64_t>& coarse, int64_t frame_tokens, const std::vector<int64_t>& prefix, const Draw&,
                       Contexts);

Sampling unguided(const Decoder&, Sampling);  // without guidance where there is no null condition
std::vector<int64_t> unique_consecutive(const std::vector<int64_t>&);

}  // namespace musiclm
