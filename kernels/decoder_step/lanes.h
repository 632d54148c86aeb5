// All of a step but attention (attend.h) and products, written once over vectors of LANES floats (GCC's and Clang's vector types): each form of the
// code includes this file inside its own unnamed namespace, with its own LANES and its own instruction set.
//
// norm     y = (x - mean) / sqrt(var + 1e-5) * gain + bias
// mix_in   n = x / rms(x), mixing = tanh(n @ columns^T) * scale + offset, input = mixing[:, 0] . x                (kernels/hyper_connection)
// mix_out  x' = mixing[:, 1:-1]^T x + mixing[:, -1] (x) y
// normalise  y = x / max(|x|, 1e-12) * scale
// convolve   u'[t] = taps[0] u[t - 2] + taps[1] u[t - 1] + taps[2] u[t], for each column
// gate     gelu(gate) * value, gelu by the error function                                                                (kernels/geglu)
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
inline F size(F v) { return (F)((I)v & 0x7fffffff); }

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

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLEVECTOR  // Clang, and GCC from 12 on
#endif
#endif

struct Plus {
  F operator()(F a, F b) const { return a + b; }
};
struct Larger {
  F operator()(F a, F b) const { return larger(a, b); }
};

// Lane l of group l / g takes from a in the group's first half and from b in its second: lane `shift` further on in steps of g / 2.
constexpr int source_lane(int l, int g, int shift) {
  return l % g < g / 2 ? l / g * g + l % g + shift : LANES + l / g * g + l % g - g / 2 + shift;
}
template <class Op, int G, int... L>
inline F fold(F a, F b, std::integer_sequence<int, L...>) {
#ifdef HAS_SHUFFLEVECTOR
  return Op()(__builtin_shufflevector(a, b, source_lane(L, G, 0)...), __builtin_shufflevector(a, b, source_lane(L, G, G / 2)...));
#else
  return Op()(__builtin_shuffle(a, b, I{source_lane(L, G, 0)...}), __builtin_shuffle(a, b, I{source_lane(L, G, G / 2)...}));
#endif
}
template <class Op, int G>
inline F fold(F a, F b) {
  return fold<Op, G>(a, b, std::make_integer_sequence<int, LANES>());
}
// v [G] vectors whose lanes stand in groups of G -> one vector: lane l is the sum, or the largest, of the lanes of vector l.
template <class Op, int G = LANES>
inline F across(F* v) {
  if constexpr (G == 1) {
    return v[0];
  } else {
    for (int i = 0; i < G / 2; i++) v[i] = fold<Op, G>(v[i], v[i + G / 2]);
    return across<Op, G / 2>(v);
  }
}
// The same of one vector.
template <int G = LANES>
inline float sum(F v) {
  if constexpr (G == 1) return v[0];
  else return sum<G / 2>(fold<Plus, G>(v, v));
}

// Into the second cache: the first has few misses outstanding, and they are needed.
inline void read_ahead(const void* p) { __builtin_prefetch(p, 0, 2); }

// How far ahead of its place a product reads weights, in bytes. One thread on an AMD EPYC (Zen 4), 8 bits, all from memory: 8 rows take 48 us a
// megabyte, and 64 to 77 with prefetches into the first cache; one row, at the memory's own pace, 27 from near by against 43 from afar.
template <int BITS, int M>
constexpr int kAhead = M == 1 && BITS != 4 ? 2048 : 8192;

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

inline F hyperbolic_tangent(F x) {
  const F e = exponential(size(x) * -2.0f), t = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -t : t;
}

