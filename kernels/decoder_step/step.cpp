// The sequence of one decode step, done by the threads of a pool together, in phases (pool.h): what one needs, a phase before has written.
//
//   per layer and branch:  x' = mix_out(x, y);  input, mixing = mix_in(x')                                            a chunk: one row
//                          normed = norm(input)
//     self-attention       q = normed W_q;  k, v = input W_kv, v += v_first / 2; appended to the cache                some panels of outputs
//                          parts of o = softmax(q k^T * scale + bias) v                                               some keys of a row
//                          y = o W_out                                                                                some panels
//     cross-attention      q = normed W_q;  y = softmax(q k_context) v_context W_out
//     feed-forward         u = normed W_in;  y = norm(gelu(gate) * value) W_out
//   logits = norm(sum of streams) W_head + bias
//
// A row is a new position of a sequence. Those of a decode step are of one sequence each; a prefill's are positions of the same, one after
// the other: their keys and values are all appended before the first one attends, and each attends as far as its own length.
//
// A step reads every packed weight once (README size: 259 MB at 32 bits, 72 at 8, 40 at 4) and each row's cache once; all else is small
// and stays in the nearest caches.
#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

using namespace decoder_step;

struct ds_run {
  ds_run(ds_pool* pool_, const ds_model* model_, const ds_buffers* buffers_);
  void run(int rows, int head);

  Pool& pool;
  const ds_model& model;
  const ds_weights& w;
  const Kernels& kernels;
  ds_buffers buffers;
  std::vector<float*> keys, values;
  std::vector<const float*> context_values;
  int B = 0, head = 0;  // of this step

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
  void product(const Matrix& matrix, const Values& in, Values& out, Worker& worker);
  void product_chunk(const Matrix& matrix, const Activations& a, Values& out, int chunk);
  // Quantizes one row where the matrix wants it, into `into`, the same Values or a thread's own.
  void quantize(const Matrix& matrix, size_t b, const float* x, Values& into);
  template <class Attend>
  void output_product(const Matrix& matrix, Worker& worker, Attend attend_row);
  Floats transposed(const float* context_keys) const;
  int groups() const { return (w.heads + kernels.heads_together - 1) / kernels.heads_together; }  // of heads attended together
  size_t sequence_of(size_t b) const { return static_cast<size_t>(buffers.sequence_ids[b]); }
  // What the keys and values of a position of a conditioning prefix are made of, in every layer; nullptr for any other.
  const float* prefix_of(size_t b) const {
    const int64_t id = buffers.row_ids[b] - w.table_rows;
    return id < 0 ? nullptr : buffers.prefix + id * w.dim;
  }
  int parts_of(size_t b) const { return static_cast<int>((buffers.lengths[b] + kKeys - 1) / kKeys); }
  const float* part_of(size_t b) const { return &parts[b * most_parts * part_stride]; }

  const size_t most_parts, part_stride;   // of a row's keys; floats of one
  const size_t bias_stride;               // floats of a row's heads that are attended together
  const size_t least_bytes;
  Values input, normed, query, key_value, unfolded, gated, branch_output, prediction;
  std::vector<Values> own;                // one per thread: the attention's output, joined by each for itself, which saves a phase
  std::vector<Floats> scratch;            // one per thread
  Floats streams, mixing, first_values, bias, parts;
  std::vector<Floats> context_keys;  // [sequences][context][head_dim] of each layer
};

ds_run::ds_run(ds_pool* pool_, const ds_model* model_, const ds_buffers* buffers_)
    : pool(pool_->pool),
      model(*model_),
      w(model_->sizes),
      kernels(*model_->kernels),
      buffers(*buffers_),
      keys(buffers.keys, buffers.keys + w.depth),
      values(buffers.values, buffers.values + w.depth),
      most_parts((buffers.capacity + kKeys - 1) / kKeys),
      part_stride(part_size(w.heads, w.cache_dim)),
      bias_stride(up(buffers.capacity) * kernels.heads_together),
      least_bytes(pool_->least_bytes) {
  const int rows = buffers.rows;
  if (model.layers[0].cross_q.data) {
    context_values.assign(buffers.context_values, buffers.context_values + w.depth);
    for (int l = 0; l < w.depth; l++) context_keys.push_back(transposed(buffers.context_keys[l]));
  }
  const Layer& layer = model.layers[0];
  for (Values* values_of : {&input, &normed, &branch_output}) values_of->resize(rows, w.dim);
  input.resize_quantized(rows, layer.kv);
  normed.resize_quantized(rows, layer.q);
  query.resize(rows, static_cast<size_t>(w.heads) * w.cache_dim);
  key_value.resize(rows, 2 * static_cast<size_t>(w.cache_dim));
  unfolded.resize(rows, 2 * static_cast<size_t>(w.inner));
  gated.resize(rows, w.inner);
  prediction.resize(rows, w.vocabulary);
  gated.resize_quantized(rows, layer.feed_out);
  own.resize(pool.threads());
  for (Values& values_of : own) {
    values_of.resize(rows, static_cast<size_t>(w.heads) * w.cache_dim);
    values_of.resize_quantized(rows, layer.out);
  }
  const size_t attending = attention_scratch(w.cache_dim, std::max(kKeys, buffers.context)), joining = most_parts * up(w.heads);
  // with a part of its own for the context, which has but one
  scratch.assign(pool.threads(), Floats(part_size(w.heads, w.head_dim) + std::max(attending, joining)));
  parts.assign(rows * most_parts * part_stride, 0.0f);
  streams.assign(static_cast<size_t>(rows) * w.streams * w.dim, 0.0f);
  mixing.assign(static_cast<size_t>(rows) * w.streams * (w.streams + 2), 0.0f);
  first_values.assign(static_cast<size_t>(rows) * w.cache_dim, 0.0f);
  if (w.bias) bias.assign(static_cast<size_t>(rows) * groups() * bias_stride, 0.0f);
}

