// What a step is made of, and the table of functions that each form of the code (portable, AVX2, AVX-512) fills in.
//
// A product reads its weights in panels of 16 outputs, each panel from its first input to its last, so that a thread streams through memory:
//   32 bits  float  [inputs][16]
//    8 bits  byte   [inputs / 4][16][4], 128 added; a bfloat16 scale for each block of inputs and each output
//    4 bits  nibble [inputs / 8][16][4], 8 added: inputs k..k+3 in the low halves, k+4..k+7 in the high ones
// Activations are int8 with a scale for each row and block:  y = sum_b scale_w[b] * scale_a[b] * sum_k (w[k] - zero) * a[k].
// The zero is taken out for a whole block at once, by -zero * sum_k a[k], so that the inner loop multiplies unsigned by signed bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace decoder_step {

constexpr int kPanel = 16;       // outputs of a panel
constexpr size_t kChunkBytes = 1 << 15;
constexpr int kMaxStreams = 16;  // more than any checkpoint has; MAX_STREAMS in __init__.py
constexpr int kMostBlock = 256;  // inputs that share a scale
constexpr int kMostLanes = 16;
constexpr int kKeys = 128;  // of a row that are attended together; a row's result depends on it, so it is the same for all

inline size_t up(size_t n) { return (n + 15) / 16 * 16; }

// Memory that begins with a cache line: a load of 64 bytes across two of them takes twice the time.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
using Floats = std::vector<float, Aligned<float>>;

struct Matrix {
  int inputs = 0, outputs = 0;
  int bits = 32, block = 32;
  int blocks = 0;  // of inputs, the last one filled up with zeros
  int together = 1;  // panels that one thread must compute, from the first on
  uint8_t* data = nullptr;
  uint16_t* scales = nullptr;  // [panels][blocks][16]

  int panels() const { return (outputs + kPanel - 1) / kPanel; }
  int zero() const { return bits == 8 ? 128 : 8; }
  int padded_inputs() const { return bits == 32 ? inputs : blocks * block; }
  // Panels that a thread claims together: enough to stream through, few enough that all end at about the same time.
  int grain() const {
    const size_t fit = kChunkBytes / panel_bytes();
    return fit < static_cast<size_t>(together) ? together : static_cast<int>(fit);
  }
  int chunks() const { return (panels() + grain() - 1) / grain(); }
  size_t panel_bytes() const { return static_cast<size_t>(padded_inputs()) * kPanel * bits / 8; }
};

// Rows of one product's input; of the second half only what the bits ask for.
struct Activations {
  int rows;
  const float* x;
  size_t x_stride;
  const int8_t* q;  // [rows][padded inputs]
  const float* scale;    // [rows][blocks]
  const int32_t* offset; // [rows][blocks]: -zero * sum of the block's q
};

struct Norm {
  const float *gain, *bias;  // a bias of nullptr is zero
};

// A branch's hyper-connection, its columns transposed and multiplied by the norm's gain: [streams + 2][dim].
struct Connection {
  const float *columns, *scale, *offset;
};

// All heads of one row against some of its keys.
struct Attention {
  const float *query, *keys, *values;  // [heads][width], [length][width] twice
  const float* bias;                   // [heads / heads_together, rounded up][bias_stride] of [length][heads_together], or nullptr
  size_t bias_stride;
  int heads, width, length;
  float scale;
  bool normalised;  // each head's query is divided by its length, in place of `scale`
  float* scratch;  // attention_scratch()
  float* part;     // part_size(): each head's largest score, its sum of weights, both [heads rounded up], and its weighted values [width]
};
inline size_t part_size(size_t heads, size_t width) { return 2 * up(heads) + heads * width; }
inline size_t attention_scratch(size_t width, size_t length) { return kMostLanes / 2 * (up(width) + up(length)); }

struct Kernels {
  void (*norm)(const float* x, const Norm& norm, int n, float* y);
  // x [streams][dim] -> mixing [streams][streams + 2] and the branch's input [dim]
  void (*mix_in)(const float* x, const Connection& connection, int streams, int dim, float* mixing, float* input);
  // x [streams][dim], the branch's output y [dim] -> x
  void (*mix_out)(float* x, const float* mixing, const float* y, int streams, int dim);
  void (*add)(float* x, const float* y, int n);
  // x / |x| * scale [n] -> y
  void (*normalise)(const float* x, const float* scale, int n, float* y);
  // u [panels][16], in place; taps [panels][3][16]; before [panels][2][16], the inputs at the two positions before, older first -> after, those
  // of the next position, which may be the same memory
  void (*convolve)(float* u, int panels, const float* taps, const float* before, float* after);
  // x [2 * inner]: values, then gates -> gelu(gate) * value [inner]
  void (*gate)(const float* x, int inner, float* y);
  void (*quantize)(const float* x, const Matrix& matrix, int8_t* q, float* scale, int32_t* offset);
  void (*attend)(const Attention& attention);
  // `count` parts of one row, `stride` apart -> its heads' outputs [heads][width]; weights: scratch, [count][heads rounded up]
  void (*join)(const float* parts, int count, size_t stride, int heads, int width, float* weights, float* out);
  float (*read_all)(const float* p, size_t n);  // their sum, as fast as memory gives them
  // panels first to last (exclusive) of y [rows][stride], which has room for whole panels
  void (*product)(const Matrix& matrix, const Activations& a, float* y, size_t stride, int first, int last);
  int heads_together;  // that `attend` takes at once
};

enum Path { kPortable, kAvx2, kAvxVnni, kAvx512, kPaths };
// nullptr where this build or this processor does not have it.
const Kernels* kernels_of(Path path);
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx_vnni_kernels();
const Kernels* avx512_kernels();

}  // namespace decoder_step
