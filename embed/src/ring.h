// Samples from the thread that makes them to the one that reads them, without locks: one writer, one reader, a power of two of places.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

namespace musiclm {

class Ring {
 public:
  explicit Ring(size_t least) {
    size_t places = 1;
    while (places < least) places *= 2;
    samples_.resize(places);
  }

  size_t size() const {  // for any thread: what was read is looked up first, since it never passes what is written later
    const size_t read = read_.load(std::memory_order_acquire);
    return written_.load(std::memory_order_acquire) - read;
  }
  size_t taken() const { return read_.load(std::memory_order_acquire); }  // since the beginning

  size_t write(const float* from, size_t count) {
    const size_t place = written_.load(std::memory_order_relaxed);
    count = std::min(count, samples_.size() - (place - read_.load(std::memory_order_acquire)));
    copy(place, count, [&](size_t at, size_t done, size_t part) { std::memcpy(&samples_[at], from + done, part * sizeof(float)); });
    written_.store(place + count, std::memory_order_release);
    return count;
  }

  size_t read(float* to, size_t count) {
    const size_t place = read_.load(std::memory_order_relaxed);
    count = std::min(count, written_.load(std::memory_order_acquire) - place);
    copy(place, count, [&](size_t at, size_t done, size_t part) { std::memcpy(to + done, &samples_[at], part * sizeof(float)); });
    read_.store(place + count, std::memory_order_release);
    return count;
  }

 private:
  template <typename Part>
  void copy(size_t place, size_t count, Part part) {
    const size_t at = place & (samples_.size() - 1), before_end = std::min(count, samples_.size() - at);
    if (before_end) part(at, 0, before_end);
    if (count > before_end) part(0, before_end, count - before_end);
  }

  std::vector<float> samples_;
  std::atomic<size_t> written_{0}, read_{0};
};

}  // namespace musiclm
