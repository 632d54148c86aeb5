// The pieces of a text that CLIP's tokenizer encodes. See clip_tokenizer.h.
#include "clip_tokenizer.h"

#include "entities.h"
#include "repair.h"
#include "unicode.h"

namespace musiclm {

namespace {

constexpr char kEndOfWord[] = "</w>";
constexpr char32_t kStart[] = U"<|startoftext|>", kEnd[] = U"<|endoftext|>";
constexpr const char32_t* kClitics[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
constexpr char32_t kLongS = 0x17F;  // where case is ignored, as in the patterns, it is an s

// Whether a pattern that ignores case stands at `at` of a text in lower case.
bool stands_at(const std::u32string& text, size_t at, const char32_t* pattern) {
  for (; *pattern != 0; pattern++, at++) {
    if (at >= text.size() || (text[at] != *pattern && !(*pattern == U's' && text[at] == kLongS))) return false;
  }
  return true;
}

// The length of the piece that begins at `at`, or 0. The parts of CLIP's pattern in their order: the two marks, English clitics, runs of
// letters, single numbers, runs of other signs.
size_t piece_length(const std::u32string& text, size_t at) {
  for (const char32_t* mark : {kStart, kEnd}) {
    if (stands_at(text, at, mark)) return std::char_traits<char32_t>::length(mark);
  }
  for (const char32_t* clitic : kClitics) {
    if (stands_at(text, at, clitic)) return std::char_traits<char32_t>::length(clitic);
  }
  const Kind kind = kind_of(text[at]);
  if (kind == Kind::gap) return 0;
  if (kind == Kind::number) return 1;
  size_t end = at + 1;
  while (end < text.size() && kind_of(text[end]) == kind) end++;
  return end - at;
}

}  // namespace

ClipTokenizer::ClipTokenizer(const std::string& content)
    : pairs_(read_tokenizer_model(content, kEndOfWord), "CLIP's", kEndOfWord, {encode_utf8(kStart), encode_utf8(kEnd)}) {}

std::vector<int64_t> ClipTokenizer::ids_of(const std::u32string& text) const {
  const std::u32string lower = to_lower(unescape_html(unescape_html(repair_text(text))));
  std::vector<int64_t> ids;
  for (size_t i = 0; i < lower.size();) {
    const size_t length = piece_length(lower, i);
    if (length == 0) {
      i++;
      continue;
    }
    const std::u32string piece = lower.substr(i, length);
    if (piece == kStart || piece == kEnd) {
      ids.push_back(pairs_.special_id(piece == kStart ? 0 : 1));
    } else {
      pairs_.append_ids(ids, encode_utf8(piece));
    }
    i += length;
  }
  return ids;
}

}  // namespace musiclm
