// Prints the token ids of texts: tokenize [--from-file] TOKENIZER_JSON [MAX_TOKENS] < texts, one a line: a JSON string, or "=" and bytes
// as they are. What is not read is "refused: ...". --from-file: the file is RoBERTa's tokenizer, else CLIP's.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "error.h"
#include "tokenizer.h"

int main(int count, char** arguments) {
  const bool from_file = count > 1 && std::string(arguments[1]) == "--from-file";
  if (from_file) count--, arguments++;
  if (count < 2) {
    std::fprintf(stderr, "usage: tokenize [--from-file] TOKENIZER_JSON [MAX_TOKENS] < texts, a JSON string a line\n");
    return 2;
  }
  const int64_t max_tokens = count > 2 ? std::atoll(arguments[2]) : INT64_MAX;
  try {
    const std::unique_ptr<musiclm::Tokenizer> tokenizer = musiclm::open_tokenizer(arguments[1], from_file);
    std::ios::sync_with_stdio(false);
    for (std::string line; std::getline(std::cin, line);) {
      try {
        std::string out;
        const std::string text = line[0] == '=' ? line.substr(1) : nlohmann::json::parse(line).get<std::string>();
        for (int64_t id : tokenizer->encode(text, max_tokens)) out += std::to_string(id) + ' ';
        std::cout << out << '\n';
      } catch (const std::exception& error) {  // of JSON too, which has no words for halves of characters
        std::cout << "refused: " << nlohmann::json(error.what()).dump(-1, ' ', true) << '\n';
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
