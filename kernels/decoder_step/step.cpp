// The sequence of one decode step, done by the threads of a pool together, in phases (pool.h): what one needs, a phase before has written.
//
//   per layer and branch:  x' = mix_out(x, y);  input, mixing = mix_in(x')                                            a chunk: one row
//                          normed = norm(input)
//     self-attention       q = normed W_q;  k, v = input W_kv, v += v_first / 2; appended to the cache                some panels of outputs
//                          where attention is normalised: k / |k| * key_scale is appended, and q / |q| of each head attends
//                          parts of o = softmax(q k^T * scale + bias) v                                               some keys of a row
//                          y = o W_out                                                                                some panels
//     cross-attention      q = normed W_q;  y = softmax(q k_context) v_context W_out
//     feed-forward         u = normed W_in;  u'[t] = taps . u[t - 2 .. t];  y = norm(gelu(gate) * value) W_out
//   logits = norm(sum of streams) W_head + bias                                                                     some panels
//   token = sample(logits of a sequence)                                                                            one sequence
//
// A row is a new position of a slot. Those of a decode step are of one slot each; a prefill's are positions of the same, one after the
// other: their keys and values are all appended before the first one attends, and each attends as far as its own length.
//
// A step reads every packed weight once (README size: 259 MB at 32 bits, 72 at 8, 40 at 4) and each row's cache once; all else is small
// and stays in the nearest caches.
#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace decoder_step {

void Step::run(const std::vector<Row>& rows_, int output, const std::vector<Sequence*>& drawing_) {
  rows = rows_.data();
  B = static_cast<int>(rows_.size());
  head = output;
  drawing = &drawing_;
  if (pool.threads() > 1 && ds_model_bytes(&model) * B >= least_bytes) {
    pool.run([](void* context, Worker& worker) { static_cast<Step*>(context)->work(worker); }, this, phases());
  } else {
    Worker alone;
    work(alone);
  }
}

void Step::work(Worker& worker) {
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
  if (head != kNoOutput) predict(worker);
}

void Step::embed(size_t b) {
  const float *prefix = prefix_of(b), *embedding = prefix ? prefix : w.rows + rows[b].id * w.dim;
  float* x = &streams[b * w.streams * w.dim];
  std::memcpy(x, embedding, w.dim * sizeof(float));
  if (w.positions && !prefix) kernels.add(x, w.positions_table + rows[b].slot->position_ids[rows[b].position] * w.dim, w.dim);
  for (int s = 1; s < w.streams; s++) std::memcpy(x + static_cast<size_t>(s) * w.dim, x, w.dim * sizeof(float));
}

// bias[b][g][j][h] = table[g * together + h][clip(cq[b] - ck[b, j], 0, entries - 1)], once for all layers; a chunk is a quarter of a row's keys.
void Step::gather_bias(Worker& worker) {
  constexpr int kParts = 4;
  const int together = kernels.heads_together;
  worker.each(B * kParts, [&](int chunk) {
    const size_t b = chunk / kParts;
    const Share keys_of(static_cast<int>(rows[b].position) + 1, chunk % kParts, kParts);
    const int64_t* coordinates = rows[b].slot->key_coordinates.data();
    for (int g = 0; g < groups(); g++) {
      const int heads = std::min(together, w.heads - g * together);
      const float* table = w.bias + static_cast<size_t>(g) * together * w.bias_entries;
      float* to = &bias[(b * groups() + g) * bias_stride];
      for (int j = keys_of.first; j < keys_of.last; j++) {
        const int64_t distance = rows[b].query - coordinates[j];
        const int64_t entry = distance < 0 ? 0 : distance >= w.bias_entries ? w.bias_entries - 1 : distance;
        for (int h = 0; h < heads; h++) to[j * together + h] = table[static_cast<size_t>(h) * w.bias_entries + entry];
      }
    }
  });
}

void Step::leave(size_t b) {
  float* x = &streams[b * w.streams * w.dim];
  if (w.streams == 1) kernels.add(x, branch_output.row(b), w.dim);
  else kernels.mix_out(x, &mixing[b * w.streams * (w.streams + 2)], branch_output.row(b), w.streams, w.dim);
}

void Step::quantize(const Matrix& matrix, size_t b, const float* x, Values& into) {
  if (matrix.bits == 32) return;
  kernels.quantize(x, matrix, &into.q[b * matrix.padded_inputs()], &into.scale[b * matrix.blocks], &into.offset[b * matrix.blocks]);
}

// The branch before is left, this one entered.
void Step::enter(int l, int branch, bool first, Worker& worker) {
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
      if (const float* prefix = prefix_of(b)) std::memcpy(input.row(b), prefix, w.dim * sizeof(float));
      quantize(layer.kv, b, input.row(b), input);
    }
  });
}

void Step::product_chunk(const Matrix& matrix, const Activations& a, Values& out, int chunk) {
  const int first = chunk * matrix.grain(), last = std::min(first + matrix.grain(), matrix.panels());
  kernels.product(matrix, a, out.x.data(), out.stride, first, last);
}

