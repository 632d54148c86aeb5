// The sequence of one decode step, run by all threads of a pool together, with a barrier where one needs what another wrote.
//
//   per layer and branch:  x' = mix_out(x, y);  input, mixing = mix_in(x')      rows are shared out among the threads
//                          normed = norm(input)
//     self-attention       q = normed W_q;  k, v = input W_kv, v += v_first / 2; appended to the cache     panels of outputs
//                          o = softmax(q k^T * scale + bias) v                                             rows x groups of heads
//                          y = o W_out                                                                     panels
//     cross-attention      q = normed W_q;  o = softmax(q k_context) v_context;  y = o W_out
//     feed-forward         u = normed W_in;  y = norm(gelu(gate) * value) W_out
//   logits = norm(sum of streams) W_head + bias
//
// A step reads every packed weight once (README size: 260 MB at 32 bits, 69 at 8, 37 at 4) and each row's cache once per thread; all else is
// small and stays in the nearest caches. A thread keeps its rows, panels and heads in every layer.
#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

using namespace decoder_step;

namespace {

constexpr int kMostHeads = 4;  // of a row that one thread attends together: a key or value loaded once serves all of them

}  // namespace

struct ds_run {
  ds_run(ds_pool* pool_, const ds_model* model_, const ds_buffers* buffers_);
  void run(int head);

  Pool& pool;
  const ds_model& model;
  const ds_weights& w;
  const Kernels& kernels;
  ds_buffers buffers;
  std::vector<float*> keys, values;
  std::vector<const float*> context_keys, context_values;
  int head = 0;

 private:
  void work(int thread);
  void barrier() {
    if (threads > 1) pool.barrier();
  }
  void embed(int thread);
  void gather_bias(int thread);
  void enter(int layer, int branch, bool first, int thread);
  void leave(size_t b);
  void self_attention(int layer, int thread);
  void cross_attention(int layer, int thread);
  void feed_forward(int layer, int thread);
  void predict(int thread);
  void append(int layer, int first, int last);
  void product(const Matrix& matrix, Values& in, Values& out, int thread);
  // Quantizes one row where the matrix wants it, into `into`, the same Values or a thread's own.
  void quantize(const Matrix& matrix, size_t b, const float* x, Values& into);
  void output_product(const Matrix& matrix, int thread);

  const int B, threads, group;
  const size_t bias_stride;
  Values input, normed, query, key_value, attended, unfolded, gated, branch_output, prediction;
  std::vector<Values> own;              // one per thread: the attention's output, quantized by each for itself, which saves a barrier
  std::vector<std::vector<float>> scores;  // one per thread
  std::vector<float> streams, mixing, first_values, bias;
};

ds_run::ds_run(ds_pool* pool_, const ds_model* model_, const ds_buffers* buffers_)
    : pool(pool_->pool),
      model(*model_),
      w(model_->sizes),
      kernels(*model_->kernels),
      buffers(*buffers_),
      keys(buffers.keys, buffers.keys + w.depth),
      values(buffers.values, buffers.values + w.depth),
      B(buffers.rows),
      threads(ds_model_bytes(model_) * B < pool_->least_bytes ? 1 : pool.threads()),
      group(std::max(1, std::min(kMostHeads, (B * w.heads + threads - 1) / threads))),
      bias_stride(up(buffers.capacity)) {
  const bool cross = model.layers[0].cross_q.data != nullptr;
  if (cross) {
    context_keys.assign(buffers.context_keys, buffers.context_keys + w.depth);
    context_values.assign(buffers.context_values, buffers.context_values + w.depth);
  }
  const Layer& layer = model.layers[0];
  for (Values* rows : {&input, &normed, &branch_output}) rows->resize(B, w.dim);
  input.resize_quantized(B, layer.kv);
  normed.resize_quantized(B, layer.q);
  query.resize(B, static_cast<size_t>(w.heads) * w.cache_dim);
  attended.resize(B, static_cast<size_t>(w.heads) * w.cache_dim);
  key_value.resize(B, 2 * static_cast<size_t>(w.cache_dim));
  unfolded.resize(B, 2 * static_cast<size_t>(w.inner));
  gated.resize(B, w.inner);
  prediction.resize(B, w.vocabulary);
  gated.resize_quantized(B, layer.feed_out);
  own.resize(threads);
  for (Values& rows : own) rows.resize_quantized(B, layer.out);
  scores.assign(threads, std::vector<float>(kMostHeads * up(std::max(buffers.capacity, buffers.context))));
  streams.assign(static_cast<size_t>(B) * w.streams * w.dim, 0.0f);
  mixing.assign(static_cast<size_t>(B) * w.streams * (w.streams + 2), 0.0f);
  first_values.assign(static_cast<size_t>(B) * w.cache_dim, 0.0f);
  if (w.bias) bias.assign(static_cast<size_t>(B) * w.heads * bias_stride, 0.0f);
}

