// A few threads that do a task together, phase by phase: what one phase wrote, all see in the next.
//
// A phase is a number of chunks, which the threads claim: first those of their own even share, in order, then what others have left. A phase
// ends when its chunks are done, not when its threads arrive: a thread that the system runs on late, or not at all, holds up the others by
// one chunk at most, and the caller alone gets through if it must. On a machine that does nothing else this costs as much as a barrier.
// Who waits spins for some microseconds, since the next work is about to come, then sleeps; where there are more threads than processors
// they sleep at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace decoder_step {

// Which of some items are a thread's: even shares, in order.
struct Share {
  int first, last;
  Share(int items, int thread, int threads)
      : first(static_cast<int>(static_cast<int64_t>(items) * thread / threads)),
        last(static_cast<int>(static_cast<int64_t>(items) * (thread + 1) / threads)) {}
};

void relax();  // of the processor, within a spin

// Threads wait until something is so, which others make so and then notify. What is waited for is atomic and sequentially consistent.
class Signal {
 public:
  explicit Signal(int spin_microseconds) : spin_us_(spin_microseconds) {}
  void notify();
  template <class Ready>
  void wait(Ready ready) {
    if (spins(ready)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, ready);
    sleepers_.fetch_sub(1);
  }

 private:
  template <class Ready>
  bool spins(Ready& ready) {
    for (int64_t until = 0; spin_us_ > 0;) {
      for (int look = 0; look < 64; look++) {
        if (ready()) return true;
        relax();
      }
      const int64_t now = microseconds();
      if (until == 0) until = now + spin_us_;
      if (now > until) return false;
    }
    return ready();
  }
  static int64_t microseconds();

  const int spin_us_;
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class Worker;

class Pool {
 public:
  using Task = void (*)(void* context, Worker& worker);

  explicit Pool(int threads);
  ~Pool();
  int threads() const { return threads_; }
  void reserve(int phases);  // memory for tasks of so many, which `run` takes otherwise: std::bad_alloc
  // The task on every thread that is awake, the caller being thread 0; returns when it is done. One caller at a time, others wait their turn.
  void run(Task task, void* context, int phases);

 private:
  friend class Worker;
  struct alignas(64) Counter {
    std::atomic<int> value{0};
  };
  Counter& claimed(int phase, int thread) { return counters_[static_cast<size_t>(phase) * (threads_ + 1) + thread]; }
  Counter& done(int phase) { return claimed(phase, threads_); }
  void grow(int phases);
  bool enter();
  void leave();
  void work(int thread);
  void end();

  const int threads_;
  std::mutex callers_;
  Task task_ = nullptr;
  void* context_ = nullptr;
  int phases_ = 0;
  std::unique_ptr<Counter[]> counters_;
  std::atomic<uint32_t> state_{0};  // bit 0: a task is open to be entered; the rest: how many are in it, beside the caller
  std::atomic<uint32_t> tasks_{0};
  std::atomic<bool> ending_{false};
  Signal start_, progress_;
  std::vector<std::thread> workers_;
};

// One thread's way through a task.
class Worker {
 public:
  Worker() = default;  // a caller that works alone
  Worker(Pool* pool, int thread_) : thread(thread_), pool_(pool) {}

  // One phase: f(chunk) for every chunk, by whoever claims it. All threads must ask for the same phases in the same order.
  template <class F>
  void each(int chunks, F&& f) {
    if (!pool_) {
      for (int chunk = 0; chunk < chunks; chunk++) f(chunk);
      return;
    }
    int mine = 0;
    for (int step = 0; step < pool_->threads_; step++) {
      const int owner = (thread + step) % pool_->threads_;
      const Share share(chunks, owner, pool_->threads_);
      std::atomic<int>& claimed = pool_->claimed(phase_, owner).value;
      for (int chunk; (chunk = share.first + claimed.fetch_add(1, std::memory_order_relaxed)) < share.last; mine++) f(chunk);
    }
    std::atomic<int>& done = pool_->done(phase_++).value;
    if (done.fetch_add(mine) + mine == chunks) pool_->progress_.notify();
    else pool_->progress_.wait([&] { return done.load() == chunks; });
  }

  const int thread = 0;

 private:
  Pool* pool_ = nullptr;
  int phase_ = 0;
};

}  // namespace decoder_step
