// CLIP's tokenizer: the checks of a tokenizer.json, the pieces of a text, and the byte pairs that are merged in each. See tokenizer.h.
#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <functional>
#include <queue>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "entities.h"
#include "error.h"
#include "json_text.h"
#include "repair.h"
#include "tokenizer_file.h"
#include "unicode.h"

namespace musiclm {

namespace {

constexpr char kEndOfWord[] = "</w>";
constexpr char32_t kStart[] = U"<|startoftext|>", kEnd[] = U"<|endoftext|>";
constexpr const char32_t* kClitics[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
constexpr char32_t kLongS = 0x17F;  // where case is ignored, as in the patterns, it is an s
constexpr uintmax_t kMaxFileBytes = 32u << 20;
constexpr size_t kFaultsShown = 5;

using Vocabulary = std::unordered_map<std::string_view, int64_t>;  // of texts that live elsewhere

// A printable character for each byte, GPT-2's way: what prints in Latin-1 stands for itself, the others for U+0100 and on.
std::array<std::string, 256> byte_alphabet() {
  std::array<std::string, 256> alphabet;
  char32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; byte++) {
    const bool prints = (byte >= 0x21 && byte < 0x7F) || (byte >= 0xA1 && byte != 0xAD);
    append_utf8(alphabet[byte], prints ? byte : next++);
  }
  return alphabet;
}

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
  if (text.find('\0') != std::string::npos) throw Error(ML_BAD_BUNDLE, "it holds zero bytes");  // the first of which nlohmann takes for the end
  return text;
}

// Whether a pattern that ignores case stands at `at` of a text in lower case.
bool stands_at(const std::u32string& text, size_t at, const char32_t* pattern) {
  for (; *pattern != 0; pattern++, at++) {
    if (at >= text.size() || (text[at] != *pattern && !(*pattern == U's' && text[at] == kLongS))) return false;
  }
  return true;
}

// The length of the piece that begins at `at`, or 0. The parts of CLIP's pattern in their order: the two marks, English clitics, runs of
// letters, single numbers, runs of other signs.
size_t piece_length(const std::u32string& text, size_t at) {
  for (const char32_t* mark : {kStart, kEnd}) {
    if (stands_at(text, at, mark)) return std::char_traits<char32_t>::length(mark);
  }
  for (const char32_t* clitic : kClitics) {
    if (stands_at(text, at, clitic)) return std::char_traits<char32_t>::length(clitic);
  }
  const Kind kind = kind_of(text[at]);
  if (kind == Kind::gap) return 0;
  if (kind == Kind::number) return 1;
  size_t end = at + 1;
  while (end < text.size() && kind_of(text[end]) == kind) end++;
  return end - at;
}

}  // namespace

struct ClipTokenizer::Table {
  std::array<int64_t, 256> inner{}, last{};  // the id of a byte: within a piece, and at its end
  int64_t start = 0, end = 0;                // of the two marks
  struct Merge {
    int64_t rank, id;
  };
  std::unordered_map<uint64_t, Merge> merges;  // of two ids

  explicit Table(const TokenizerModel& model) {
    Vocabulary vocabulary;
    vocabulary.reserve(model.vocabulary.size());
    for (const auto& [token, id] : model.vocabulary) vocabulary[token] = id;
    std::vector<std::string> faults;
    const auto id_of = [&](const std::string& token) {
      const auto found = vocabulary.find(token);
      if (found != vocabulary.end()) return found->second;
      faults.push_back("the vocabulary lacks " + python_repr(token));
      return int64_t{-1};
    };
    const std::array<std::string, 256> alphabet = byte_alphabet();
    for (size_t byte = 0; byte < 256; byte++) {
      inner[byte] = id_of(alphabet[byte]);
      last[byte] = id_of(alphabet[byte] + kEndOfWord);
    }
    start = id_of(encode_utf8(kStart));
    end = id_of(encode_utf8(kEnd));
    std::vector<bool> taken(vocabulary.size());
    size_t numbered = 0;
    for (const auto& entry : vocabulary) {
      if (entry.second < 0 || static_cast<uint64_t>(entry.second) >= taken.size() || taken[entry.second]) continue;
      taken[entry.second] = true;
      numbered++;
    }
    if (numbered != vocabulary.size()) {
      faults.push_back("the " + std::to_string(vocabulary.size()) + " token ids are not the numbers from 0 to " +
                       std::to_string(static_cast<int64_t>(vocabulary.size()) - 1));
    }
    read_merges(model.merges, vocabulary, faults);
    if (faults.empty()) return;
    std::string message = "not CLIP's tokenizer: ";
    for (size_t i = 0; i < std::min(faults.size(), kFaultsShown); i++) message += (i == 0 ? "" : "; ") + faults[i];
    if (faults.size() > kFaultsShown) message += " and " + std::to_string(faults.size() - kFaultsShown) + " more";
    throw Error(ML_BAD_BUNDLE, message);
  }

