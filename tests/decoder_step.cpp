// Drives the native step through its C interface, for sanitizer builds: every path, 32, 8 and 4 bits, 1 to 3 threads, odd sizes, sequences that
// join and leave at random, two batches on one pool. Sanitizers find memory that is touched wrongly; this program checks that a sequence's tokens
// and logits do not depend on others, and what is refused. Built and run by test_decoder_products.py; returns 1 when anything is wrong.
#include <algorithm>
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

// What a model has: cross-attention; normalised attention, a convolution and absolute positions.
struct Parts {
  bool cross, variant;
};

// A model of random weights; each tensor in a vector of exactly its size, so that a read beyond it is seen.
struct Weights {
  static constexpr int dim = 19, depth = 2, heads = 5, head_dim = 7, cache_dim = 8, inner = 229, streams = 3, vocabulary = 21;
  static constexpr int outputs = 2, table_rows = 45, bias_entries = 9, positions = 83;
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

  Weights(int bits, int block, Parts parts) {
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
      if (parts.cross) {
        layer.cross_norm = norm(dim);
        layer.cross_q = matrix(dim, heads * head_dim);
        layer.cross_out = matrix(heads * head_dim, dim);
      }
      layer.feed_norm = norm(dim);
      layer.feed_in = matrix(dim, 2 * inner);
      layer.inner_norm = norm(inner);
      layer.feed_out = matrix(inner, dim);
      if (parts.variant) layer.key_scale = tensor(cache_dim, 1), layer.taps = tensor(3 * 2 * inner);
    }
    for (int head = 0; head < outputs; head++) heads_out.push_back(tensor(dim * vocabulary));
    w = {dim, depth, heads, head_dim, cache_dim, inner, streams, vocabulary, outputs, table_rows, bias_entries, 1, bits, block,
         tensor(table_rows * dim), tensor(heads * bias_entries), layers.data(), norm(dim), heads_out.data(), tensor(vocabulary), parts.variant, parts.variant,
         parts.variant ? positions : 0, parts.variant ? tensor(positions * dim) : nullptr};
  }
};

constexpr uint64_t kSeed = uint64_t{5} << 33 | 7;

// A sequence of kind 0 to 5: its prompt, condition and settings, in arrays of exactly their sizes.
struct Given {
  std::vector<int64_t> ids, query, key, position_ids;
  std::vector<std::vector<float>> keys, values;
  std::vector<const float*> key_table, value_table;
  std::vector<float> prefix, noise;
  ds_sequence sequence = {};

  Given(int kind, Parts parts) {
    std::mt19937 own(kind < 4 ? kind : 3);  // the last three have the same condition, and prompts that are the same but for a row of the last's
    const auto floats = [&](size_t n) {
      std::vector<float> made(n);
      for (float& value : made) value = std::normal_distribution<float>(0, 1)(own);
      return made;
    };
    const int n = kind == 0 ? 1 : kind == 1 ? 70 : kind == 2 ? 10 : 15;
    for (int i = 0; i < n; i++) {
      ids.push_back(own() % Weights::table_rows);
      query.push_back(i % 7 == 3 ? int64_t{1} << 40 : i);
      key.push_back(i == 2 ? -(int64_t{1} << 42) : i);
    }
    const int64_t context = parts.cross ? 3 : 0, prefix_positions = parts.cross ? 0 : kind % 3;
    if (kind == 5) ids[1] = (ids[1] + 1) % Weights::table_rows;
    for (int layer = 0; layer < Weights::depth && parts.cross; layer++) {
      keys.push_back(floats(context * Weights::head_dim));
      values.push_back(floats(context * Weights::head_dim));
      key_table.push_back(keys.back().data());
      value_table.push_back(values.back().data());
    }
    prefix = floats(prefix_positions * Weights::dim);
    const int64_t k[] = {1, 4, 10, Weights::vocabulary, 7, 2}, frames[] = {0, -1, 2, 4, 2, 0};
    const ds_rules rules = {3, Weights::vocabulary, 2, n, 2, 5, 1, 0, kind % 3, frames[kind], kind % 2 ? Weights::vocabulary - 1 : -1, k[kind]};
    sequence = {n, ids.data(), query.data(), key.data(), context, key_table.data(), value_table.data(), prefix_positions, prefix.data(),
                kind % 2, rules, 2 * (kind % 2), 2, kind == 2 ? 3 : 11 + kind, kSeed + static_cast<uint64_t>(kind), kind, 100 * kind, kind == 4 ? 0.0f : 0.8f, 3,
                nullptr};
    for (int64_t i = 0; i < n + sequence.steps - 1; i++) position_ids.push_back((7 * i + std::min(kind, 3)) % Weights::positions);
    if (parts.variant) sequence.position_ids = position_ids.data();
  }
};

