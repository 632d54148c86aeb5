// The C interface: every call ends in a status, and what was thrown in a message of the thread that called.
#include <cfenv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "error.h"
#include "musiclm.h"
#include "stream.h"

using musiclm::Blend;
using musiclm::Error;

struct ml_options {
  musiclm::Options values;
};

struct ml_model {
  std::shared_ptr<musiclm::Model> shared;
};

struct ml_stream {
  std::shared_ptr<musiclm::Model> model;
  std::unique_ptr<musiclm::Stream> made;
};

namespace {

thread_local std::string last_error;

ml_status failed(ml_status status, const char* message) {
  try {
    last_error = message;
  } catch (...) {  // no memory for words
    last_error.clear();
  }
  return status;
}

// Samples would be others where the calling thread rounds otherwise, or takes small numbers for zero as audio programs do. Threads that are
// started meanwhile inherit this.
class UsualFloats {
 public:
  UsualFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~UsualFloats() { std::fesetenv(&before_); }
  UsualFloats(const UsualFloats&) = delete;
  UsualFloats& operator=(const UsualFloats&) = delete;

 private:
  std::fenv_t before_;
};

template <typename Call>
ml_status guarded(Call call) {
  const UsualFloats in_this_call;
  try {
    return call();
  } catch (const Error& error) {
    return failed(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return failed(ML_NO_MEMORY, "no memory left.");
  } catch (const std::exception& error) {
    return failed(ML_FAILED, error.what());
  } catch (...) {
    return failed(ML_FAILED, "something that is no error was thrown.");
  }
}

template <typename T>
const T& given(const T* pointer, const char* name) {
  if (!pointer) throw Error(ML_BAD_ARGUMENT, std::string(name) + " must not be NULL.");
  return *pointer;
}

template <typename T>
T& given(T* pointer, const char* name) {
  return const_cast<T&>(given(static_cast<const T*>(pointer), name));
}

const musiclm::Options& values_of(const ml_options* options) {
  static const musiclm::Options kNone;
  return options ? options->values : kNone;
}

Blend blend_of(const ml_part* parts, size_t count) {
  given(parts, "parts");
  if (!count) throw Error(ML_BAD_ARGUMENT, "a prompt must have at least one part.");
  Blend blend;
  for (size_t i = 0; i < count; i++) blend.emplace_back(&given(parts[i].text, "a part's text"), parts[i].weight);
  return blend;
}

ml_status begun(const ml_model& model, std::unique_ptr<musiclm::Stream> made, ml_stream*& stream) {
  stream = new ml_stream{model.shared, std::move(made)};
  return ML_OK;
}

}  // namespace

extern "C" {

uint32_t ml_abi_version(void) { return ML_ABI_VERSION; }
const char* ml_version(void) { return ML_VERSION; }
const char* ml_last_error(void) { return last_error.c_str(); }

const char* ml_status_name(ml_status status) {
  static const char* const kNames[] = {"ok", "bad argument", "bad bundle", "no ONNX Runtime", "no memory", "ended", "timeout", "failed"};
  return static_cast<size_t>(status) < sizeof kNames / sizeof *kNames ? kNames[status] : "unknown status";
}

ml_options* ml_options_new(void) { return new (std::nothrow) ml_options; }
void ml_options_free(ml_options* options) { delete options; }

ml_status ml_options_set(ml_options* options, const char* name, const char* value) {
  return guarded([&] {
    const std::string key = &given(name, "name");
    if (!musiclm::is_option(key)) {
      throw Error(ML_BAD_ARGUMENT, "there is no option \"" + key + "\": ml_model_option and ml_stream_option list those that there are.");
    }
    given(options, "options").values[key] = &given(value, "value");
    return ML_OK;
  });
}

ml_status ml_model_open(const char* bundle, const ml_options* options, ml_model** model) {
  return guarded([&] {
    const musiclm::ModelSettings settings = musiclm::model_settings(values_of(options));
    ml_model*& opened = given(model, "model");
    opened = new ml_model{std::make_shared<musiclm::Model>(&given(bundle, "bundle"), settings.onnxruntime, settings.threads)};
    return ML_OK;
  });
}

void ml_model_free(ml_model* model) { delete model; }

ml_status ml_model_info(const ml_model* model, ml_info* info) {
  return guarded([&] {
    const musiclm::Manifest& manifest = given(model, "model").shared->bundle.manifest;
    const musiclm::Codec& codec = manifest.codec;
    const double frame = static_cast<double>(codec.samples_per_frame) / static_cast<double>(codec.sample_hz);
    given(info, "info") = {static_cast<uint32_t>(codec.sample_hz), static_cast<uint32_t>(manifest.mulan.dim_latent),
                           static_cast<double>(musiclm::default_frames(manifest)) * frame,
                           static_cast<double>(std::max(musiclm::chunk_frames(codec), musiclm::first_chunk_frames(codec))) * frame};
    return ML_OK;
  });
}

ml_status ml_embed_text(ml_model* model, const char* text, float* latent) {
  return guarded([&] {
    given(latent, "latent");
    const std::vector<float> made = given(model, "model").shared->encoder->latent({{&given(text, "text"), 1.0f}});
    std::copy(made.begin(), made.end(), latent);
    return ML_OK;
  });
}

ml_status ml_stream_start(ml_model* model, const ml_part* parts, size_t count, const ml_options* options, ml_stream** stream) {
  return guarded([&] {
    ml_model& opened = given(model, "model");
    return begun(opened, std::make_unique<musiclm::Stream>(opened.shared, blend_of(parts, count), values_of(options)), given(stream, "stream"));
  });
}

void ml_stream_free(ml_stream* stream) { delete stream; }

ml_status ml_stream_read(ml_stream* stream, float* out, size_t frames, double timeout, size_t* got) {
  return guarded([&] {
    musiclm::Stream& made = *given(stream, "stream").made;
    given(out, "out"), given(got, "got");
    if (!frames) throw Error(ML_BAD_ARGUMENT, "frames must be at least 1.");
    if (std::isnan(timeout)) throw Error(ML_BAD_ARGUMENT, "timeout must be a number of seconds, got NaN.");
    *got = made.read(out, frames, timeout);
    if (*got == frames || (*got && made.ended())) return ML_OK;
    if (!made.ended()) return failed(ML_TIMEOUT, "the music has not been made in time.");
    made.check();
    return failed(ML_ENDED, "this stream has ended.");
  });
}

size_t ml_stream_read_rt(ml_stream* stream, float* const* out, size_t channels, size_t frames) {
  return stream->made->read_now(out, channels, frames);
}

uint32_t ml_stream_rate(const ml_stream* stream) { return stream->made->rate(); }
size_t ml_stream_buffered(const ml_stream* stream) { return stream->made->buffered(); }
size_t ml_stream_latency(const ml_stream* stream) { return stream->made->latency(); }
uint64_t ml_stream_underruns(const ml_stream* stream) { return stream->made->underruns(); }
int ml_stream_ended(const ml_stream* stream) { return stream->made->ended(); }

ml_status ml_stream_set_prompt(ml_stream* stream, const ml_part* parts, size_t count, double* heard_from) {
  return guarded([&] {
    const double heard = given(stream, "stream").made->set_prompt(blend_of(parts, count));
    if (heard_from) *heard_from = heard;
    return ML_OK;
  });
}

void ml_stream_cancel(ml_stream* stream) {
  if (stream) stream->made->cancel();
}

ml_status ml_stream_save(ml_stream* stream, const char* path) {
  return guarded([&] {
    ml_stream& made = given(stream, "stream");
    musiclm::write_saved(made.made->save(), made.model->bundle.sha256, &given(path, "path"));
    return ML_OK;
  });
}

ml_status ml_stream_resume(ml_model* model, const char* path, double start_seconds, ml_stream** stream) {
  return guarded([&] {
    ml_model& opened = given(model, "model");
    musiclm::Saved saved = musiclm::read_saved(&given(path, "path"), opened.shared->bundle.sha256);
    if (!(start_seconds >= 0 && start_seconds < 1e9)) throw Error(ML_BAD_ARGUMENT, "start_seconds must be at least 0 and below 1e9.");
    saved.start = start_seconds;
    return begun(opened, std::make_unique<musiclm::Stream>(opened.shared, saved), given(stream, "stream"));
  });
}

ml_status ml_generate(ml_model* model, const ml_part* parts, size_t count, const ml_options* options, float** wave, size_t* frames) {
  return guarded([&] {
    given(wave, "wave"), given(frames, "frames");
    musiclm::Options values = values_of(options);
    if (values.count("seconds") && values["seconds"] == "endless")
      throw Error(ML_BAD_ARGUMENT, "ml_generate needs an end: set `seconds` to a number.");
    musiclm::Stream made(given(model, "model").shared, blend_of(parts, count), values);
    std::vector<float> whole, part(made.rate());
    while (const size_t got = made.read(part.data(), part.size(), -1))
      whole.insert(whole.end(), part.begin(), part.begin() + static_cast<int64_t>(got));
    made.check();
    auto* copy = static_cast<float*>(std::malloc(std::max<size_t>(whole.size(), 1) * sizeof(float)));
    if (!copy) throw std::bad_alloc();
    std::memcpy(copy, whole.data(), whole.size() * sizeof(float));
    *wave = copy, *frames = whole.size();
    return ML_OK;
  });
}

void ml_free(void* memory) { std::free(memory); }

}  // extern "C"
