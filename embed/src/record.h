// Fields of a JSON object with their types: what is missing, unknown, or of another type is noted, in the words of Python's `parse`
// (runtime/bundle.py), and reading goes on, so that all faults are found at once. For manifest.cpp.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "json_text.h"
#include "manifest.h"

namespace musiclm {

// A value and where it stands, for messages.
struct Found {
  const Json& value;
  std::string where;
  Faults& faults;

  void expected(const char* kind) const { faults.note(where + ": expected " + kind + ", got " + short_repr(value)); }
  void refuse(const std::string& why) const { faults.note(where + ": " + why); }
};

// Readers of one value; what they return after a fault is of no meaning.
std::string read_text(const Found&);
bool read_flag(const Found&);
double read_number(const Found&);
int64_t read_whole(const Found&, int64_t least, int64_t most);
int64_t read_count(const Found&);  // 1 to 2^31 - 1: products of two counts fit into 64 bits
std::vector<int64_t> read_counts(const Found&);

class Record {
 public:
  // kind: Python's class, for messages.
  Record(const Found& found, const char* kind) : found_(found), is_object_(found.value.is_object()) {
    if (!is_object_) found.expected(kind);
  }

  template <class Read>
  auto get(const char* name, Read read) {
    decltype(read(found_)) value{};
    if (const Json* field = take(name, true)) value = read(at(found_, name, *field));
    return value;
  }

  // The field may be null, and `may_be_missing` if older bundles do not have it.
  template <class Read>
  auto get_or_none(const char* name, Read read, bool may_be_missing = false) {
    std::optional<decltype(read(found_))> value;
    const Json* field = take(name, !may_be_missing);
    if (field && !field->is_null()) value = read(at(found_, name, *field));
    return value;
  }

  // A field that is an object of any names.
  template <class Read>
  auto each(const char* name, Read read) {
    return get(name, [&](const Found& all) { return read_each(all, read); });
  }

  template <class Read>
  static auto read_each(const Found& all, Read read) {
    std::map<std::string, decltype(read(all))> values;
    if (!all.value.is_object()) {
      all.expected("dict");
      return values;
    }
    for (const auto& item : all.value.items()) values.emplace(item.key(), read(at(all, item.key(), item.value())));
    return values;
  }

  // After all fields: those that nobody asked for.
  void finish() const {
    if (!is_object_) return;
    for (const auto& item : found_.value.items()) {
      if (!asked_.count(item.key())) found_.refuse("unknown field " + python_repr(item.key()));
    }
  }

 private:
  static Found at(const Found& parent, const std::string& name, const Json& value) { return {value, parent.where + ": " + name, parent.faults}; }

  const Json* take(const char* name, bool required) {
    asked_.insert(name);
    if (!is_object_) return nullptr;
    const auto field = found_.value.find(name);
    if (field != found_.value.end()) return &*field;
    if (required) found_.refuse("the field " + python_repr(name) + " is missing");
    return nullptr;
  }

  Found found_;
  bool is_object_;
  std::set<std::string> asked_;
};

}  // namespace musiclm