struct Made {
  int64_t id = 0;
  std::vector<int64_t> tokens;
  std::vector<float> logits;
  bool done = false;
};

void collect(ds_batch* batch, const Given& given, Made& made) {
  int64_t tokens[3];
  int done = 0;
  for (int64_t count = 1; count;) {
    count = ds_batch_collect(batch, made.id, tokens, 3, &done);
    if (count > 0) made.tokens.insert(made.tokens.end(), tokens, tokens + count);
  }
  made.done = done;
  made.logits.assign((1 + given.sequence.guided) * Weights::outputs * Weights::vocabulary, 0);
  ds_batch_logits(batch, made.id, made.logits.data());
}

Made alone(ds_pool* pool, const ds_model* model, Parts parts, int kind) {
  Made made;
  ds_batch* batch = ds_batch_create(pool, model);
  char error[200] = "";
  {
    const Given given(kind, parts);  // is copied
    made.id = ds_batch_join(batch, &given.sequence, error, sizeof error);
  }
  const Given given(kind, parts);
  if (!made.id) std::printf("%s\n", error);
  for (int frame = 0; made.id && !made.done && frame < 100; frame++) {
    if (ds_batch_advance(batch, 1, 1000) != DS_OK) return made;
    collect(batch, given, made);
  }
  ds_batch_free(batch);
  return made;
}

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Whether sequences that join and leave at random have the tokens, and those that end the last logits, that each has alone.
bool sequences_are_independent(ds_pool* pool, const ds_model* model, Parts parts, int seed) {
  std::mt19937 random(seed);
  std::vector<Made> expected;
  for (int kind = 0; kind < 6; kind++) {
    expected.push_back(alone(pool, model, parts, kind));
    if (!expected.back().done || !std::isfinite(expected.back().logits[0])) return false;
  }
  std::vector<Given> given;
  for (int kind = 0; kind < 6; kind++) given.emplace_back(kind, parts);
  struct Present {
    int kind;
    Made made;
  };
  std::vector<Present> there;
  ds_batch* batch = ds_batch_create(pool, model);
  bool right = true;
  char error[200] = "";
  int ended = 0;
  for (int turn = 0; turn < 30 && right; turn++) {
    while (there.size() < 1 + random() % 6) {
      there.push_back({static_cast<int>(random() % 6), {}});
      there.back().made.id = ds_batch_join(batch, &given[there.back().kind].sequence, error, sizeof error);
      right = right && there.back().made.id > 0;
    }
    right = right && ds_batch_advance(batch, random() % 4, random() % 30) == DS_OK;
    for (size_t i = 0; i < there.size();) {
      Made& made = there[i].made;
      const Made& all = expected[there[i].kind];
      collect(batch, given[there[i].kind], made);
      right = right && made.tokens.size() <= all.tokens.size() && std::equal(made.tokens.begin(), made.tokens.end(), all.tokens.begin());
      if (made.done) right = right && made.tokens == all.tokens && equal(made.logits, all.logits);
      ended += made.done;
      if (made.done || random() % 15 == 0) {
        right = right && ds_batch_leave(batch, made.id) == DS_OK && ds_batch_leave(batch, made.id) == DS_BAD_ID;
        there.erase(there.begin() + i);
      } else {
        i++;
      }
    }
  }
  ds_batch_free(batch);
  return right && ended > 3;
}