void ds_run::run(int output) {
  head = output;
  if (threads == 1) return work(0);
  pool.run([](void* context, int thread) { static_cast<ds_run*>(context)->work(thread); }, this);
}

void ds_run::work(int thread) {
  embed(thread);
  if (w.bias) gather_bias(thread);
  for (int layer = 0; layer < w.depth; layer++) {
    enter(layer, 0, layer == 0, thread);
    self_attention(layer, thread);
    if (model.layers[layer].cross_q.data) {
      enter(layer, 1, false, thread);
      cross_attention(layer, thread);
    }
    enter(layer, 2, false, thread);
    feed_forward(layer, thread);
  }
  predict(thread);
}

void ds_run::embed(int thread) {
  const Share rows(B, thread, threads);
  for (int b = rows.first; b < rows.last; b++) {
    const float* row = w.rows + buffers.row_ids[b] * w.dim;
    for (int s = 0; s < w.streams; s++) std::memcpy(&streams[(static_cast<size_t>(b) * w.streams + s) * w.dim], row, w.dim * sizeof(float));
  }
}

// bias[b][h][j] = table[h][clip(cq[b] - ck[b, j], 0, entries - 1)], once for all layers; each thread takes its share of every row's keys.
void ds_run::gather_bias(int thread) {
  for (int b = 0; b < B; b++) {
    const Share share(static_cast<int>(buffers.lengths[b]), thread, threads);
    const int64_t* coordinates = buffers.key_coordinates + static_cast<int64_t>(b) * buffers.capacity;
    float* to = &bias[static_cast<size_t>(b) * w.heads * bias_stride];
    for (int j = share.first; j < share.last; j++) {
      const int64_t distance = buffers.query_coordinates[b] - coordinates[j];
      const int64_t entry = distance < 0 ? 0 : distance >= w.bias_entries ? w.bias_entries - 1 : distance;
      for (int h = 0; h < w.heads; h++) to[h * bias_stride + j] = w.bias[static_cast<size_t>(h) * w.bias_entries + entry];
    }
  }
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
void ds_run::enter(int l, int branch, bool first, int thread) {
  const Layer& layer = model.layers[l];
  const Norm& norm = branch == 0 ? layer.attention_norm : branch == 1 ? layer.cross_norm : layer.feed_norm;
  const Share rows(B, thread, threads);
  for (int b = rows.first; b < rows.last; b++) {
    if (!first) leave(b);
    float* x = &streams[static_cast<size_t>(b) * w.streams * w.dim];
    if (w.streams == 1) std::memcpy(input.row(b), x, w.dim * sizeof(float));
    else kernels.mix_in(x, layer.connections[branch], w.streams, w.dim, &mixing[static_cast<size_t>(b) * w.streams * (w.streams + 2)], input.row(b));
    kernels.norm(input.row(b), norm, w.dim, normed.row(b));
    quantize(layer.q, b, normed.row(b), normed);
    if (branch == 0) quantize(layer.kv, b, input.row(b), input);
  }
  barrier();
}

void ds_run::product(const Matrix& matrix, Values& in, Values& out, int thread) {
  const Share panels(matrix.panels(), thread, threads);
  kernels.product(matrix, in.activations(B), out.x.data(), out.stride, panels.first, panels.last);
}

// Columns first to last of this step's keys and values into the caches.
void ds_run::append(int layer, int first, int last) {
  const int D = w.cache_dim;
  for (int b = 0; b < B; b++) {
    const size_t at = (static_cast<size_t>(b) * buffers.capacity + buffers.lengths[b] - 1) * D;
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

void ds_run::self_attention(int l, int thread) {
  const Layer& layer = model.layers[l];
  product(layer.q, normed, query, thread);
  product(layer.kv, input, key_value, thread);
  const Share panels(layer.kv.panels(), thread, threads);
  append(l, panels.first * kPanel, panels.last * kPanel);
  barrier();

  const int D = w.cache_dim, groups = (w.heads + group - 1) / group;
  const Share items(B * groups, thread, threads);
  for (int item = items.first; item < items.last; item++) {
    const size_t b = item / groups, h = static_cast<size_t>(item % groups) * group;
    const size_t cache = b * buffers.capacity * D;
    Attention attention = {};
    attention.query = query.row(b) + h * D;
    attention.keys = keys[l] + cache;
    attention.values = values[l] + cache;
    attention.bias = w.bias ? &bias[(b * w.heads + h) * bias_stride] : nullptr;
    attention.bias_stride = bias_stride;
    attention.heads = std::min(group, w.heads - static_cast<int>(h));
    attention.width = D;
    attention.length = static_cast<int>(buffers.lengths[b]);
    attention.scale = 1.0f / std::sqrt(static_cast<float>(w.head_dim));
    attention.scores = scores[thread].data();
    attention.out = attended.row(b) + h * D;
    kernels.attend(attention);
  }
  barrier();
  output_product(layer.out, thread);
}

void ds_run::cross_attention(int l, int thread) {
  const Layer& layer = model.layers[l];
  product(layer.cross_q, normed, query, thread);
  barrier();
  const int D = w.head_dim, groups = (w.heads + group - 1) / group;
  const Share items(B * groups, thread, threads);
  for (int item = items.first; item < items.last; item++) {
    const size_t b = item / groups, h = static_cast<size_t>(item % groups) * group;
    const size_t context = b * buffers.context * D;
    CrossAttention attention = {};
    attention.query = query.row(b) + h * D;
    attention.keys = context_keys[l] + context;
    attention.values = context_values[l] + context;
    attention.heads = std::min(group, w.heads - static_cast<int>(h));
    attention.width = D;
    attention.length = buffers.context;
    attention.scores = scores[thread].data();
    attention.out = attended.row(b) + h * D;
    kernels.attend_context(attention);
  }
  barrier();
  output_product(layer.cross_out, thread);
}

// y = attended @ W_out
void ds_run::output_product(const Matrix& matrix, int thread) {
  Values& mine = own[thread];
  for (int b = 0; b < B; b++) quantize(matrix, b, attended.row(b), mine);
  const Share panels(matrix.panels(), thread, threads);
  const Activations a = {B, attended.x.data(), attended.stride, mine.q.data(), mine.scale.data(), mine.offset.data()};
  kernels.product(matrix, a, branch_output.x.data(), branch_output.stride, panels.first, panels.last);
  barrier();
}

void ds_run::feed_forward(int l, int thread) {
  const Layer& layer = model.layers[l];
  product(layer.feed_in, normed, unfolded, thread);
  barrier();
  const Share rows(B, thread, threads);
  for (int b = rows.first; b < rows.last; b++) {
    kernels.gate(unfolded.row(b), w.inner, gated.row(b));
    kernels.norm(gated.row(b), layer.inner_norm, w.inner, gated.row(b));
    quantize(layer.feed_out, b, gated.row(b), gated);
  }
  barrier();
  product(layer.feed_out, gated, branch_output, thread);
  barrier();
}

void ds_run::predict(int thread) {
  const Share rows(B, thread, threads);
  for (int b = rows.first; b < rows.last; b++) {
    leave(b);
    const float* x = &streams[static_cast<size_t>(b) * w.streams * w.dim];
    std::memcpy(input.row(b), x, w.dim * sizeof(float));
    for (int s = 1; s < w.streams; s++) kernels.add(input.row(b), x + static_cast<size_t>(s) * w.dim, w.dim);
    kernels.norm(input.row(b), {w.norm.gain, w.norm.bias}, w.dim, normed.row(b));
  }
  barrier();
  const Matrix& matrix = model.heads[head];
  product(matrix, normed, prediction, thread);
  const Share panels(matrix.panels(), thread, threads);
  const int first = panels.first * kPanel, last = std::min(panels.last * kPanel, w.vocabulary);
  for (int b = 0; b < B; b++) {
    float* to = buffers.logits + static_cast<size_t>(b) * w.vocabulary;
    for (int v = first; v < last; v++) to[v] = prediction.row(b)[v] + (w.head_bias ? w.head_bias[v] : 0.0f);
  }
}

extern "C" {

ds_run* ds_run_create(ds_pool* pool, const ds_model* model, const ds_buffers* buffers, char* error, size_t error_size) {
  const char* fault = nullptr;
  const bool cross = model->layers[0].cross_q.data != nullptr;
  if (buffers->rows < 1 || buffers->capacity < 1) fault = "a run has at least one row and one position";
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

int ds_step(ds_run* run, int head) {
  if (head < 0 || head >= run->w.outputs) return DS_BAD_HEAD;
  for (int b = 0; b < run->buffers.rows; b++) {
    if (run->buffers.row_ids[b] < 0 || run->buffers.row_ids[b] >= run->w.table_rows) return DS_BAD_ROW;
    if (run->buffers.lengths[b] < 1 || run->buffers.lengths[b] > run->buffers.capacity) return DS_BAD_LENGTH;
  }
  run->run(head);
  return DS_OK;
}

}  // extern "C"
