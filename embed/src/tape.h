// Tokens as they grow, as Python's runtime/tape.py: appended to, read by absolute place, and cut off at the front where nobody reads them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "error.h"

namespace musiclm {

class Tape {
 public:
  int64_t first() const { return first_; }                                        // the number of the first token that is kept
  int64_t size() const { return first_ + static_cast<int64_t>(tokens_.size()); }  // of all so far, those that were cut off included

  void append(const std::vector<int64_t>& tokens) { tokens_.insert(tokens_.end(), tokens.begin(), tokens.end()); }

  // The tokens from number `start` to `stop`, at most to the last.
  std::vector<int64_t> read(int64_t start, int64_t stop) const {
    if (start < first_) {
      throw Error(ML_FAILED, "token " + std::to_string(start) + " is no longer kept, only those from " + std::to_string(first_) + " on.");
    }
    stop = std::min(stop, size());
    if (stop <= start) return {};
    return {tokens_.begin() + (start - first_), tokens_.begin() + (stop - first_)};
  }
  std::vector<int64_t> read(int64_t start) const { return read(start, size()); }

  // Cuts off the tokens before number `before`, once they are most of what is kept.
  void forget(int64_t before) {
    const int64_t gone = std::min(before, size()) - first_;
    if (2 * gone <= static_cast<int64_t>(tokens_.size())) return;
    tokens_.erase(tokens_.begin(), tokens_.begin() + gone);
    first_ += gone;
  }

 private:
  std::vector<int64_t> tokens_;
  int64_t first_ = 0;
};

}  // namespace musiclm
