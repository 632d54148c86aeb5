// SHA-256 (FIPS 180-4), by the processor's own instructions where it has them: a bundle is hashed whenever it is opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace musiclm {

class Sha256 {
 public:
  // blocks: the compression function; the fastest one that this processor runs by default, a slower one for tests.
  using Blocks = void (*)(uint32_t* state, const uint8_t* data, size_t count);
  explicit Sha256(Blocks blocks = fastest());
  void update(const void* data, size_t bytes);
  std::string hex();  // of all that came; nothing may come after it

  static Blocks fastest();
  static Blocks portable();

 private:
  Blocks blocks_;
  uint32_t state_[8];
  uint8_t pending_[64];  // bytes that do not fill a block yet
  size_t waiting_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace musiclm
