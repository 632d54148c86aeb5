#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "error.h"
#include "signals.h"

namespace musiclm {
namespace {

constexpr int64_t kPositionsAtOnce = 64;              // of a prompt, so that an end waits for one piece
constexpr double kTurn = 0.02;                        // seconds of one call of a batch at most, so that streams of one model take turns
constexpr double kLongest = 3600;                     // seconds of one wait, as clocks count no more than 292 years: who waits longer waits again
constexpr double kMostFrames = 4096;                  // of one call of a batch
constexpr double kKeptSeconds = 300;                  // of tokens behind the reader of a stream without end
constexpr auto kLook = std::chrono::milliseconds(5);  // how often it is looked whether an audio thread, which wakes nobody, has read

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

StageContexts contexts_of(Model& model, const Blend& prompt) { return model.encoder->contexts(model.encoder->latent(prompt)); }

Settings settings_of(const Model& model, const Options& options) { return stream_settings(options, model.bundle.manifest); }

size_t places(const Settings& settings, const Codec& codec) {  // of the ring: what may be made ahead, and a chunk more
  const double seconds = std::min(settings.ahead, settings.samples ? static_cast<double>(*settings.samples) / codec.sample_hz : 1e9);
  return static_cast<size_t>(std::ceil((seconds + 2.0) * settings.output_rate));
}

}  // namespace

Stream::Stream(std::shared_ptr<Model> model, const Blend& prompt, const Options& options)
    : Stream(std::move(model), Saved{options, prompt, {}, {}, 0}) {}

Stream::Stream(std::shared_ptr<Model> model, const Saved& saved)
    : model_(std::move(model)),
      options_(saved.options),
      settings_(settings_of(*model_, saved.options)),
      prompt_(saved.prompt),
      clip_(model_->bundle.manifest, planned(saved.options, settings_, model_->bundle.manifest), settings_.sampling, settings_.seed,
            contexts_of(*model_, saved.prompt), settings_.ends, saved.tokens),
      changes_(saved.changes),
      codec_(model_->bundle.manifest.codec, *model_->codec),
      resampler_(static_cast<uint32_t>(model_->bundle.manifest.codec.sample_hz), settings_.output_rate),
      ring_(places(settings_, model_->bundle.manifest.codec)),
      first_(std::llrint(saved.start * static_cast<double>(model_->bundle.manifest.codec.sample_hz))) {
  for (const Change& change : changes_) clip_.condition(change.run, change.frame, contexts_of(*model_, change.prompt));
  try {
    const SignalsBlocked in_the_worker;
    worker_ = std::thread(&Stream::work, this);
  } catch (const std::system_error&) {
    throw Error(ML_NO_MEMORY, "the system has no thread left for another stream.");
  }
}

Stream::~Stream() {
  cancel();
  if (worker_.joinable()) worker_.join();
}

size_t Stream::read(float* out, size_t frames, double timeout) {
  const double end = now() + timeout;
  size_t got = 0;
  while (true) {
    const bool all = made_all_.load(std::memory_order_acquire);  // before reading: what is made later is read in the next round
    got += ring_.read(out + got, frames - got);
    if (got == frames || all) return got;
    std::unique_lock<std::mutex> lock(mutex_);
    asked_.notify_one();
    if (made_all_ || ring_.size()) continue;
    const double left = timeout < 0 ? kLongest : std::min(end - now(), kLongest);
    if (left <= 0) return got;
    made_.wait_for(lock, std::chrono::duration<double>(left));
  }
}

size_t Stream::read_now(float* const* out, size_t channels, size_t frames) {
  if (!channels) return 0;
  const bool all = made_all_.load(std::memory_order_acquire);
  const size_t got = ring_.read(out[0], frames);
  std::fill(out[0] + got, out[0] + frames, 0.0f);
  for (size_t channel = 1; channel < channels; channel++) std::copy(out[0], out[0] + frames, out[channel]);
  if (got) sounds_.store(true, std::memory_order_relaxed);
  if (got < frames && !all && sounds_.load(std::memory_order_relaxed)) underruns_.fetch_add(1, std::memory_order_relaxed);
  return got;
}

void Stream::check() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

double Stream::set_prompt(const Blend& prompt) {
  StageContexts contexts = contexts_of(*model_, prompt);
  std::lock_guard<std::mutex> lock(clip_mutex_);
  if (made_all_) throw Error(ML_ENDED, "this stream has ended.");
  const int64_t heard = clip_.change(std::move(contexts));
  const auto [run, frame] = clip_.conditioned_from();
  if (!changes_.empty() && changes_.back().run == run && changes_.back().frame == frame) changes_.pop_back();  // nothing was made of it
  changes_.push_back({run, frame, prompt});
  const Codec& codec = model_->bundle.manifest.codec;
  return static_cast<double>(heard * codec.samples_per_frame) / static_cast<double>(codec.sample_hz);
}

void Stream::cancel() {
  cancelled_ = true;
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& batch : batches_)
    if (batch) ds_batch_interrupt(batch.get());
  codec_.stop();
  asked_.notify_one();
}

