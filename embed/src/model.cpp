#include "model.h"

#include "container.h"
#include "error.h"
#include "signals.h"

namespace musiclm {
namespace {

constexpr size_t kLeastBytes = 4 << 20;  // as Python's pool: a step that reads fewer is run by its caller alone

}  // namespace

Model::Model(const std::string& path, const std::string& library, int threads)
    : bundle(Bundle::open(path)), runtime(OnnxRuntime::open(library)), pool(nullptr, ds_pool_free) {
  threads = threads ? threads : available_processors();
  {
    const SignalsBlocked in_its_threads;
    pool.reset(ds_pool_create(threads, kLeastBytes));
  }
  if (!pool) throw Error(ML_NO_MEMORY, "the system has no " + std::to_string(threads) + " threads left: ask for fewer.");
  for (int stage = 0; stage < kStages; stage++) transformers[stage] = std::make_unique<Transformer>(bundle, stage, pool.get());
  encoder = std::make_unique<Encoder>(bundle, runtime, threads);
  codec = runtime->session(bundle.path(bundle.manifest.codec.stream), threads, true);
}

}  // namespace musiclm
