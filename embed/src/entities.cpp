// See entities.h. entities_tables.h, which `tables.py` writes, holds the names as one text: "name;" or "name,", a flag, and code points.
#include "entities.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "entities_tables.h"
#include "error.h"
#include "unicode.h"

namespace musiclm {

namespace {

constexpr size_t kLongestName = 32;         // that html.unescape looks at
constexpr size_t kLongestCarefulName = 24;  // that ftfy does
constexpr size_t kMostDigits = 4300;        // of a decimal number that Python reads
constexpr char32_t kReplacement = 0xFFFD, kFirstWindows = 0x80;

bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }
bool is_ascii_letter(char32_t c) { return (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z'); }
bool is_hex(char32_t c) { return is_digit(c) || (c >= U'a' && c <= U'f') || (c >= U'A' && c <= U'F'); }

uint32_t hex_value(char32_t c) { return is_digit(c) ? c - U'0' : (c | 0x20) - U'a' + 10; }

struct Names {
  std::unordered_map<std::string, std::u32string> browser;  // with the semicolon, and for the older ones also without
  std::unordered_map<std::string, std::u32string> careful;  // without the semicolon that all have

  // An entry: the name; ";" where only that form exists, "," where it may lack the semicolon; "+" where ftfy also takes the name in
  // capitals; the code points in hexadecimal, joined by "."; and "/" with those of the capitals where they differ.
  Names() {
    for (const char* at = kEntities; *at != 0;) {
      std::string name;
      while (*at != ';' && *at != ',') name.push_back(*at++);
      const bool bare = *at++ == ',';
      const bool capitals = *at == '+';
      if (capitals) at++;
      const std::u32string value = code_points(at);
      browser.emplace(name + ";", value);
      if (bare) browser.emplace(name, value);
      careful.emplace(name, value);
      const std::u32string upper_value = *at == '/' ? code_points(++at) : value;
      if (capitals) {
        for (char& c : name) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
        careful.emplace(name, upper_value);
      }
      if (*at == ' ') at++;
    }
  }

  static std::u32string code_points(const char*& at) {
    std::u32string value(1, 0);
    for (; *at == '.' || is_hex(static_cast<unsigned char>(*at)); at++) {
      if (*at == '.') {
        value.push_back(0);
      } else {
        value.back() = value.back() * 16 + hex_value(static_cast<unsigned char>(*at));
      }
    }
    return value;
  }
};

const Names& names() {
  static const Names made;
  return made;
}

// Reads "#233;" or "#xE9;" at `at`, and moves behind it; leaves `at` alone where there is none. The semicolon may be missing.
bool read_number(const std::u32string& text, size_t& at, std::u32string& out) {
  if (at >= text.size() || text[at] != U'#') return false;
  const bool hex = at + 1 < text.size() && (text[at + 1] | 0x20) == U'x';
  const size_t begin = at + (hex ? 2 : 1);
  size_t end = begin;
  char32_t number = 0;
  for (; end < text.size() && (hex ? is_hex(text[end]) : is_digit(text[end])); end++) {
    number = std::min<char32_t>(number * (hex ? 16 : 10) + hex_value(text[end]), kLastCodePoint + 1);
  }
  if (end == begin) return false;
  if (!hex && end - begin > kMostDigits) {
    throw Error(ML_BAD_ARGUMENT, "the text has a character reference &#... of " + std::to_string(end - begin) + " digits, more than the " +
                                     std::to_string(kMostDigits) + " that are read: write the character itself");
  }
  at = end + (end < text.size() && text[end] == U';' ? 1 : 0);
  const char32_t* fixed = std::lower_bound(std::begin(kRenumbered), std::end(kRenumbered), number);
  if (fixed != std::end(kRenumbered) && *fixed == number) {
    out.push_back(kRenumberedTo[fixed - std::begin(kRenumbered)]);
  } else if ((number >= 0xD800 && number <= 0xDFFF) || number > kLastCodePoint) {
    out.push_back(kReplacement);
  } else if (run_value(kDropped, 1, number) == 0) {
    out.push_back(number);
  }
  return true;
}

// What may stand in a name, as html.unescape sees it: any character but these.
bool may_be_in_name(char32_t c) { return std::u32string_view(U"\t\n\f <&#;").find(c) == std::u32string_view::npos; }

// Reads a name, or the longest beginning that is one; what follows it stays text.
bool read_name(const std::u32string& text, size_t& at, std::u32string& out) {
  size_t end = at;
  while (end < text.size() && end - at < kLongestName && may_be_in_name(text[end])) end++;
  if (end == at) return false;
  if (end < text.size() && text[end] == U';') end++;
  std::string ascii;  // the names are ASCII, so that nothing beyond the first other character can be one
  for (size_t i = at; i < end && text[i] < 0x80; i++) ascii.push_back(static_cast<char>(text[i]));
  for (; ascii.size() > 1; ascii.pop_back()) {
    const auto found = names().browser.find(ascii);
    if (found == names().browser.end()) continue;
    out += found->second;
    at += ascii.size();
    return true;
  }
  return false;
}

}  // namespace

std::u32string unescape_html(const std::u32string& text) {
  std::u32string out;
  for (size_t i = 0; i < text.size();) {
    size_t after = i + 1;
    if (text[i] == U'&' && (read_number(text, after, out) || read_name(text, after, out))) {
      i = after;
    } else {
      out.push_back(text[i++]);
    }
  }
  return out;
}

std::u32string unescape_complete_html(const std::u32string& text) {
  std::u32string out;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != U'&') {
      out.push_back(text[i++]);
      continue;
    }
    const bool numbered = i + 1 < text.size() && text[i + 1] == U'#';
    const size_t begin = i + (numbered ? 2 : 1);
    size_t end = begin;
    while (end < text.size() && end - begin < kLongestCarefulName && (is_digit(text[end]) || is_ascii_letter(text[end]))) end++;
    std::u32string value;
    bool known = false;
    if (end > begin && end < text.size() && text[end] == U';') {
      if (numbered) {
        size_t after = i + 1;
        // Only a reference that ends with the semicolon, and does not mean one: what is left of "&#12a;" would hold it.
        known = read_number(text, after, value) && after == end + 1 && value != U";";
      } else {
        const auto found = names().careful.find(std::string(text.begin() + begin, text.begin() + end));
        known = found != names().careful.end();
        if (known) value = found->second;
      }
    }
    if (known) {
      out += value;
      i = end + 1;
    } else {
      out.push_back(text[i++]);
    }
  }
  return out;
}

}  // namespace musiclm
