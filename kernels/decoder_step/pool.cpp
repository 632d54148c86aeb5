// See pool.h. A barrier is one atomic addition and a wait for the last thread: about 0.3 microseconds when all are awake.
#include "pool.h"

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace decoder_step {

namespace {

// The sampling between two steps takes Python 100 to 200 microseconds; waking a sleeper takes about 50.
constexpr int kSpinMicroseconds = 150;
constexpr int kLooksBetweenClocks = 64;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Signal::advance() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);  // a sleeper has either seen the new value or is in its wait
  wake_.notify_all();
}

void Signal::wait_beyond(uint32_t seen) {
  using clock = std::chrono::steady_clock;
  if (spin_us_ > 0) {
    const auto until = clock::now() + std::chrono::microseconds(spin_us_);
    do {
      for (int look = 0; look < kLooksBetweenClocks; look++) {
        if (value() != seen) return;
        relax();
      }
    } while (clock::now() < until);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

Pool::Pool(int threads) : threads_(threads) {
  const int processors = static_cast<int>(std::thread::hardware_concurrency());  // 0 where it is not known
  const int spin = processors > 0 && threads > processors ? 0 : kSpinMicroseconds;
  start_.set_spin(spin);
  passed_.set_spin(spin);
  try {
    for (int thread = 1; thread < threads; thread++) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {
    ending_ = true;
    start_.advance();
    for (std::thread& worker : workers_) worker.join();
    throw;
  }
}

Pool::~Pool() {
  ending_ = true;
  start_.advance();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(void (*task)(void*, int), void* context) {
  std::lock_guard<std::mutex> one_at_a_time(callers_);
  task_ = task;
  context_ = context;
  start_.advance();
  task(context, 0);
  barrier();
}

void Pool::barrier() {
  if (threads_ == 1) return;
  const uint32_t seen = passed_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    passed_.advance();
  } else {
    passed_.wait_beyond(seen);
  }
}

void Pool::work(int thread) {
  for (uint32_t seen = 0;; seen++) {
    start_.wait_beyond(seen);
    if (ending_) return;
    task_(context_, thread);
    barrier();
  }
}

}  // namespace decoder_step
