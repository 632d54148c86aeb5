// See tokenizer_file.h. A field is known by its name and by how many lists and objects are open around it.
#include "tokenizer_file.h"

#include "error.h"
#include "json_text.h"

namespace musiclm {

namespace {

constexpr size_t kMostKept = 1000;  // values of the settings; RoBERTa's has 80

struct OtherFile : Error {  // JSON, but with other parts
  explicit OtherFile(const std::string& why) : Error(ML_BAD_BUNDLE, why) {}
};

[[noreturn]] void refuse(const std::string& why) { throw OtherFile(why); }

enum class Place { elsewhere, model, type, suffix, vocabulary, id, merges, merge, half };

class Reader : public nlohmann::json_sax<Json> {
 public:
  TokenizerModel model;
  std::string type, suffix;
  bool has_vocabulary = false, has_merges = false;

  explicit Reader(Json* settings) : settings_(settings) {}  // NULL: they are not kept

  bool key(std::string& name) override {
    if (depth_ == 1) in_model_ = name == "model";
    if (depth_ == 2 && in_model_) field_ = field_of(name);
    if (place_of_value() == Place::id) token_ = std::move(name);
    else if (settings_ != nullptr) name_ = std::move(name);
    return true;
  }

  bool string(std::string& text) override {
    const Place place = place_of_value();
    if (place == Place::type) type = text, keep(text);
    else if (place == Place::suffix) suffix = text, keep(text);
    else if (place == Place::merge) add_merge(text);
    else if (place == Place::half) halves_.push_back(std::move(text));
    else other(text);
    return true;
  }

  bool number_integer(int64_t number) override {
    if (place_of_value() != Place::id) return other(number);
    model.vocabulary.emplace_back(std::move(token_), number);
    return true;
  }
  bool number_unsigned(uint64_t number) override {  // what does not fit is no id either, and is found to be none when they are counted
    if (place_of_value() != Place::id) return other(number);
    return number_integer(number <= static_cast<uint64_t>(INT64_MAX) ? static_cast<int64_t>(number) : -1);
  }
  bool null() override { return other(nullptr); }
  bool boolean(bool value) override { return other(value); }
  bool number_float(double value, const std::string&) override { return other(value); }
  bool binary(Json::binary_t&) override { return true; }  // JSON has none

  bool start_object(size_t) override {
    const Place place = place_of_value();
    if (place == Place::model) model = {}, type.clear(), suffix.clear(), has_vocabulary = has_merges = false;
    else if (place == Place::vocabulary) model.vocabulary.clear(), has_vocabulary = true;
    else check(Json::object());
    return begun(Json::object());
  }
  bool end_object() override { return ended(); }

  bool start_array(size_t) override {
    const Place place = place_of_value();
    if (place == Place::merges) model.merges.clear(), has_merges = true;
    else if (place == Place::merge) halves_.clear();
    else check(Json::array());
    return begun(Json::array());
  }
  bool end_array() override {
    ended();
    if (place_of_value() != Place::merge) return true;
    if (halves_.size() != 2) refuse("a merge must be two tokens, got " + short_repr(halves_));
    model.merges.emplace_back(std::move(halves_[0]), std::move(halves_[1]));
    return true;
  }

  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    throw Error(ML_BAD_BUNDLE, "it is no JSON: " + reason_of(error));
  }

 private:
  Place field_of(const std::string& name) {
    if (name == "type") return type.clear(), Place::type;
    if (name == "end_of_word_suffix") return suffix.clear(), Place::suffix;
    return name == "vocab" ? Place::vocabulary : name == "merges" ? Place::merges : Place::elsewhere;
  }

  // Of the value that comes next.
  Place place_of_value() const {
    if (!in_model_ || depth_ == 0) return Place::elsewhere;
    if (depth_ == 1) return Place::model;
    if (depth_ == 2) return field_;
    if (field_ == Place::vocabulary && depth_ == 3) return Place::id;
    if (field_ == Place::merges) return depth_ == 3 ? Place::merge : Place::half;
    return Place::elsewhere;
  }

