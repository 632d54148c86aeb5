// What every tokenizer of a bundle can do: texts to the token ids that MuLaN's text tower was trained on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace musiclm {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Returns the ids of a text in UTF-8, those that are put around every text included. Throws Error(ML_BAD_ARGUMENT) for bytes that are not UTF-8,
  // for a text that holds no token, for one of more than `max_tokens`, and for one that the tokenizer refuses.
  std::vector<int64_t> encode(const std::string& text, int64_t max_tokens) const;

 private:
  virtual std::vector<int64_t> ids_of(const std::u32string& text) const = 0;
  virtual size_t tokens_around() const = 0;  // the ids of a text without tokens
};

// Opens a tokenizer.json. from_file: whether it is a tokenizer of its own, of which RoBERTa's is read; else it is CLIP's. Throws Error(ML_BAD_BUNDLE)
// for anything else.
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& file, bool from_file);

}  // namespace musiclm
