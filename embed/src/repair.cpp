// See repair.h. repair_tables.h has the signs that are replaced by plainer ones, which `tables.py` reads out of ftfy.
#include "repair.h"

#include <algorithm>

#include "entities.h"
#include "error.h"
#include "mojibake.h"
#include "repair_tables.h"
#include "unicode.h"

namespace musiclm {

namespace {

// A prompt of 77 tokens needs no more. Entities within entities take a round each, at this length 0.1 s in all.
constexpr size_t kMostCharacters = 10000;
constexpr char32_t kEscape = 0x1B;

bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }
bool is_ascii_letter(char32_t c) { return (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z'); }

// Ligatures, letters of other widths, curly quotes.
std::u32string simplify(const std::u32string& text) {
  const auto before = [](const Replacement& replacement, char32_t at) { return replacement.of < at; };
  std::u32string out;
  out.reserve(text.size());
  for (char32_t c : text) {
    const Replacement* found = std::lower_bound(std::begin(kReplacements), std::end(kReplacements), c, before);
    if (found != std::end(kReplacements) && found->of == c) {
      for (const char16_t* by = found->by; *by != 0; by++) out.push_back(*by);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

// ftfy also takes U+0085 for a line end, which never comes here: texts with it are refused as broken.
std::u32string unify_line_ends(const std::u32string& text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); i++) {
    const char32_t c = text[i];
    if (c == U'\r' && i + 1 < text.size() && text[i + 1] == U'\n') continue;
    out.push_back(c == U'\r' || c == 0x2028 || c == 0x2029 ? U'\n' : c);
  }
  return out;
}

// Colours and movements of a terminal: escape, "[", numbers, a letter.
std::u32string drop_terminal_escapes(const std::u32string& text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (text[i] == kEscape && i + 1 < text.size() && text[i + 1] == U'[') {
      size_t end = i + 2;
      while (end < text.size() && (is_digit(text[end]) || text[end] == U';')) end++;
      if (end < text.size() && text[end] >= 0x80 && kind_of(text[end]) == Kind::number) {
        // ftfy takes digits of any script here, of those that count by tens.
        throw Error(ML_BAD_ARGUMENT, "the text holds a terminal's escape sequence with digits that are not 0 to 9: leave it out");
      }
      if (end < text.size() && is_ascii_letter(text[end])) {
        i = end + 1;
        continue;
      }
    }
    out.push_back(text[i++]);
  }
  return out;
}

bool is_control(char32_t c) {
  const bool ascii = c < 0x09 || c == 0x0B || (c >= 0x0E && c < 0x20) || c == 0x7F;
  return ascii || (c >= 0x206A && c < 0x2070) || c == 0xFEFF || (c >= 0xFFF9 && c < 0xFFFD);
}

std::u32string repair_line(std::u32string line, bool entities) {
  for (;;) {  // each round leaves the line as it was, or simpler
    const std::u32string before = line;
    if (entities) line = unescape_complete_html(line);
    refuse_mojibake(line);
    line = drop_terminal_escapes(unify_line_ends(simplify(line)));
    line.erase(std::remove_if(line.begin(), line.end(), is_control), line.end());
    line = to_nfc(line);
    if (line == before) return line;
  }
}

}  // namespace

std::u32string repair_text(const std::u32string& text) {
  if (text.size() > kMostCharacters) {
    throw Error(ML_BAD_ARGUMENT, "a text of " + std::to_string(text.size()) + " characters is longer than the " + std::to_string(kMostCharacters) +
                                     " that are read: shorten it");
  }
  std::u32string out;
  bool entities = true;
  for (size_t i = 0; i < text.size();) {
    const size_t found = text.find(U'\n', i);
    const size_t end = found == std::u32string::npos ? text.size() : found + 1;
    const std::u32string line = text.substr(i, end - i);
    // From the first line with a "<" on, the text is taken for HTML itself, whose entities are meant.
    entities = entities && line.find(U'<') == std::u32string::npos;
    out += repair_line(line, entities);
    i = end;
  }
  return out;
}

}  // namespace musiclm
