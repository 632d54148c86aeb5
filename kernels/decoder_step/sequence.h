// A sequence of a batch: its slots, how its tokens are drawn, and those that it has got.
#pragma once

#include <memory>
#include <vector>

#include "sampler.h"
#include "slot.h"

namespace decoder_step {

struct Sequence {
  // Everything that `given` points to is copied; it was checked (fault_of). std::bad_alloc
  Sequence(int64_t id, const ds_model& model, const ds_sequence& given);

  const int64_t id;
  const int vocabulary, outputs;
  const ds_rules rules;
  const int64_t known, in_frames, steps, first;
  const uint64_t seed;
  const uint32_t item;
  const float temperature, scale;

  std::unique_ptr<Slot> slot, without_condition;  // the second only with guidance
  std::vector<Slot*> slots;                       // both, but none where there is nothing to sample
  std::vector<int64_t> tokens;                    // that were not collected yet
  int64_t sampled = 0;                            // tokens so far, collected ones and the end included
  bool done;
  const float* noise = nullptr;                   // [.., vocabulary]: the caller's, of the next tokens; nullptr: seeded
  int64_t next_id, next_query, next_key;          // the position that the next step feeds

  int64_t waiting() const {
    int64_t positions = 0;
    for (const Slot* each : slots) positions += each->waiting();
    return positions;
  }
  // Draws a token from the logits of the slots; `take` then makes it the sequence's last one, and places the next position.
  void draw(Drawing& room);
  void take();

 private:
  bool forbids_end() const;
  int64_t drawn_ = 0;
};

// Why a batch cannot take a sequence, or nullptr.
const char* fault_of(const ds_model& model, const ds_sequence& given);

}  // namespace decoder_step
