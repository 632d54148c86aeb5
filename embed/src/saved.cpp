// A stream's tokens so far and how they are made, as JSON: what a later stream goes on from.
#include <fstream>
#include <nlohmann/json.hpp>

#include "error.h"
#include "stream.h"

namespace musiclm {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;

Json prompt_json(const Blend& prompt) {
  Json parts = Json::array();
  for (const auto& [text, weight] : prompt) parts.push_back({text, weight});
  return parts;
}

Blend prompt_of(const Json& parts) {
  Blend prompt;
  for (const Json& part : parts) prompt.emplace_back(part.at(0).get<std::string>(), part.at(1).get<float>());
  return prompt;
}

}  // namespace

void write_saved(const Saved& saved, const std::string& bundle, const std::string& path) {
  Json changes = Json::array(), runs = Json::array();
  for (const Change& change : saved.changes)
    changes.push_back({{"run", change.run}, {"frame", change.frame}, {"prompt", prompt_json(change.prompt)}});
  for (const auto& [start, stop] : saved.tokens.runs) runs.push_back({start, stop});
  const Json whole = {{"musiclm_stream", kVersion}, {"bundle", bundle}, {"prompt", prompt_json(saved.prompt)}, {"options", saved.options},
                      {"changes", changes},         {"runs", runs},     {"semantic", saved.tokens.semantic},   {"coarse", saved.tokens.coarse},
                      {"fine", saved.tokens.fine}};
  const std::string aside = path + ".part";  // a file that was there stays whole until this one is
  std::ofstream file(aside, std::ios::binary);
  file << whole.dump() << '\n';
  file.close();
  if (!file || std::rename(aside.c_str(), path.c_str()) != 0) {
    std::remove(aside.c_str());
    throw Error(ML_BAD_ARGUMENT, path + " could not be written: is there such a folder, and room in it?");
  }
}

Saved read_saved(const std::string& path, const std::string& bundle) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ML_BAD_ARGUMENT, path + " could not be read: is there such a file?");
  try {
    const Json whole = Json::parse(file);
    if (whole.at("musiclm_stream") != kVersion) throw Error(ML_BAD_ARGUMENT, path + " was saved by another version of this library.");
    if (whole.at("bundle") != bundle) throw Error(ML_BAD_ARGUMENT, path + " was saved with another bundle: its tokens mean something else there.");
    Saved saved;
    saved.prompt = prompt_of(whole.at("prompt"));
    saved.options = whole.at("options").get<Options>();
    for (const Json& change : whole.at("changes")) saved.changes.push_back({change.at("run"), change.at("frame"), prompt_of(change.at("prompt"))});
    for (const Json& run : whole.at("runs")) saved.tokens.runs.emplace_back(run.at(0), run.at(1));
    saved.tokens.semantic = whole.at("semantic").get<std::vector<int64_t>>();
    saved.tokens.coarse = whole.at("coarse").get<std::vector<int64_t>>();
    saved.tokens.fine = whole.at("fine").get<std::vector<int64_t>>();
    return saved;
  } catch (const Json::exception& error) {
    throw Error(ML_BAD_ARGUMENT, path + " is not a file that ml_stream_save wrote: " + error.what());
  }
}

}  // namespace musiclm
