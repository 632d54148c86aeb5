// The end of each form of the code: attention, its products, panel by panel, all rows of a panel while it is in the nearest cache, and its
// table. The file that includes it has defined panel_quantized<BITS, M> for M rows, and MOST_ROWS, as many as there are registers for.

#include "attend.h"

template <int M>
inline void panel32(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  const float* w = reinterpret_cast<const float*>(matrix.data + panel * matrix.panel_bytes());
  const float* x = a.x + row * a.x_stride;
  F total[M][kPanel / LANES] = {};
  for (int k = 0; k < matrix.inputs; k++, w += kPanel) {
    read_ahead(reinterpret_cast<const char*>(w) + kAhead<32, M>);
    for (int part = 0; part < kPanel / LANES; part++) {
      const F weights = load(w + part * LANES);
      for (int m = 0; m < M; m++) total[m][part] += weights * x[m * a.x_stride + k];
    }
  }
  for (int m = 0; m < M; m++) {
    for (int part = 0; part < kPanel / LANES; part++) store(y + (row + m) * stride + panel * kPanel + part * LANES, total[m][part]);
  }
}

// The rows of a panel from `row` on, M at a time, the rest by fewer.
template <int BITS, int M>
inline void rows_of_panel(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  for (; row + M <= a.rows; row += M) {
    if constexpr (BITS == 32) panel32<M>(matrix, a, row, panel, y, stride);
    else panel_quantized<BITS, M>(matrix, a, row, panel, y, stride);
  }
  if constexpr (M > 1) rows_of_panel<BITS, M / 2>(matrix, a, row, panel, y, stride);
}

template <int BITS>
void panels(const Matrix& matrix, const Activations& a, float* y, size_t stride, int first, int last) {
  for (int panel = first; panel < last; panel++) rows_of_panel<BITS, MOST_ROWS>(matrix, a, 0, panel, y, stride);
}

void product(const Matrix& matrix, const Activations& a, float* y, size_t stride, int first, int last) {
  const auto of_bits = matrix.bits == 32 ? panels<32> : matrix.bits == 8 ? panels<8> : panels<4>;
  of_bits(matrix, a, y, stride, first, last);
}

const Kernels kKernels = {norm, mix_in, mix_out, add, normalise, convolve, gate, quantize, attend, join, read_all, product, kHeads};
