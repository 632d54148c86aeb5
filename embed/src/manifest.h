// The manifest's text to a `Manifest`, with every fault that Python's runtime/bundle.py finds in it, and those that would stop C++ later.
#pragma once

#include <string>
#include <vector>

#include "bundle.h"

namespace musiclm {

class Faults {  // of a bundle: all of them, as long as they can be read
 public:
  void note(std::string fault);
  bool empty() const { return lines_.empty(); }
  std::string text() const;  // a line for each

 private:
  std::vector<std::string> lines_;
  size_t left_out_ = 0;
};

constexpr const char* kManifestName = "musiclm.json";

// named: the files that the manifest says are used, listed or not. What is returned counts only if no fault was noted.
Manifest parse_manifest(const std::string& text, Faults& faults, std::vector<std::string>& named);

// Of a manifest without faults, what Python checks nowhere, or where it is used: here it would be an index out of bounds by then.
void check_consistency(const Manifest& manifest, Faults& faults);

}  // namespace musiclm
