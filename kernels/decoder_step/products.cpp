// Packing of a product's weights (layout in kernels.h), and the choice of a form by what the processor has.
//
// Quantization, per block of inputs and output, symmetric: scale = m / -zero with m the weight of the largest size, sign kept, so that all
// steps of the byte or nibble are used, as in ONNX Runtime's MatMulNBits. Then the scale of the least squared error among some around it: a
// larger one need not clip the largest weight of the other sign, a smaller one clips one weight and is finer for all others. Scales are rounded to bfloat16 first and the
// weights to the rounded scale, so that the rounding of scales costs nothing.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"

namespace decoder_step {

namespace {

constexpr size_t kLine = 64;

size_t rounded_up(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

uint16_t narrowed(float scale) {
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  return static_cast<uint16_t>((bits + 0x8000) >> 16);
}

float widened(uint16_t scale) {
  const uint32_t bits = static_cast<uint32_t>(scale) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The whole number next to x, for |x| < 2^22.
float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

float quantized(float w, float inverse, float zero) {
  const float q = rounded(w * inverse);
  return q < -zero ? -zero : q > zero - 1 ? zero - 1 : q;
}

// tile [block][16] -> scales [16], the quantized values in place of the weights
void quantize_tile(float* tile, int block, int bits, float zero, uint16_t* scales) {
  constexpr float kAround[2][6] = {{1.0f, 0.995f, 0.99f, 0.985f, 1.005f, 1.01f}, {1.0f, 0.875f, 0.93f, 1.06f, 1.12f, 1.2f}};
  float extreme[kPanel] = {}, inverse[kPanel] = {}, best[kPanel];
  std::fill(best, best + kPanel, INFINITY);
  for (int k = 0; k < block; k++) {
    for (int n = 0; n < kPanel; n++) {
      const float w = tile[k * kPanel + n];
      extreme[n] = std::fabs(w) > std::fabs(extreme[n]) ? w : extreme[n];
    }
  }
  for (int candidate = 0; candidate < 6; candidate++) {
    float scale[kPanel], inverse_scale[kPanel], error[kPanel] = {};
    for (int n = 0; n < kPanel; n++) {
      scale[n] = widened(narrowed(extreme[n] / (-zero * kAround[bits == 4][candidate])));
      inverse_scale[n] = std::fabs(scale[n]) > 1e-30f ? 1.0f / scale[n] : 0.0f;
    }
    for (int k = 0; k < block; k++) {
      for (int n = 0; n < kPanel; n++) {
        const float w = tile[k * kPanel + n], lost = w - quantized(w, inverse_scale[n], zero) * scale[n];
        error[n] += lost * lost;
      }
    }
    for (int n = 0; n < kPanel; n++) {
      if (error[n] < best[n]) {
        best[n] = error[n];
        inverse[n] = inverse_scale[n];
        scales[n] = narrowed(scale[n]);
      }
    }
  }
  for (int k = 0; k < block; k++) {
    for (int n = 0; n < kPanel; n++) tile[k * kPanel + n] = quantized(tile[k * kPanel + n], inverse[n], zero);
  }
}

}  // namespace

Matrix shape_matrix(int inputs, int outputs, int bits, int block) {
  Matrix matrix;
  matrix.inputs = inputs;
  matrix.outputs = outputs;
  matrix.bits = bits;
  matrix.block = block;
  matrix.blocks = bits == 32 ? 0 : (inputs + block - 1) / block;
  return matrix;
}

size_t matrix_bytes(const Matrix& matrix) {
  const size_t scales = static_cast<size_t>(matrix.panels()) * matrix.blocks * kPanel * sizeof(uint16_t);
  return rounded_up(matrix.panels() * matrix.panel_bytes()) + rounded_up(scales);
}

uint8_t* place_matrix(Matrix* matrix, uint8_t* at) {
  matrix->data = at;
  matrix->scales = reinterpret_cast<uint16_t*>(at + rounded_up(matrix->panels() * matrix->panel_bytes()));
  return at + matrix_bytes(*matrix);
}

void pack(const Matrix& matrix, const float* w, int first, int last) {
  const int bits = matrix.bits, K = matrix.inputs, N = matrix.outputs;
  float tile[kMostBlock * kPanel];
  for (int panel = first; panel < last; panel++) {
    const int columns = N - panel * kPanel < kPanel ? N - panel * kPanel : kPanel;
    uint8_t* data = matrix.data + panel * matrix.panel_bytes();
    const auto read_row = [&](int k, float* to) {
      std::memset(to, 0, kPanel * sizeof(float));
      if (k < K) std::memcpy(to, w + static_cast<size_t>(k) * N + static_cast<size_t>(panel) * kPanel, columns * sizeof(float));
    };
    if (bits == 32) {
      for (int k = 0; k < K; k++) read_row(k, reinterpret_cast<float*>(data) + static_cast<size_t>(k) * kPanel);
      continue;
    }
    for (int b = 0; b < matrix.blocks; b++) {
      for (int k = 0; k < matrix.block; k++) read_row(b * matrix.block + k, tile + k * kPanel);
      const float zero = static_cast<float>(matrix.zero());
      quantize_tile(tile, matrix.block, bits, zero, matrix.scales + (static_cast<size_t>(panel) * matrix.blocks + b) * kPanel);
      for (int k = 0; k < matrix.block; k++) {
        for (int n = 0; n < kPanel; n++) {
          const auto value = static_cast<uint8_t>(static_cast<int>(tile[k * kPanel + n]) + matrix.zero());
          if (bits == 8) data[k / 4 * 64 + n * 4 + k % 4] = value;
          else data[k / 8 * 64 + n * 4 + k % 4] |= static_cast<uint8_t>(k % 8 < 4 ? value : value << 4);
        }
      }
      data += static_cast<size_t>(matrix.block) * kPanel * bits / 8;
    }
  }
}

const Kernels* kernels_of(Path path) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  switch (path) {
    case kPortable: return portable_kernels();
    case kAvx2: return avx2_kernels();
    case kAvxVnni: return avx_vnni_kernels();
    case kAvx512: return avx512_kernels();
    default: return nullptr;
  }
}

}  // namespace decoder_step