Saved Stream::save() {
  std::lock_guard<std::mutex> lock(clip_mutex_);
  if (clip_.begins_at())
    throw Error(ML_BAD_ARGUMENT, "the beginning of this stream is no longer kept, only the last 300 s: it cannot be gone on from.");
  return {options_, prompt_, changes_, clip_.tokens(), 0};
}

// --- the worker

void Stream::work() {
  try {
    while (!cancelled_ && !codec_done_) {
      if (!step()) wait();
    }
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!cancelled_) failure_ = std::current_exception();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  made_all_.store(true, std::memory_order_release);
  made_.notify_all();
  for (auto& batch : batches_) batch.reset();
}

bool Stream::step() {
  for (int stage = kStages - 1; stage >= 0; stage--)
    while (may_begin(stage)) begin(stage);
  if (can_decode()) {
    const double made = static_cast<double>(position_) / static_cast<double>(model_->bundle.manifest.codec.sample_hz);
    if (ring_.size() && made > taken_seconds() + settings_.ahead) return false;
    decode();
    return true;
  }
  for (int stage = kStages - 1; stage >= 0; stage--) {
    if (running_[stage].empty()) continue;
    advance(stage);
    return true;
  }
  for (int stage = 0; stage < kStages; stage++)
    if (clip_.ready(stage)) return false;  // once the reader has taken more
  throw Error(ML_BAD_BUNDLE, "this clip cannot go on: what its windows make does not fit together. Export the checkpoints again.");
}

double Stream::taken_seconds() const {
  return static_cast<double>(first_) / model_->bundle.manifest.codec.sample_hz + static_cast<double>(ring_.taken()) / settings_.output_rate;
}

bool Stream::may_begin(int stage) const {
  if (!clip_.ready(stage)) return false;
  const Codec& codec = model_->bundle.manifest.codec;
  const int64_t frame = clip_.needed_at_frame(stage) - codec.lookahead_frames - chunk_frames(codec) + 1;  // the last that sounds without it
  const double needed = static_cast<double>(frame * codec.samples_per_frame) / codec.sample_hz;
  if (needed < taken_seconds() + settings_.ahead) return true;
  const bool idle = std::all_of(running_.begin(), running_.end(), [](const auto& of_stage) { return of_stage.empty(); });
  return idle && !can_decode() && ring_.size() == 0;  // the reader has taken all there is, however little may be made ahead
}

void Stream::begin(int stage) {
  std::shared_ptr<Sequence> sequence;
  {
    std::lock_guard<std::mutex> lock(clip_mutex_);
    sequence = clip_.begin(stage);
    if (sequence->steps < 1) clip_.take(*sequence, {}, true);  // everything is known
  }
  if (sequence->steps < 1) return;
  if (!batches_[stage]) {
    std::unique_ptr<ds_batch, Freed> batch(ds_batch_create(model_->pool.get(), model_->transformers[stage]->model()));
    if (!batch) throw Error(ML_NO_MEMORY, "no memory for another stream.");
    std::lock_guard<std::mutex> lock(mutex_);
    batches_[stage] = std::move(batch);
  }
  std::vector<const float*> layers;
  const ds_sequence described = sequence->described(layers);
  char why[200] = "";
  std::lock_guard<std::mutex> turn(model_->turn);
  const int64_t id = ds_batch_join(batches_[stage].get(), &described, why, sizeof why);
  if (!id) throw Error(ML_FAILED, std::string("a window of the ") + kStageNames[stage] + " stage was refused: " + why);
  running_[stage].push_back({sequence, id});
}

