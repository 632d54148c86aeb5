// See byte_pairs.h.
#include "byte_pairs.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <string_view>
#include <tuple>
#include <utility>

#include "error.h"
#include "json_text.h"
#include "unicode.h"

namespace musiclm {

namespace {

constexpr size_t kFaultsShown = 5;

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

// Ids are below 2^25, as the file has at most 32 MiB.
uint64_t pair_of(int64_t first, int64_t second) { return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(second); }

class Vocabulary {
 public:
  explicit Vocabulary(const TokenizerModel& model) {
    ids_.reserve(model.vocabulary.size());
    for (const auto& [token, id] : model.vocabulary) ids_[token] = id;
  }

  // -1: none has this token.
  int64_t find(const std::string& token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }
  bool has(const std::string& token) const { return ids_.count(token) != 0; }
  size_t size() const { return ids_.size(); }

  bool is_numbered() const {
    std::vector<bool> taken(ids_.size());
    for (const auto& entry : ids_) {
      if (entry.second < 0 || static_cast<uint64_t>(entry.second) >= taken.size() || taken[entry.second]) return false;
      taken[entry.second] = true;
    }
    return true;
  }

 private:
  std::unordered_map<std::string_view, int64_t> ids_;  // of texts that live in the model
};

[[noreturn]] void refuse(const std::string& owner, const std::vector<std::string>& faults) {
  std::string message = "not " + owner + " tokenizer: ";
  for (size_t i = 0; i < std::min(faults.size(), kFaultsShown); i++) message += (i == 0 ? "" : "; ") + faults[i];
  if (faults.size() > kFaultsShown) message += " and " + std::to_string(faults.size() - kFaultsShown) + " more";
  throw Error(ML_BAD_BUNDLE, message);
}

}  // namespace

BytePairs::BytePairs(const TokenizerModel& model, const std::string& owner, const std::string& end_of_word, const std::vector<std::string>& special) {
  const Vocabulary vocabulary(model);
  std::vector<std::string> faults;
  const auto id_of = [&](const std::string& token) {
    if (!vocabulary.has(token)) faults.push_back("the vocabulary lacks " + python_repr(token));
    return vocabulary.find(token);
  };
  const std::array<std::string, 256> alphabet = byte_alphabet();
  for (size_t byte = 0; byte < 256; byte++) {
    inner_[byte] = id_of(alphabet[byte]);
    last_[byte] = end_of_word.empty() ? inner_[byte] : id_of(alphabet[byte] + end_of_word);
  }
  for (const std::string& token : special) special_.push_back(id_of(token));
  if (!vocabulary.is_numbered()) {
    faults.push_back("the " + std::to_string(vocabulary.size()) + " token ids are not the numbers from 0 to " +
                     std::to_string(static_cast<int64_t>(vocabulary.size()) - 1));
  }
  merges_.reserve(model.merges.size());
  int64_t rank = 0;
  for (const auto& [first, second] : model.merges) {
    if (!vocabulary.has(first) || !vocabulary.has(second) || !vocabulary.has(first + second)) {
      const std::string pair = "(" + python_repr(first) + ", " + python_repr(second) + ")";
      faults.push_back("the merge " + pair + " uses or makes a token that the vocabulary lacks");
    } else {
      // of a merge that is listed twice the later one counts
      merges_[pair_of(vocabulary.find(first), vocabulary.find(second))] = {rank, vocabulary.find(first + second)};
    }
    rank++;
  }
  if (!faults.empty()) refuse(owner, faults);
}

const BytePairs::Merge* BytePairs::merge_of(int64_t first, int64_t second) const {
  const auto found = merges_.find(pair_of(first, second));
  return found == merges_.end() ? nullptr : &found->second;
}

// The earliest merge first, and of equal ones the leftmost. An entry of the queue that other merges have overtaken counts where its
// two still make the same token, as in the Hugging Face tokenizers.
void BytePairs::append_ids(std::vector<int64_t>& ids, const std::string& piece) const {
  const size_t count = piece.size();
  struct Symbol {
    int64_t id;
    size_t previous, next;  // `count`: none
    bool merged;            // into one before it
  };
  std::vector<Symbol> symbols(count);
  for (size_t i = 0; i < count; i++) {
    const auto byte = static_cast<unsigned char>(piece[i]);
    symbols[i] = {i + 1 == count ? last_[byte] : inner_[byte], i == 0 ? count : i - 1, i + 1, false};
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

}  // namespace musiclm
