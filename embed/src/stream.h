// One clip as it is made, by a thread of its own: windows begin when what they read is there, their tokens are sampled, the codec's chunks go into a
// ring. Always the latest stage that can run: what is heard first is made first. The tokens do not depend on the order.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "clip.h"
#include "model.h"
#include "resample.h"
#include "ring.h"
#include "settings.h"

namespace musiclm {

struct Change {  // a later prompt, and from which semantic window and frame on it holds
  int64_t run, frame;
  Blend prompt;
};

struct Saved {  // what a stream goes on from
  Options options;
  Blend prompt;
  std::vector<Change> changes;
  Tokens tokens;
  double start = 0;  // second of the clip with which the samples begin
};

class Stream {
 public:
  Stream(std::shared_ptr<Model>, const Blend& prompt, const Options&);
  Stream(std::shared_ptr<Model>, const Saved&);
  ~Stream();

  size_t read(float* out, size_t frames, double timeout);              // fewer than `frames`: nothing more is made, or it has not been made in time
  size_t read_now(float* const* out, size_t channels, size_t frames);  // for an audio thread
  double set_prompt(const Blend&);
  void cancel();
  Saved save();

  size_t buffered() const { return ring_.size(); }
  size_t latency() const { return resampler_.latency(); }
  uint64_t underruns() const { return underruns_.load(std::memory_order_relaxed); }
  void check();  // throws what making the clip failed with, if it did
  bool ended() const { return made_all_.load(std::memory_order_acquire) && ring_.size() == 0; }
  uint32_t rate() const { return settings_.output_rate; }

 private:
  struct Freed {
    void operator()(ds_batch* batch) const { ds_batch_free(batch); }
  };
  struct Running {
    std::shared_ptr<Sequence> sequence;
    int64_t id;
  };

  void work();
  bool step();  // false: there is nothing to do until the reader has taken something
  bool may_begin(int stage) const;
  void begin(int stage);
  void advance(int stage);
  bool can_decode() const;
  void decode();
  void put(const std::vector<float>&);
  void wait();
  double taken_seconds() const;

  std::shared_ptr<Model> model_;
  const Options options_;
  const Settings settings_;
  const Blend prompt_;
  std::mutex clip_mutex_;  // of `changes_`, and of what in `clip_` the worker changes or others do: never held while something is computed
  Clip clip_;
  std::vector<Change> changes_;
  CodecStream codec_;
  Resampler resampler_;
  Ring ring_;
  int64_t decoded_ = 0, position_ = 0, first_ = 0;  // frames that the codec has been given; samples of the clip so far; the first that is wanted
  bool codec_done_ = false;
  std::array<std::unique_ptr<ds_batch, Freed>, kStages> batches_;
  std::array<std::vector<Running>, kStages> running_;
  std::array<double, kStages> frame_seconds_{0.005, 0.005, 0.005};

  std::atomic<bool> cancelled_{false}, made_all_{false}, sounds_{false};
  std::atomic<uint64_t> underruns_{0};
  std::mutex mutex_;                      // of what follows
  std::condition_variable made_, asked_;  // for the reader; for the worker
  std::exception_ptr failure_;
  std::thread worker_;
};

Saved read_saved(const std::string& path, const std::string& bundle);  // bundle: the SHA-256 of its manifest. Throws Error(ML_BAD_ARGUMENT)
void write_saved(const Saved&, const std::string& bundle, const std::string& path);

}  // namespace musiclm
