// See pool.h. The end of a phase is one atomic addition and a look at it: about 0.3 microseconds when all are awake.
#include "pool.h"

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace decoder_step {

namespace {

// Between two calls a host in Python takes 100 to 200 microseconds; waking a sleeper takes about 50.
constexpr int kSpinMicroseconds = 150;

int spin_of(int threads) {
  const int processors = static_cast<int>(std::thread::hardware_concurrency());  // 0 where it is not known
  return processors > 0 && threads > processors ? 0 : kSpinMicroseconds;
}

}  // namespace

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t Signal::microseconds() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Signal::notify() {
  if (sleepers_.load() == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);  // a sleeper has either seen the change or is in its wait
  wake_.notify_all();
}

Pool::Pool(int threads) : threads_(threads), start_(spin_of(threads)), progress_(spin_of(threads)) {
  try {
    for (int thread = 1; thread < threads; thread++) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {
    end();
    throw;
  }
}

Pool::~Pool() { end(); }

void Pool::end() {
  ending_ = true;
  start_.notify();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::reserve(int phases) {
  std::lock_guard<std::mutex> one_at_a_time(callers_);
  grow(phases);
}

void Pool::grow(int phases) {
  if (phases <= phases_) return;
  counters_.reset(new Counter[static_cast<size_t>(phases) * (threads_ + 1)]);
  phases_ = phases;
}

void Pool::run(Task task, void* context, int phases) {
  std::lock_guard<std::mutex> one_at_a_time(callers_);
  grow(phases);
  const int counters = phases * (threads_ + 1);
  for (int i = 0; i < counters; i++) counters_[i].value.store(0, std::memory_order_relaxed);
  task_ = task;
  context_ = context;
  state_ = 1;
  tasks_++;
  start_.notify();
  Worker caller(this, 0);
  task(context, caller);
  state_.fetch_and(~1u);
  progress_.wait([&] { return state_.load() == 0; });
}

// Whether there is a task to take part in; one that comes late finds none.
bool Pool::enter() {
  uint32_t state = state_.load();
  while (state & 1) {
    if (state_.compare_exchange_weak(state, state + 2)) return true;
  }
  return false;
}

void Pool::leave() {
  if (state_.fetch_sub(2) == 2) progress_.notify();
}

void Pool::work(int thread) {
  for (uint32_t seen = 0;;) {
    start_.wait([&] { return ending_.load() || tasks_.load() != seen; });
    if (ending_) return;
    seen = tasks_.load();
    if (!enter()) continue;
    Worker worker(this, thread);
    task_(context_, worker);
    leave();
  }
}

}  // namespace decoder_step
