// See onnx.h. ONNX Runtime has one environment in a process, however often it is made: it is shared with a host that loaded the same
// library.
#include "onnx.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <new>

#include "error.h"
#include "ort_api.h"
#include "ort_library.h"
#include "signals.h"

namespace musiclm {

namespace fs = std::filesystem;

namespace {

// As Python's runtime/shortage.py knows a shortage of memory: ONNX Runtime has no code of its own for it.
bool is_shortage(std::string message) {
  std::transform(message.begin(), message.end(), message.begin(), [](unsigned char c) { return std::tolower(c); });
  const char* signs[] = {"bad_alloc",          "bad allocation",    "cannot allocate memory", "failed to allocate",
                         "unable to allocate", "not enough memory", "pthread_create failed",  "out of memory"};
  return std::any_of(std::begin(signs), std::end(signs), [&](const char* sign) { return message.find(sign) != std::string::npos; });
}

Error shortage(const std::string& what) {
  return Error(ML_NO_MEMORY, "memory ran out while " + what + ". Use fewer threads or shorter clips, or end what else takes memory.");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
  return "[" + text + "]";
}

void keep_quiet(void*, int, const char*, const char*, const char*, const char*) {}

// ONNX Runtime reports its use, since 1.32 by default, unless this variable forbids it. It is read when a process makes its first
// environment, and what it says is kept from then on: once that is made, the host's variables are again as they were. A value that the host
// has set stays.
class WithoutTelemetry {
 public:
  WithoutTelemetry() : one_at_a_time_(mutex()), set_(!std::getenv(kVariable)) {
    if (set_) setenv(kVariable, "1", 0);
  }
  ~WithoutTelemetry() {
    if (set_) unsetenv(kVariable);
  }

 private:
  static constexpr const char* kVariable = "ORT_DISABLE_TELEMETRY";
  static std::mutex& mutex() {
    static std::mutex only;
    return only;
  }

  std::lock_guard<std::mutex> one_at_a_time_;
  const bool set_;
};

// A graph's weights, mapped: of a file that is reached by a link.
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path) : size_(static_cast<size_t>(fs::file_size(path))) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
      data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      ::close(file);
    }
    if (data_ == MAP_FAILED) throw Error(ML_BAD_BUNDLE, path.string() + " cannot be read");
  }
  ~MappedFile() { munmap(data_, size_); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const size_t size_;
  void* data_ = MAP_FAILED;
};

// Whether a link leads out of the graph's folder, as in Hugging Face's cache. ONNX Runtime opens no data behind such a link.
bool leaves_folder(const fs::path& graph, const fs::path& data) {
  if (!fs::exists(data) || fs::file_size(data) == 0) return false;
  const fs::path folder = fs::canonical(graph.parent_path());
  for (const fs::path& file : {graph, data}) {
    const fs::path within = fs::canonical(file).lexically_relative(folder);
    if (within.empty() || *within.begin() == "..") return true;
  }
  return false;
}

}  // namespace

struct OnnxRuntime::Api {
  OrtTable table;
  Owned<OrtEnv> env;
  Owned<OrtMemoryInfo> memory;  // the CPU's
  OrtAllocator* allocator;      // of names; ONNX Runtime's own
};

struct Session::Handle {
  std::shared_ptr<OnnxRuntime> runtime;
  const OrtTable table;
  const OrtMemoryInfo* memory;
  std::string name;  // of the graph's file
  Owned<OrtSession> session;
  std::vector<std::string> outputs;

  Owned<OrtValue> wrap(const Tensor& tensor) const;
  Tensor copy(OrtValue* value) const;
};

Tensor Tensor::of(std::vector<int64_t> shape, std::vector<float> values) {
  Tensor tensor;
  tensor.shape = std::move(shape);
  tensor.floats = std::move(values);
  return tensor;
}

Tensor Tensor::of(std::vector<int64_t> shape, std::vector<int64_t> values) {
  Tensor tensor;
  tensor.shape = std::move(shape);
  tensor.integers = std::move(values);
  tensor.is_float = false;
  return tensor;
}

