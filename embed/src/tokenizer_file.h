// What a byte-pair tokenizer is made of, read from a tokenizer.json without a value in memory for each token: that would take most of the time of
// opening a small bundle.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "json_text.h"

namespace musiclm {

struct TokenizerModel {
  std::vector<std::pair<std::string, int64_t>> vocabulary;  // in the file's order; of a token that is listed twice the later one counts
  std::vector<std::pair<std::string, std::string>> merges;
};

// Throws Error(ML_BAD_BUNDLE) for a text that is no JSON, or whose `model` is not a BPE with this suffix, a vocabulary and merges of two tokens.
TokenizerModel read_tokenizer_model(const std::string& text, const std::string& end_of_word);

struct TokenizerFile {
  TokenizerModel model;
  Json settings;      // the whole file, its vocabulary and its merges empty
  std::string fault;  // why it is no file with a BPE of these parts, or ""; the rest is as it was read so far
};

// Throws Error(ML_BAD_BUNDLE) for a text that is no JSON.
TokenizerFile read_tokenizer_file(const std::string& text);

}  // namespace musiclm
