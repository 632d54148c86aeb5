// The quantized products in 256 bits, a panel of 16 outputs as two halves: for products_avx2.cpp and products_avx_vnni.cpp, which define
// dot_bytes and dot_nibbles: sum [8] + the products of 32 unsigned bytes of weights with 32 signed ones of activations, by fours.

#define LANES 8
#define MOST_ROWS 4
#include "lanes.h"

inline __m256i four(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, 4);
  return _mm256_set1_epi32(bytes);
}

template <int BITS, int M>
inline void panel_quantized(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  const uint8_t* w = matrix.data + panel * matrix.panel_bytes();
  const uint16_t* scales = matrix.scales + static_cast<size_t>(panel) * matrix.blocks * kPanel;
  const size_t padded = matrix.padded_inputs(), blocks = matrix.blocks;
  const int8_t* q = a.q + row * padded;
  const float* scale = a.scale + row * blocks;
  const int32_t* offset = a.offset + row * blocks;
  const __m256i low = _mm256_set1_epi8(15);
  __m256 total[M][2];
  for (int m = 0; m < M; m++) total[m][0] = total[m][1] = _mm256_setzero_ps();
  for (size_t b = 0; b < blocks; b++) {
    __m256i sum[M][2];
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = _mm256_set1_epi32(offset[m * blocks + b]);
    for (int k = 0; k < matrix.block; k += BITS == 8 ? 4 : 8, w += 64) {
      read_ahead(w + kAhead<BITS, M>);
      for (int half = 0; half < 2; half++) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + half);
        if constexpr (BITS == 8) {
          for (int m = 0; m < M; m++) sum[m][half] = dot_bytes(sum[m][half], bytes, four(q + m * padded + k));
        } else {
          const __m256i first = _mm256_and_si256(bytes, low), second = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
          for (int m = 0; m < M; m++) {
            sum[m][half] = dot_nibbles(sum[m][half], first, four(q + m * padded + k));
            sum[m][half] = dot_nibbles(sum[m][half], second, four(q + m * padded + k + 4));
          }
        }
      }
    }
    q += matrix.block;
    for (int half = 0; half < 2; half++) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + b * kPanel) + half);
      const __m256 of_weights = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
      for (int m = 0; m < M; m++) {
        const __m256 both = _mm256_mul_ps(of_weights, _mm256_set1_ps(scale[m * blocks + b]));
        total[m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[m][half]), both, total[m][half]);
      }
    }
  }
  for (int m = 0; m < M; m++) {
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(y + (row + m) * stride + panel * kPanel + half * 8, total[m][half]);
  }
}

#include "product.h"
