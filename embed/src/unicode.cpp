// See unicode.h. All that is looked up is in unicode_tables.h, which `tables.py` writes.
#include "unicode.h"

#include <algorithm>

#include "error.h"
#include "unicode_tables.h"

namespace musiclm {

namespace {

constexpr char32_t kCapitalSigma = 0x3A3, kSigma = 0x3C3, kFinalSigma = 0x3C2;
constexpr char32_t kCapitalDottedI = 0x130, kDotAbove = 0x307;
constexpr uint32_t kCased = 1, kIgnorable = 2;  // in kCase: what counts as a letter of a word, and what is not looked at, next to a sigma

[[noreturn]] void not_utf8(size_t position, const char* reason) {
  throw Error(ML_BAD_ARGUMENT, "the text is not UTF-8: byte " + std::to_string(position) + " " + reason + "; encode the text as UTF-8");
}

// The lower case of one character by itself: U+0130 alone has two, and the sigma depends on its neighbours.
char32_t simple_lower(char32_t c) {
  const auto before = [](const CaseRange& range, char32_t at) { return range.last < at; };
  const CaseRange* range = std::lower_bound(std::begin(kLower), std::end(kLower), c, before);
  if (range == std::end(kLower) || c < range->first || (c - range->first) % range->step != 0) return c;
  return static_cast<char32_t>(static_cast<int64_t>(c) + range->difference);
}

// Python's rule: a cased character before it and none after it, where ignorable ones between do not count.
bool ends_word(const std::u32string& text, size_t sigma) {
  size_t before = sigma;
  while (before > 0 && run_value(kCase, 2, text[before - 1]) == kIgnorable) before--;
  if (before == 0 || run_value(kCase, 2, text[before - 1]) != kCased) return false;
  size_t after = sigma + 1;
  while (after < text.size() && run_value(kCase, 2, text[after]) == kIgnorable) after++;
  return after == text.size() || run_value(kCase, 2, text[after]) != kCased;
}

}  // namespace

std::u32string decode_utf8(const std::string& bytes) {
  std::u32string text;
  text.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    const auto byte = [&](size_t at) { return static_cast<unsigned char>(bytes[at]); };
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      text.push_back(lead);
      i++;
      continue;
    }
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4) not_utf8(i, "begins no character");
    if (bytes.size() - i < length) not_utf8(i, "begins a character that the text cuts off");
    char32_t c = lead & (0x7Fu >> length);
    for (size_t k = 1; k < length; k++) {
      if ((byte(i + k) & 0xC0) != 0x80) not_utf8(i, "begins a character that does not go on");
      c = c << 6 | (byte(i + k) & 0x3Fu);
    }
    if (c < (length == 3 ? 0x800u : length == 4 ? 0x10000u : 0x80u)) not_utf8(i, "begins a character that is written longer than it is");
    if (c >= 0xD800 && c <= 0xDFFF) not_utf8(i, "begins half of a surrogate pair");
    if (c > kLastCodePoint) not_utf8(i, "begins a character beyond U+10FFFF");
    text.push_back(c);
    i += length;
  }
  return text;
}

void append_utf8(std::string& bytes, char32_t c) {
  const auto put = [&bytes](uint32_t byte) { bytes.push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

std::string encode_utf8(const std::u32string& text) {
  std::string bytes;
  for (char32_t c : text) append_utf8(bytes, c);
  return bytes;
}

Kind kind_of(char32_t c) { return static_cast<Kind>(run_value(kKinds, 2, c)); }
Kind byte_level_kind_of(char32_t c) { return run_value(kByteLevelSigns, 1, c) != 0 ? Kind::sign : kind_of(c); }

std::u32string to_lower(const std::u32string& text) {
  std::u32string lower;
  lower.reserve(text.size());
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == kCapitalSigma) {
      lower.push_back(ends_word(text, i) ? kFinalSigma : kSigma);
    } else if (text[i] == kCapitalDottedI) {
      lower += {U'i', kDotAbove};
    } else {
      lower.push_back(simple_lower(text[i]));
    }
  }
  return lower;
}

}  // namespace musiclm
