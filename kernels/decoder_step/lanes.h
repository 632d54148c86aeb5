// All of a step but the quantized products, written once over vectors of LANES floats (GCC's and Clang's vector types): each form of the
// code includes this file inside its own unnamed namespace, with its own LANES and its own instruction set.
//
// norm     y = (x - mean) / sqrt(var + 1e-5) * gain + bias
// mix_in   n = x / rms(x), mixing = tanh(n @ columns^T) * scale + offset, input = mixing[:, 0] . x                (kernels/hyper_connection)
// mix_out  x' = mixing[:, 1:-1]^T x + mixing[:, -1] (x) y
// gate     gelu(gate) * value, gelu by the error function                                                                (kernels/geglu)
// attend   softmax_j(q . k[j] * scale + bias[j]) @ v[j]                                                               (kernels/attention)
//
// The sums of a row run in the same order whatever the number of rows and threads, so a row's result depends on that row alone.

typedef float F __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

inline F load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, F v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline F splat(float x) { return x - F{}; }
inline F larger(F a, F b) { return a > b ? a : b; }

// The n first lanes, zeros beyond.
inline F load(const float* p, int n) {
  if (n >= LANES) return load(p);
  F v = {};
  __builtin_memcpy(&v, p, n * sizeof(float));
  return v;
}
inline void store(float* p, F v, int n) {
  if (n >= LANES) return store(p, v);
  __builtin_memcpy(p, &v, n * sizeof(float));
}

inline float sum(F v) {
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += v[lane];
  return total;
}
inline float largest(F v) {
  float found = v[0];
  for (int lane = 1; lane < LANES; lane++) found = v[lane] > found ? v[lane] : found;
  return found;
}

// e^x for x <= 0, to 2e-7: 2^n * e^r with |r| <= ln(2) / 2, a Taylor polynomial in r fitted at its end (Cephes' expf).
inline F exponential(F x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, left in the low bits
  x = larger(x, splat(-87.0f));
  const F shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I exponent = ((I)shifted - 0x4B400000 + 127) << 23;
  return p * (F)exponent;
}

// x * (1 + erf(x / sqrt(2))) / 2, erf to 2e-7 by Abramowitz and Stegun, 7.1.26.
inline F gelu(F x) {
  const F z = larger(x, -x) * 0.70710678f;
  const F t = 1.0f / (z * 0.3275911f + 1.0f);
  F p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const F tail = p * t * exponential(-(z * z));  // 1 - erf(z)
  return x * 0.5f * (x > 0.0f ? 2.0f - tail : tail);
}

void norm(const float* x, const Norm& norm, int n, float* y) {
  F total = {};
  for (int i = 0; i < n; i += LANES) total += load(x + i, n - i);
  const float mean = sum(total) / n;
  total = F{};
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    const F d = load(x + i) - mean;
    total += d * d;
  }
  float rest = 0;
  for (; i < n; i++) rest += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / __builtin_sqrtf((sum(total) + rest) / n + 1e-5f);
  for (int j = 0; j < n; j += LANES) {
    F v = (load(x + j, n - j) - mean) * inverse * load(norm.gain + j, n - j);
    if (norm.bias) v += load(norm.bias + j, n - j);
    store(y + j, v, n - j);
  }
}

void mix_in(const float* x, const Connection& connection, int streams, int dim, float* mixing, float* input) {
  const int columns = streams + 2;
  for (int i = 0; i < streams; i++) {
    F squares = {}, dots[kMaxStreams + 2] = {};
    const float* stream = x + static_cast<size_t>(i) * dim;
    for (int d = 0; d < dim; d += LANES) {
      const F v = load(stream + d, dim - d);
      squares += v * v;
      for (int c = 0; c < columns; c++) dots[c] += v * load(connection.columns + static_cast<size_t>(c) * dim + d, dim - d);
    }
    const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / dim + 1e-24f);
    for (int c = 0; c < columns; c++) {
      const float dynamic = __builtin_tanhf(sum(dots[c]) * inverse);
      mixing[i * columns + c] = dynamic * connection.scale[c] + connection.offset[i * columns + c];
    }
  }
  for (int d = 0; d < dim; d += LANES) {
    F v = {};
    for (int i = 0; i < streams; i++) v += load(x + static_cast<size_t>(i) * dim + d, dim - d) * mixing[i * columns];
    store(input + d, v, dim - d);
  }
}