Tensor take(Tensors& outputs, const std::string& graph, const std::string& name, const std::vector<int64_t>& shape, bool is_float) {
  const auto found = outputs.find(name);
  const char* types[] = {"int64", "float32"};
  std::string fault;
  if (found == outputs.end()) {
    fault = "is not there";
  } else {
    const Tensor& tensor = found->second;
    const auto fits = [](int64_t expected, int64_t size) { return expected < 0 || expected == size; };
    if (tensor.is_float != is_float || !std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end(), fits)) {
      fault = "is " + std::string(types[tensor.is_float]) + " " + shape_text(tensor.shape);
    }
  }
  if (!fault.empty()) {
    const std::string expected = std::string(types[is_float]) + " " + shape_text(shape);
    throw Error(ML_BAD_BUNDLE, graph + ": the output " + name + " " + fault + ", expected " + expected + ": export the bundle again");
  }
  Tensor taken = std::move(found->second);
  outputs.erase(found);
  return taken;
}

std::shared_ptr<OnnxRuntime> OnnxRuntime::open(const std::string& library) {
  const OrtBase* base = open_ort_library(library);
  const OrtTable table(base->api(kOrtApiVersion));
  std::shared_ptr<OnnxRuntime> runtime(new OnnxRuntime);
  runtime->version_ = base->version();
  try {
    OrtEnv* env = nullptr;
    {
      WithoutTelemetry in_this_block;
      table.call(kCreateEnvWithCustomLogger, keep_quiet, nullptr, kOrtError, "musiclm", &env);
    }
    Owned<OrtEnv> owned = table.own(env, kReleaseEnv);
    OrtMemoryInfo* memory = nullptr;
    table.call(kCreateCpuMemoryInfo, kOrtArenaAllocator, kOrtMemTypeDefault, &memory);
    runtime->api_.reset(new Api{table, std::move(owned), table.own(memory, kReleaseMemoryInfo), nullptr});
    table.call(kGetAllocatorWithDefaultOptions, &runtime->api_->allocator);
  } catch (const Error& error) {
    if (is_shortage(error.what())) throw shortage("ONNX Runtime was started");
    throw Error(ML_NO_RUNTIME, "ONNX Runtime " + runtime->version_ + " does not start: " + error.what());
  }
  return runtime;
}

OnnxRuntime::~OnnxRuntime() = default;