void Stream::advance(int stage) {
  ds_batch* batch = batches_[stage].get();
  const int64_t waiting = ds_batch_waiting(batch);
  const int64_t frames = waiting ? 1 : static_cast<int64_t>(std::clamp(kTurn / frame_seconds_[stage], 1.0, kMostFrames));
  const double started = now();
  {
    std::lock_guard<std::mutex> turn(model_->turn);
    if (cancelled_) return;
    const int status = ds_batch_advance(batch, frames, kPositionsAtOnce);
    if (status == DS_NO_MEMORY) throw Error(ML_NO_MEMORY, "no memory left while music was made.");
    if (status != DS_OK)
      throw Error(ML_FAILED, std::string("a step of the ") + kStageNames[stage] + " stage failed with status " + std::to_string(status) + ".");
  }
  const double taken = now() - started;
  std::vector<Running> still;
  double most = 0;
  for (const Running& one : running_[stage]) {
    std::vector<int64_t> tokens(static_cast<size_t>(one.sequence->steps));
    int done = 0;
    tokens.resize(static_cast<size_t>(std::max<int64_t>(ds_batch_collect(batch, one.id, tokens.data(), one.sequence->steps, &done), 0)));
    most = std::max(most, static_cast<double>(tokens.size()) / static_cast<double>(one.sequence->rules.quantizers));
    {
      std::lock_guard<std::mutex> lock(clip_mutex_);
      clip_.take(*one.sequence, tokens, done != 0);
    }
    if (done) ds_batch_leave(batch, one.id);
    else still.push_back(one);
  }
  running_[stage] = std::move(still);
  if (!waiting && most > 0) frame_seconds_[stage] = taken / most;
}

bool Stream::can_decode() const {
  if (codec_done_) return false;
  return (clip_.frames(1) >= clip_.plan().lead() && clip_.frames(2) - decoded_ >= codec_.missing()) || clip_.done();
}

void Stream::decode() {
  const Codec& codec = model_->bundle.manifest.codec;
  const int64_t stop = std::min(decoded_ + codec_.missing(), clip_.frames(2));
  std::vector<float> wave = codec_.feed(clip_.codes(decoded_, stop));
  decoded_ = stop;
  if (clip_.done() && stop == clip_.frames(2)) {
    const std::vector<float> last = codec_.finish();
    wave.insert(wave.end(), last.begin(), last.end());
    codec_done_ = true;
  }
  const int64_t start = position_;
  position_ += static_cast<int64_t>(wave.size());
  const int64_t first = std::max(first_, start), end = settings_.samples ? std::min(*settings_.samples, position_) : position_;
  if (end > first) put(resampler_.feed({wave.begin() + (first - start), wave.begin() + (end - start)}));
  if (codec_done_) put(resampler_.finish());
  const auto kept = static_cast<int64_t>(kKeptSeconds * codec.sample_hz / codec.samples_per_frame);
  if (settings_.samples || decoded_ <= kept) return;
  std::lock_guard<std::mutex> lock(clip_mutex_);
  clip_.forget(decoded_ - kept);
}

void Stream::put(const std::vector<float>& samples) {
  for (size_t done = 0; done < samples.size() && !cancelled_;) {
    done += ring_.write(samples.data() + done, samples.size() - done);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      made_.notify_all();
    }
    if (done < samples.size()) wait();
  }
}

void Stream::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!cancelled_) asked_.wait_for(lock, kLook);
}

}  // namespace musiclm