// x * (1 + erf(x / sqrt(2))) / 2, erf to 2e-7 by Abramowitz and Stegun, 7.1.26.
inline F gelu(F x) {
  const F z = size(x) * 0.70710678f;
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

// The number of streams is known to the compiler where it is upstream's default, so that all sums stay in registers, two streams' at a time,
// which share what is loaded of the columns; 0 is any number.
template <int STREAMS>
inline void mix_in_of(const float* x, const Connection& connection, int streams, int dim, float* mixing, float* input) {
  const int S = STREAMS ? STREAMS : streams, columns = S + 2;
  constexpr int kTogether = STREAMS ? 2 : 1, kMost = STREAMS ? STREAMS : kMaxStreams;
  constexpr int kSums = (kMost * (kMost + 3) + LANES - 1) / LANES * LANES;
  F sums[kSums];  // of each stream: its products with the columns, its squares
  for (int k = S * (columns + 1); k < kSums; k++) sums[k] = F{};
  for (int first = 0; first < S; first += kTogether) {
    F squares[kTogether] = {}, dots[kTogether][kMost + 2] = {};
    const auto take = [&](int d, int n) {
      F v[kTogether];
      for (int i = 0; i < kTogether; i++) v[i] = load(x + static_cast<size_t>(first + i) * dim + d, n);
      for (int i = 0; i < kTogether; i++) squares[i] += v[i] * v[i];
      for (int c = 0; c < columns; c++) {
        const F column = load(connection.columns + static_cast<size_t>(c) * dim + d, n);
        for (int i = 0; i < kTogether; i++) dots[i][c] += v[i] * column;
      }
    };
    int d = 0;
    for (; d + LANES <= dim; d += LANES) take(d, LANES);
    if (d < dim) take(d, dim - d);
    for (int i = 0; i < kTogether; i++) {
      for (int c = 0; c < columns; c++) sums[(first + i) * (columns + 1) + c] = dots[i][c];
      sums[(first + i) * (columns + 1) + columns] = squares[i];
    }
  }
  float total[kSums], dynamic[kSums] = {};
  for (int k = 0; k < S * (columns + 1); k += LANES) store(total + k, across<Plus>(sums + k));
  for (int i = 0; i < S; i++) {
    const float* dots = total + i * (columns + 1);
    const float inverse = 1.0f / __builtin_sqrtf(dots[columns] / dim + 1e-24f);
    for (int c = 0; c < columns; c++) dynamic[i * columns + c] = dots[c] * inverse;
  }
  for (int k = 0; k < S * columns; k += LANES) store(dynamic + k, hyperbolic_tangent(load(dynamic + k)));
  for (int i = 0; i < S; i++) {
    for (int c = 0; c < columns; c++) mixing[i * columns + c] = dynamic[i * columns + c] * connection.scale[c] + connection.offset[i * columns + c];
  }
  for (int d = 0; d < dim; d += LANES) {
    F v = {};
    for (int i = 0; i < S; i++) v += load(x + static_cast<size_t>(i) * dim + d, dim - d) * mixing[i * columns];
    store(input + d, v, dim - d);
  }
}
void mix_in(const float* x, const Connection& connection, int streams, int dim, float* mixing, float* input) {
  streams == 4 ? mix_in_of<4>(x, connection, streams, dim, mixing, input) : mix_in_of<0>(x, connection, streams, dim, mixing, input);
}

template <int STREAMS>
inline void mix_out_of(float* x, const float* mixing, const float* y, int streams, int dim) {
  const int S = STREAMS ? STREAMS : streams, columns = S + 2;
  for (int d = 0; d < dim; d += LANES) {
    F old[STREAMS ? STREAMS : kMaxStreams];
    for (int i = 0; i < S; i++) old[i] = load(x + static_cast<size_t>(i) * dim + d, dim - d);
    const F branch = load(y + d, dim - d);
    for (int t = 0; t < S; t++) {
      F v = branch * mixing[t * columns + S + 1];
      for (int i = 0; i < S; i++) v += old[i] * mixing[i * columns + t + 1];
      store(x + static_cast<size_t>(t) * dim + d, v, dim - d);
    }
  }
}
void mix_out(float* x, const float* mixing, const float* y, int streams, int dim) {
  streams == 4 ? mix_out_of<4>(x, mixing, y, streams, dim) : mix_out_of<0>(x, mixing, y, streams, dim);
}

void add(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += LANES) store(x + i, load(x + i, n - i) + load(y + i, n - i), n - i);
}

inline float inverse_length(const float* x, int n) {
  F total = {};
  for (int i = 0; i < n; i += LANES) {
    const F v = load(x + i, n - i);
    total += v * v;
  }
  const float length = __builtin_sqrtf(sum(total));
  return 1.0f / (length > 1e-12f ? length : 1e-12f);
}

void normalise(const float* x, const float* scale, int n, float* y) {
  const float inverse = inverse_length(x, n);
  for (int i = 0; i < n; i += LANES) store(y + i, load(x + i, n - i) * inverse * load(scale + i, n - i), n - i);
}

void convolve(float* u, int panels, const float* taps, const float* before, float* after) {
  for (int panel = 0; panel < panels; panel++, u += kPanel, taps += 3 * kPanel, before += 2 * kPanel, after += 2 * kPanel) {
    for (int i = 0; i < kPanel; i += LANES) {
      const F oldest = load(before + i), older = load(before + kPanel + i), now = load(u + i);
      store(u + i, load(taps + i) * oldest + load(taps + kPanel + i) * older + load(taps + 2 * kPanel + i) * now);
      store(after + i, older);
      store(after + kPanel + i, now);
    }
  }
}

void gate(const float* x, int inner, float* y) {
  for (int i = 0; i < inner; i += LANES) {
    store(y + i, gelu(load(x + inner + i, inner - i)) * load(x + i, inner - i), inner - i);
  }
}

// LANES blocks at a time, whose largest values and sums are found across lanes together.
void quantize(const float* x, const Matrix& matrix, int8_t* q, float* scale, int32_t* offset) {
  constexpr float kRound = 12582912.0f;
  for (int first = 0; first < matrix.blocks; first += LANES) {
    const int blocks = matrix.blocks - first < LANES ? matrix.blocks - first : LANES;
    F values[LANES] = {};
    float inverse[LANES];
    for (int b = 0; b < blocks; b++) {
      const int at = (first + b) * matrix.block, n = matrix.inputs - at;  // n may be more than the block: `load` takes what there is
      for (int i = 0; i < matrix.block && i < n; i += LANES) values[b] = larger(values[b], size(load(x + at + i, n - i)));
    }
    const F top = across<Larger>(values);
    store(inverse, top > 0.0f ? 127.0f / top : F{});
    store(scale + first, top / 127.0f, blocks);
    for (int b = 0; b < LANES; b++) values[b] = F{};
    for (int b = 0; b < blocks; b++) {
      const int at = (first + b) * matrix.block, n = matrix.inputs - at;
      for (int i = 0; i < matrix.block; i += LANES) {
        const F rounded = (i < n ? load(x + at + i, n - i) : F{}) * inverse[b] + kRound;
        const Bytes bytes = __builtin_convertvector((I)rounded - 0x4B400000, Bytes);
        __builtin_memcpy(q + at + i, &bytes, LANES);
        values[b] += rounded - kRound;
      }
    }
    const F all = across<Plus>(values);  // whole numbers below 2^24: exact
    for (int b = 0; b < blocks; b++) offset[first + b] = -matrix.zero() * static_cast<int32_t>(all[b]);
  }
}

float read_all(const float* p, size_t n) {
  F total[4] = {};
  for (size_t i = 0; i + 4 * LANES <= n; i += 4 * LANES) {
    for (int part = 0; part < 4; part++) total[part] += load(p + i + part * LANES);
  }
  return sum(total[0] + total[1] + total[2] + total[3]);
}
