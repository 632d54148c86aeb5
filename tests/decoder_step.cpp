// Drives the native step through its C interface, for sanitizer builds: every path, 32, 8 and 4 bits, 1 to 3 threads, odd sizes, a full cache,
// two callers of one pool. Memory that is touched wrongly is the sanitizers' to find; that rows do not depend on each other is checked here.
// Built and run by test_decoder_products.py; prints what it did, and returns 1 when logits differ.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../kernels/decoder_step/decoder_step.h"

namespace {

std::mt19937 generator(0);

std::vector<float> random_floats(size_t n, float around = 0) {
  std::normal_distribution<float> normal(0, 0.3f);
  std::vector<float> values(n);
  for (float& value : values) value = around + normal(generator);
  return values;
}

// A model of random weights; each tensor in a vector of exactly its size, so that a read beyond it is seen.
struct Weights {
  static constexpr int dim = 19, depth = 2, heads = 5, head_dim = 7, cache_dim = 8, inner = 45, streams = 3, vocabulary = 21;
  static constexpr int outputs = 2, table_rows = 6, bias_entries = 9;
  std::vector<std::vector<float>> kept;
  std::vector<std::vector<uint8_t>> kept_bytes;
  std::vector<ds_layer> layers{depth};
  std::vector<const float*> heads_out;
  ds_weights w = {};

  const float* tensor(size_t n, float around = 0) {
    kept.push_back(random_floats(n, around));
    return kept.back().data();
  }
  ds_matrix matrix(int inputs, int outputs) {
    if (w.bits == 32) return {tensor(inputs * outputs), nullptr};
    const int blocks = (inputs + w.block - 1) / w.block;
    std::vector<uint8_t> bytes(static_cast<size_t>(outputs) * blocks * w.block * w.bits / 8);
    for (uint8_t& byte : bytes) byte = generator() & 255;
    kept_bytes.push_back(bytes);
    std::vector<float> scales(outputs * blocks, w.bits == 8 ? 0x1p-8f : 0x1p-4f);
    kept.push_back(scales);
    return {kept_bytes.back().data(), kept.back().data()};
  }
  ds_norm norm(int n) { return {tensor(n, 1), n % 2 ? tensor(n) : nullptr}; }

