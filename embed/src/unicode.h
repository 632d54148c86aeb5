// Texts as code points: UTF-8 in and out, the kinds of characters that a tokenizer's pieces are made of, lower case, and the composed form NFC.
//
// The rules are those of Python (`str.lower`, `unicodedata.normalize`) and of its packages `regex` and `tokenizers`, in the versions that
// `tables.py` met.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

namespace musiclm {

constexpr char32_t kLastCodePoint = 0x10FFFF;

// Throws Error(ML_BAD_ARGUMENT) for bytes that are not UTF-8, halves of surrogate pairs among them.
std::u32string decode_utf8(const std::string& bytes);
void append_utf8(std::string& bytes, char32_t);
std::string encode_utf8(const std::u32string&);

enum class Kind : uint8_t {
  sign,    // what is none of the others
  letter,  // \p{L}
  number,  // \p{N}
  gap      // in no piece: \s, and U+0345, which is the same as a letter but for its case
};
Kind kind_of(char32_t);
Kind byte_level_kind_of(char32_t);  // as the package tokenizers has it, whose Unicode is older; U+0345 is a sign

std::u32string to_lower(const std::u32string&);  // str.lower
std::u32string to_nfc(const std::u32string&);    // unicodedata.normalize("NFC", ...)

// A table of runs of equal values: each begins at `entry >> bits` and has the value of the lower bits. The first begins at 0.
template <size_t N>
uint32_t run_value(const uint32_t (&runs)[N], int bits, char32_t c) {
  const uint32_t* low = std::begin(runs);
  for (size_t count = N; count > 1;) {  // the last entry that does not begin beyond c
    const size_t half = count / 2;
    if ((low[half] >> bits) <= c) low += half;
    count -= half;
  }
  return *low & ((1u << bits) - 1);
}

}  // namespace musiclm