// [sequences][head_dim][context] -> [sequences][context][head_dim], as the keys of a cache lie.
Floats ds_run::transposed(const float* from) const {
  const size_t C = buffers.context, D = w.head_dim;
  Floats to(buffers.sequences * C * D);
  for (size_t i = 0; i < to.size(); i++) to[i] = from[i / (C * D) * C * D + i % D * C + i / D % C];
  return to;
}

void ds_run::run(int rows, int output) {
  constexpr int kPhasesOfLayer = 11, kOtherPhases = 3;  // calls of `each` below, at most
  B = rows;
  head = output;
  if (pool.threads() > 1 && ds_model_bytes(&model) * B >= least_bytes) {
    pool.run([](void* context, Worker& worker) { static_cast<ds_run*>(context)->work(worker); }, this, kPhasesOfLayer * w.depth + kOtherPhases);
  } else {
    Worker alone;
    work(alone);
  }
}

void ds_run::work(Worker& worker) {
  if (w.bias) gather_bias(worker);
  for (int layer = 0; layer < w.depth; layer++) {
    enter(layer, 0, layer == 0, worker);
    self_attention(layer, worker);
    if (model.layers[layer].cross_q.data) {
      enter(layer, 1, false, worker);
      cross_attention(layer, worker);
    }
    enter(layer, 2, false, worker);
    feed_forward(layer, worker);
  }
  if (head != DS_NO_HEAD) predict(worker);
}

void ds_run::embed(size_t b) {
  const float *told = prefix_of(b), *row = told ? told : w.rows + buffers.row_ids[b] * w.dim;
  for (int s = 0; s < w.streams; s++) std::memcpy(&streams[(b * w.streams + s) * w.dim], row, w.dim * sizeof(float));
}

// bias[b][g][j][h] = table[g * together + h][clip(cq[b] - ck[b, j], 0, entries - 1)], once for all layers; a chunk is a quarter of a row's keys.
void ds_run::gather_bias(Worker& worker) {
  constexpr int kParts = 4;
  const int together = kernels.heads_together;
  worker.each(B * kParts, [&](int chunk) {
    const size_t b = chunk / kParts;
    const Share keys_of(static_cast<int>(buffers.lengths[b]), chunk % kParts, kParts);
    const int64_t* coordinates = buffers.key_coordinates + sequence_of(b) * buffers.capacity;
    for (int g = 0; g < groups(); g++) {
      const int heads = std::min(together, w.heads - g * together);
      const float* table = w.bias + static_cast<size_t>(g) * together * w.bias_entries;
      float* to = &bias[(b * groups() + g) * bias_stride];
      for (int j = keys_of.first; j < keys_of.last; j++) {
        const int64_t distance = buffers.query_coordinates[b] - coordinates[j];
        const int64_t entry = distance < 0 ? 0 : distance >= w.bias_entries ? w.bias_entries - 1 : distance;
        for (int h = 0; h < heads; h++) to[j * together + h] = table[static_cast<size_t>(h) * w.bias_entries + entry];
      }
    }
  });
}

void ds_run::leave(size_t b) {
  float* x = &streams[b * w.streams * w.dim];
  if (w.streams == 1) kernels.add(x, branch_output.row(b), w.dim);
  else kernels.mix_out(x, &mixing[b * w.streams * (w.streams + 2)], branch_output.row(b), w.streams, w.dim);
}

void ds_run::quantize(const Matrix& matrix, size_t b, const float* x, Values& into) {
  if (matrix.bits == 32) return;
  kernels.quantize(x, matrix, &into.q[b * matrix.padded_inputs()], &into.scale[b * matrix.blocks], &into.offset[b * matrix.blocks]);
}

