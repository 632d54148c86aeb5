// Runs the graphs of a bundle that are no step of a transformer, and writes what they give: compare_graphs.py compares it with Python's.
//
// graphs BUNDLE LIBRARY THREADS FOLDER: prompts.txt in FOLDER has a prompt a line, its weights and texts divided by tabs; each is encoded
// in a thread of its own, all at once. clips.txt has a clip a line, as the numbers of frames that are fed one after the other;
// clip.<line>.codes has its codes. Output: raw float32, or prompt.<line>.error.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include "codec.h"
#include "encoder.h"
#include "error.h"

using namespace musiclm;

namespace {

template <typename Number>
void write(const std::string& path, const std::vector<Number>& numbers) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(numbers.data()), static_cast<std::streamsize>(numbers.size() * sizeof(Number)));
}

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

void encode(Encoder& encoder, const std::string& line, const std::string& to) {
  std::istringstream fields(line);
  Blend parts;
  for (std::string weight, text; std::getline(fields, weight, '\t') && std::getline(fields, text, '\t');) {
    parts.emplace_back(text, std::stof(weight));
  }
  try {
    const std::vector<float> latent = encoder.latent(parts);
    write(to + ".latent", latent);
    const StageContexts contexts = encoder.contexts(latent);
    for (int stage = 0; stage < kStages; stage++) {
      const Context& context = *contexts[stage];
      const std::string name = to + "." + kStageNames[stage];
      for (size_t layer = 0; layer < context.keys.size(); layer++) {
        write(name + ".context." + std::to_string(layer) + ".key", context.keys[layer]);
        write(name + ".context." + std::to_string(layer) + ".value", context.values[layer]);
      }
      if (context.prefix_positions) write(name + ".prefix", context.prefix);
      std::ofstream(name + ".sizes") << context.entries << ' ' << context.prefix_positions;
    }
  } catch (const Error& error) {
    std::ofstream(to + ".error") << error.status << ' ' << error.what();
  }
}

std::vector<float> decode(const Codec& codec, const Session& session, const std::string& feeds, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::istringstream counts(feeds);
  CodecStream stream(codec, session);
  std::vector<float> wave;
  const auto append = [&](const std::vector<float>& part) { wave.insert(wave.end(), part.begin(), part.end()); };
  for (int64_t frames; counts >> frames;) {
    std::vector<int64_t> codes(static_cast<size_t>(frames * codec.quantizers));
    file.read(reinterpret_cast<char*>(codes.data()), static_cast<std::streamsize>(codes.size() * sizeof(int64_t)));
    append(stream.feed(codes));
  }
  append(stream.finish());
  return wave;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "graphs BUNDLE LIBRARY THREADS FOLDER\n";
    return 2;
  }
  const std::string folder = std::string(arguments[4]) + "/";
  const int threads = std::stoi(arguments[3]);
  try {
    const Bundle bundle = Bundle::open(arguments[1]);
    std::shared_ptr<OnnxRuntime> runtime = OnnxRuntime::open(arguments[2]);
    std::cout << "ONNX Runtime " << runtime->version() << "\n";
    Encoder encoder(bundle, runtime, threads);
    const Codec& codec = bundle.manifest.codec;
    const std::unique_ptr<Session> session = runtime->session(bundle.path(codec.stream), threads, true);
    runtime.reset();  // the sessions keep it

    const std::vector<std::string> prompts = lines_of(folder + "prompts.txt"), clips = lines_of(folder + "clips.txt");
    std::vector<std::thread> running;
    for (size_t i = 0; i < prompts.size(); i++) {
      running.emplace_back([&, i] { encode(encoder, prompts[i], folder + "prompt." + std::to_string(i)); });
    }
    for (std::thread& thread : running) thread.join();
    for (size_t i = 0; i < clips.size(); i++) {
      const std::string clip = folder + "clip." + std::to_string(i);
      write(clip + ".wave", decode(codec, *session, clips[i], clip + ".codes"));
    }
  } catch (const Error& error) {
    std::cerr << error.status << " " << error.what() << "\n";
    return 1;
  }
  return 0;
}