  // Ids are below 2^25, as the file has at most 32 MiB.
  static uint64_t pair_of(int64_t first, int64_t second) { return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(second); }

  void read_merges(const std::vector<std::pair<std::string, std::string>>& list, const Vocabulary& vocabulary, std::vector<std::string>& faults) {
    merges.reserve(list.size());
    int64_t rank = 0;
    for (const auto& [first, second] : list) {
      const auto a = vocabulary.find(first), b = vocabulary.find(second), whole = vocabulary.find(first + second);
      if (a == vocabulary.end() || b == vocabulary.end() || whole == vocabulary.end()) {
        const std::string pair = "(" + python_repr(first) + ", " + python_repr(second) + ")";
        faults.push_back("the merge " + pair + " uses or makes a token that the vocabulary lacks");
      } else {
        merges[pair_of(a->second, b->second)] = {rank, whole->second};  // of a merge that is listed twice the later one counts
      }
      rank++;
    }
  }

  const Merge* merge_of(int64_t first, int64_t second) const {
    const auto found = merges.find(pair_of(first, second));
    return found == merges.end() ? nullptr : &found->second;
  }

  void append_ids(std::vector<int64_t>& ids, const std::string& bytes) const;
};

// The earliest merge first, and of equal ones the leftmost. An entry of the queue that other merges have overtaken counts where its
// two still make the same token, as in the Hugging Face tokenizers.
void ClipTokenizer::Table::append_ids(std::vector<int64_t>& ids, const std::string& bytes) const {
  const size_t count = bytes.size();
  struct Symbol {
    int64_t id;
    size_t previous, next;  // `count`: none
    bool merged;            // into one before it
  };
  std::vector<Symbol> symbols(count);
  for (size_t i = 0; i < count; i++) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    symbols[i] = {i + 1 == count ? last[byte] : inner[byte], i == 0 ? count : i - 1, i + 1, false};
  }
  using Candidate = std::tuple<int64_t, size_t, int64_t>;  // rank, position, id
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> queue;
  const auto consider = [&](size_t at) {
    if (at == count || symbols[at].next == count) return;
    if (const Merge* merge = merge_of(symbols[at].id, symbols[symbols[at].next].id)) queue.emplace(merge->rank, at, merge->id);
  };
  for (size_t i = 0; i < count; i++) consider(i);
  while (!queue.empty()) {
    const auto [rank, at, id] = queue.top();
    queue.pop();
    Symbol& symbol = symbols[at];
    if (symbol.merged || symbol.next == count) continue;
    Symbol& right = symbols[symbol.next];
    const Merge* merge = merge_of(symbol.id, right.id);
    if (merge == nullptr || merge->id != id) continue;
    right.merged = true;
    symbol.id = id;
    symbol.next = right.next;
    if (symbol.next != count) symbols[symbol.next].previous = at;
    consider(symbol.previous);
    consider(at);
  }
  for (const Symbol& symbol : symbols) {
    if (!symbol.merged) ids.push_back(symbol.id);
  }
}

ClipTokenizer::ClipTokenizer(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  try {
    table_ = std::make_unique<Table>(read_tokenizer_model(text, kEndOfWord));
  } catch (const Error& error) {
    throw Error(ML_BAD_BUNDLE, file.string() + " is not a tokenizer.json of CLIP's tokenizer: " + error.what());
  }
}

ClipTokenizer::~ClipTokenizer() = default;
ClipTokenizer::ClipTokenizer(ClipTokenizer&&) noexcept = default;

std::vector<int64_t> ClipTokenizer::encode(const std::string& text, int64_t max_tokens) const {
  const std::u32string read = decode_utf8(text);
  const std::u32string lower = to_lower(unescape_html(unescape_html(repair_text(read))));
  const auto shown = [&read] { return python_repr(encode_utf8(read.substr(0, 60))); };
  std::vector<int64_t> ids;
  for (size_t i = 0; i < lower.size();) {
    const size_t length = piece_length(lower, i);
    if (length == 0) {
      i++;
      continue;
    }
    const std::u32string piece = lower.substr(i, length);
    if (piece == kStart || piece == kEnd) {
      ids.push_back(piece == kStart ? table_->start : table_->end);
    } else {
      table_->append_ids(ids, encode_utf8(piece));
    }
    i += length;
  }
  if (ids.empty()) throw Error(ML_BAD_ARGUMENT, "the text " + shown() + " holds no token: write what the music should sound like");
  if (ids.size() > static_cast<size_t>(std::max<int64_t>(max_tokens, 0))) {
    throw Error(ML_BAD_ARGUMENT, "a text of " + std::to_string(ids.size()) + " tokens is longer than the " + std::to_string(max_tokens) +
                                     " MuLaN takes: shorten " + shown());
  }
  return ids;
}

}  // namespace musiclm
