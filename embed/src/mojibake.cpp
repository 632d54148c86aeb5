// See mojibake.h. ftfy changes a text that matches one of its patterns of unlikely neighbours, where one of these holds too: it has a
// control character of Latin-1; all of it, written in one of ten encodings, is UTF-8 or nearly so; or a part of it looks like a character
// of UTF-8. The last two are tested by rules that find every text that ftfy changes, and some more. mojibake_tables.h has what `tables.py`
// reads out of ftfy.
#include "mojibake.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "error.h"
#include "json_text.h"
#include "mojibake_tables.h"
#include "unicode.h"

namespace musiclm {

namespace {

constexpr char32_t kReplacement = 0xFFFD;
constexpr uint8_t kLost = 0x1A;  // ftfy writes U+FFFD so, in place of a byte that is not known any more

// The patterns name some seven hundred characters; characters between which no pattern makes a difference share a class.
uint32_t class_of(char32_t c) {
  const auto before = [](const ClassRange& range, char32_t at) { return range.last < at; };
  const ClassRange* range = std::lower_bound(std::begin(kClasses), std::end(kClasses), c, before);
  if (range != std::end(kClasses) && c >= range->first) return range->value;
  const Kind kind = kind_of(c);
  return kind == Kind::letter || kind == Kind::number ? kOtherWordClass : kOtherClass;
}

bool matches(const uint8_t* pattern, const std::vector<uint32_t>& classes, size_t at) {
  if (*pattern == kLineStart) {
    if (at != 0) return false;
    pattern++;
  }
  for (; *pattern != kPatternEnd; pattern++, at++) {
    if (at >= classes.size() || (kSets[*pattern].bits[classes[at] / 64] >> classes[at] % 64 & 1) == 0) return false;
  }
  return true;
}

// Where the first of the patterns begins; the number of classes where there is none.
template <size_t N, size_t Longest>
size_t find_pattern(const uint8_t (&patterns)[N][Longest], const std::vector<uint32_t>& classes) {
  size_t at = 0;
  const auto matches_here = [&](const uint8_t* pattern) { return matches(pattern, classes, at); };
  while (at < classes.size() && std::none_of(std::begin(patterns), std::end(patterns), matches_here)) at++;
  return at;
}

// Whether bytes may be UTF-8 after ftfy's repairs, which put in what a space, a "?" or a lost byte stands for.
bool nearly_utf8(const std::vector<uint8_t>& bytes) {
  const auto continues = [](uint8_t byte) { return (byte & 0xC0) == 0x80 || byte == ' ' || byte == '?' || byte == kLost; };
  for (size_t i = 0; i < bytes.size();) {
    const uint8_t lead = bytes[i];
    const size_t length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if ((lead >= 0x80 && lead < 0xC0) || lead > 0xF4 || bytes.size() - i < length) return false;
    if (!std::all_of(bytes.begin() + i + 1, bytes.begin() + i + length, continues)) return false;
    i += length;
  }
  return true;
}

// upper: what the bytes from 0x80 on stand for.
bool is_utf8_in(const char16_t (&upper)[128], const std::u32string& line) {
  std::vector<uint8_t> bytes;
  for (char32_t c : line) {
    const char16_t* found = std::find(std::begin(upper), std::end(upper), c);
    if (c >= 0x80 && c != kReplacement && found == std::end(upper)) return false;
    bytes.push_back(static_cast<uint8_t>(c < 0x80 ? c : c == kReplacement ? kLost : 0x80 + (found - std::begin(upper))));
  }
  return nearly_utf8(bytes);
}

}  // namespace

void refuse_mojibake(const std::u32string& line) {
  if (std::all_of(line.begin(), line.end(), [](char32_t c) { return c < 0x80; })) return;
  std::vector<uint32_t> classes;
  classes.reserve(line.size());
  for (char32_t c : line) classes.push_back(class_of(c));
  const size_t at = find_pattern(kUnlikely, classes);
  if (at == classes.size()) return;
  const bool controls = std::any_of(line.begin(), line.end(), [](char32_t c) { return c >= 0x80 && c < 0xA0; });
  const auto is_utf8 = [&line](const auto& upper) { return is_utf8_in(upper, line); };
  const bool whole = std::any_of(std::begin(kEncodings), std::end(kEncodings), is_utf8);
  if (!controls && !whole && find_pattern(kLikeUtf8, classes) == classes.size()) return;
  const size_t from = at < 4 ? 0 : at - 4;
  const std::string found = python_repr(encode_utf8(line.substr(from, at - from + 8)));
  throw Error(ML_BAD_ARGUMENT, "the text holds " + found + ", which looks like UTF-8 that was read in another encoding; what it was is " +
                                   "not guessed here: write the words as they should read, or without these signs");
}

}  // namespace musiclm
