// Attention of one row over some keys, all heads together, for each form of the code as lanes.h is:
//
//   part    out[h] = sum_j exp(s[h, j] - top[h]) v[j],  total[h] = sum_j exp(s[h, j] - top[h]),  s[h, j] = q[h] . k[j] * scale + bias[h, j]
//   join    out[h] = sum_p w[p, h] out[p, h] / sum_p w[p, h] total[p, h],  w[p, h] = exp(top[p, h] - max_p top[p, h])
//
// One head's keys and values serve all heads (kernels/attention), so a key is loaded once for kHeads of them. Scores stand as [key][kHeads],
// two keys in a vector: sixteen dot products are added up across lanes together, and exponentials have no lane to spare. Values are read
// ahead while the keys are computed with, and the other way round.

constexpr int kHeads = LANES / 2;
constexpr int kLine = 16;  // floats of a cache line

// query [width / LANES, rounded up][kHeads][LANES] -> lane l: the product of head l % kHeads with the first or second key.
inline F scores_of(const float* query, const float* first, const float* second, int width) {
  F products[LANES] = {};
  int d = 0;
  const auto take = [&](F one, F other) {
    for (int h = 0; h < kHeads; h++) {
      const F q = load(query + d * kHeads + h * LANES);
      products[h] += q * one;
      products[kHeads + h] += q * other;
    }
  };
  for (; d + LANES <= width; d += LANES) take(load(first + d), load(second + d));
  if (d < width) take(load(first + d, width - d), load(second + d, width - d));
  return across<Plus>(products);
}

// Columns d to d + PARTS * LANES of the values, weighted; of the last vector n lanes.
template <int PARTS>
inline void weighted_values(const Attention& a, const float* weights, int heads, int d, int n, float* out) {
  F total[kHeads][PARTS] = {};
  for (int j = 0; j < a.length; j++) {
    const float* value = a.values + static_cast<size_t>(j) * a.width + d;
    F v[PARTS];
    for (int i = 0; i < PARTS * LANES; i += kLine) read_ahead(a.keys + static_cast<size_t>(a.length + j) * a.width + d + i);
    for (int part = 0; part < PARTS; part++) v[part] = load(value + part * LANES, part < PARTS - 1 ? LANES : n);
    for (int h = 0; h < kHeads; h++) {
      for (int part = 0; part < PARTS; part++) total[h][part] += v[part] * weights[j * kHeads + h];
    }
  }
  for (int h = 0; h < heads; h++) {
    for (int part = 0; part < PARTS; part++) {
      store(out + static_cast<size_t>(h) * a.width + d + part * LANES, total[h][part], part < PARTS - 1 ? LANES : n);
    }
  }
}

// Heads g * kHeads and on.
inline void attend_group(const Attention& a, int g) {
  const int heads = a.heads - g * kHeads < kHeads ? a.heads - g * kHeads : kHeads;
  float *query = a.scratch, *scores = query + up(a.width) * kHeads;
  const float* given = a.query + static_cast<size_t>(g) * kHeads * a.width;
  float scale[kHeads];
  for (int h = 0; h < heads; h++) scale[h] = a.normalised ? inverse_length(given + static_cast<size_t>(h) * a.width, a.width) : a.scale;
  for (int d = 0; d < a.width; d += LANES) {
    for (int h = 0; h < kHeads; h++) {
      const float* q = given + static_cast<size_t>(h) * a.width + d;
      store(query + d * kHeads + h * LANES, h < heads ? load(q, a.width - d) * scale[h] : F{});
    }
  }
  const float* bias = a.bias ? a.bias + g * a.bias_stride : nullptr;
  F most = splat(-3e38f);
  for (int j = 0; j < a.length; j += 2) {
    const float* key = a.keys + static_cast<size_t>(j) * a.width;
    const bool both = j + 1 < a.length;
    for (int d = 0; d < 2 * a.width; d += kLine) read_ahead(a.values + static_cast<size_t>(j) * a.width + d);
    F s = scores_of(query, key, both ? key + a.width : key, a.width);
    if (bias) s += load(bias + j * kHeads, both ? LANES : kHeads);
    if (!both) {
      for (int lane = kHeads; lane < LANES; lane++) s[lane] = -3e38f;
    }
    store(scores + j * kHeads, s);
    most = larger(most, s);
  }
  most = fold<Larger, LANES>(most, most);
  F total = {};
  for (int j = 0; j < a.length; j += 2) {
    const F e = exponential(load(scores + j * kHeads) - most);
    store(scores + j * kHeads, e);
    total += e;
  }
  total = fold<Plus, LANES>(total, total);
  const size_t H = up(a.heads);
  store(a.part + g * kHeads, most, heads);
  store(a.part + H + g * kHeads, total, heads);
  float* out = a.part + 2 * H + static_cast<size_t>(g) * kHeads * a.width;
  int d = 0;
  for (; d + 2 * LANES <= a.width; d += 2 * LANES) weighted_values<2>(a, scores, heads, d, LANES, out);
  for (; d < a.width; d += LANES) weighted_values<1>(a, scores, heads, d, a.width - d, out);
}

void attend(const Attention& a) {
  for (int g = 0; g * kHeads < a.heads; g++) attend_group(a, g);
}

void join(const float* parts, int count, size_t stride, int heads, int width, float* weights, float* out) {
  const size_t H = up(heads);
  for (int h = 0; h < heads; h += LANES) {
    F top = splat(-3e38f), total = {};
    for (int p = 0; p < count; p++) top = larger(top, load(parts + p * stride + h));
    for (int p = 0; p < count; p++) {
      const F w = exponential(load(parts + p * stride + h) - top);
      store(weights + p * H + h, w);
      total += w * load(parts + p * stride + H + h);
    }
    for (int p = 0; p < count; p++) store(weights + p * H + h, load(weights + p * H + h) / total);
  }
  for (int h = 0; h < heads; h++) {
    for (int d = 0; d < width; d += LANES) {
      F v = {};
      for (int p = 0; p < count; p++) v += load(parts + p * stride + 2 * H + static_cast<size_t>(h) * width + d, width - d) * weights[p * H + h];
      store(out + static_cast<size_t>(h) * width + d, v, width - d);
    }
  }
}
