// The form of the code that runs on any processor: four lanes that compile to whatever there is, and quantized products in plain integers.
#include <utility>

#include "kernels.h"

namespace decoder_step {
namespace {

#define LANES 4
#define MOST_ROWS 2
#include "lanes.h"

float widened(uint16_t scale) {
  const uint32_t bits = static_cast<uint32_t>(scale) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

template <int BITS>
void row_quantized(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  constexpr int kInputs = BITS == 8 ? 4 : 8;  // of 64 bytes
  const uint8_t* w = matrix.data + panel * matrix.panel_bytes();
  const uint16_t* scales = matrix.scales + static_cast<size_t>(panel) * matrix.blocks * kPanel;
  const int8_t* q = a.q + static_cast<size_t>(row) * matrix.padded_inputs();
  float total[kPanel] = {};
  for (int b = 0; b < matrix.blocks; b++, scales += kPanel) {
    int32_t block[kPanel];
    for (int n = 0; n < kPanel; n++) block[n] = a.offset[static_cast<size_t>(row) * matrix.blocks + b];
    for (int k = 0; k < matrix.block; k += kInputs, w += 64, q += kInputs) {
      for (int n = 0; n < kPanel; n++) {
        for (int i = 0; i < 4; i++) {
          const uint8_t byte = w[n * 4 + i];
          if constexpr (BITS == 8) block[n] += byte * q[i];
          else block[n] += (byte & 15) * q[i] + (byte >> 4) * q[i + 4];
        }
      }
    }
    const float scale = a.scale[static_cast<size_t>(row) * matrix.blocks + b];
    for (int n = 0; n < kPanel; n++) total[n] += static_cast<float>(block[n]) * (widened(scales[n]) * scale);
  }
  for (int n = 0; n < kPanel; n++) y[row * stride + panel * kPanel + n] = total[n];
}

template <int BITS, int M>
void panel_quantized(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  for (int m = 0; m < M; m++) row_quantized<BITS>(matrix, a, row + m, panel, y, stride);
}

#include "product.h"

}  // namespace

const Kernels* portable_kernels() { return &kKernels; }

}  // namespace decoder_step