// The branch before is left, this one entered.
void ds_run::enter(int l, int branch, bool first, Worker& worker) {
  const Layer& layer = model.layers[l];
  const Norm& norm = branch == 0 ? layer.attention_norm : branch == 1 ? layer.cross_norm : layer.feed_norm;
  worker.each(B, [&](int row) {
    const size_t b = row;
    if (first) embed(b);
    else leave(b);
    float* x = &streams[b * w.streams * w.dim];
    float* mix = &mixing[b * w.streams * (w.streams + 2)];
    if (w.streams == 1) std::memcpy(input.row(b), x, w.dim * sizeof(float));
    else kernels.mix_in(x, layer.connections[branch], w.streams, w.dim, mix, input.row(b));
    kernels.norm(input.row(b), norm, w.dim, normed.row(b));
    quantize(layer.q, b, normed.row(b), normed);
    if (branch == 0) {
      if (const float* told = prefix_of(b)) std::memcpy(input.row(b), told, w.dim * sizeof(float));
      quantize(layer.kv, b, input.row(b), input);
    }
  });
}

void ds_run::product_chunk(const Matrix& matrix, const Activations& a, Values& out, int chunk) {
  const int first = chunk * matrix.grain(), last = std::min(first + matrix.grain(), matrix.panels());
  kernels.product(matrix, a, out.x.data(), out.stride, first, last);
}

void ds_run::product(const Matrix& matrix, const Values& in, Values& out, Worker& worker) {
  const Activations a = in.activations(B);
  worker.each(matrix.chunks(), [&](int chunk) { product_chunk(matrix, a, out, chunk); });
}

// Columns first to last of this step's keys and values into the caches.
void ds_run::append(int layer, int first, int last) {
  const int D = w.cache_dim;
  for (int b = 0; b < B; b++) {
    const size_t at = (sequence_of(b) * buffers.capacity + buffers.lengths[b] - 1) * D;
    const float* from = key_value.row(b);
    for (int c = first; c < std::min(last, D); c++) keys[layer][at + c] = from[c];
    for (int c = std::max(first, D); c < std::min(last, 2 * D); c++) {
      float value = from[c], &kept = first_values[static_cast<size_t>(b) * D + c - D];
      if (layer == 0) kept = 0.5f * value;
      else if (w.value_residual) value += kept;
      values[layer][at + c - D] = value;
    }
  }
}

void ds_run::self_attention(int l, Worker& worker) {
  const Layer& layer = model.layers[l];
  const int of_q = layer.q.chunks();
  worker.each(of_q + layer.kv.chunks(), [&](int chunk) {
    if (chunk < of_q) return product_chunk(layer.q, normed.activations(B), query, chunk);
    chunk -= of_q;
    product_chunk(layer.kv, input.activations(B), key_value, chunk);
    append(l, chunk * layer.kv.grain() * kPanel, (chunk + 1) * layer.kv.grain() * kPanel);
  });
  int most = 0;
  for (int b = 0; b < B; b++) most = std::max(most, parts_of(b));
  worker.each(B * most, [&](int chunk) {
    if (chunk % most < parts_of(chunk / most)) attend(l, chunk / most, chunk % most, worker.thread);
  });
  output_product(layer.out, worker, [&](size_t b, float* to) {
    kernels.join(part_of(b), parts_of(b), part_stride, w.heads, w.cache_dim, scratch[worker.thread].data(), to);
  });
}

void ds_run::attend(int l, size_t b, int part, int thread) {
  const size_t first = static_cast<size_t>(part) * kKeys, at = (sequence_of(b) * buffers.capacity + first) * w.cache_dim;
  Attention attention = {};
  attention.query = query.row(b);
  attention.keys = keys[l] + at;
  attention.values = values[l] + at;
  attention.bias = w.bias ? &bias[b * groups() * bias_stride + first * kernels.heads_together] : nullptr;
  attention.bias_stride = bias_stride;
  attention.heads = w.heads;
  attention.width = w.cache_dim;
  attention.length = static_cast<int>(std::min<int64_t>(kKeys, buffers.lengths[b] - first));
  attention.scale = 1.0f / std::sqrt(static_cast<float>(w.head_dim));
  attention.scratch = scratch[thread].data();
  attention.part = &parts[(b * most_parts + part) * part_stride];
  kernels.attend(attention);
}

void ds_run::cross_attention(int l, Worker& worker) {
  const Layer& layer = model.layers[l];
  product(layer.cross_q, normed, query, worker);
  output_product(layer.cross_out, worker, [&](size_t b, float* to) { attend_context(l, b, worker.thread, to); });
}

