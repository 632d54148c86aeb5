// Packing of a product's weights (layout in kernels.h), and the choice of a form by what the processor has.
#include <cstring>

#include "model.h"

namespace decoder_step {

namespace {

constexpr size_t kLine = 64;

size_t rounded_up(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// A scale that bfloat16 holds: its upper half.
uint16_t narrowed(float scale) {
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  return static_cast<uint16_t>(bits >> 16);
}

// One block of one output, as it lies in the bundle, into a panel from which it is read by fours of inputs, 64 bytes apart.
void spread(const uint8_t* from, int block, int bits, uint8_t* to) {
  for (int k = 0; k < block; k += bits == 8 ? 4 : 8, from += 4, to += 64) {
    if (bits == 8) {
      std::memcpy(to, from, 4);
      continue;
    }
    for (int j = 0; j < 4; j++) {
      const int shift = j % 2 * 4;
      to[j] = static_cast<uint8_t>((from[j / 2] >> shift & 15) | (from[2 + j / 2] >> shift & 15) << 4);
    }
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

void pack(const Matrix& matrix, const ds_matrix& w, int first, int last) {
  const size_t K = matrix.inputs, N = matrix.outputs, blocks = matrix.blocks, bytes = static_cast<size_t>(matrix.block) * matrix.bits / 8;
  for (size_t panel = first; panel < static_cast<size_t>(last); panel++) {
    const size_t begin = panel * kPanel, columns = N - begin < kPanel ? N - begin : kPanel;
    uint8_t* data = matrix.data + panel * matrix.panel_bytes();
    if (matrix.bits == 32) {
      const float* from = static_cast<const float*>(w.data) + begin;
      for (size_t k = 0; k < K; k++) std::memcpy(data + k * kPanel * sizeof(float), from + k * N, columns * sizeof(float));
      continue;
    }
    for (size_t n = 0; n < columns; n++) {
      const size_t output = (begin + n) * blocks;
      for (size_t b = 0; b < blocks; b++) {
        spread(static_cast<const uint8_t*>(w.data) + (output + b) * bytes, matrix.block, matrix.bits, data + b * bytes * kPanel + n * 4);
        matrix.scales[(panel * blocks + b) * kPanel + n] = narrowed(w.scales[output + b]);
      }
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
