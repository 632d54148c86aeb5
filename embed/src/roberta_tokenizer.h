// RoBERTa's byte-level tokenizer, on whose ids CLAP's text tower was trained: equal ids as the package tokenizers gives with the same file.
#pragma once

#include "byte_pairs.h"
#include "tokenizer.h"

namespace musiclm {

class RobertaTokenizer : public Tokenizer {
 public:
  // content: of a tokenizer.json. Throws Error(ML_BAD_BUNDLE), which says what was found, for what is not RoBERTa's tokenizer in the layout that
  // bundles have.
  explicit RobertaTokenizer(const std::string& content);

 private:
  explicit RobertaTokenizer(const TokenizerFile&);
  std::vector<int64_t> ids_of(const std::u32string& text) const override;
  size_t tokens_around() const override { return 2; }
  void append_pieces(std::vector<int64_t>& ids, const std::u32string& text, size_t begin, size_t end) const;

  BytePairs pairs_;
};

}  // namespace musiclm