void mix_out(float* x, const float* mixing, const float* y, int streams, int dim) {
  const int columns = streams + 2;
  for (int d = 0; d < dim; d += LANES) {
    F old[kMaxStreams];
    for (int i = 0; i < streams; i++) old[i] = load(x + static_cast<size_t>(i) * dim + d, dim - d);
    const F branch = load(y + d, dim - d);
    for (int t = 0; t < streams; t++) {
      F v = branch * mixing[t * columns + streams + 1];
      for (int i = 0; i < streams; i++) v += old[i] * mixing[i * columns + t + 1];
      store(x + static_cast<size_t>(t) * dim + d, v, dim - d);
    }
  }
}

void add(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += LANES) store(x + i, load(x + i, n - i) + load(y + i, n - i), n - i);
}

void gate(const float* x, int inner, float* y) {
  for (int i = 0; i < inner; i += LANES) {
    store(y + i, gelu(load(x + inner + i, inner - i)) * load(x + i, inner - i), inner - i);
  }
}

void quantize(const float* x, const Matrix& matrix, int8_t* q, float* scale, int32_t* offset) {
  constexpr float kRound = 12582912.0f;
  for (int b = 0; b < matrix.blocks; b++) {
    const int first = b * matrix.block, n = matrix.inputs - first;  // n may be more than the block: `load` takes what there is
    F most = {};
    for (int i = 0; i < matrix.block && i < n; i += LANES) {
      const F v = load(x + first + i, n - i);
      most = larger(most, larger(v, -v));
    }
    const float top = largest(most), inverse = top > 0 ? 127.0f / top : 0.0f;
    scale[b] = top / 127.0f;
    I total = {};
    for (int i = 0; i < matrix.block; i += LANES) {
      const F v = i < n ? load(x + first + i, n - i) : F{};
      const F rounded = v * inverse + kRound;
      const I whole = (I)rounded - 0x4B400000;
      total += whole;
      const Bytes bytes = __builtin_convertvector(whole, Bytes);
      __builtin_memcpy(q + first + i, &bytes, LANES);
    }
    int32_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all += total[lane];
    offset[b] = -matrix.zero() * all;
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLEVECTOR  // Clang, and GCC from 12 on
#endif
#endif

// Lane l of group l / g takes from a in the group's first half and from b in its second: lane `shift` further on in steps of g / 2.
constexpr int source_lane(int l, int g, int shift) {
  return l % g < g / 2 ? l / g * g + l % g + shift : LANES + l / g * g + l % g - g / 2 + shift;
}
template <int G, int... L>
inline F fold(F a, F b, std::integer_sequence<int, L...>) {
#ifdef HAS_SHUFFLEVECTOR
  return __builtin_shufflevector(a, b, source_lane(L, G, 0)...) + __builtin_shufflevector(a, b, source_lane(L, G, G / 2)...);
#else
  return __builtin_shuffle(a, b, I{source_lane(L, G, 0)...}) + __builtin_shuffle(a, b, I{source_lane(L, G, G / 2)...});
#endif
}
// v [G] vectors whose lanes stand in groups of G -> one vector: lane l is the sum of the lanes of vector l.
template <int G>
inline F sums(F* v) {
  if constexpr (G == 1) {
    return v[0];
  } else {
    for (int i = 0; i < G / 2; i++) v[i] = fold<G>(v[i], v[i + G / 2], std::make_integer_sequence<int, LANES>());
    return sums<G / 2>(v);
  }
}

// Scores of LANES keys: dot products in lanes, then added up for all keys together.
inline F scores_of(const float* query, const float* keys, int width, int left) {
  F products[LANES];
  const int last = left - 1;  // beyond the last key it is read again, and left out later
  for (int j = 0; j < LANES; j++) {
    const float* key = keys + static_cast<size_t>(j < last ? j : last) * width;
    F total = load(query, width) * load(key, width);
    for (int d = LANES; d < width; d += LANES) total += load(query + d, width - d) * load(key + d, width - d);
    products[j] = total;
  }
  return sums<LANES>(products);
}

template <int HEADS>
inline void weighted_values(const Attention& a, int d, size_t stride, const float* inverse) {
  F total[HEADS] = {};
  const int n = a.width - d;
  for (int j = 0; j < a.length; j++) {
    const F v = load(a.values + static_cast<size_t>(j) * a.width + d, n);
    for (int h = 0; h < HEADS; h++) total[h] += v * a.scores[h * stride + j];
  }
  for (int h = 0; h < HEADS; h++) store(a.out + static_cast<size_t>(h) * a.width + d, total[h] * inverse[h], n);
}

void attend(const Attention& a) {
  const size_t stride = (static_cast<size_t>(a.length) + 15) / 16 * 16;
  const int whole = a.length / LANES * LANES, left = a.length - whole;
  float inverse[4];
  for (int h = 0; h < a.heads; h++) {
    float* scores = a.scores + h * stride;
    const float* query = a.query + static_cast<size_t>(h) * a.width;
    F most = splat(-3e38f);
    for (int j = 0; j < a.length; j += LANES) {
      F s = scores_of(query, a.keys + static_cast<size_t>(j) * a.width, a.width, a.length - j) * a.scale;
      if (a.bias) s += load(a.bias + h * a.bias_stride + j, a.length - j);
      store(scores + j, s);
      if (j < whole) most = larger(most, s);
    }
    float top = largest(most);
    for (int j = whole; j < a.length; j++) top = scores[j] > top ? scores[j] : top;
    F total = {};
    for (int j = 0; j < whole; j += LANES) {
      const F e = exponential(load(scores + j) - top);
      store(scores + j, e);
      total += e;
    }
    if (left) {
      const F e = exponential(load(scores + whole) - top);
      store(scores + whole, e);
      total += load(scores + whole, left);
    }
    inverse[h] = 1.0f / sum(total);
  }
  for (int d = 0; d < a.width; d += LANES) {
    if (a.heads == 4) weighted_values<4>(a, d, stride, inverse);
    else if (a.heads == 3) weighted_values<3>(a, d, stride, inverse);
    else if (a.heads == 2) weighted_values<2>(a, d, stride, inverse);
    else weighted_values<1>(a, d, stride, inverse);
  }
}

void attend_context(const CrossAttention& a) {
  for (int h = 0; h < a.heads; h++) {
    const float* query = a.query + static_cast<size_t>(h) * a.width;
    float* out = a.out + static_cast<size_t>(h) * a.width;
    for (int c = 0; c < a.length; c += LANES) {
      F total = {};
      for (int d = 0; d < a.width; d++) total += load(a.keys + static_cast<size_t>(d) * a.length + c, a.length - c) * query[d];
      store(a.scores + c, total, a.length - c);
    }
    float top = a.scores[0], total = 0;
    for (int c = 1; c < a.length; c++) top = a.scores[c] > top ? a.scores[c] : top;
    for (int c = 0; c < a.length; c += LANES) store(a.scores + c, exponential(load(a.scores + c, a.length - c) - top), a.length - c);
    for (int c = 0; c < a.length; c++) total += a.scores[c];
    for (int d = 0; d < a.width; d += LANES) {
      F v = {};
      for (int c = 0; c < a.length; c++) v += load(a.values + static_cast<size_t>(c) * a.width + d, a.width - d) * a.scores[c];
      store(out + d, v * (1.0f / total), a.width - d);
    }
  }
}

float read_all(const float* p, size_t n) {
  F total[4] = {};
  for (size_t i = 0; i + 4 * LANES <= n; i += 4 * LANES) {
    for (int part = 0; part < 4; part++) total[part] += load(p + i + part * LANES);
  }
  return sum(total[0] + total[1] + total[2] + total[3]);
}

template <int M>
inline void panel32(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  const float* w = reinterpret_cast<const float*>(matrix.data + panel * matrix.panel_bytes());
  const float* x = a.x + row * a.x_stride;
  F total[M][kPanel / LANES] = {};
  for (int k = 0; k < matrix.inputs; k++, w += kPanel) {
    __builtin_prefetch(w + 512);
    for (int part = 0; part < kPanel / LANES; part++) {
      const F weights = load(w + part * LANES);
      for (int m = 0; m < M; m++) total[m][part] += weights * x[m * a.x_stride + k];
    }
  }
  for (int m = 0; m < M; m++) {
    for (int part = 0; part < kPanel / LANES; part++) store(y + (row + m) * stride + panel * kPanel + part * LANES, total[m][part]);
  }
}
