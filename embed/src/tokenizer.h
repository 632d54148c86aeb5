// CLIP's byte-pair tokenizer, as Python's runtime/tokenizer.py has it but for ftfy's guesses at broken text: equal ids, or a refusal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace musiclm {

class ClipTokenizer {
 public:
  // Throws Error(ML_BAD_BUNDLE) for a file that is not CLIP's tokenizer.
  explicit ClipTokenizer(const std::filesystem::path& file);
  ~ClipTokenizer();
  ClipTokenizer(ClipTokenizer&&) noexcept;

  // The ids of a text in UTF-8. Throws Error(ML_BAD_ARGUMENT) for bytes that are not UTF-8, for a text that holds no token, for one of more
  // than `max_tokens`, and for one that ftfy might change: it is refused instead of being read otherwise than Python does.
  std::vector<int64_t> encode(const std::string& text, int64_t max_tokens) const;

 private:
  struct Table;
  std::unique_ptr<Table> table_;
};

}  // namespace musiclm
