// Byte-pair encoding, as CLIP's and RoBERTa's tokenizers have it: the bytes of a piece of text, merged by rank.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "tokenizer_file.h"

namespace musiclm {

class BytePairs {
 public:
  // owner: whose tokenizer it is, for messages; end_of_word: the suffix of tokens that end a piece, or ""; special: tokens that no merge makes.
  // Throws Error(ML_BAD_BUNDLE), which lists the first faults, unless the vocabulary has the special tokens and one for each byte, its ids are
  // the numbers from 0 on, and the merges are of its tokens.
  BytePairs(const TokenizerModel&, const std::string& owner, const std::string& end_of_word, const std::vector<std::string>& special);

  int64_t special_id(size_t index) const { return special_[index]; }
  void append_ids(std::vector<int64_t>& ids, const std::string& piece) const;

 private:
  struct Merge {
    int64_t rank, id;
  };
  const Merge* merge_of(int64_t first, int64_t second) const;

  std::array<int64_t, 256> inner_{}, last_{};  // the id of a byte: within a piece, and at its end
  std::vector<int64_t> special_;
  std::unordered_map<uint64_t, Merge> merges_;  // of two ids
};

}  // namespace musiclm
