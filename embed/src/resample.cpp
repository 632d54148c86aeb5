#include "resample.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace musiclm {
namespace {

constexpr double kStop = 100.0;      // dB that the stop band is below the pass band
constexpr double kTransition = 0.1;  // of the lower rate's Nyquist frequency: the band in which the filter falls off, below it
const double kPi = std::acos(-1.0);

double bessel0(double x) {  // of the first kind, order 0: its power series
  double sum = 1, term = 1;
  for (int k = 1; term > sum * 1e-17; k++) sum += term *= (x / (2 * k)) * (x / (2 * k));
  return sum;
}

}  // namespace

Resampler::Resampler(uint32_t from, uint32_t to) {
  const uint32_t common = std::gcd(from, to);
  phases_ = to / common, step_ = from / common, half_ = 1;
  if (phases_ == step_) return;
  const double lowest = std::min(1.0, static_cast<double>(to) / from);  // Nyquist's frequency of the lower rate, over that of `from`
  const double width = kTransition * lowest, cut = lowest - width / 2;
  const double beta = 0.1102 * (kStop - 8.7);  // Kaiser 1974: the window's form, and below its length, for a stop band and a transition
  half_ = static_cast<int64_t>(std::ceil((kStop - 7.95) / (2.285 * kPi * width) / 2)) + 1;
  taps_.resize(phases_ * 2 * half_);
  for (int64_t phase = 0; phase < phases_; phase++) {
    for (int64_t tap = 0; tap < 2 * half_; tap++) {
      const double away = static_cast<double>(tap - half_ + 1) - static_cast<double>(phase) / phases_, place = away / half_;
      const double window = std::abs(place) < 1 ? bessel0(beta * std::sqrt(1 - place * place)) / bessel0(beta) : 0;
      const double angle = kPi * cut * away;
      taps_[phase * 2 * half_ + tap] = static_cast<float>(window * cut * (angle == 0 ? 1 : std::sin(angle) / angle));
    }
  }
  kept_.assign(half_ - 1, 0.0f);  // silence before the wave, so that the first new sample stands where the first old one does
}

std::vector<float> Resampler::feed(const std::vector<float>& wave) {
  if (phases_ == step_) return wave;
  kept_.insert(kept_.end(), wave.begin(), wave.end());
  given_ += wave.size();
  return ready(given_ * phases_);
}

std::vector<float> Resampler::finish() {
  if (phases_ == step_) return {};
  const uint64_t last = (given_ * phases_ + step_ - 1) / step_;  // as many as last as long
  kept_.insert(kept_.end(), 2 * half_, 0.0f);
  std::vector<float> made = ready((given_ + 2 * half_) * phases_);
  const uint64_t surplus = made_ > last ? made_ - last : 0;
  made.resize(made.size() - std::min<uint64_t>(surplus, made.size()));
  return made;
}

// known: one past the last old sample that is there, times phases_.
std::vector<float> Resampler::ready(uint64_t known) {
  std::vector<float> made;
  for (; (made_ * step_ / phases_ + half_) * phases_ < known; made_++) {
    const uint64_t place = made_ * step_;
    const float* taps = &taps_[place % phases_ * 2 * half_];
    const float* samples = &kept_[place / phases_ - first_];
    double sum = 0;
    for (int64_t tap = 0; tap < 2 * half_; tap++) sum += static_cast<double>(taps[tap]) * samples[tap];
    made.push_back(static_cast<float>(sum));
  }
  const uint64_t next = made_ * step_ / phases_;
  kept_.erase(kept_.begin(), kept_.begin() + static_cast<int64_t>(std::min<uint64_t>(next - first_, kept_.size())));
  first_ = next;
  return made;
}

}  // namespace musiclm
