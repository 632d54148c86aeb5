// A batch: sequences that join and leave between frames. Its steps are step.cpp's; this file decides which rows they have.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "step.h"

using namespace decoder_step;

namespace {

constexpr int64_t kPositionsAtOnce = 64;  // of prompts: with more the activations leave the nearer caches

}  // namespace

struct ds_batch {
  ds_batch(ds_pool* pool, const ds_model* model) : step(pool, model) {}
  int64_t join(const ds_sequence& given);
  void feed(int64_t positions);
  bool sample(int head);
  void leave(const Sequence* sequence);
  int64_t waiting() const;
  Sequence* find(int64_t id) const;

  Step step;
  std::vector<std::unique_ptr<Sequence>> sequences;  // in the order of joining
  std::atomic<bool> interrupted{false};
  int64_t joined = 0, computed = 0;                  // ids so far; positions of prompts that were not copied

 private:
  void copy_prompts();

  std::vector<Slot*> slots_;  // of all sequences, in the same order
  std::vector<Row> rows_;     // of a step, and the sequences that it samples
  std::vector<Sequence*> drawing_;
};

Sequence* ds_batch::find(int64_t id) const {
  for (const auto& sequence : sequences) {
    if (sequence->id == id) return sequence.get();
  }
  return nullptr;
}

int64_t ds_batch::waiting() const {
  int64_t positions = 0;
  for (const auto& sequence : sequences) positions += sequence->waiting();
  return positions;
}

void ds_batch::leave(const Sequence* sequence) {
  for (Slot* slot : sequence->slots) slots_.erase(std::find(slots_.begin(), slots_.end(), slot));
  sequences.erase(std::find_if(sequences.begin(), sequences.end(), [&](const auto& other) { return other.get() == sequence; }));
}

// All memory that the batch needs with this sequence is taken here, so that no step fails for want of it.
int64_t ds_batch::join(const ds_sequence& given) {
  std::unique_ptr<Sequence> sequence(new Sequence(joined + 1, step.model, given));
  const size_t together = slots_.size() + 2;
  const size_t most = std::max<size_t>(together, std::min(kPositionsAtOnce, waiting() + sequence->waiting()));
  step.reserve(most, sequence->slot->capacity, given.context);
  slots_.reserve(together);
  rows_.reserve(most);
  drawing_.reserve(sequences.size() + 1);
  sequences.reserve(sequences.size() + 1);
  joined++;
  for (Slot* slot : sequence->slots) {
    slot->like = 2 * joined + (slot == sequence->without_condition.get());
    for (Slot* other : slots_) {
      if (!slot->feeds_the_same(*other)) continue;
      slot->like = other->like;
      break;
    }
    slots_.push_back(slot);
  }
  sequences.push_back(std::move(sequence));
  return joined;
}

// What the same prompt has left in another slot's caches is not computed again.
void ds_batch::copy_prompts() {
  for (Slot* slot : slots_) {
    if (!slot->waiting()) continue;
    for (Slot* other : slots_) {
      if (other->like == slot->like) slot->copy(*other);
    }
  }
}

void ds_batch::feed(int64_t positions) {
  for (copy_prompts(); positions > 0; copy_prompts()) {
    const size_t most = static_cast<size_t>(std::min(positions, kPositionsAtOnce));
    rows_.clear();
    for (Slot* slot : slots_) {
      const bool computed_now = std::any_of(rows_.begin(), rows_.end(), [&](const Row& row) { return row.slot->like == slot->like; });
      for (int64_t left = computed_now ? 0 : slot->waiting(), at = slot->fed; left > 0 && rows_.size() < most; left--, at++) {
        rows_.push_back({slot, slot->ids[at], slot->query[at], at});
      }
    }
    if (rows_.empty()) return;
    step.run(rows_, kNoOutput, {});
    for (const Row& row : rows_) row.slot->fed = row.position + 1;
    computed += rows_.size();
    positions -= rows_.size();
    if (interrupted.load()) return;
  }
}

