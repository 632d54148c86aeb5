// CLIP's byte-pair tokenizer, as Python's runtime/tokenizer.py has it but for ftfy's guesses at broken text: equal ids, or a refusal.
#pragma once

#include "byte_pairs.h"
#include "tokenizer.h"

namespace musiclm {

class ClipTokenizer : public Tokenizer {
 public:
  // content: of a tokenizer.json. Throws Error(ML_BAD_BUNDLE) for what is not CLIP's tokenizer.
  explicit ClipTokenizer(const std::string& content);

 private:
  // Refuses a text that ftfy might change, instead of reading it otherwise than Python does.
  std::vector<int64_t> ids_of(const std::u32string& text) const override;
  size_t tokens_around() const override { return 0; }

  BytePairs pairs_;
};

}  // namespace musiclm
