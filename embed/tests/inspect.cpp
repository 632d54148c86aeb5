// Opens bundles as the library does, with the native models of their three stages, and reads a text with the tokenizer.
//
//   inspect BUNDLE   what each stage is, and how long it took
//   inspect -        folders from stdin, a line each; for each a line: "0" or a status, and its message with tabs for line ends
//
// Whatever is not an Error or a lack of memory ends the program: tests/fuzz_bundle.py counts on it.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <new>
#include <string>

#include "bundle.h"
#include "error.h"
#include "tokenizer.h"
#include "weights.h"

using namespace musiclm;

namespace {

using Pool = std::unique_ptr<ds_pool, void (*)(ds_pool*)>;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

long peak_mb() {
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_maxrss / 1024;
}

void show(const char* path, ds_pool* pool) {
  const double begin = seconds();
  const Bundle bundle = Bundle::open(path);
  std::printf("%s: SHA-256 %.12s, %zu files checked in %.3f s\n", bundle.root.c_str(), bundle.sha256.c_str(), bundle.manifest.files.size(),
              seconds() - begin);
  for (int stage = 0; stage < kStages; stage++) {
    const double before = seconds();
    const Transformer transformer(bundle, stage, pool);
    const double took = seconds() - before;
    const Decoder& d = bundle.manifest.decoders[stage];
    std::printf("%s: dim %lld, depth %lld, heads %lld, vocabulary %lld, outputs %lld, streams %lld, %s, %s; %zu bytes a step, %s, %.3f s\n",
                kStageNames[stage], static_cast<long long>(d.dim), static_cast<long long>(d.depth), static_cast<long long>(d.heads),
                static_cast<long long>(d.vocabulary), static_cast<long long>(d.outputs()), static_cast<long long>(d.step.streams),
                d.conditioning.c_str(), d.step.precision.c_str(), ds_model_bytes(transformer.model()),
                ds_path_name(ds_model_path(transformer.model())), took);
  }
  std::printf("peak %ld MB\n", peak_mb());
}

std::string answer(const std::string& path, ds_pool* pool) {
  try {
    const Bundle bundle = Bundle::open(path);
    for (int stage = 0; stage < kStages; stage++) Transformer(bundle, stage, pool);
    const Mulan& mulan = bundle.manifest.mulan;
    open_tokenizer(bundle.path(mulan.tokenizer), mulan.tokenizer_from_file)->encode("Calm piano, 12/8!", INT64_MAX);
    return "0";
  } catch (const Error& error) {
    std::string text = std::to_string(error.status) + " " + error.what();
    std::replace(text.begin(), text.end(), '\n', '\t');
    return text;
  } catch (const std::bad_alloc&) {
    return std::to_string(ML_NO_MEMORY) + " not enough memory";
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s BUNDLE, or - for folders from stdin\n", arguments[0]);
    return 2;
  }
  const Pool pool(ds_pool_create(2, 4 << 20), ds_pool_free);
  if (std::string(arguments[1]) != "-") {
    try {
      show(arguments[1], pool.get());
    } catch (const Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
    return 0;
  }
  for (std::string path; std::getline(std::cin, path);) std::cout << answer(path, pool.get()) << std::endl;
  std::fprintf(stderr, "peak %ld MB\n", peak_mb());
  return 0;
}
