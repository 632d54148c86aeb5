// The functions of ONNX Runtime's C API that onnx.cpp calls, by their places in its table, and how their failures and objects are handled.
//
// The API has no header here: its table only ever grows, so a place and a signature are all that a function needs. Both are those of
// onnxruntime_c_api.h, where the names below are without their k.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "error.h"

namespace musiclm {

struct OrtAllocator;
struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTypeAndShape;
struct OrtValue;

// Of a function that returns a status, NULL for success, and of one that frees an object.
template <typename... Parameters>
struct Call {
  int slot;
};
template <typename Object>
struct Release {
  int slot;
};

using OrtLog = void(void* param, int severity, const char* category, const char* id, const char* place, const char* message);

constexpr int kGetErrorMessage = 2;
constexpr Call<OrtLog*, void*, int, const char*, OrtEnv**> kCreateEnvWithCustomLogger{4};
constexpr Call<const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**> kCreateSession{7};
constexpr Call<const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**> kCreateSessionFromArray{8};
constexpr Call<OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t, const char* const*, size_t, OrtValue**> kRun{9};
constexpr Call<OrtSessionOptions**> kCreateSessionOptions{10};
constexpr Call<OrtSessionOptions*> kEnableMemPattern{16}, kDisableMemPattern{17};
constexpr Call<OrtSessionOptions*, int> kSetSessionLogSeverityLevel{22}, kSetIntraOpNumThreads{24};
constexpr Call<const OrtSession*, size_t*> kSessionGetOutputCount{31};
constexpr Call<const OrtSession*, size_t, OrtAllocator*, char**> kSessionGetOutputName{37};
constexpr Call<OrtRunOptions**> kCreateRunOptions{39};
constexpr Call<OrtRunOptions*> kRunOptionsSetTerminate{46};
constexpr Call<const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**> kCreateTensorWithDataAsOrtValue{49};
constexpr Call<OrtValue*, void**> kGetTensorMutableData{51};
constexpr Call<const OrtTypeAndShape*, int*> kGetTensorElementType{60};
constexpr Call<const OrtTypeAndShape*, size_t*> kGetDimensionsCount{61};
constexpr Call<const OrtTypeAndShape*, int64_t*, size_t> kGetDimensions{62};
constexpr Call<const OrtValue*, OrtTypeAndShape**> kGetTensorTypeAndShape{65};
constexpr Call<int, int, OrtMemoryInfo**> kCreateCpuMemoryInfo{69};
constexpr Call<OrtAllocator*, void*> kAllocatorFree{76};
constexpr Call<OrtAllocator**> kGetAllocatorWithDefaultOptions{78};
constexpr Release<OrtEnv> kReleaseEnv{92};
constexpr Release<OrtStatus> kReleaseStatus{93};
constexpr Release<OrtMemoryInfo> kReleaseMemoryInfo{94};
constexpr Release<OrtSession> kReleaseSession{95};
constexpr Release<OrtValue> kReleaseValue{96};
constexpr Release<OrtRunOptions> kReleaseRunOptions{97};
constexpr Release<OrtTypeAndShape> kReleaseTensorTypeAndShapeInfo{99};
constexpr Release<OrtSessionOptions> kReleaseSessionOptions{100};
constexpr Call<OrtSessionOptions*, const char*, const char*> kAddSessionConfigEntry{130};
constexpr Call<OrtSessionOptions*, const char* const*, char* const*, const size_t*, size_t> kAddExternalInitializersFromFilesInMemory{279};

constexpr int kOrtError = 3;                 // of severities
constexpr int kOrtFloat = 1, kOrtInt64 = 7;  // of elements
constexpr int kOrtArenaAllocator = 1, kOrtMemTypeDefault = 0;

template <typename Type>
struct Identity {
  using type = Type;
};
template <typename Type>
using Same = typename Identity<Type>::type;  // in a parameter list: arguments are converted to it, and do not decide what it is

template <typename Object>
struct Releaser {
  void (*release)(Object*);
  void operator()(Object* object) const { release(object); }
};

template <typename Object>
using Owned = std::unique_ptr<Object, Releaser<Object>>;

class OrtTable {
 public:
  explicit OrtTable(const void* const* functions) : functions_(functions) {}

  // Throws Error(ML_FAILED) with ONNX Runtime's words, which its callers put into a sentence.
  template <typename... Parameters>
  void call(Call<Parameters...> function, Same<Parameters>... arguments) const {
    OrtStatus* status = at<OrtStatus*(Parameters...)>(function.slot)(arguments...);
    if (!status) return;
    const Owned<OrtStatus> freed = own(status, kReleaseStatus);
    throw Error(ML_FAILED, at<const char*(const OrtStatus*)>(kGetErrorMessage)(status));
  }

  template <typename Object>
  Owned<Object> own(Object* object, Release<Object> function) const {
    return Owned<Object>(object, {at<void(Object*)>(function.slot)});
  }

 private:
  template <typename Function>
  Function* at(int slot) const {
    return reinterpret_cast<Function*>(const_cast<void*>(functions_[slot]));
  }

  const void* const* functions_;
};

}  // namespace musiclm
