// From the bundle's rate to the host's, chunk by chunk: a low-pass filter, a Kaiser-windowed sinc, read at the places of the new samples.
// (Smith, "Digital Audio Resampling", ccrma.stanford.edu/~jos/resample.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace musiclm {

class Resampler {
 public:
  Resampler(uint32_t from, uint32_t to);  // in Hz, at least 1,000 each
  // The new samples that the wave so far decides, perhaps none. Where both rates are equal they are the old ones.
  std::vector<float> feed(const std::vector<float>& wave);
  std::vector<float> finish();  // the last ones: after the wave there is silence
  // New samples that are held back until more of the wave is there.
  size_t latency() const { return phases_ == 1 && step_ == 1 ? 0 : static_cast<size_t>((half_ * phases_ + step_ - 1) / step_); }

 private:
  std::vector<float> ready(uint64_t known);

  int64_t phases_, step_, half_;               // new sample n stands at old place n * step_ / phases_; half_: old samples on each side of a new one
  std::vector<float> taps_;                    // [phases_, 2 * half_]
  std::vector<float> kept_;                    // the end of the wave so far
  uint64_t first_ = 0, made_ = 0, given_ = 0;  // number of kept_'s first sample; new samples so far; old samples so far
};

}  // namespace musiclm
