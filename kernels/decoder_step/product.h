// The end of each form of the code: its products, panel by panel, all rows of a panel while it is in the nearest cache, and its table.
// The file that includes it has defined panel32, panel8 and panel4 for M rows, and MOST_ROWS, as many as there are registers for.

#define DS_PANELS(panel_of)                                                                    \
  for (int panel = first; panel < last; panel++) {                                             \
    int row = 0;                                                                               \
    if constexpr (MOST_ROWS >= 8)                                                              \
      for (; row + 8 <= a.rows; row += 8) panel_of<MOST_ROWS >= 8 ? 8 : 1>(matrix, a, row, panel, y, stride); \
    if constexpr (MOST_ROWS >= 4)                                                              \
      for (; row + 4 <= a.rows; row += 4) panel_of<MOST_ROWS >= 4 ? 4 : 1>(matrix, a, row, panel, y, stride); \
    for (; row + 2 <= a.rows; row += 2) panel_of<2>(matrix, a, row, panel, y, stride);         \
    for (; row < a.rows; row++) panel_of<1>(matrix, a, row, panel, y, stride);                 \
  }

void product(const Matrix& matrix, const Activations& a, float* y, size_t stride, int first, int last) {
  if (matrix.bits == 32) {
    DS_PANELS(panel32)
  } else if (matrix.bits == 8) {
    DS_PANELS(panel8)
  } else {
    DS_PANELS(panel4)
  }
}

const Kernels kKernels = {norm, mix_in, mix_out, add, gate, quantize, attend, attend_context, read_all, product};
