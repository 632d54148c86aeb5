// One decode step of a token transformer, or a piece of a prefill, on the caches of slots (step.cpp), and the memory that it computes in (scratch.cpp).
#pragma once

#include <vector>

#include "model.h"
#include "sequence.h"

namespace decoder_step {

// A row of a step: one new position of a slot.
struct Row {
  Slot* slot;
  int64_t id, query;  // row of the table of embeddings; coordinate
  int64_t position;   // in the slot's caches; those of one slot stand in order, each one more than in the row before
};

constexpr int kNoOutput = -1;

class Step {
 public:
  Step(ds_pool* pool, const ds_model* model);
  // Takes memory for steps of so many rows with caches of so many positions and contexts of so many keys. std::bad_alloc; what was there stays.
  void reserve(size_t rows, size_t capacity, size_t context);
  static size_t bytes(const ds_pool* pool, const ds_model* model, size_t rows, size_t capacity, size_t context);
  // Appends the rows' positions to the caches, and with an output projection writes the logits of their slots and samples a token of each
  // of these sequences. output: its number, or kNoOutput.
  void run(const std::vector<Row>& rows, int output, const std::vector<Sequence*>& drawing);

  const ds_model& model;
  const ds_weights& w;

 private:
  void work(Worker& worker);
  void embed(size_t b);
  void gather_bias(Worker& worker);
  void enter(int layer, int branch, bool first, Worker& worker);
  void leave(size_t b);
  void self_attention(int layer, Worker& worker);
  void attend(int layer, size_t b, int part, int thread);
  void cross_attention(int layer, Worker& worker);
  void attend_context(int layer, size_t b, int thread, float* to);
  void feed_forward(int layer, Worker& worker);
  void predict(Worker& worker);
  void append(int layer, int first, int last);
  void convolve(int layer, int first, int last);
  void product(const Matrix& matrix, const Values& in, Values& out, Worker& worker);
  void product_chunk(const Matrix& matrix, const Activations& a, Values& out, int chunk);
  // Quantizes one row where the matrix wants it, into `into`, the same Values or a thread's own.
  void quantize(const Matrix& matrix, size_t b, const float* x, Values& into);
  template <class Attend>
  void output_product(const Matrix& matrix, Worker& worker, Attend attend_row);
  int phases() const { return 11 * w.depth + 4; }  // calls of `each` in step.cpp, at most
  int groups() const { return (w.heads + kernels.heads_together - 1) / kernels.heads_together; }  // of heads attended together
  const float* prefix_of(size_t b) const { return rows[b].slot->prefix_of(rows[b].position); }
  int parts_of(size_t b) const { return static_cast<int>(rows[b].position / kKeys + 1); }
  const float* part_of(size_t b) const { return &parts[b * most_parts * part_stride]; }

  Pool& pool;
  const Kernels& kernels;
  const size_t least_bytes, part_stride;  // floats of a part of a row's keys
  // of this step
  const Row* rows = nullptr;
  int B = 0, head = 0;
  const std::vector<Sequence*>* drawing = nullptr;
  // what memory there is for
  size_t most_rows = 0, most_positions = 0, most_context = 0;
  size_t most_parts = 0, bias_stride = 0;  // of a row's keys; floats of a row's heads that are attended together
  Values input, normed, query, key_value, unfolded, gated, branch_output, prediction;
  std::vector<Values> own;      // one per thread: the attention's output, joined by each for itself, which saves a phase
  std::vector<Floats> scratch;  // one per thread
  std::vector<Drawing> rooms;   // one per thread
  Floats streams, mixing, first_values, bias, parts;
};

}  // namespace decoder_step
