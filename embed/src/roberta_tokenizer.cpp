// The layout of a tokenizer.json that is RoBERTa's, and the pieces of a text that it encodes. See roberta_tokenizer.h.
#include "roberta_tokenizer.h"

#include <algorithm>
#include <string_view>

#include "error.h"
#include "json_text.h"
#include "unicode.h"

namespace musiclm {

namespace {

// The indices of `kSpecial`. <mask> swallows the white space before it.
enum Special : size_t { kStart, kPadding, kEnd, kUnknown, kMask };
constexpr std::u32string_view kSpecial[] = {U"<s>", U"<pad>", U"</s>", U"<unk>", U"<mask>"};
constexpr std::u32string_view kClitics[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};

// A file without its ids, added tokens, vocabulary and merges. Any number may stand in place of the 77, to which training cut its texts.
constexpr char kLayout[] = R"({
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0},
  "padding": null,
  "added_tokens": [],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": {
    "type": "RobertaProcessing", "sep": ["</s>", 0], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": false
  },
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {
    "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
    "byte_fallback": false, "ignore_merges": false, "vocab": {}, "merges": []
  }
})";

[[noreturn]] void refuse(const std::string& why) {
  throw Error(ML_BAD_BUNDLE, why +
                                 ". The bundle has another tokenizer than CLIP's and RoBERTa's, which are the only ones that this library reads: "
                                 "play it with musiclm-deploy in Python");
}

std::vector<std::string> special_tokens() {
  std::vector<std::string> tokens;
  for (const std::u32string_view token : kSpecial) tokens.push_back(encode_utf8(std::u32string(token)));
  return tokens;
}

// Returns the layout with the ids that the vocabulary has for the special tokens.
Json layout_for(const TokenizerModel& model) {
  std::vector<std::pair<int64_t, std::string>> tokens;
  for (const std::string& token : special_tokens()) {
    const auto found = std::find_if(model.vocabulary.rbegin(), model.vocabulary.rend(), [&](const auto& entry) { return entry.first == token; });
    if (found == model.vocabulary.rend()) refuse("the vocabulary lacks " + python_repr(token));
    tokens.emplace_back(found->second, token);
  }
  Json layout = Json::parse(kLayout);
  layout["post_processor"]["cls"][1] = tokens[kStart].first;
  layout["post_processor"]["sep"][1] = tokens[kEnd].first;
  const std::string mask = tokens[kMask].second;
  std::sort(tokens.begin(), tokens.end());
  for (const auto& [id, token] : tokens) {
    layout["added_tokens"].push_back({{"id", id},
                                      {"content", token},
                                      {"single_word", false},
                                      {"lstrip", token == mask},
                                      {"rstrip", false},
                                      {"normalized", false},
                                      {"special", true}});
  }
  return layout;
}

// Refuses what differs from the layout, by the first place where it does. place: the fields that lead there.
void check_layout(const std::string& place, const Json& expected, const Json& found) {
  const bool alike = expected.is_number_integer() ? found.is_number_integer() : expected.type() == found.type();
  if (!alike || (!expected.is_structured() && expected != found)) {
    if (place == "truncation.max_length" && found.is_number_unsigned()) return;
    refuse((place.empty() ? "" : place + ": ") + "expected " + short_repr(expected) + ", got " + short_repr(found));
  }
  if (expected.is_array()) {
    if (expected.size() != found.size()) {
      refuse(place + ": expected " + std::to_string(expected.size()) + " entries, got " + std::to_string(found.size()));
    }
    for (size_t i = 0; i < expected.size(); i++) check_layout(place + "[" + std::to_string(i) + "]", expected[i], found[i]);
  } else if (expected.is_object()) {
    for (const auto& field : found.items()) {
      if (!expected.contains(field.key())) refuse((place.empty() ? "" : place + ": ") + "unknown field " + short_repr(field.key()));
    }
    for (const auto& field : expected.items()) {
      const std::string name = (place.empty() ? "" : place + ".") + field.key();
      if (!found.contains(field.key())) refuse(name + ": this field is missing");
      check_layout(name, field.value(), found[field.key()]);
    }
  }
}

TokenizerFile read_checked(const std::string& content) {
  TokenizerFile file = read_tokenizer_file(content);
  if (!file.fault.empty()) refuse(file.fault);
  check_layout("", layout_for(file.model), file.settings);
  return file;
}

bool stands_at(const std::u32string& text, size_t at, std::u32string_view token) { return text.compare(at, token.size(), token) == 0; }

// Returns where the run of one kind of characters ends that begins at `at`.
size_t run_end(const std::u32string& text, size_t at, size_t end) {
  const Kind kind = byte_level_kind_of(text[at]);
  while (at < end && byte_level_kind_of(text[at]) == kind) at++;
  return at;
}

// Returns where the piece ends that begins at `at`, by the parts of GPT-2's pattern in their order: English clitics, runs of letters, of
// numbers and of other signs, each with a space before it, and gaps without the last sign of white space before a run.
size_t piece_end(const std::u32string& text, size_t at, size_t end) {
  for (const std::u32string_view clitic : kClitics) {
    if (clitic.size() <= end - at && stands_at(text, at, clitic)) return at + clitic.size();
  }
  const size_t run = text[at] == U' ' && at + 1 < end ? at + 1 : at;
  if (byte_level_kind_of(text[run]) != Kind::gap) return run_end(text, run, end);
  const size_t gap_end = run_end(text, at, end);
  return gap_end == end || gap_end == at + 1 ? gap_end : gap_end - 1;
}

}  // namespace

RobertaTokenizer::RobertaTokenizer(const std::string& content) : RobertaTokenizer(read_checked(content)) {}
RobertaTokenizer::RobertaTokenizer(const TokenizerFile& file) : pairs_(file.model, "RoBERTa's", "", special_tokens()) {}

void RobertaTokenizer::append_pieces(std::vector<int64_t>& ids, const std::u32string& text, size_t begin, size_t end) const {
  while (begin < end) {
    const size_t next = piece_end(text, begin, end);
    pairs_.append_ids(ids, encode_utf8(text.substr(begin, next - begin)));
    begin = next;
  }
}

std::vector<int64_t> RobertaTokenizer::ids_of(const std::u32string& text) const {
  std::vector<int64_t> ids = {pairs_.special_id(kStart)};
  size_t begin = 0;  // of what is not encoded yet
  for (size_t at = 0; at < text.size();) {
    const auto* const special = std::find_if(std::begin(kSpecial), std::end(kSpecial), [&](const auto token) { return stands_at(text, at, token); });
    if (special == std::end(kSpecial)) {
      at++;
      continue;
    }
    const auto index = static_cast<size_t>(special - std::begin(kSpecial));
    size_t end = at;
    while (index == kMask && end > begin && byte_level_kind_of(text[end - 1]) == Kind::gap) end--;
    append_pieces(ids, text, begin, end);
    ids.push_back(pairs_.special_id(index));
    at += special->size();
    begin = at;
  }
  append_pieces(ids, text, begin, text.size());
  ids.push_back(pairs_.special_id(kEnd));
  return ids;
}

}  // namespace musiclm
