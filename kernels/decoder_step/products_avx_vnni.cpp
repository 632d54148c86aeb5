// The form for processors with AVX-VNNI and no AVX-512 (Intel's from 2021 on): 8 lanes, quantized products by vpdpbusd in 256 bits.
#include "kernels.h"

#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 14) || (!defined(__clang__) && __GNUC__ >= 12))
#include <immintrin.h>

#include <utility>

#include "target.h"

DS_TARGET_BEGIN("avx2,fma,avxvnni")
namespace decoder_step {
namespace {

inline __m256i dot_bytes(__m256i sum, __m256i w, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, w, q); }
inline __m256i dot_nibbles(__m256i sum, __m256i w, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, w, q); }

#include "products_256.h"

}  // namespace
DS_TARGET_END

const Kernels* avx_vnni_kernels() {
  return __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kKernels : nullptr;
}

}  // namespace decoder_step

#else  // another processor, or a compiler from before there was AVX-VNNI
const decoder_step::Kernels* decoder_step::avx_vnni_kernels() { return nullptr; }
#endif
