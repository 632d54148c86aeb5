// From logits to a token: guidance, the forbidden entry, top-k, temperature, noise, argmax, as runtime/sampling.py and runtime/noise.py say.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder_step.h"

namespace decoder_step {

// What one token is drawn with.
struct Draw {
  const float *logits, *without_condition;  // [vocabulary]; the second NULL without guidance
  int vocabulary;
  float scale, temperature;  // temperature 0: the most likely token
  int64_t k;                 // entries that top-k keeps, ties beside them
  bool forbids_last;         // whether the last entry is excluded
  uint64_t seed;
  uint32_t item, stage, token;  // token: its number in its item's stage
  const float* noise;           // [vocabulary], in place of the seeded noise, or nullptr
};

// Room that a thread draws in.
struct Drawing {
  explicit Drawing(int vocabulary) : scores(vocabulary), order(vocabulary), upper(vocabulary) {}
  std::vector<float> scores;
  std::vector<int32_t> order;
  std::vector<int16_t> upper;
};

int64_t sample(const Draw& draw, Drawing& room);

}  // namespace decoder_step