std::unique_ptr<Session> OnnxRuntime::session(const fs::path& graph, int threads, bool in_chunks) {
  const OrtTable& table = api_->table;
  const SignalsBlocked in_its_threads;
  try {
    OrtSessionOptions* made = nullptr;
    table.call(kCreateSessionOptions, &made);
    const Owned<OrtSessionOptions> options = table.own(made, kReleaseSessionOptions);
    table.call(kSetSessionLogSeverityLevel, made, kOrtError);
    table.call(in_chunks ? kEnableMemPattern : kDisableMemPattern, made);
    // Between calls its threads wait: a graph runs once for a prompt or a chunk, and the processors are the steps' then.
    table.call(kAddSessionConfigEntry, made, "session.force_spinning_stop", "1");
    if (threads > 0) table.call(kSetIntraOpNumThreads, made, threads);

    OrtSession* session = nullptr;
    const fs::path data = graph.string() + ".data";
    if (leaves_folder(graph, data)) {
      const MappedFile file(data), model(graph);  // they must live until the session has copied what it needs
      const std::string name = data.filename().string();
      const char* const names[] = {name.c_str()};
      char* const contents[] = {static_cast<char*>(file.data())};
      const size_t sizes[] = {file.size()};
      table.call(kAddExternalInitializersFromFilesInMemory, made, names, contents, sizes, 1);
      table.call(kCreateSessionFromArray, api_->env.get(), model.data(), model.size(), made, &session);
    } else {
      table.call(kCreateSession, api_->env.get(), graph.c_str(), made, &session);
    }
    Owned<OrtSession> owned = table.own(session, kReleaseSession);
    std::unique_ptr<Session::Handle> handle(
        new Session::Handle{shared_from_this(), table, api_->memory.get(), graph.filename().string(), std::move(owned), {}});
    size_t outputs = 0;
    table.call(kSessionGetOutputCount, session, &outputs);
    for (size_t i = 0; i < outputs; i++) {
      char* name = nullptr;
      table.call(kSessionGetOutputName, session, i, api_->allocator, &name);
      handle->outputs.emplace_back(name);
      table.call(kAllocatorFree, api_->allocator, name);
    }
    return std::unique_ptr<Session>(new Session(std::move(handle)));
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {  // also of the file system
    if (is_shortage(error.what())) throw shortage(graph.filename().string() + " was opened");
    throw Error(ML_BAD_BUNDLE, graph.string() + ": ONNX Runtime refuses this graph: " + error.what());
  }
}

Session::Session(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}

Session::~Session() = default;

struct Runs::Options {
  const OrtTable table;
  Owned<OrtRunOptions> owned;
};

Runs::Runs(const Session& session) : session_(session) {
  const OrtTable& table = session.handle_->table;
  OrtRunOptions* made = nullptr;
  table.call(kCreateRunOptions, &made);
  Owned<OrtRunOptions> owned = table.own(made, kReleaseRunOptions);
  options_.reset(new Options{table, std::move(owned)});
}

Runs::~Runs() = default;

Tensors Runs::run(const Tensors& inputs) const { return session_.run_with(options_->owned.get(), inputs); }

void Runs::stop() noexcept {
  try {
    options_->table.call(kRunOptionsSetTerminate, options_->owned.get());
  } catch (const std::exception&) {  // then it ends by itself
  }
}

Tensors Session::run_with(const OrtRunOptions* options, const Tensors& inputs) const {
  const Handle& handle = *handle_;
  try {
    std::vector<const char*> given, wanted;
    std::vector<const OrtValue*> values;
    std::vector<Owned<OrtValue>> owned;
    for (const auto& [name, tensor] : inputs) {
      owned.push_back(handle.wrap(tensor));
      values.push_back(owned.back().get());
      given.push_back(name.c_str());
    }
    for (const std::string& name : handle.outputs) wanted.push_back(name.c_str());
    std::vector<OrtValue*> made(wanted.size(), nullptr);
    owned.reserve(owned.size() + made.size());  // what was made is owned at once
    handle.table.call(kRun, handle.session.get(), options, given.data(), values.data(), given.size(), wanted.data(), wanted.size(), made.data());
    for (OrtValue* value : made) owned.push_back(handle.table.own(value, kReleaseValue));
    Tensors outputs;
    for (size_t i = 0; i < made.size(); i++) outputs.emplace(handle.outputs[i], handle.copy(made[i]));
    return outputs;
  } catch (const Error& error) {
    if (is_shortage(error.what())) throw shortage(handle.name + " ran");
    throw Error(ML_FAILED, handle.name + " failed: " + error.what());
  }
}

// The memory stays the tensor's, and is only read.
Owned<OrtValue> Session::Handle::wrap(const Tensor& tensor) const {
  const void* data = tensor.is_float ? static_cast<const void*>(tensor.floats.data()) : tensor.integers.data();
  const size_t bytes = tensor.is_float ? tensor.floats.size() * sizeof(float) : tensor.integers.size() * sizeof(int64_t);
  OrtValue* value = nullptr;
  table.call(kCreateTensorWithDataAsOrtValue, memory, const_cast<void*>(data), bytes, tensor.shape.data(), tensor.shape.size(),
             tensor.is_float ? kOrtFloat : kOrtInt64, &value);
  return table.own(value, kReleaseValue);
}

Tensor Session::Handle::copy(OrtValue* value) const {
  OrtTypeAndShape* described = nullptr;
  table.call(kGetTensorTypeAndShape, value, &described);
  const Owned<OrtTypeAndShape> freed = table.own(described, kReleaseTensorTypeAndShapeInfo);
  int type = 0;
  size_t rank = 0;
  table.call(kGetTensorElementType, described, &type);
  table.call(kGetDimensionsCount, described, &rank);
  if (type != kOrtFloat && type != kOrtInt64) {
    throw Error(ML_FAILED, "an output has elements of ONNX's type " + std::to_string(type) + ", expected float32 or int64");
  }
  std::vector<int64_t> shape(rank);
  table.call(kGetDimensions, described, shape.data(), rank);
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  void* data = nullptr;
  table.call(kGetTensorMutableData, value, &data);
  if (type == kOrtFloat) {
    const auto* from = static_cast<const float*>(data);
    return Tensor::of(std::move(shape), std::vector<float>(from, from + count));
  }
  const auto* from = static_cast<const int64_t*>(data);
  return Tensor::of(std::move(shape), std::vector<int64_t>(from, from + count));
}

}  // namespace musiclm
