// The memory that the steps of a batch compute in: taken when a sequence joins, kept for the next ones, and stated beforehand.
#include <algorithm>

#include "step.h"

namespace decoder_step {

namespace {

// How much memory a step takes, for `rows` rows with caches of `positions` and contexts of `context` keys.
struct Scratch {
  Scratch(const ds_model& model, size_t rows_, size_t positions, size_t context)
      : w(model.sizes),
        rows(rows_),
        heads_together(model.kernels->heads_together),
        most_parts((positions + kKeys - 1) / kKeys),
        part_stride(part_size(w.heads, w.cache_dim)),
        bias_stride(up(positions) * heads_together),
        // with a part of its own for the context, which has but one
        of_thread(part_size(w.heads, w.head_dim) +
                  std::max(attention_scratch(std::max(w.cache_dim, w.head_dim), std::max<size_t>(kKeys, context)), most_parts * up(w.heads))) {}
  size_t streams() const { return rows * w.streams * w.dim; }
  size_t mixing() const { return rows * w.streams * (w.streams + 2); }
  size_t first_values() const { return rows * w.cache_dim; }
  size_t parts() const { return rows * most_parts * part_stride; }
  size_t bias() const { return w.bias ? rows * ((w.heads + heads_together - 1) / heads_together) * bias_stride : 0; }

  const ds_weights& w;
  const size_t rows;
  const int heads_together;
  const size_t most_parts, part_stride, bias_stride, of_thread;
};

size_t wide(const ds_weights& w) { return static_cast<size_t>(w.heads) * w.cache_dim; }

}  // namespace

Step::Step(ds_pool* pool_, const ds_model* model_)
    : model(*model_),
      w(model_->sizes),
      pool(pool_->pool),
      kernels(*model_->kernels),
      least_bytes(pool_->least_bytes),
      part_stride(part_size(w.heads, w.cache_dim)),
      own(pool.threads()),
      scratch(pool.threads()),
      rooms(pool.threads(), Drawing(w.vocabulary)) {
  pool.reserve(phases());
}

void Step::reserve(size_t wanted_rows, size_t positions, size_t context) {
  if (wanted_rows <= most_rows && positions <= most_positions && context <= most_context) return;
  const size_t rows_ = std::max(wanted_rows, most_rows);
  positions = std::max(positions, most_positions);
  context = std::max(context, most_context);
  const Scratch sizes(model, rows_, positions, context);
  const Layer& layer = model.layers[0];
  for (Values* values_of : {&input, &normed, &branch_output}) values_of->resize(rows_, w.dim);
  input.resize_quantized(rows_, layer.kv);
  normed.resize_quantized(rows_, layer.q);
  query.resize(rows_, wide(w));
  key_value.resize(rows_, 2 * static_cast<size_t>(w.cache_dim));
  unfolded.resize(rows_, 2 * static_cast<size_t>(w.inner));
  gated.resize(rows_, w.inner);
  gated.resize_quantized(rows_, layer.feed_out);
  prediction.resize(rows_, w.vocabulary);
  for (Values& values_of : own) {
    values_of.resize(rows_, wide(w));
    values_of.resize_quantized(rows_, layer.out);
  }
  for (Floats& of_thread : scratch) of_thread.assign(sizes.of_thread, 0.0f);
  streams.assign(sizes.streams(), 0.0f);
  mixing.assign(sizes.mixing(), 0.0f);
  first_values.assign(sizes.first_values(), 0.0f);
  parts.assign(sizes.parts(), 0.0f);
  bias.assign(sizes.bias(), 0.0f);
  most_rows = rows_, most_positions = positions, most_context = context;
  most_parts = sizes.most_parts, bias_stride = sizes.bias_stride;
}

size_t Step::bytes(const ds_pool* pool, const ds_model* model, size_t rows, size_t positions, size_t context) {
  const Scratch sizes(*model, rows, positions, context);
  const ds_weights& w = model->sizes;
  const Layer& layer = model->layers[0];
  const size_t threads = pool->pool.threads();
  size_t floats = rows * (3 * up(w.dim) + up(wide(w)) * (1 + threads) + up(2 * w.cache_dim) + up(2 * w.inner) + up(w.inner) + up(w.vocabulary));
  floats += threads * (sizes.of_thread + 3 * w.vocabulary) + sizes.streams() + sizes.mixing() + sizes.first_values() + sizes.parts() + sizes.bias();
  size_t bytes = floats * sizeof(float);
  const auto add = [&](const Matrix& matrix, size_t times) {
    if (matrix.bits != 32) bytes += times * rows * (matrix.padded_inputs() + matrix.blocks * (sizeof(float) + sizeof(int32_t)));
  };
  add(layer.kv, 1), add(layer.q, 1), add(layer.feed_out, 1), add(layer.out, threads);
  return bytes;
}

}  // namespace decoder_step
