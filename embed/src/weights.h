// The token transformers of a bundle as the native step takes them: weights mapped from the graphs' data.
#pragma once

#include <memory>

#include "bundle.h"
#include "decoder_step.h"

namespace musiclm {

class Transformer {  // one stage; shared by any number of batches
 public:
  Transformer(const Bundle&, int stage, ds_pool*);  // throws Error(ML_BAD_BUNDLE), Error(ML_NO_MEMORY)
  ~Transformer();
  Transformer(const Transformer&) = delete;
  const ds_model* model() const { return model_; }

 private:
  struct Mapped;
  std::unique_ptr<Mapped> mapped_;
  ds_model* model_ = nullptr;
};

}  // namespace musiclm