  // Reads a value that may stand only where no part of the model does.
  bool other(const Json& value) {
    check(value);
    keep(value);
    return true;
  }

  // Refuses a value that stands where a part of the model is read.
  void check(const Json& value) const {
    switch (place_of_value()) {
      case Place::model:
        refuse(std::string("the model must be an object, got ") + value.type_name());
      case Place::vocabulary:
      case Place::id:
        refuse("vocab must map tokens to whole numbers");
      case Place::merges:
        refuse(std::string("merges must be a list, got ") + value.type_name());
      case Place::merge:
      case Place::half:
        refuse("a merge must be two tokens, got " + short_repr(value));
      default:
        return;
    }
  }

  // Puts a value where it stands in the settings. Returns its place there, or NULL.
  Json* keep(Json value) {
    if (settings_ == nullptr) return nullptr;
    if (open_.empty()) return &(*settings_ = std::move(value));
    Json* around = open_.back();
    if (around == nullptr) return nullptr;
    if (++kept_ > kMostKept) refuse("it has more than " + std::to_string(kMostKept) + " settings");
    if (around->is_array()) return &around->emplace_back(std::move(value));
    if (around->contains(name_)) refuse("the field " + short_repr(name_) + " is listed twice");
    return &((*around)[name_] = std::move(value));
  }

  void add_merge(const std::string& text) {
    const size_t space = text.find(' ');
    if (space == std::string::npos || space != text.rfind(' ')) refuse("a merge must be two tokens, got " + short_repr(text));
    model.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }

  // Opens a list or an object. Vocabulary and merges stay empty in the settings.
  bool begun(Json empty) {
    if (settings_ != nullptr) {
      Json* kept = keep(std::move(empty));
      const bool is_part = in_model_ && depth_ >= 2 && (field_ == Place::vocabulary || field_ == Place::merges);
      open_.push_back(is_part ? nullptr : kept);
    }
    depth_++;
    return true;
  }
  bool ended() {
    if (settings_ != nullptr) open_.pop_back();
    depth_--;
    if (depth_ == 1) in_model_ = false;
    return true;
  }

  int64_t depth_ = 0;  // lists and objects that are open
  bool in_model_ = false;
  Place field_ = Place::elsewhere;  // of the model
  std::string token_;
  std::vector<std::string> halves_;
  Json* settings_;
  std::vector<Json*> open_;  // where the lists and objects that are open stand in the settings; NULL: nowhere
  std::string name_;         // of the value that comes next in the settings
  size_t kept_ = 0;
};

}  // namespace

TokenizerModel read_tokenizer_model(const std::string& text, const std::string& end_of_word) {
  Reader reader(nullptr);
  Json::sax_parse(text, &reader);
  if (reader.type != "BPE" || reader.suffix != end_of_word) {
    refuse("the model is not a BPE with the end-of-word suffix '" + end_of_word + "'");
  }
  if (!reader.has_vocabulary || !reader.has_merges) refuse(std::string("the model has no ") + (reader.has_vocabulary ? "merges" : "vocab"));
  return std::move(reader.model);
}

TokenizerFile read_tokenizer_file(const std::string& text) {
  TokenizerFile file;
  Reader reader(&file.settings);
  try {
    Json::sax_parse(text, &reader);
    if (!reader.has_vocabulary || !reader.has_merges) refuse(std::string("the model has no ") + (reader.has_vocabulary ? "merges" : "vocab"));
  } catch (const OtherFile& error) {
    file.fault = error.what();
  }
  if (!reader.type.empty() && reader.type != "BPE") file.fault = "model.type: expected 'BPE', got " + short_repr(reader.type);
  file.model = std::move(reader.model);
  return file;
}

}  // namespace musiclm
