// See sampler.h:  token = argmax( top_k(null + (cond - null) * scale) / temperature + gumbel )
//
// Equal logits must give numpy's tokens, so no multiplication is fused with an addition here, whatever the rest is compiled with.
// Noise is drawn for the entries that top-k keeps, and made from its bits for those that it could make the largest: logarithms would take most
// of the time.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace decoder_step {

namespace {

// Philox 4x32-10 (runtime/noise.py): the four words of one counter.
struct Philox {
  uint32_t words[4];
  Philox(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint64_t seed) {
    uint32_t first = static_cast<uint32_t>(seed), second = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; round++) {
      const uint64_t p = uint64_t{0xD2511F53} * a, q = uint64_t{0xCD9E8D57} * c;
      a = static_cast<uint32_t>(q >> 32) ^ b ^ first;
      b = static_cast<uint32_t>(q);
      c = static_cast<uint32_t>(p >> 32) ^ d ^ second;
      d = static_cast<uint32_t>(p);
      first += 0x9E3779B9, second += 0xBB67AE85;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
  }
};

float gumbel(uint32_t bits) { return static_cast<float>(-std::log(-std::log(((bits >> 8) + 0.5) / 16777216.0))); }

// What no noise of bits with the same upper byte exceeds: a margin beyond the noise of the largest of them, since logarithms are rounded.
struct NoiseBounds {
  float of[256];
  NoiseBounds() {
    for (uint32_t upper = 0; upper < 256; upper++) of[upper] = gumbel(upper << 24 | 0xFFFFFF) + 1e-4f;
  }
};

// The k-th largest of n whole numbers, found bit by bit: T is int16_t, of which a vector holds twice as many, or int32_t.
template <class T>
T kth_largest(const T* numbers, int n, int64_t k) {
  constexpr int kTogether = 1 << 14;  // whose count T holds
  int64_t found = std::numeric_limits<T>::min();
  for (int64_t step = -found; step; step >>= 1) {
    const T least = static_cast<T>(found + step - 1);
    int64_t count = 0;
    for (int first = 0; first < n; first += kTogether) {
      const int last = std::min(n, first + kTogether);
      T part = 0;
      for (int v = first; v < last; v++) part = static_cast<T>(part + (numbers[v] > least));
      count += part;
    }
    if (count >= k) found += step;
  }
  return static_cast<T>(found);
}

// The k-th largest of the scores. Floats are ordered as their bits are, those below zero once all bits but the sign are turned: first by the upper
// halves, then, among those that share the half of the one that is sought, by all bits.
float kth_largest(int64_t k, Drawing& room) {
  const int n = static_cast<int>(room.scores.size());
  const auto ordered = [](int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); };
  int32_t *order = room.order.data(), bits;
  int16_t* upper = room.upper.data();
  for (int v = 0; v < n; v++) {
    std::memcpy(&bits, &room.scores[v], 4);
    order[v] = ordered(bits);
    upper[v] = static_cast<int16_t>(order[v] >> 16);
  }
  const int16_t half = kth_largest(upper, n, k);
  int alike = 0;
  for (int v = 0; v < n; v++) {
    k -= upper[v] > half;
    order[alike] = order[v];
    alike += upper[v] == half;
  }
  bits = ordered(kth_largest(order, alike, k));
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

}  // namespace

int64_t sample(const Draw& draw, Drawing& room) {
  const int V = draw.vocabulary;
  float* s = room.scores.data();
  if (const float* null = draw.without_condition) {
    for (int v = 0; v < V; v++) s[v] = null[v] + (draw.logits[v] - null[v]) * draw.scale;
  } else {
    std::memcpy(s, draw.logits, V * sizeof(float));
  }
  if (draw.forbids_last) s[V - 1] = -INFINITY;
  int64_t best = 0;
  float most = -INFINITY;
  if (draw.temperature == 0) {
    for (int v = 0; v < V; v++) {
      if (s[v] > most) most = s[v], best = v;
    }
    return best;
  }
  static const NoiseBounds bounds;
  const float least = kth_largest(draw.k, room);
  for (int first = 0; first < V; first += 4) {
    const int last = first + 4 < V ? first + 4 : V;
    bool kept = false;
    for (int v = first; v < last; v++) kept |= s[v] >= least;  // as floats, of which both zeros are equal
    if (!kept) continue;
    const Philox noise(first / 4, draw.token, draw.stage, draw.item, draw.seed);
    for (int v = first; v < last; v++) {
      if (!(s[v] >= least)) continue;
      const float scaled = s[v] / draw.temperature;
      const uint32_t bits = noise.words[v - first];
      // A sum is rounded the same way whatever is added, so that one whose bound stays below is below.
      if (!draw.noise && scaled + bounds.of[bits >> 24] <= most) continue;
      const float score = scaled + (draw.noise ? draw.noise[v] : gumbel(bits));
      if (score > most) most = score, best = v;
    }
  }
  return best;
}

}  // namespace decoder_step
