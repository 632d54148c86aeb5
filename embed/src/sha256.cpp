// See sha256.h: padding, and two compression functions with the same result. With the SHA instructions a core hashes some 1.1 GB/s, without
// some 0.19.
#include "sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define MUSICLM_SHA_INSTRUCTIONS 1
#endif

namespace musiclm {

namespace {

// The first 32 bits of the fractions of the cube roots of the first 64 primes.
alignas(16) constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// The first 32 bits of the fractions of the square roots of the first 8 primes.
constexpr uint32_t kBegin[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

uint32_t turned(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

void blocks_portable(uint32_t* state, const uint8_t* data, size_t count) {
  for (; count > 0; count--, data += 64) {
    uint32_t w[64], s[8];
    for (int t = 0; t < 16; t++) {
      const uint8_t* from = data + 4 * t;
      w[t] = uint32_t{from[0]} << 24 | uint32_t{from[1]} << 16 | uint32_t{from[2]} << 8 | from[3];
    }
    for (int t = 16; t < 64; t++) {
      const uint32_t near = turned(w[t - 2], 17) ^ turned(w[t - 2], 19) ^ w[t - 2] >> 10;
      const uint32_t far = turned(w[t - 15], 7) ^ turned(w[t - 15], 18) ^ w[t - 15] >> 3;
      w[t] = near + w[t - 7] + far + w[t - 16];
    }
    std::copy(state, state + 8, s);
    for (int t = 0; t < 64; t += 8) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {  // the names a to h move on by a place in every round, not the words
        const uint32_t a = s[-i & 7], b = s[(1 - i) & 7], c = s[(2 - i) & 7], e = s[(4 - i) & 7], f = s[(5 - i) & 7], g = s[(6 - i) & 7];
        uint32_t &d = s[(3 - i) & 7], &h = s[(7 - i) & 7];
        h += (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[t + i] + w[t + i];
        d += h;
        h += (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      }
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
  }
}

#ifdef MUSICLM_SHA_INSTRUCTIONS

// The instructions hold the state as (a, b, e, f) and (c, d, g, h), highest lane first, and do two rounds at a time with the words and
// constants of the lower two lanes.
__attribute__((target("sha,sse4.1"))) void blocks_sha(uint32_t* state, const uint8_t* data, size_t count) {
  const __m128i in_order = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);  // words are big-endian
  auto* const places = reinterpret_cast<__m128i*>(state);
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(places), 0xb1), efgh = _mm_shuffle_epi32(_mm_loadu_si128(places + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; count > 0; count--, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
#pragma GCC unroll 16
    for (int t = 0; t < 16; t++) {  // four rounds each
      if (t < 4) {
        w[t] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + t), in_order);
      } else {
        const __m128i last = w[(t + 3) % 4], sevenths = _mm_alignr_epi8(last, w[(t + 2) % 4], 4);
        w[t % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[t % 4], w[(t + 1) % 4]), sevenths), last);
      }
      const __m128i sum = _mm_add_epi32(w[t % 4], _mm_load_si128(reinterpret_cast<const __m128i*>(kRounds) + t));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(places, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(places + 1, _mm_alignr_epi8(dchg, feba, 8));
}

bool has_sha_instructions() {
  unsigned a, b, c, d;
  const bool shuffles = __get_cpuid(1, &a, &b, &c, &d) && c & bit_SSE4_1;
  return shuffles && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_SHA;
}

#endif

}  // namespace

Sha256::Blocks Sha256::portable() { return blocks_portable; }

Sha256::Blocks Sha256::fastest() {
#ifdef MUSICLM_SHA_INSTRUCTIONS
  static const bool found = has_sha_instructions();
  if (found) return blocks_sha;
#endif
  return blocks_portable;
}

Sha256::Sha256(Blocks blocks) : blocks_(blocks) { std::copy(kBegin, kBegin + 8, state_); }

void Sha256::update(const void* data, size_t bytes) {
  auto* from = static_cast<const uint8_t*>(data);
  bytes_ += bytes;
  if (waiting_ > 0) {
    const size_t taken = std::min(bytes, 64 - waiting_);
    std::copy(from, from + taken, pending_ + waiting_);
    waiting_ += taken, from += taken, bytes -= taken;
    if (waiting_ < 64) return;
    blocks_(state_, pending_, 1);
  }
  blocks_(state_, from, bytes / 64);
  waiting_ = bytes % 64;
  std::copy(from + (bytes - waiting_), from + bytes, pending_);
}

std::string Sha256::hex() {
  uint8_t end[72] = {0x80};  // then zeros, until the number of bits in 8 bytes fills a block
  const uint64_t bits = 8 * bytes_;
  const size_t zeros = (119 - waiting_) % 64;
  for (int i = 0; i < 8; i++) end[1 + zeros + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(end, 1 + zeros + 8);
  std::string text;
  for (uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  }
  return text;
}

}  // namespace musiclm