// Whether a batch refuses what it cannot take, and goes on.
bool refuses(ds_pool* pool, const ds_model* model, Parts parts) {
  ds_batch* batch = ds_batch_create(pool, model);
  char error[200] = "";
  Given good(2, parts), bad(2, parts);
  bool right = true;
  const auto refused = [&](auto change) {
    bad.sequence = good.sequence;
    change(bad.sequence);
    error[0] = 0;
    right = right && ds_batch_join(batch, &bad.sequence, error, sizeof error) == 0 && error[0];
  };
  for (int64_t wrong : {int64_t{-2}, INT64_MIN, INT64_MAX}) {
    refused([&](ds_sequence& s) { s.positions = wrong; });
    refused([&](ds_sequence& s) { s.context = wrong; });
    refused([&](ds_sequence& s) { s.prefix_positions = wrong; });
    refused([&](ds_sequence& s) { s.known = wrong; });
    if (wrong != -2) refused([&](ds_sequence& s) { s.in_frames = wrong; });  // a first frame may end after the prompt
    refused([&](ds_sequence& s) { s.steps = wrong; });
    refused([&](ds_sequence& s) { s.item = wrong; });
    refused([&](ds_sequence& s) { s.first = wrong; });
    for (int64_t ds_rules::*number : {&ds_rules::first_row, &ds_rules::codebook, &ds_rules::quantizers, &ds_rules::per_frame, &ds_rules::stride,
                                      &ds_rules::stage, &ds_rules::frame, &ds_rules::end, &ds_rules::k}) {
      refused([&](ds_sequence& s) { s.rules.*number = wrong; });
    }
  }
  refused([&](ds_sequence& s) { s.rules.origin = INT64_MIN; });
  refused([&](ds_sequence& s) { s.rules.shift = INT64_MAX; });
  refused([&](ds_sequence& s) { s.rules.first_row = Weights::table_rows - 30; });
  refused([&](ds_sequence& s) { s.context = parts.cross ? 0 : 3; });
  refused([&](ds_sequence& s) { s.temperature = NAN; });
  refused([&](ds_sequence& s) { s.temperature = -1; });
  refused([&](ds_sequence& s) { s.scale = INFINITY; });
  for (int64_t row : {int64_t{-1}, int64_t{Weights::table_rows}}) {
    bad.ids.back() = row;
    refused([&](ds_sequence& s) { s.ids = bad.ids.data(); });
  }
  refused([&](ds_sequence& s) { s.position_ids = parts.variant ? nullptr : bad.position_ids.data(); });
  for (int64_t row : {int64_t{-1}, int64_t{Weights::positions}}) {
    bad.position_ids.back() = row;
    refused([&](ds_sequence& s) { s.position_ids = bad.position_ids.data(); });
  }
  bad.query.front() = INT64_MIN;
  refused([&](ds_sequence& s) { s.query_coordinates = bad.query.data(); });
  bad.key.back() = INT64_MAX;
  refused([&](ds_sequence& s) { s.key_coordinates = bad.key.data(); });

  int done = 0;
  int64_t token = 0;
  right = right && ds_batch_waiting(batch) == 0 && ds_batch_advance(batch, 5, 5) == DS_OK;
  right = right && ds_batch_advance(batch, -1, 0) == DS_BAD_COUNT && ds_batch_advance(batch, 0, -1) == DS_BAD_COUNT;
  right = right && ds_batch_collect(batch, 1, &token, 1, &done) == -1 && ds_batch_sampled(batch, 1) == -1;
  right = right && ds_batch_logits(batch, 0, nullptr) == DS_BAD_ID && ds_batch_noise(batch, 7, nullptr) == DS_BAD_ID;
  const int64_t id = ds_batch_join(batch, &good.sequence, error, sizeof error);
  right = right && id > 0 && ds_batch_waiting(batch) == 9 + good.sequence.prefix_positions;
  good.noise.assign(2 * Weights::vocabulary, 0);  // of a frame
  good.noise[5] = good.noise[Weights::vocabulary + 11] = 1e6;
  ds_sequence all_kept = good.sequence;
  all_kept.rules.k = Weights::vocabulary;
  const int64_t forced = ds_batch_join(batch, &all_kept, error, sizeof error);
  right = right && ds_batch_noise(batch, forced, good.noise.data()) == DS_OK && ds_batch_advance(batch, 1, 100) == DS_OK;
  int64_t tokens[2] = {};
  right = right && ds_batch_sampled(batch, forced) == 2 && ds_batch_collect(batch, forced, tokens, 2, &done) == 2;
  right = right && tokens[0] == 5 && tokens[1] == 11 && !done;
  right = right && ds_batch_computed(batch) == 9 + good.sequence.prefix_positions;  // the prompt is the same
  ds_batch_free(batch);
  return right;
}

}  // namespace

int main() {
  int failures = 0, done = 0;
  for (int threads = 1; threads <= 3; threads++) {
    ds_pool* pool = ds_pool_create(threads, 0);
    for (int path = 0; path < 4; path++) {
      if (!(ds_paths() >> path & 1)) continue;
      for (int bits : {32, 8, 4}) {
        const Parts parts = {bits != 8, threads != 2};
        const Weights weights(bits, 32, parts);
        char error[200] = "";
        ds_model* model = ds_model_create(pool, &weights.w, path, error, sizeof error);
        if (!model) {
          std::printf("%s\n", error);
          return 1;
        }
        bool other = false;
        std::thread beside([&] { other = sequences_are_independent(pool, model, parts, 1); });
        const bool right = sequences_are_independent(pool, model, parts, 2) && refuses(pool, model, parts);
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
