// What tokenizers have in common: the file, and the checks of a text. See tokenizer.h.
#include "tokenizer.h"

#include <algorithm>
#include <fstream>

#include "clip_tokenizer.h"
#include "error.h"
#include "json_text.h"
#include "roberta_tokenizer.h"
#include "unicode.h"

namespace musiclm {

namespace {

constexpr uintmax_t kMaxFileBytes = 32u << 20;

std::string read_file(const std::filesystem::path& path) {
  std::error_code failure;
  const uintmax_t bytes = std::filesystem::file_size(path, failure);
  if (failure) throw Error(ML_BAD_BUNDLE, path.string() + " cannot be read: " + failure.message());
  if (bytes > kMaxFileBytes) {
    throw Error(ML_BAD_BUNDLE,
                path.string() + ": " + std::to_string(bytes) + " bytes, more than the " + std::to_string(kMaxFileBytes) + " a tokenizer may have");
  }
  std::string text(static_cast<size_t>(bytes), '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file) throw Error(ML_BAD_BUNDLE, path.string() + " cannot be read: the file could be opened and read only in part, or not at all");
  return text;
}

}  // namespace

std::vector<int64_t> Tokenizer::encode(const std::string& text, int64_t max_tokens) const {
  const std::u32string read = decode_utf8(text);
  const auto shown = [&read] { return python_repr(encode_utf8(read.substr(0, 60))); };
  std::vector<int64_t> ids = ids_of(read);
  if (ids.size() == tokens_around()) {
    throw Error(ML_BAD_ARGUMENT, "the text " + shown() + " holds no token: write what the music should sound like");
  }
  if (ids.size() > static_cast<size_t>(std::max<int64_t>(max_tokens, 0))) {
    throw Error(ML_BAD_ARGUMENT, "a text of " + std::to_string(ids.size()) + " tokens is longer than the " + std::to_string(max_tokens) +
                                     " MuLaN takes: shorten " + shown());
  }
  return ids;
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& file, bool from_file) {
  const std::string text = read_file(file);
  const std::string name = from_file ? "RoBERTa's" : "CLIP's";
  try {
    if (text.find('\0') != std::string::npos) throw Error(ML_BAD_BUNDLE, "it holds zero bytes");  // nlohmann takes the first one for the end
    if (from_file) return std::make_unique<RobertaTokenizer>(text);
    return std::make_unique<ClipTokenizer>(text);
  } catch (const Error& error) {
    throw Error(ML_BAD_BUNDLE, file.string() + " is not a tokenizer.json of " + name + " tokenizer: " + error.what());
  }
}

}  // namespace musiclm
