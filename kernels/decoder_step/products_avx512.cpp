// The form for processors with AVX-512 VNNI: 16 lanes, and quantized products by vpdpbusd, which multiplies 64 unsigned bytes (weights) by
// 64 signed ones (activations, four of them in every lane) and adds them up by fours.
//
// Per 64 bytes of weights: one load and M products at 8 bits; one load, three operations that part the halves, and 2 M products at 4 bits.
// Per block and row: a conversion, a product of scales and a multiply-add.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <utility>

#include "target.h"

DS_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
namespace decoder_step {
namespace {

#define LANES 16
#define MOST_ROWS 8
#include "lanes.h"

inline __m512i four(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, 4);
  return _mm512_set1_epi32(bytes);
}

template <int BITS, int M>
inline void panel_quantized(const Matrix& matrix, const Activations& a, int row, int panel, float* y, size_t stride) {
  const uint8_t* w = matrix.data + panel * matrix.panel_bytes();
  const uint16_t* scales = matrix.scales + static_cast<size_t>(panel) * matrix.blocks * kPanel;
  const size_t padded = matrix.padded_inputs(), blocks = matrix.blocks;
  const int8_t* q = a.q + row * padded;
  const float* scale = a.scale + row * blocks;
  const int32_t* offset = a.offset + row * blocks;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 total[M];
  for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
  for (size_t b = 0; b < blocks; b++) {
    __m512i sum[M];
    for (int m = 0; m < M; m++) sum[m] = _mm512_set1_epi32(offset[m * blocks + b]);
    for (int k = 0; k < matrix.block; k += BITS == 8 ? 4 : 8, w += 64) {
      const __m512i bytes = _mm512_loadu_si512(w);
      read_ahead(w + kAhead<BITS, M>);
      if constexpr (BITS == 8) {
        for (int m = 0; m < M; m++) sum[m] = _mm512_dpbusd_epi32(sum[m], bytes, four(q + m * padded + k));
      } else {
        const __m512i first = _mm512_and_si512(bytes, low), second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        for (int m = 0; m < M; m++) sum[m] = _mm512_dpbusd_epi32(sum[m], first, four(q + m * padded + k));
        for (int m = 0; m < M; m++) sum[m] = _mm512_dpbusd_epi32(sum[m], second, four(q + m * padded + k + 4));
      }
    }
    q += matrix.block;
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + b * kPanel));
    const __m512 of_weights = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    for (int m = 0; m < M; m++) {
      const __m512 both = _mm512_mul_ps(of_weights, _mm512_set1_ps(scale[m * blocks + b]));
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m]), both, total[m]);
    }
  }
  for (int m = 0; m < M; m++) _mm512_storeu_ps(y + (row + m) * stride + panel * kPanel, total[m]);
}

#include "product.h"

}  // namespace
DS_TARGET_END

const Kernels* avx512_kernels() {
  const bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  return all ? &kKernels : nullptr;
}

}  // namespace decoder_step

#else
const decoder_step::Kernels* decoder_step::avx512_kernels() { return nullptr; }
#endif
