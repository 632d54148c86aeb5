// The form for processors with AVX2 and FMA: 8 lanes. vpmaddubsw multiplies unsigned by signed bytes and adds them up by twos in 16 bits,
// which overflow with whole bytes but not with nibbles: bytes are parted into nibbles, the high ones counted sixteen times.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <utility>

#include "target.h"

DS_TARGET_BEGIN("avx2,fma")
namespace decoder_step {
namespace {

inline __m256i dot_nibbles(__m256i sum, __m256i w, __m256i q) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, q), _mm256_set1_epi16(1)));
}

inline __m256i dot_bytes(__m256i sum, __m256i w, __m256i q) {
  const __m256i low = _mm256_set1_epi8(15), high = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
  const __m256i sixteen = _mm256_madd_epi16(_mm256_maddubs_epi16(high, q), _mm256_set1_epi16(16));
  return _mm256_add_epi32(dot_nibbles(sum, _mm256_and_si256(w, low), q), sixteen);
}

#include "products_256.h"

}  // namespace
DS_TARGET_END

const Kernels* avx2_kernels() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kKernels : nullptr; }

}  // namespace decoder_step

#else
const decoder_step::Kernels* decoder_step::avx2_kernels() { return nullptr; }
#endif