void Step::product(const Matrix& matrix, const Values& in, Values& out, Worker& worker) {
  const Activations a = in.activations(B);
  worker.each(matrix.chunks(), [&](int chunk) { product_chunk(matrix, a, out, chunk); });
}

// Columns first to last of this step's keys and values into the caches.
void Step::append(int layer, int first, int last) {
  const int D = w.cache_dim;
  for (int b = 0; b < B; b++) {
    const size_t at = rows[b].position * D;
    float *keys = rows[b].slot->keys(layer) + at, *values = rows[b].slot->values(layer) + at;
    const float* from = key_value.row(b);
    if (w.normalised && first == 0) kernels.normalise(from, model.layers[layer].key_scale, D, keys);  // the first chunk has all of the key
    for (int c = w.normalised ? D : first; c < std::min(last, D); c++) keys[c] = from[c];
    for (int c = std::max(first, D); c < std::min(last, 2 * D); c++) {
      float value = from[c], &kept = first_values[static_cast<size_t>(b) * D + c - D];
      if (layer == 0) kept = 0.5f * value;
      else if (w.value_residual) value += kept;
      values[c - D] = value;
    }
  }
}

void Step::self_attention(int l, Worker& worker) {
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

void Step::attend(int l, size_t b, int part, int thread) {
  const size_t first = static_cast<size_t>(part) * kKeys, at = first * w.cache_dim;
  Attention attention = {};
  attention.query = query.row(b);
  attention.keys = rows[b].slot->keys(l) + at;
  attention.values = rows[b].slot->values(l) + at;
  attention.bias = w.bias ? &bias[b * groups() * bias_stride + first * kernels.heads_together] : nullptr;
  attention.bias_stride = bias_stride;
  attention.heads = w.heads;
  attention.width = w.cache_dim;
  attention.length = static_cast<int>(std::min<int64_t>(kKeys, rows[b].position + 1 - first));
  attention.scale = 1.0f / std::sqrt(static_cast<float>(w.head_dim));
  attention.normalised = w.normalised != 0;
  attention.scratch = scratch[thread].data();
  attention.part = &parts[(b * most_parts + part) * part_stride];
  kernels.attend(attention);
}

void Step::cross_attention(int l, Worker& worker) {
  const Layer& layer = model.layers[l];
  product(layer.cross_q, normed, query, worker);
  output_product(layer.cross_out, worker, [&](size_t b, float* to) { attend_context(l, b, worker.thread, to); });
}

// A few keys, those of the conditioning: less work than a phase.
void Step::attend_context(int l, size_t b, int thread, float* to) {
  Attention attention = {};
  attention.query = query.row(b);
  attention.keys = rows[b].slot->context_keys(l);
  attention.values = rows[b].slot->context_values(l);
  attention.heads = w.heads;
  attention.width = w.head_dim;
  attention.length = static_cast<int>(rows[b].slot->context);
  attention.scale = 1.0f;
  attention.part = scratch[thread].data();
  attention.scratch = attention.part + part_size(w.heads, w.head_dim);
  kernels.attend(attention);
  kernels.join(attention.part, 1, 0, w.heads, w.head_dim, attention.scratch, to);
}

// y = attended @ W_out
template <class Attend>
void Step::output_product(const Matrix& matrix, Worker& worker, Attend attend_row) {
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

// The convolution of panels first to last, by the thread that has just computed them: no other one reads or writes these columns, neither
// in this step's rows nor in what the slots keep. So the positions of a prompt can follow one another, as those of decode steps do.
void Step::convolve(int l, int first, int last) {
  for (int b = 0; b < B; b++) {
    const float* before = rows[b].slot->convolved_before(l, rows[b].position) + first * 2 * kPanel;
    float* after = rows[b].slot->convolved_up_to(l, rows[b].position) + first * 2 * kPanel;
    kernels.convolve(unfolded.row(b) + first * kPanel, last - first, model.layers[l].taps + first * 3 * kPanel, before, after);
  }
}

void Step::feed_forward(int l, Worker& worker) {
  const Layer& layer = model.layers[l];
  worker.each(layer.feed_in.chunks(), [&](int chunk) {
    product_chunk(layer.feed_in, normed.activations(B), unfolded, chunk);
    const int first = chunk * layer.feed_in.grain();
    if (w.convolution) convolve(l, first, std::min(first + layer.feed_in.grain(), layer.feed_in.panels()));
  });
  worker.each(B, [&](int b) {
    kernels.gate(unfolded.row(b), w.inner, gated.row(b));
    kernels.norm(gated.row(b), layer.inner_norm, w.inner, gated.row(b));
    quantize(layer.feed_out, b, gated.row(b), gated);
  });
  product(layer.feed_out, gated, branch_output, worker);
}

void Step::predict(Worker& worker) {
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
      float* to = rows[b].slot->logits(head);
      for (int v = first; v < last; v++) to[v] = prediction.row(b)[v] + (w.head_bias ? w.head_bias[v] : 0.0f);
    }
  });
  worker.each(static_cast<int>(drawing->size()), [&](int sequence) { (*drawing)[sequence]->draw(rooms[worker.thread]); });
}

}  // namespace decoder_step
