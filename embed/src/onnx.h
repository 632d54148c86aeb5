// ONNX Runtime through the C API of a library that is opened at run time: sessions, and tensors in and out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace musiclm {

struct OrtRunOptions;

struct Tensor {  // of float32 or int64: one of the two vectors is used
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int64_t> integers;
  bool is_float = true;

  static Tensor of(std::vector<int64_t> shape, std::vector<float> values);
  static Tensor of(std::vector<int64_t> shape, std::vector<int64_t> values);
};

using Tensors = std::map<std::string, Tensor>;

// Takes an output out of what a graph made. shape: what it must have, -1 for any size. Throws Error(ML_BAD_BUNDLE) if it is another, since
// the numbers are read by the manifest's sizes.
Tensor take(Tensors& outputs, const std::string& graph, const std::string& name, const std::vector<int64_t>& shape, bool is_float = true);

class OnnxRuntime;
class Session;

// Runs of a session that another thread can end: the one that is going on fails after the node that it is at, and so do all later ones.
class Runs {
 public:
  explicit Runs(const Session&);  // which must outlive it
  ~Runs();
  Tensors run(const Tensors& inputs) const;  // as Session::run
  void stop() noexcept;

 private:
  struct Options;
  const Session& session_;
  std::unique_ptr<Options> options_;
};

class Session {
 public:
  ~Session();
  // Every output by its name; several threads may call it. Throws Error(ML_FAILED), Error(ML_NO_MEMORY).
  Tensors run(const Tensors& inputs) const { return run_with(nullptr, inputs); }

 private:
  friend class OnnxRuntime;
  friend class Runs;
  Tensors run_with(const OrtRunOptions*, const Tensors& inputs) const;
  struct Handle;
  explicit Session(std::unique_ptr<Handle>);
  std::unique_ptr<Handle> handle_;
};

class OnnxRuntime : public std::enable_shared_from_this<OnnxRuntime> {
 public:
  // library: a path, or empty for the first that is found: MUSICLM_ONNXRUNTIME, beside this library, the system's, pip's. Its API must have
  // the version that this was written for or a later one. Throws Error(ML_NO_RUNTIME) that says where it looked. No telemetry:
  // ORT_DISABLE_TELEMETRY is set, unless the host has set it, while the environment is made.
  static std::shared_ptr<OnnxRuntime> open(const std::string& library);
  ~OnnxRuntime();

  // With the options of Python's runtime/backend.open_session on which bits depend. threads: 0 for as many as ONNX Runtime takes by
  // itself, one per physical core. in_chunks as there. A session keeps the runtime alive. Throws Error(ML_BAD_BUNDLE), Error(ML_NO_MEMORY).
  std::unique_ptr<Session> session(const std::filesystem::path& graph, int threads, bool in_chunks);
  const std::string& version() const { return version_; }

 private:
  OnnxRuntime() = default;
  struct Api;
  std::unique_ptr<Api> api_;
  std::string version_;
};

}  // namespace musiclm
