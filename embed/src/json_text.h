// JSON as Python's json module reads it, within limits of size and depth, and values in the words of Python's messages.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace musiclm {

using Json = nlohmann::json;

constexpr size_t kMostJsonBytes = size_t{8} << 20;  // a manifest has 40 KB to 1 MB; a value in memory takes some 20 times its text

// Of two fields of one name the last one counts. Numbers that are not finite, which Python writes and reads, come as what `not_finite`
// knows; halves of characters, by which Python keeps bytes that are not UTF-8, as U+FFFD. Throws Error(ML_BAD_BUNDLE) with the
// reason.
Json read_json(const std::string& text);

// Returns why a text is no JSON, without what was read last, which may be of any length and in any bytes.
std::string reason_of(const Json::exception&);

const char* not_finite(const Json&);  // "nan", "inf" or "-inf"; NULL for any other value

std::string python_repr(const std::string& text);  // in quotes, with what cannot be printed as escapes
std::string short_repr(const Json&);               // as Python's reprlib.repr: of any value, at most some hundred characters

}  // namespace musiclm