// One token of every sequence whose prompt has been fed; returns whether there was any.
bool ds_batch::sample(int head) {
  rows_.clear();
  drawing_.clear();
  for (const auto& sequence : sequences) {
    if (sequence->done || sequence->waiting()) continue;
    drawing_.push_back(sequence.get());
    for (Slot* slot : sequence->slots) {
      slot->key_coordinates[slot->fed] = sequence->next_key;
      rows_.push_back({slot, sequence->next_id, sequence->next_query, slot->fed});
    }
  }
  if (rows_.empty()) return false;
  step.run(rows_, head, drawing_);
  for (Sequence* sequence : drawing_) sequence->take();
  return true;
}

extern "C" {

ds_batch* ds_batch_create(ds_pool* pool, const ds_model* model) {
  try {
    return new ds_batch(pool, model);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void ds_batch_free(ds_batch* batch) { delete batch; }

int64_t ds_batch_join(ds_batch* batch, const ds_sequence* sequence, char* error, size_t error_size) {
  const char* fault = fault_of(batch->step.model, *sequence);
  try {
    if (!fault) return batch->join(*sequence);
  } catch (const std::bad_alloc&) {
    fault = "not enough memory for a sequence";
  }
  std::snprintf(error, error_size, "%s", fault);
  return 0;
}

int ds_batch_advance(ds_batch* batch, int64_t frames, int64_t positions) {
  if (frames < 0 || positions < 0) return DS_BAD_COUNT;
  int status = DS_OK;
  try {
    batch->feed(positions);
    bool any = true;
    for (int64_t frame = 0; frame < frames && any && !(frame && batch->interrupted.load()); frame++) {
      for (int head = 0; head < batch->step.w.outputs && any; head++) any = batch->sample(head);
    }
  } catch (const std::bad_alloc&) {
    status = DS_NO_MEMORY;
  }
  batch->interrupted = false;  // an interrupt that came between two calls cuts the next one short
  for (const auto& sequence : batch->sequences) sequence->noise = nullptr;
  return status;
}

void ds_batch_interrupt(ds_batch* batch) { batch->interrupted = true; }

int64_t ds_batch_waiting(const ds_batch* batch) { return batch->waiting(); }

int64_t ds_batch_computed(const ds_batch* batch) { return batch->computed; }

int64_t ds_batch_collect(ds_batch* batch, int64_t id, int64_t* tokens, int64_t size, int* done) {
  Sequence* sequence = batch->find(id);
  if (!sequence || size < 0) return -1;
  std::vector<int64_t>& made = sequence->tokens;
  const int64_t count = std::min<int64_t>(size, made.size());
  std::copy_n(made.begin(), count, tokens);
  made.erase(made.begin(), made.begin() + count);
  *done = sequence->done && made.empty();
  return count;
}

int ds_batch_leave(ds_batch* batch, int64_t id) {
  Sequence* sequence = batch->find(id);
  if (!sequence) return DS_BAD_ID;
  batch->leave(sequence);
  return DS_OK;
}

int ds_batch_logits(const ds_batch* batch, int64_t id, float* logits) {
  const Sequence* sequence = batch->find(id);
  if (!sequence) return DS_BAD_ID;
  const size_t V = batch->step.w.vocabulary;
  for (int output = 0; output < batch->step.w.outputs; output++) {
    for (Slot* slot : sequence->slots) logits = std::copy_n(slot->logits(output), V, logits);
  }
  return DS_OK;
}

int ds_batch_noise(ds_batch* batch, int64_t id, const float* noise) {
  Sequence* sequence = batch->find(id);
  if (!sequence) return DS_BAD_ID;
  sequence->noise = noise;
  return DS_OK;
}

int64_t ds_batch_sampled(const ds_batch* batch, int64_t id) {
  const Sequence* sequence = batch->find(id);
  return !sequence || sequence->done || sequence->waiting() ? -1 : sequence->sampled;
}

size_t ds_slot_bytes(const ds_model* model, int64_t positions, int64_t context, int64_t prefix_positions) {
  const SlotSizes sizes(model->sizes, positions, context, prefix_positions);
  const size_t numbers = model->sizes.positions ? 4 : 3;  // of a position: its row, its coordinates, its absolute position
  return sizes.floats() * sizeof(float) + positions * numbers * sizeof(int64_t);
}

size_t ds_scratch_bytes(const ds_pool* pool, const ds_model* model, int64_t rows, int64_t positions, int64_t context) {
  return Step::bytes(pool, model, rows, positions, context);
}

}  // extern "C"