  Weights(int bits, int block, bool cross) {
    w.bits = bits;
    w.block = block;
    for (ds_layer& layer : layers) {
      layer = {};
      for (ds_connection& connection : layer.connections) {
        connection = {tensor(dim, 1), tensor(dim * (streams + 2)), tensor(streams + 2), tensor(streams * (streams + 2))};
      }
      layer.attention_norm = norm(dim);
      layer.attention_q = matrix(dim, heads * cache_dim);
      layer.attention_kv = matrix(dim, 2 * cache_dim);
      layer.attention_out = matrix(heads * cache_dim, dim);
      if (cross) {
        layer.cross_norm = norm(dim);
        layer.cross_q = matrix(dim, heads * head_dim);
        layer.cross_out = matrix(heads * head_dim, dim);
      }
      layer.feed_norm = norm(dim);
      layer.feed_in = matrix(dim, 2 * inner);
      layer.inner_norm = norm(inner);
      layer.feed_out = matrix(inner, dim);
    }
    for (int head = 0; head < outputs; head++) heads_out.push_back(tensor(dim * vocabulary));
    w = {dim, depth, heads, head_dim, cache_dim, inner, streams, vocabulary, outputs, table_rows, bias_entries, 1, bits, block,
         tensor(table_rows * dim), tensor(heads * bias_entries), layers.data(), norm(dim), heads_out.data(), tensor(vocabulary)};
  }
};

constexpr int kCapacity = 23, kContext = 3, kSteps = 3, kPrefix = 2;

// One request of some rows, row r with the same contents whatever rows stand beside it; the last step fills the longest row's cache.
// at_once: the steps of each row as rows of a single one.
std::vector<float> logits_of(ds_pool* pool, const ds_model* model, const Weights& weights, bool cross, const std::vector<int>& rows,
                             bool at_once) {
  const size_t B = rows.size(), D = Weights::cache_dim, E = Weights::head_dim;
  const size_t each = at_once ? kSteps : 1, N = B * each;
  std::vector<int64_t> sequences(N), ids(N), query(N), key(B * kCapacity), lengths(N);
  std::vector<std::vector<float>> keys(Weights::depth), values(Weights::depth), context_keys(Weights::depth), context_values(Weights::depth);
  const auto fill = [&](std::vector<float>& to, size_t each, int salt) {
    for (int row : rows) {
      std::mt19937 own(row * 100 + salt);
      for (size_t i = 0; i < each; i++) to.push_back(std::normal_distribution<float>(0, 1)(own));
    }
  };
  std::vector<float*> key_table, value_table;
  std::vector<const float*> context_key_table, context_value_table;
  for (int layer = 0; layer < Weights::depth; layer++) {
    fill(keys[layer], kCapacity * D, layer);
    fill(values[layer], kCapacity * D, 10 + layer);
    fill(context_keys[layer], kContext * E, 20 + layer);
    fill(context_values[layer], kContext * E, 30 + layer);
    key_table.push_back(keys[layer].data());
    value_table.push_back(values[layer].data());
    context_key_table.push_back(context_keys[layer].data());
    context_value_table.push_back(context_values[layer].data());
  }
  const std::vector<float> prefix(kPrefix * Weights::dim, 0.5f);
  std::vector<float> logits(N * Weights::vocabulary), all;
  const ds_buffers buffers = {static_cast<int32_t>(N), static_cast<int32_t>(B), kCapacity, cross ? kContext : 0, kPrefix, sequences.data(),
                              ids.data(), query.data(), lengths.data(), key.data(), key_table.data(), value_table.data(),
                              context_key_table.data(), context_value_table.data(), prefix.data(), logits.data()};
  char error[200] = "";
  ds_run* run = ds_run_create(pool, model, &buffers, error, sizeof error);
  if (!run) {
    std::printf("%s\n", error);
    return {};
  }
  for (size_t b = 0; b < B; b++) {
    for (int j = 0; j < kCapacity; j++) key[b * kCapacity + j] = j == 2 ? -(int64_t{1} << 42) : j;
  }
  const auto place = [&](size_t at, size_t b, int step) {
    sequences[at] = b;
    ids[at] = (rows[b] + step) % (weights.w.table_rows + kPrefix);
    lengths[at] = kCapacity - kSteps + 1 + step - rows[b] * 5;
    query[at] = rows[b] % 2 ? int64_t{1} << 40 : lengths[at];
  };
  if (at_once) {
    for (size_t at = 0; at < N; at++) place(at, at / kSteps, at % kSteps);
    if (ds_step(run, N, DS_NO_HEAD) != DS_OK) return {};
    all.resize(logits.size());
    for (int head = 0; head < Weights::outputs; head++) {  // the same positions again: they are written over
      if (ds_step(run, N, head) != DS_OK) return {};
      for (size_t i = 0; i < logits.size(); i++) {
        if (static_cast<int>(i / Weights::vocabulary % kSteps) % Weights::outputs == head) all[i] = logits[i];
      }
    }
  } else {
    for (int step = 0; step < kSteps; step++) {
      for (size_t b = 0; b < B; b++) place(b, b, step);
      if (ds_step(run, B, step % Weights::outputs) != DS_OK) return {};
      all.insert(all.end(), logits.begin(), logits.end());
    }
  }
  const int64_t last = lengths[N - 1];
  bool refused = ds_step(run, N, Weights::outputs) == DS_BAD_HEAD && ds_step(run, N + 1, 0) == DS_BAD_COUNT && ds_step(run, 0, 0) == DS_BAD_COUNT;
  lengths[N - 1] = at_once ? last - 1 : kCapacity + 1;
  refused = refused && ds_step(run, N, 0) == DS_BAD_LENGTH;
  lengths[N - 1] = last;
  sequences[N - 1] = B;
  refused = refused && ds_step(run, N, 0) == DS_BAD_COUNT;
  sequences[N - 1] = B - 1;
  ids[0] = weights.w.table_rows + kPrefix;
  refused = refused && ds_step(run, N, 0) == DS_BAD_ROW;
  ds_run_free(run);
  return refused ? all : std::vector<float>{};
}

// Whether the logits of these rows, in one batch, are those that each has alone, and those that it has when all its steps are one.
bool rows_are_independent(ds_pool* pool, const ds_model* model, const Weights& weights, bool cross, int count) {
  std::vector<int> rows;
  for (int b = 0; b < count; b++) rows.push_back(b % 4);
  const std::vector<float> together = logits_of(pool, model, weights, cross, rows, false);
  const std::vector<float> at_once = logits_of(pool, model, weights, cross, rows, true);
  const size_t V = Weights::vocabulary;
  if (together.size() != count * kSteps * V || at_once.size() != together.size()) return false;
  for (int b = 0; b < count; b++) {
    const std::vector<float> alone = logits_of(pool, model, weights, cross, {rows[b]}, false);
    if (alone.size() != kSteps * V) return false;
    for (size_t step = 0; step < kSteps; step++) {
      const float *expected = &alone[step * V], *beside = &together[(step * count + b) * V], *one = &at_once[(b * kSteps + step) * V];
      if (std::memcmp(beside, expected, V * sizeof(float)) != 0 || std::memcmp(one, expected, V * sizeof(float)) != 0) return false;
      if (!std::isfinite(expected[0])) return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  int failures = 0, done = 0;
  for (int threads = 1; threads <= 3; threads++) {
    ds_pool* pool = ds_pool_create(threads, 0);
    for (int path = 0; path < 4; path++) {
      if (!(ds_paths() >> path & 1)) continue;
      for (int bits : {32, 8, 4}) {
        const bool cross = bits != 8;
        const Weights weights(bits, 32, cross);
        char error[200] = "";
        ds_model* model = ds_model_create(pool, &weights.w, path, error, sizeof error);
        if (!model) {
          std::printf("%s\n", error);
          return 1;
        }
        bool right = rows_are_independent(pool, model, weights, cross, 1 + 4 * threads);
        bool other = false;
        std::thread beside([&] { other = rows_are_independent(pool, model, weights, cross, 2); });
        right = rows_are_independent(pool, model, weights, cross, 3) && right;
        beside.join();
        failures += !right || !other;
        done++;
        ds_model_free(model);
      }
    }
    ds_pool_free(pool);
  }
  std::printf("%d models, %d wrong\n", done, failures);
  return failures != 0;
}
