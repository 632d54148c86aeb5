// The composed form of a text, NFC (Unicode Standard Annex #15): every character taken apart, the marks put in order, and what fits put
// together again. See unicode.h.
#include <algorithm>
#include <unordered_map>

#include "normal_tables.h"
#include "unicode.h"

namespace musiclm {

namespace {

// Below it nothing is composed of, composes with, or is out of order with what stands next to it, so that most texts are NFC at a glance.
constexpr char32_t kFirstMark = 0x300;
// Korean syllables are numbered by their leading consonant, vowel and trailing consonant (The Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr char32_t kLeadingCount = 19, kVowelCount = 21, kTrailingCount = 28, kSyllableCount = kLeadingCount * kVowelCount * kTrailingCount;

uint64_t pair_of(char32_t first, char32_t second) { return static_cast<uint64_t>(first) << 32 | second; }

struct Maps {
  std::unordered_map<char32_t, Decomposition> parts;
  std::unordered_map<uint64_t, char32_t> whole;

  Maps() {
    for (const Decomposition& one : kComposed) {
      parts.emplace(one.whole, one);
      whole.emplace(pair_of(one.first, one.second), one.whole);
    }
    for (const Decomposition& one : kOnlyDecomposed) parts.emplace(one.whole, one);
  }
};

const Maps& maps() {
  static const Maps made;
  return made;
}

uint32_t order_of(char32_t mark) { return run_value(kMarkOrder, 8, mark); }  // Canonical_Combining_Class; 0: no mark

void decompose(std::u32string& out, char32_t c) {
  if (c >= kSyllables && c < kSyllables + kSyllableCount) {
    const char32_t index = c - kSyllables, trailing = index % kTrailingCount;
    out.push_back(kLeading + index / (kVowelCount * kTrailingCount));
    out.push_back(kVowels + index / kTrailingCount % kVowelCount);
    if (trailing != 0) out.push_back(kTrailing + trailing);
    return;
  }
  const auto found = maps().parts.find(c);
  if (found == maps().parts.end()) return out.push_back(c);
  decompose(out, found->second.first);
  if (found->second.second != 0) decompose(out, found->second.second);
}

// 0 where the two do not make one character.
char32_t compose(char32_t first, char32_t second) {
  if (first >= kLeading && first < kLeading + kLeadingCount && second >= kVowels && second < kVowels + kVowelCount) {
    return kSyllables + ((first - kLeading) * kVowelCount + (second - kVowels)) * kTrailingCount;
  }
  const bool open = first >= kSyllables && first < kSyllables + kSyllableCount && (first - kSyllables) % kTrailingCount == 0;
  if (open && second > kTrailing && second < kTrailing + kTrailingCount) return first + (second - kTrailing);
  const auto found = maps().whole.find(pair_of(first, second));
  return found == maps().whole.end() ? 0 : found->second;
}

}  // namespace

std::u32string to_nfc(const std::u32string& text) {
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < kFirstMark; })) return text;
  std::u32string parts;
  for (char32_t c : text) decompose(parts, c);
  for (size_t i = 0; i < parts.size();) {
    size_t end = i;
    while (end < parts.size() && order_of(parts[end]) != 0) end++;
    std::stable_sort(parts.begin() + i, parts.begin() + end, [](char32_t a, char32_t b) { return order_of(a) < order_of(b); });
    i = end + 1;
  }
  std::u32string out;
  size_t starter = std::u32string::npos;  // where the last character that is no mark stands in `out`
  uint32_t last_order = 0;                // of the end of `out`
  for (char32_t c : parts) {
    const uint32_t order = order_of(c);
    // A mark of the same order, or another character, between the two keeps them apart.
    if (starter != std::u32string::npos && (starter + 1 == out.size() || last_order < order)) {
      const char32_t whole = compose(out[starter], c);
      if (whole != 0) {
        out[starter] = whole;
        continue;
      }
    }
    if (order == 0) starter = out.size();
    last_order = order;
    out.push_back(c);
  }
  return out;
}

}  // namespace musiclm
