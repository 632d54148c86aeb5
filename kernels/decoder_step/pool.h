// A few threads that run one function together, with barriers in it. They spin for some microseconds where the next work is about to come
// and sleep after that; where there are more of them than processors, they sleep at once. One caller at a time, others wait their turn.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace decoder_step {

// A counter that threads wait on.
class Signal {
 public:
  void set_spin(int microseconds) { spin_us_ = microseconds; }
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void advance();
  void wait_beyond(uint32_t seen);

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  int spin_us_ = 0;
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  int threads() const { return threads_; }
  // task(context, thread) on every thread, the caller being thread 0; returns when all are through.
  void run(void (*task)(void*, int), void* context);
  // For use inside a task, by every thread: what one wrote before it, all see after it.
  void barrier();

 private:
  void work(int thread);

  const int threads_;
  std::mutex callers_;
  void (*task_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> ending_{false};
  std::atomic<int> arrived_{0};
  Signal start_, passed_;
  std::vector<std::thread> workers_;
};

}  // namespace decoder_step
