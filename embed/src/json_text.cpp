// See json_text.h. The text is made into strict JSON first, which also bounds its depth before anything is built of it.
#include "json_text.h"

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "error.h"

namespace musiclm {

namespace {

constexpr int kMostDepth = 64;  // a manifest has 5

// As Python writes them, as they are kept, in a text that begins with a zero byte, and as Python prints them.
struct NotFinite {
  std::string_view written, kept;
  const char* printed;
};
constexpr NotFinite kNotFinite[] = {{"NaN", {"\0NaN", 4}, "nan"}, {"Infinity", {"\0Infinity", 9}, "inf"}, {"-Infinity", {"\0-Infinity", 10}, "-inf"}};

[[noreturn]] void refuse(const std::string& why) { throw Error(ML_BAD_BUNDLE, why); }

// The 16 bits of the escape \uXXXX that begins at `at`, or -1 if none does.
int escaped_unit(const std::string& text, size_t at) {
  if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int unit = 0;
  for (size_t i = at + 2; i < at + 6; i++) {
    const char c = text[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    unit = 16 * unit + digit;
  }
  return unit;
}

// Copies the escape that begins at `at`, or a stand-in for half a character; returns where it ends.
size_t copy_escape(const std::string& text, size_t at, std::string* out) {
  const int unit = escaped_unit(text, at), next = escaped_unit(text, at + 6);
  const bool high = unit >= 0xd800 && unit < 0xdc00, low = unit >= 0xdc00 && unit < 0xe000, pair = high && next >= 0xdc00 && next < 0xe000;
  if ((high || low) && !pair) {
    *out += "\\ufffd";
    return at + 6;
  }
  const size_t length = pair ? 12 : 2;
  out->append(text, at, length);
  return std::min(at + length, text.size());
}

std::string strict(const std::string& text) {
  std::string out;
  out.reserve(text.size() + 16);
  int depth = 0;
  bool quoted = false;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == 0) refuse("there is a zero byte at " + std::to_string(at));  // nlohmann takes it for the end
    if (quoted && c == '\\') {
      at = copy_escape(text, at, &out);
      continue;
    }
    if (c == '"') quoted = !quoted;
    if (!quoted) {
      if (c == '[' || c == '{') depth++;
      if (c == ']' || c == '}') depth--;
      if (depth > kMostDepth) refuse("it is nested deeper than " + std::to_string(kMostDepth) + " levels");
      const auto* number = std::find_if(std::begin(kNotFinite), std::end(kNotFinite),
                                        [&](const auto& n) { return text.compare(at, n.written.size(), n.written) == 0; });
      if (number != std::end(kNotFinite)) {
        out.append("\"\\u0000").append(number->written).append("\"");
        at += number->written.size();
        continue;
      }
    }
    out += c;
    at++;
  }
  return out;
}

bool continues(char c) { return (c & 0xc0) == 0x80; }  // a character of UTF-8 that has begun

std::string head(const std::string& text, size_t bytes) {
  if (bytes >= text.size()) return text;
  while (bytes > 0 && continues(text[bytes])) bytes--;
  return text.substr(0, bytes);
}

std::string tail(const std::string& text, size_t bytes) {
  size_t from = text.size() - std::min(bytes, text.size());
  while (from < text.size() && continues(text[from])) from++;
  return text.substr(from);
}

std::string short_text(const std::string& text) {
  constexpr size_t kMost = 30, kHead = 13, kTail = 14;  // reprlib's
  const std::string whole = python_repr(head(text, kMost));
  if (whole.size() <= kMost) return whole;
  const std::string ends = python_repr(head(text, kHead) + tail(text, kTail));
  return head(ends, kHead) + "..." + tail(ends, kTail);
}

std::string repr_to(const Json& value, int levels) {
  constexpr size_t kMostItems = 6, kMostFields = 4;
  if (value.is_null()) return "None";
  if (const char* number = not_finite(value)) return number;
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return short_text(value.get_ref<const std::string&>());
  if (!value.is_structured()) return value.dump();
  const bool fields = value.is_object();
  std::string out(1, fields ? '{' : '[');
  if (levels == 0 && !value.empty()) {
    out += "...";
  } else {
    size_t shown = 0;
    for (auto item = value.begin(); item != value.end(); ++item, shown++) {
      if (shown > 0) out += ", ";
      if (shown == (fields ? kMostFields : kMostItems)) {
        out += "...";
        break;
      }
      if (fields) out += short_text(item.key()) + ": ";
      out += repr_to(*item, levels - 1);
    }
  }
  return out + (fields ? '}' : ']');
}

}  // namespace

Json read_json(const std::string& text) {
  if (text.size() > kMostJsonBytes) refuse("it has more than " + std::to_string(kMostJsonBytes >> 20) + " MB");
  try {
    return Json::parse(strict(text));
  } catch (const Json::exception& error) {
    refuse(reason_of(error));
  }
}

// nlohmann's words begin with its own number in brackets, and quote what was read last.
std::string reason_of(const Json::exception& error) {
  std::string why = error.what();
  why = why.substr(why.find("] ") + 2);
  why = why.substr(0, std::min(why.find(" - "), why.find(": '")));
  why = head(why, 200);
  std::replace_if(
      why.begin(), why.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return why;
}

const char* not_finite(const Json& value) {
  if (!value.is_string()) return nullptr;
  for (const NotFinite& number : kNotFinite) {
    if (value.get_ref<const std::string&>() == number.kept) return number.printed;
  }
  return nullptr;
}

std::string python_repr(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      out += '\\', out += c;
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string short_repr(const Json& value) {
  constexpr int kLevels = 6;
  return repr_to(value, kLevels);
}

}  // namespace musiclm