// A few keys, those of the conditioning: less work than a phase.
void ds_run::attend_context(int l, size_t b, int thread, float* to) {
  const size_t at = sequence_of(b) * buffers.context * w.head_dim;
  Attention attention = {};
  attention.query = query.row(b);
  attention.keys = &context_keys[l][at];
  attention.values = context_values[l] + at;
  attention.heads = w.heads;
  attention.width = w.head_dim;
  attention.length = buffers.context;
  attention.scale = 1.0f;
  attention.part = scratch[thread].data();
  attention.scratch = attention.part + part_size(w.heads, w.head_dim);
  kernels.attend(attention);
  kernels.join(attention.part, 1, 0, w.heads, w.head_dim, attention.scratch, to);
}

// y = attended @ W_out
template <class Attend>
void ds_run::output_product(const Matrix& matrix, Worker& worker, Attend attend_row) {
  Values& mine = own[worker.thread];
  bool attended = false;
  worker.each(matrix.chunks(), [&](int chunk) {
    for (int b = 0; b < B && !attended; b++) {
      attend_row(b, mine.row(b));
      quantize(matrix, b, mine.row(b), mine);
    }
    attended = true;
    product_chunk(matrix, mine.activations(B), branch_output, chunk);
  });
}

void ds_run::feed_forward(int l, Worker& worker) {
  const Layer& layer = model.layers[l];
  product(layer.feed_in, normed, unfolded, worker);
  worker.each(B, [&](int b) {
    kernels.gate(unfolded.row(b), w.inner, gated.row(b));
    kernels.norm(gated.row(b), layer.inner_norm, w.inner, gated.row(b));
    quantize(layer.feed_out, b, gated.row(b), gated);
  });
  product(layer.feed_out, gated, branch_output, worker);
}

void ds_run::predict(Worker& worker) {
  worker.each(B, [&](int row) {
    const size_t b = row;
    leave(b);
    const float* x = &streams[b * w.streams * w.dim];
    std::memcpy(input.row(b), x, w.dim * sizeof(float));
    for (int s = 1; s < w.streams; s++) kernels.add(input.row(b), x + static_cast<size_t>(s) * w.dim, w.dim);
    kernels.norm(input.row(b), {w.norm.gain, w.norm.bias}, w.dim, normed.row(b));
  });
  const Matrix& matrix = model.heads[head];
  worker.each(matrix.chunks(), [&](int chunk) {
    product_chunk(matrix, normed.activations(B), prediction, chunk);
    const int first = chunk * matrix.grain() * kPanel, last = std::min(first + matrix.grain() * kPanel, w.vocabulary);
    for (size_t b = 0; b < static_cast<size_t>(B); b++) {
      float* to = buffers.logits + b * w.vocabulary;
      for (int v = first; v < last; v++) to[v] = prediction.row(b)[v] + (w.head_bias ? w.head_bias[v] : 0.0f);
    }
  });
}

extern "C" {

ds_run* ds_run_create(ds_pool* pool, const ds_model* model, const ds_buffers* buffers, char* error, size_t error_size) {
  const char* fault = nullptr;
  const bool cross = model->layers[0].cross_q.data != nullptr;
  if (buffers->rows < 1 || buffers->sequences < 1 || buffers->capacity < 1) fault = "a run has at least one row, one sequence and one position";
  else if (cross != (buffers->context > 0)) fault = "a context and a model with cross-attention go together";
  try {
    if (!fault) return new ds_run(pool, model, buffers);
  } catch (const std::bad_alloc&) {
    fault = "not enough memory for a run";
  }
  std::snprintf(error, error_size, "%s", fault);
  return nullptr;
}

void ds_run_free(ds_run* run) { delete run; }

int ds_step(ds_run* run, int rows, int head) {
  const ds_buffers& buffers = run->buffers;
  if (head < DS_NO_HEAD || head >= run->w.outputs) return DS_BAD_HEAD;
  if (rows < 1 || rows > buffers.rows) return DS_BAD_COUNT;
  for (int b = 0; b < rows; b++) {
    const int64_t sequence = buffers.sequence_ids[b], length = buffers.lengths[b];
    if (sequence < 0 || sequence >= buffers.sequences || (b && sequence < buffers.sequence_ids[b - 1])) return DS_BAD_COUNT;
    if (buffers.row_ids[b] < 0 || buffers.row_ids[b] >= run->w.table_rows + static_cast<int64_t>(buffers.prefix_rows)) return DS_BAD_ROW;
    if (length < 1 || length > buffers.capacity) return DS_BAD_LENGTH;
    if (b && sequence == buffers.sequence_ids[b - 1] && length != buffers.lengths[b - 1] + 1) return DS_BAD_LENGTH;
  }
  try {
    run->run(rows, head);
  } catch (const std::bad_alloc&) {
    return DS_NO_MEMORY;
  }
  return DS_OK;
}

}  // extern "C"
